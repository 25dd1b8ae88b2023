"""Lists of a user's own pairs: two folders whose files pair by name, or a CSV."""

import ast
import csv
import io
import os
import re
from collections.abc import Sequence

from data_pipeline import atomic, offsets, safe_io, sensors
from data_pipeline.archives import rasters
from data_pipeline.archives.base import Skipped
from data_pipeline.dataset_card import SPLITS, split_name
from data_pipeline.errors import InputError

# s1 and s2 are paths, labels class names between semicolons, the times ISO 8601.
COLUMNS = (
    *sensors.SENSORS,
    *("id", "split", "tile", "labels", "s2_offset"),
    *(f"acquired_{name}" for name in sensors.SENSORS),
)
_OTHER_SEPARATORS = (",", "|")


def present(rows: Sequence[dict]) -> tuple[str, ...]:
    """The sensors of which any row has an image, in their order."""
    return tuple(s for s in sensors.SENSORS if any(row[s] for row in rows))


def find_files(source: str) -> tuple[list[dict], list[Skipped]]:
    """The pairs of a folder or CSV, and the files without partner.

    Returns:
        For each pair the text of all `COLUMNS`, with paths that can be opened.

    Raises:
        InputError: the source is not there, has no pairs, or is no such CSV.
    """
    found, skipped = (_listed if source.lower().endswith(".csv") else _matched)(source)
    if not found:
        raise InputError(
            f"{source} has no pairs; it must be a folder with s1/ and s2/, whose "
            "images pair by name, or one of them, or a CSV with a row for each pair."
        )
    return found, skipped


def _matched(root: str) -> tuple[list[dict], list[Skipped]]:
    """Files of s1/ and s2/ that have the same name, or all files of the one there."""
    folders = {name: os.path.join(root, name) for name in sensors.SENSORS}
    folders = {name: path for name, path in folders.items() if os.path.isdir(path)}
    if not folders:
        raise InputError(
            f"{root} has no folder s1 or s2; pass with --config.source a folder that "
            "has both or one of them, or a CSV."
        )
    files_of = {name: {} for name in folders}
    for sensor, found in files_of.items():
        with os.scandir(folders[sensor]) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():  # with a file for each band
                    found.setdefault(entry.name, []).append(entry.path)
                elif os.path.splitext(entry.name)[1].lower() in rasters.DRIVERS:
                    found.setdefault(stem(entry.name), []).append(entry.path)
    table, skipped = [], []
    for name in sorted(set().union(*files_of.values())):
        found = {sensor: paths.get(name, []) for sensor, paths in files_of.items()}
        if all(len(paths) == 1 for paths in found.values()):
            row = {sensor: path for sensor, (path,) in found.items()} | {"id": name}
            table.append(dict.fromkeys(COLUMNS, "") | row)
        else:
            counts = " and ".join(f"{len(x)} in {s}/" for s, x in found.items())
            reason = f"{counts} have this name, where a pair has one file in each"
            present = {sensor: name for sensor, paths in found.items() if paths}
            skipped.append(Skipped(present, reason))
    return table, skipped


def _listed(path: str) -> tuple[list[dict], list[Skipped]]:
    """Rows of a CSV, with paths from its own folder."""
    try:
        file = safe_io.open_file(path)
        with io.TextIOWrapper(file, "utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header, given = reader.fieldnames or (), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV ({error}).") from None
    unknown = [name for name in header if name not in COLUMNS]
    if unknown or not set(sensors.SENSORS) & set(header):
        raise InputError(
            f"{path} has the columns {list(header)}; it needs s1 and s2, or one of "
            f"them, and may have {', '.join(COLUMNS[2:])}, no others."
        )
    table = []
    for number, values in enumerate(given, start=1):
        if None in values or None in values.values():
            raise InputError(
                f"Row {number} of {path} has another number of fields than the "
                f"{len(header)} of its header; correct it."
            )
        row = dict.fromkeys(COLUMNS, "")
        row |= {name: text.strip() for name, text in values.items()}
        row["split"] = split_name(row["split"])
        if not present([row]) or row["split"] not in ("", *SPLITS):
            raise InputError(
                f"Row {number} of {path} has s1={row['s1']!r}, s2={row['s2']!r} and "
                f"split={row['split']!r}; it needs a file, and a split among "
                f"{', '.join(SPLITS)} or none."
            )
        if row["s2_offset"] not in ("", *offsets.CHOICES):
            raise InputError(
                f"Row {number} of {path} has s2_offset={row['s2_offset']!r}; it must "
                f"be one of {', '.join(offsets.CHOICES)}, or empty."
            )
        for name in present([row]):
            row[name] = atomic.absolute(row[name], os.path.dirname(path))
        table.append(row | {"id": row["id"] or stem(row["s2"] or row["s1"])})
    return table, []


def stem(path: str) -> str:
    """Name of a file without folder and ending."""
    return os.path.splitext(os.path.basename(path))[0]


def class_names(text: str, known: Sequence[str] = ()) -> list[str]:
    """Class names in a field of the CSV.

    Args:
        text: names between semicolons, or a list as Python and JSON write it; names of
            `known` classes may stand between commas too.
        known: the classes, where they were given.

    Raises:
        InputError: names may be separated otherwise, and that cannot be told.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return _written_list(text)
    names = [name.strip() for name in text.split(";") if name.strip()]
    if len(names) != 1 or names[0] in known:
        return names
    for separator in _OTHER_SEPARATORS:
        if separator not in text:
            continue
        parts = [part.strip() for part in text.split(separator) if part.strip()]
        if known and set(parts) <= set(known):
            return parts
        if not known:
            raise InputError(
                f"The labels {text!r} may be one class or {len(parts)}; separate the "
                "names of classes by ';', or name all with --config.read.classes."
            )
    return names


def _written_list(text: str) -> list[str]:
    """The names in a list as Python, JSON or NumPy writes it."""
    try:
        # NumPy writes no commas, and Python would join such texts to one.
        spaced = re.sub(r"(?<=['\"])\s+(?=['\"])", ", ", text)
        names = ast.literal_eval(spaced)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str | int) for n in names):
        raise InputError(
            f"The labels {text!r:.200} are no list of names; separate the names of "
            "classes by ';'."
        )
    return [str(name).strip() for name in names if str(name).strip()]


def in_order(names: set[str]) -> tuple[str, ...]:
    """Class names by number where all are numbers, else by alphabet."""
    if all(re.fullmatch(r"\d{1,18}", name, re.ASCII) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
