"""Compressed files read forwards, with every kind of damage noticed and named."""

import bz2
import gzip
import io
import os
from typing import BinaryIO

from data_pipeline.errors import InputError

SUFFIXES = (".gz", ".zst", ".bz2")  # how the names of compressed files end
CHUNK = 1 << 20

_PROBE = 64 * CHUNK


def decompressed(file: BinaryIO, path: str) -> BinaryIO:
    """What an open compressed file holds.

    Raises:
        InputError: the package that its compression needs is missing.
    """
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=file)
    if path.endswith(".bz2"):
        return bz2.BZ2File(file)
    try:
        import zstandard
    except ImportError:
        raise InputError(
            f"Reading {path} needs zstandard; run pip install -e '.[archives]', or "
            "decompress it with unzstd."
        ) from None
    raw = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return io.BufferedReader(raw, CHUNK)


def expected_size(path: str) -> int:
    """Bytes that a compressed file holds, going by how well its start is compressed.

    Raises:
        InputError: the file is cut short or damaged.
    """
    with open(path, "rb") as file, decompressed(file, path) as stream:
        start = len(_read(stream, _PROBE, path))
        return os.path.getsize(path) * start // max(file.tell(), 1)


class Copy:
    """What a compressed file holds, also written to another file as it is read.

    It offers what reading forwards takes: `read`, `tell`, and `seek` further on.
    """

    def __init__(self, stream: BinaryIO, sink: BinaryIO, path: str):
        self.stream, self.sink, self.path, self.at = stream, sink, path, 0

    def tell(self) -> int:
        return self.at

    def read(self, size: int) -> bytes:
        data = _read(self.stream, size, self.path)
        self.sink.write(data)
        self.at += len(data)
        return data

    def seek(self, position: int) -> int:
        while self.at < position and self.read(min(position - self.at, CHUNK)):
            pass
        return self.at


def _read(stream: BinaryIO, size: int, path: str) -> bytes:
    try:
        return stream.read(size)
    except Exception as error:  # each compression has its own, zstandard's is optional
        if isinstance(error, OSError) and error.errno:
            raise  # of the disk, and not for what was read from it
        raise damaged(path, error) from None


def damaged(path: str, reason: object) -> InputError:
    """The error that an archive is not what was published."""
    return InputError(
        f"{path} is cut short or damaged ({reason}); compare its size and checksum "
        "with the published ones and download it again."
    )
