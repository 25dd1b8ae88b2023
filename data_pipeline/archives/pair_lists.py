"""Lists of a user's own pairs: folders whose files pair by name, or a CSV."""

import ast
import csv
import io
import logging
import os
import re
from collections.abc import Sequence

from data_pipeline import atomic, offsets, safe_io, sensors
from data_pipeline.archives import rasters
from data_pipeline.archives.base import Skipped
from data_pipeline.dataset_card import SPLITS, split_name
from data_pipeline.errors import InputError

log = logging.getLogger("fusmae_jax")

# s1, s2 and mask are paths, labels class names between semicolons, the times ISO 8601.
COLUMNS = (
    *sensors.SENSORS,
    *("id", "split", "tile", "labels", "mask", "s2_offset"),
    *(f"acquired_{name}" for name in sensors.SENSORS),
)
_MASK_SUFFIXES = (".tif", ".tiff", ".png")
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
    """Images in s1/ and s2/ of one name, or all of the one there; and their masks."""
    folders = {name: os.path.join(root, name) for name in sensors.SENSORS}
    folders = {name: path for name, path in folders.items() if os.path.isdir(path)}
    if not folders:
        raise InputError(
            f"{root} has no folder s1 or s2; pass with --config.source a folder that "
            "has both or one of them, or a CSV."
        )
    files_of = {
        name: _by_name(path, tuple(rasters.DRIVERS), folders=True)
        for name, path in folders.items()
    }
    names = sorted(set().union(*files_of.values()))
    masks = _masks(os.path.join(root, "mask"), names)
    table, skipped = [], []
    for name in names:
        found = {sensor: paths.get(name, []) for sensor, paths in files_of.items()}
        if len(masks.get(name, ())) > 1:
            reason = f"{len(masks[name])} files in mask/ have this name"
            skipped.append(Skipped(dict.fromkeys(found, name), reason))
        elif all(len(paths) == 1 for paths in found.values()):
            row = {sensor: path for sensor, (path,) in found.items()} | {"id": name}
            row |= {"mask": mask for mask in masks.get(name, ())}
            table.append(dict.fromkeys(COLUMNS, "") | row)
        else:
            counts = " and ".join(f"{len(x)} in {s}/" for s, x in found.items())
            reason = f"{counts} have this name, where a pair has one file in each"
            present = {sensor: name for sensor, paths in found.items() if paths}
            skipped.append(Skipped(present, reason))
    return table, skipped


def _by_name(
    folder: str, suffixes: tuple[str, ...], *, folders: bool = False
) -> dict[str, list[str]]:
    """Paths of a folder's files that end so, by their names without ending.

    With `folders` those of folders too, each an image with a file for each band.
    """
    found = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if folders and entry.is_dir():
                name = entry.name.removesuffix(".SAFE")
                found.setdefault(name, []).append(entry.path)
            elif entry.name.lower().endswith(suffixes):
                found.setdefault(stem(entry.name), []).append(entry.path)
    return found


def _masks(folder: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Masks by name, none where there is no folder of them.

    Raises:
        InputError: all are called otherwise than the images.
    """
    found = _by_name(folder, _MASK_SUFFIXES) if os.path.isdir(folder) else {}
    alone = sorted(set(found) - set(names))
    if not alone:
        return found
    if len(alone) == len(found):
        raise InputError(
            f"None of the {len(found)} masks in {folder} has the name of an image, as "
            f"{alone[0]!r} has not; name each as the images of its pair, or pass a CSV "
            "with a column 'mask'."
        )
    log.warning(
        "%d of %d masks in %s have no image of their name, such as %s.",
        *(len(alone), len(found), folder, alone[0]),
    )
    return found


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
            f"them, and may have {', '.join(COLUMNS[2:])}, no others; the classes of a "
            "pair go into labels, and the path of an image of the classes of its "
            "pixels into mask."
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
        for name in ("mask", *sensors.SENSORS):  # an empty path stays empty
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
