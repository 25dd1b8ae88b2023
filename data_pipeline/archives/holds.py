"""Files that processes share: none is replaced or removed while another reads it.

A process that reads such a file holds a lock on it for as long as it lives; where the
file system knows no locks, nobody is kept from it.
"""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from data_pipeline import files

_held: dict[str, int] = {}  # descriptors of the files that this process holds


def hold(path: pathlib.Path) -> bool:
    """Holds a file until this process ends or lets go; whether there is one."""
    let_go(path)
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    files.flock(file, fcntl.LOCK_SH)  # waits no longer than removing a file takes
    if os.fstat(file).st_nlink:
        _held[str(path)] = file
    else:  # was removed in the meantime
        os.close(file)
    return str(path) in _held


def let_go(path: pathlib.Path) -> None:
    """Ends what `hold` began, if it did."""
    file = _held.pop(str(path), None)
    if file is not None:
        files.flock(file, fcntl.LOCK_UN)  # forked processes have the file open, too
        os.close(file)


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[bool]:
    """Holds a file against all others, and tells whether no other process holds it.

    Raises:
        OSError: it is not there, or belongs to another user.
    """
    let_go(path)
    with path.open("r+b") as file:  # network file systems lock no other way
        try:
            files.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def remove(path: pathlib.Path) -> bool:
    """Removes a file unless another process holds it; whether there is none now."""
    try:
        with alone(path) as nobody_else:
            if nobody_else:
                path.unlink()
            return nobody_else
    except FileNotFoundError:
        return True
    except PermissionError:  # of another user
        return False
