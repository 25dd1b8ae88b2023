"""Lists of a user's own pairs: files of a folder that pair by name, or a CSV."""

import ast
import csv
import io
import itertools
import logging
import os
import re
import types
from collections.abc import Mapping, Sequence

from data_pipeline import atomic, offsets, safe_io, sensors
from data_pipeline.archives import file_patterns
from data_pipeline.archives.base import Skipped
from data_pipeline.archives.file_patterns import File, Images
from data_pipeline.dataset_card import SPLITS, split_name
from data_pipeline.errors import InputError

log = logging.getLogger("fusmae_jax")

# s1, s2 and mask are paths, labels class names between semicolons, the times ISO 8601.
COLUMNS = (
    *sensors.SENSORS,
    *("id", "split", "tile", "labels", "mask", "s2_offset"),
    *(f"acquired_{name}" for name in sensors.SENSORS),
)
_OTHER_SEPARATORS = (",", "|")


def present(rows: Sequence[dict]) -> tuple[str, ...]:
    """The sensors of which any row has an image, in their order."""
    return tuple(s for s in sensors.SENSORS if any(row[s] for row in rows))


def find_files(
    source: str, patterns: Mapping[str, str] = types.MappingProxyType({})
) -> tuple[list[dict], list[Skipped]]:
    """The pairs of a folder or CSV, and the files without partner.

    Args:
        source: the folder, or the CSV.
        patterns: of the paths below the folder, see `file_patterns`, of each sensor
            that is there and perhaps the "mask"; of none, s1/, s2/ and mask/ have them.

    Returns:
        For each pair the text of all `COLUMNS`, with paths that can be opened.

    Raises:
        InputError: the source is not there, has no pairs, or is no such CSV; or a
            pattern does not fit it.
    """
    if source.lower().endswith(".csv"):
        if patterns:
            raise InputError(
                f"read.{next(iter(patterns))}_files is a pattern of files below a "
                f"folder, and {source} is a CSV, which lists them; drop one of both."
            )
        found, skipped = _listed(source)
    elif patterns:
        found, skipped = _matched(file_patterns.find(source, patterns))
    else:
        found, skipped = _matched(_named(source))
    if not found and patterns:
        raise InputError(
            f"{source} has no pairs by its patterns of files; correct them, as of "
            f"{next(filter(None, skipped[0].names))!r} {skipped[0].reason}."
        )
    if not found:
        raise InputError(
            f"{source} has no pairs; it must be a folder with s1/ and s2/, whose "
            "images pair by name, or one of them, or a CSV with a row for each pair."
        )
    return found, skipped


def _named(root: str) -> dict[str, Images]:
    """Images in s1/ and s2/, or in the one that is there, and masks in mask/."""
    found = {}
    for name, endings in file_patterns.ENDINGS.items():
        folder = os.path.join(root, name)
        if not os.path.isdir(folder):
            continue
        files = []
        for entry in file_patterns.entries(folder):
            if file_patterns.is_image(entry, name):
                whole = not entry.name.lower().endswith(endings)  # a folder of bands
                key = entry.name.removesuffix(".SAFE") if whole else stem(entry.name)
                files.append(File(entry.path, {"id": key}))
        found[name] = Images(root, f"{name}/{{id}}.*", files)
    if not set(found) & set(sensors.SENSORS):
        raise InputError(
            f"{root} has no folder s1 or s2; pass as source=DIR a folder "
            "that has both or one of them, or a CSV, or say how files are called by "
            "read.s1_files=PATTERN and read.s2_files=PATTERN."
        )
    return found


def _matched(found: Mapping[str, Images]) -> tuple[list[dict], list[Skipped]]:
    """Pairs of images that are alike in all placeholders that the sensors share.

    The id of a pair is the values of all placeholders, in the order of Sentinel-2's
    pattern and then of Sentinel-1's, with underscores between.
    """
    images = {name: found[name] for name in sensors.SENSORS if name in found}
    ordered = [images[name].names for name in sensors.NAMED if name in images]
    names = list(dict.fromkeys(itertools.chain(*ordered)))
    shared = [n for n in names if all(n in kind.names for kind in images.values())]
    of_sensor = {sensor: _grouped(kind, shared) for sensor, kind in images.items()}
    masks, common = {}, []
    if "mask" in found:
        common = [name for name in names if name in found["mask"].names]
        masks = _grouped(found["mask"], common)
    alone, table, skipped = set(masks), [], []
    for key in sorted(set().union(*of_sensor.values())):
        files = {sensor: groups.get(key, []) for sensor, groups in of_sensor.items()}
        values = _values(files)
        mask = tuple(values.get(name, "") for name in common)
        files["mask"] = masks.get(mask, [])
        alone.discard(mask)
        if reason := _unpaired(files, values, found):
            there = [sensor for sensor in images if files[sensor]]
            skipped.append(Skipped(dict.fromkeys(there, "_".join(key)), reason))
            continue
        values = _values(files)
        row = {name: file.path for name, one in files.items() for file in one}
        row |= {"id": "_".join(values[name] for name in names)}
        row |= {"split": split_name(values.get("split", ""))}
        row |= {"tile": values.get("tile", "")}
        if "label" in values:  # a list, as the name may have any separator in it
            row |= {"labels": repr([values["label"]])}
        table.append(dict.fromkeys(COLUMNS, "") | row)
    if alone:
        _check_alone(found["mask"], [masks[mask][0].path for mask in sorted(alone)])
    return table, skipped


def _grouped(kind: Images, names: Sequence[str]) -> dict[tuple, list[File]]:
    """Images by their values of some placeholders."""
    groups = {}
    for file in kind.files:
        key = tuple(file.values[name] for name in names)
        groups.setdefault(key, []).append(file)
    return groups


def _values(files: Mapping[str, list[File]]) -> dict[str, str]:
    """What the paths of images say, the masks' behind."""
    values = {}
    for file in itertools.chain(*files.values()):
        values |= file.values
    return values


def _unpaired(files: Mapping, values: Mapping, found: Mapping[str, Images]) -> str:
    """Why files make no pair, "" where they do."""
    for name, alike in files.items():
        if len(alike) > 1:
            paths = file_patterns.some(file.path for file in alike)
            kind = "mask" if name == "mask" else f"{sensors.SENSORS[name].title} image"
            return f"{paths} stand for one pair, which has one {kind}"
    for name in sensors.SENSORS:
        if name in files and not files[name]:
            return f"its partner {found[name].path(values)} is missing"
    return ""


def _check_alone(masks: Images, alone: Sequence[str]) -> None:
    """Tells of masks that have no image.

    Raises:
        InputError: none has one.
    """
    if len(alone) == len(masks.files):
        raise InputError(
            f"None of the {len(alone)} masks {masks.path({})} has the name of an "
            f"image, as {alone[0]} has not; name each as the images of its pair, say "
            "by read.mask_files=PATTERN how they are called, or pass a CSV with a "
            "column 'mask'."
        )
    log.warning(
        "%d of %d masks have no image of their name, such as %s.",
        *(len(alone), len(masks.files), alone[0]),
    )


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
                "names of classes by ';', or name all in read.classes."
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
