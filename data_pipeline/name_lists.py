"""Lists of names: who is in which split, and who is left out.

A list is a .csv, .txt or .parquet file. Its header tells the columns; without one, a
line is the name of a Sentinel-2 image and perhaps, after a comma, of its partner.
The columns are those of BigEarthNet's own lists.
"""

import csv
import io
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from data_pipeline import ground, safe_io
from data_pipeline.dataset_card import SPLITS, split_name
from data_pipeline.errors import InputError

FILES = dict(zip(SPLITS, ("train.csv", "val.csv", "test.csv")))  # in a folder of lists

_WORDS = {word: split_name(word) for word in (*SPLITS, "val", "valid")}
_NAMES = ("s2_name", "s2v1_name", "patch_id")  # of images that name pairs
_PARTNERS = {"s1": "s1_name"}  # of their partners, by sensor
_COLUMNS = (*_NAMES, *_PARTNERS.values(), "split")


class Listed(NamedTuple):
    """What a list says of a pair.

    Attributes:
        split: one of SPLITS.
        partners: the other images, {sensor: name}, as far as the list tells.
        file: the list's name.
    """

    split: str
    partners: Mapping[str, str]
    file: str

    def agrees(self, images: Mapping[str, str]) -> bool:
        """Whether the row can mean these images, of which some may be unknown."""
        return all(images.get(k, "") in ("", v) for k, v in self.partners.items())


def files(splits: str, exclude: Sequence[str]) -> list[pathlib.Path]:
    """The files that `config.splits` and `config.exclude` stand for."""
    return [*_lists(splits), *(_entry(entry)[0] for entry in exclude)]


def listed(path: str, known: Collection[str]) -> dict[str, Listed]:
    """Reads the lists of `config.splits`.

    Args:
        path: a folder with the files of FILES, or a table with a column `split`.
        known: names of pairs in the archive; of several columns of names that is read
            which has most of them.

    Returns:
        What the lists say, by name of the pair.

    Raises:
        InputError: a list is missing, cannot be read, or contradicts another.
    """
    rows = {}
    for file, split in _lists(path).items():
        table = _table(file)
        columns = [table[name] for name in _NAMES if name in table]
        words = [split] * len(columns[0]) if split else table.get("split")
        if words is None:
            raise InputError(f"{file} has no column split; add it, or pass a folder.")
        names = max(columns, key=lambda column: sum(name in known for name in column))
        for i, (name, word) in enumerate(zip(names, words, strict=True)):
            if not name or not word:
                continue
            if word not in _WORDS:
                raise InputError(
                    f"{file} puts {name} in the split {word!r}; the splits are "
                    f"{', '.join(SPLITS)}."
                )
            if name in rows:
                raise InputError(
                    f"{name} is listed in {rows[name].file} and again in {file.name}; "
                    f"keep it in one place of {path}."
                )
            partners = {k: table[c][i] for k, c in _PARTNERS.items() if c in table}
            partners = {sensor: other for sensor, other in partners.items() if other}
            rows[name] = Listed(_WORDS[word], partners, file.name)
    return rows


def excluded(entries: Sequence[str]) -> dict[str, str]:
    """Reads the files of `config.exclude`.

    Args:
        entries: "FILE", or "FILE:SPLIT" for the names which that file has in a split,
            and for the ground that these show: a split is left out so that none of it
            is trained on, at whatever time.

    Returns:
        Names of images of either sensor, and cells of `ground.cell`, each with the
        entry that names it.

    Raises:
        InputError: a file cannot be read, or has no such split.
    """
    left_out = {}
    for entry in entries:
        file, split = _entry(entry)
        table = _table(file)
        count = len(next(iter(table.values())))
        words = [_WORDS.get(word) for word in table.get("split", [""] * count)]
        if split and split not in words:
            raise InputError(f"{file} has no split {split}; correct config.exclude.")
        for column in (*_NAMES, *_PARTNERS.values()):
            for name, word in zip(table.get(column, ()), words):
                if name and (not split or word == split):
                    left_out.setdefault(name, entry)
                    if split and (cell := ground.cell(name)):
                        left_out.setdefault(cell, entry)
    return left_out


def _lists(path: str) -> dict[pathlib.Path, str]:
    """The files of `config.splits`, each with the split it stands for or ""."""
    if not path:
        return {}
    root = pathlib.Path(path)
    if root.is_dir():
        return {root / file: split for split, file in FILES.items()}
    return {root: ""}


def _entry(entry: str) -> tuple[pathlib.Path, str]:
    """File and split of an entry of `config.exclude`, "FILE" or "FILE:SPLIT"."""
    path, _, word = entry.rpartition(":")
    if path and word in _WORDS:
        return pathlib.Path(path), _WORDS[word]
    return pathlib.Path(entry), ""


def _table(path: pathlib.Path) -> dict[str, list[str]]:
    """The columns of a table that matter here, one of them with names."""
    read = _read_parquet if path.suffix == ".parquet" else _read_csv
    try:
        table = read(path)
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); mend it.") from None
    if not set(table) & set(_NAMES):
        raise InputError(
            f"{path} has no column of names, such as {', '.join(_NAMES)}; rename one."
        )
    return table


def _read_csv(path: pathlib.Path) -> dict[str, list[str]]:
    with io.TextIOWrapper(safe_io.open_file(path), "utf-8-sig", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    columns = (_NAMES[0], *_PARTNERS.values())
    if rows and set(rows[0]) & set(_COLUMNS):
        columns = rows.pop(0)
    return {
        column: [row[i] if i < len(row) else "" for row in rows]
        for i, column in enumerate(columns)
        if column in _COLUMNS
    }


def _read_parquet(path: pathlib.Path) -> dict[str, list[str]]:
    table = safe_io.read_parquet(path, _COLUMNS)
    return {name: [str(v or "") for v in column] for name, column in table.items()}
