"""Columns of Parquet files, with every kind of damage as one kind of error."""

import os
from collections.abc import Collection

from data_pipeline import untrusted

MOST_ROWS = 1 << 22  # BigEarthNet v2 has half a million

_AT_ONCE = 4096  # rows; a few bytes can stand for any number of equal ones
_MOST_TEXT = 1 << 12  # characters of a text


def read(path: str | os.PathLike, columns: Collection[str]) -> dict[str, list]:
    """Texts, truth values, and lists of them, in those of the columns that a table has.

    Returns:
        The values of each column, None where one is empty.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or holds anything else.
    """
    import pyarrow  # only now: it is large
    from pyarrow import parquet

    with untrusted.open_file(path) as opened:
        try:
            with parquet.ParquetFile(opened) as file:
                if file.metadata.num_rows > MOST_ROWS:
                    raise ValueError(f"it has {file.metadata.num_rows} rows")
                known = [name for name in columns if name in file.schema_arrow.names]
                table = {name: [] for name in known}
                for batch in file.iter_batches(_AT_ONCE, columns=known):
                    found = batch.to_pydict()
                    for name, values in table.items():
                        _check(name, found[name])
                        values.extend(found[name])
        except (pyarrow.ArrowException, KeyError, TypeError, OverflowError) as error:
            raise ValueError(str(error).rstrip(".")) from error
    return table


def _check(name: str, values: list) -> None:
    for value in values:
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, str | bool | None):
                raise ValueError(f"{name} is {part!r:.50}, which is no text")
            if isinstance(part, str) and len(part) > _MOST_TEXT:
                raise ValueError(f"{name} is a text of {len(part)} characters")
