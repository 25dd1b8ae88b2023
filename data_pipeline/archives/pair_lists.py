"""Lists of paired files: a folder with s1/ and s2/, or a CSV with a row a pair."""

import csv
import io
import os

from data_pipeline import files, untrusted
from data_pipeline.archive import Skipped
from data_pipeline.description import SPLITS
from data_pipeline.errors import InputError

# s1 and s2 are paths, labels class names between semicolons, the times ISO 8601.
COLUMNS = (
    *("s1", "s2", "id", "split", "tile", "labels"),
    *("acquired_s1", "acquired_s2"),
)
_SUFFIXES = (".tif", ".tiff")


def rows(source: str) -> tuple[list[dict], list[Skipped]]:
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
            "GeoTIFFs pair by name, or a CSV with a row for each pair."
        )
    return found, skipped


def _matched(root: str) -> tuple[list[dict], list[Skipped]]:
    """Files of s1/ and s2/ that have the same name."""
    sensors = {"s1": {}, "s2": {}}
    for sensor, found in sensors.items():
        folder = os.path.join(root, sensor)
        if not os.path.isdir(folder):
            raise InputError(
                f"{folder} is no folder; pass with --config.source a folder that has "
                "s1/ and s2/, or a CSV."
            )
        for file in sorted(os.listdir(folder)):
            if file.lower().endswith(_SUFFIXES):
                found.setdefault(stem(file), []).append(os.path.join(folder, file))
    table, skipped = [], []
    for name in sorted(sensors["s1"].keys() | sensors["s2"].keys()):
        s1, s2 = (sensors[sensor].get(name, []) for sensor in ("s1", "s2"))
        if len(s1) == len(s2) == 1:
            row = {"s1": s1[0], "s2": s2[0], "id": name}
            table.append(dict.fromkeys(COLUMNS, "") | row)
        else:
            reason = (
                f"{len(s1)} files in s1/ and {len(s2)} in s2/ have this name, where a "
                "pair has one in each"
            )
            skipped.append(Skipped(name if s2 else "", name if s1 else "", reason))
    return table, skipped


def _listed(path: str) -> tuple[list[dict], list[Skipped]]:
    """Rows of a CSV, with paths from its own folder."""
    try:
        file = untrusted.open_file(path)
        with io.TextIOWrapper(file, "utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header, given = reader.fieldnames or (), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV ({error}).") from None
    unknown = [name for name in header if name not in COLUMNS]
    if unknown or not {"s1", "s2"} <= set(header):
        raise InputError(
            f"{path} has the columns {list(header)}; it needs s1 and s2 and may have "
            f"{', '.join(COLUMNS[2:])}, no others."
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
        if not row["s1"] or not row["s2"] or row["split"] not in ("", *SPLITS):
            raise InputError(
                f"Row {number} of {path} has s1={row['s1']!r}, s2={row['s2']!r} and "
                f"split={row['split']!r}; it needs both files, and a split among "
                f"{', '.join(SPLITS)} or none."
            )
        for name in ("s1", "s2"):
            row[name] = files.absolute(row[name], os.path.dirname(path))
        table.append(row | {"id": row["id"] or stem(row["s2"])})
    return table, []


def stem(path: str) -> str:
    """Name of a file without folder and ending."""
    return os.path.splitext(os.path.basename(path))[0]


def names(text: str) -> list[str]:
    """Class names in a field of the CSV."""
    return [name.strip() for name in text.split(";") if name.strip()]
