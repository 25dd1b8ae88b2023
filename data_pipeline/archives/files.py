"""Files of an archive: what is missing is told from what cannot be read.

A missing file is a fault of the archive, which costs a pair. Any other error of the
disk or the network says nothing of the pair and passes on as the OSError that it is.
"""

import os

from data_pipeline import untrusted
from data_pipeline.errors import InputError

MOST_BYTES = 1 << 29  # of a file, decompressed too; a patch's take some MB
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def read(path: str, count: int = -1) -> bytes:
    """The content of a file, or its first `count` bytes.

    Raises:
        InputError: there is no such file, or it is none that an archive has.
        OSError: it cannot be read.
    """
    try:
        return untrusted.read(path, MOST_BYTES, count)
    except (*MISSING, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); unpack it again.") from None


def exists(path: str) -> bool:
    """Whether there is a file; unlike that of `os.path`, sure of it.

    Raises:
        OSError: the disk or the network does not tell.
    """
    try:
        os.stat(path)
    except MISSING:
        return False
    return True


def folders(path: str) -> list[os.DirEntry]:
    """The folders in a folder by name, none where it is not there.

    The kind of an entry comes with the listing: a million patches take no stat.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with os.scandir(path) as entries:
            found = [entry for entry in entries if entry.is_dir()]
    except MISSING:
        return []
    return sorted(found, key=lambda entry: entry.name)
