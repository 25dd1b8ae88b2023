"""Files of strangers: nothing runs or hangs, and no memory is given on their word.

JSON, NumPy arrays and Parquet are parsed by their libraries, without pickle, behind
limits. How much is read goes by how large a file is and by what is wanted of it, never
by how large it says that its content is.
"""

import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Callable, Collection
from typing import BinaryIO

import numpy as np

MOST_JSON = 1 << 28  # bytes of a JSON file; a card has some thousand
MOST_ARRAYS = 1 << 30  # bytes of the arrays in a smaller .npz
MOST_ROWS = 1 << 22  # of a table; BigEarthNet v2 has half a million

_AT_ONCE = 1 << 20  # letters that are looked at
_ROWS_AT_ONCE = 4096  # a few bytes can stand for any number of equal ones
_MOST_TEXT = 1 << 12  # characters of a text in a table
_DEFLATE = 1032  # to 1: deflate compresses nothing better
_KINDS = "biufU"  # of arrays: numbers and texts, no Python objects
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half a character, as JSON spells it


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Opens a file for reading, which is not a device nor a pipe: those may never end.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file, or no file can have such a name.
    """
    file = open(path, "rb", opener=_without_waiting)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is a device or a pipe, not a file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # else a pipe waits for its writer


def read(path: str | os.PathLike, most: int, count: int = -1) -> bytes:
    """The content of a file of at most so many bytes, or its first `count` bytes.

    Raises what `open_file` does, and a ValueError for a larger file.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most and not 0 <= count <= most:
            raise ValueError(f"it has {size} bytes, where {most} would be many")
        return file.read(count)


def read_json(path: str | os.PathLike):
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, too large, or nested too deeply.
    """
    return parse_json(read(path, MOST_JSON))


def parse_json(content: bytes | str):
    """What JSON text holds.

    Raises:
        ValueError: it is not JSON, nested too deeply, or no text can be written as it.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def read_arrays(
    path: str | os.PathLike,
    wanted: Callable[[str], bool] = lambda name: True,
    most: float = math.inf,
) -> dict[str, np.ndarray]:
    """The arrays of an .npz, as numbers or texts.

    Args:
        path: of the file.
        wanted: tells by its name whether an array is to be read.
        most: bytes that all its arrays may take; never more than MOST_ARRAYS or, where
            they are not compressed, than the file has.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no .npz or damaged, or holds anything else, or more.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if file.read(2) != b"PK":  # or NumPy would take it for an .npy
                raise ValueError("it is no .npz")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                infos = arrays.zip.infolist()
                _check_sizes(infos, size, min(most, max(size, MOST_ARRAYS)))
                found = {}
                for info in infos:
                    name = info.filename.removesuffix(".npy")
                    if wanted(name):
                        with arrays.zip.open(info) as stream:
                            _check_header(stream, info.file_size)
                        found[name] = _check_texts(arrays[name])
                return found
        except Exception as error:  # whatever zipfile and NumPy raise
            raise _as_value_error(error) from error


def read_array(path: str | os.PathLike) -> np.ndarray:
    """The array of an .npy; raises what `read_arrays` does."""
    with open_file(path) as file:
        try:
            _check_header(file, os.fstat(file.fileno()).st_size)
            file.seek(0)
            return _check_texts(np.load(file, allow_pickle=False))
        except Exception as error:  # whatever NumPy raises
            raise _as_value_error(error) from error


def _as_value_error(error: Exception) -> Exception:
    """An error of the disk as it is, and any other as a ValueError."""
    disk = isinstance(error, OSError) and error.errno
    return error if disk else ValueError(f"{type(error).__name__}: {error}")


def _check_sizes(infos: list[zipfile.ZipInfo], size: int, most: int) -> None:
    """Refuses members that overlap, or promise more than they can or may hold."""
    packed = sum(info.compress_size for info in infos)
    if packed > size:
        raise ValueError(f"its members have {packed} bytes, and the file {size}")
    for info in infos:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename} is compressed otherwise than NumPy does")
        if info.file_size > _DEFLATE * (info.compress_size + 1):
            raise ValueError(f"{info.filename} cannot hold {info.file_size} bytes")
    whole = sum(info.file_size for info in infos)
    if whole > most:
        raise ValueError(f"its arrays take {whole} bytes, where {most} would be many")


def _check_header(stream: BinaryIO, size: int) -> None:
    """Refuses an .npy of `size` bytes that claims to hold more, less, or else."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"its version is {version}")
    left = size - stream.tell()
    if dtype.kind not in _KINDS or min(shape, default=0) < 0:
        raise ValueError(f"it holds {dtype} {shape}")
    if math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"{dtype} {shape} does not take the {left} bytes that follow")


def _check_texts(array: np.ndarray) -> np.ndarray:
    """Refuses texts that Python cannot hold, and returns all others as they are."""
    if array.dtype.kind == "U" and array.size:
        letters = np.ravel(array, "K").view(
            array.dtype.byteorder.replace("=", "<") + "u4"
        )
        for first in range(0, len(letters), _AT_ONCE):
            part = letters[first : first + _AT_ONCE]
            if ((part > 0x10FFFF) | (part >> 11 == 0x1B)).any():
                raise ValueError("it holds texts of no characters")
    return array


def read_parquet(path: str | os.PathLike, columns: Collection[str]) -> dict[str, list]:
    """Texts, truth values, and lists of them, in those of the columns that a table has.

    Returns:
        The values of each column, None where one is empty.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or holds anything else.
    """
    import pyarrow  # only now: it is large
    from pyarrow import parquet

    with open_file(path) as opened:
        try:
            with parquet.ParquetFile(opened) as file:
                if file.metadata.num_rows > MOST_ROWS:
                    raise ValueError(f"it has {file.metadata.num_rows} rows")
                known = [name for name in columns if name in file.schema_arrow.names]
                table = {name: [] for name in known}
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=known):
                    for name, values in batch.to_pydict().items():
                        _check_values(name, values)
                        table[name].extend(values)
        except (pyarrow.ArrowException, KeyError, TypeError, OverflowError) as error:
            raise ValueError(str(error).rstrip(".")) from error
    return table


def _check_values(name: str, values: list) -> None:
    for value in values:
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, str | bool | None):
                raise ValueError(f"{name} is {part!r:.50}, which is no text")
            if isinstance(part, str) and len(part) > _MOST_TEXT:
                raise ValueError(f"{name} is a text of {len(part)} characters")
