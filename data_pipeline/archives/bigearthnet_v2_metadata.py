"""The metadata of BigEarthNet v2: a table with a row for each pair of patches."""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from data_pipeline import parquet
from data_pipeline.description import SPLITS
from data_pipeline.errors import InputError

METADATA = "metadata.parquet"
FLAGGED = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"

_KINDS = {  # of columns that are no texts
    "labels": list,
    "contains_seasonal_snow": bool,
    "contains_cloud_or_shadow": bool,
}
_NAME = re.compile(
    r"S2[AB]_MSIL2A_\d{8}T\d{6}_N\d{4}_R\d{3}_T(\d{2}[A-Z]{3})_\d+_\d+"
)


class Row(NamedTuple):
    """A row of the table; the fields are its columns, and "" where one is empty."""

    patch_id: str
    labels: list[str]
    split: str
    s1_name: str
    s2v1_name: str
    contains_seasonal_snow: bool
    contains_cloud_or_shadow: bool

    @property
    def tile(self) -> str:
        """The MGRS tile in the name of the patch, or "" where there is none."""
        named = _NAME.fullmatch(self.patch_id)
        return named[1] if named else ""

    @property
    def fault(self) -> str:
        """Why the row can make no pair, or "" when it can."""
        if not self.tile:
            return "it is not named like a Sentinel-2 patch of BigEarthNet v2"
        if self.split not in SPLITS:
            return f"its split {self.split!r} is none of {', '.join(SPLITS)}"
        return ""

    @property
    def flag(self) -> str:
        """The column that warns of snow or clouds, or ""."""
        if self.contains_seasonal_snow:
            return "flagged contains_seasonal_snow"
        if self.contains_cloud_or_shadow:
            return "flagged contains_cloud_or_shadow"
        return ""


def find(root: str) -> str:
    """Path of the table in the folder `root` or in the one around it.

    Raises:
        InputError: neither has it.
    """
    folders = (root, os.path.dirname(os.path.abspath(root)))
    for folder in folders:
        if os.path.isfile(os.path.join(folder, METADATA)):
            return os.path.join(folder, METADATA)
    raise InputError(
        f"There is no {METADATA} in {' or '.join(folders)}; put it there, or pass its "
        "path with --config.read.metadata."
    )


def rows(path: str) -> Iterator[tuple[str, Row]]:
    """Rows of the table and of the one on flagged patches, where that lies beside.

    Returns:
        Each row with the name of the file it is in.

    Raises:
        InputError: a file is missing or damaged, or another table.
    """
    paths = dict.fromkeys([path, os.path.join(os.path.dirname(path), FLAGGED)])
    for path in paths:
        if os.path.basename(path) != FLAGGED or os.path.exists(path):
            for row in _read(path):
                yield os.path.basename(path), row


def _read(path: str) -> Iterator[Row]:
    try:
        table = parquet.read(path, Row._fields)
        missing = sorted(set(Row._fields) - set(table))
        if missing:
            raise InputError(
                f"{path} has no columns {missing}; it must be the metadata of "
                "BigEarthNet v2."
            )
        for values in zip(*(table[column] for column in Row._fields)):
            row = Row(*("" if value is None else value for value in values))
            _check(row)
            yield row
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({str(error).rstrip('.')}); download it again."
        ) from None


def _check(row: Row) -> None:
    """Raises a ValueError where a value is of another kind than its column."""
    for name, value in row._asdict().items():
        if value != "" and not isinstance(value, _KINDS.get(name, str)):
            raise ValueError(f"{name} is {value!r:.50}")
    if not all(isinstance(label, str) for label in row.labels):
        raise ValueError(f"labels are {row.labels!r:.50}")
