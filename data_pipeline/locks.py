"""Files that one process at a time holds, until it ends or lets go."""

import errno
import fcntl
import logging
import os
import socket
import time

from data_pipeline import atomic

# File systems that know no locks say so in one of these ways.
UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_locks: dict[str, int] = {}  # descriptors of the files that this process has locked

log = logging.getLogger("fusmae_jax")


class Locked(Exception):
    """Another process holds a file; says which, where, and since when."""


def flock(file, how: int) -> bool:
    """Locks an open file as `fcntl.flock` does.

    Returns:
        False where the file system knows no locks.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: it cannot be locked.
    """
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno in UNKNOWN:
            return False
        raise
    return True


def lock(path: str | os.PathLike) -> bool:
    """Locks a file, made if need be, until this process ends or calls `unlock`.

    The kernel lets go of it when the process is killed. The file says who holds it.

    Returns:
        Whether it is locked; where the file system knows no locks, the log says so.

    Raises:
        Locked: it is locked already; nothing is changed then.
        OSError: it cannot be written.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks no other way
    try:
        if not flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            log.warning(
                "The file system of %s knows no locks; let nothing else write there "
                "meanwhile.",
                os.path.dirname(path),
            )
            os.close(file)
            return False
        holder = f"process {os.getpid()} of {socket.gethostname()}, since "
        holder += time.strftime("%Y-%m-%d %H:%M:%S %Z")
        with atomic.named(path):
            os.ftruncate(file, 0)
            os.pwrite(file, holder.encode(), 0)
            os.fsync(file)
    except BlockingIOError:
        who = _holder(file)
        os.close(file)
        raise Locked(who) from None
    except OSError:
        os.close(file)
        raise
    unlock(path)  # of one in a folder that was deleted since, and made anew
    _locks[os.path.abspath(path)] = file
    return True


def _holder(file: int) -> str:
    """Who has locked a file; who has just done so is yet to write it down."""
    for _ in range(20):
        if who := os.pread(file, 1000, 0).decode(errors="replace"):
            return who
        time.sleep(0.05)
    return "another process"


def unlock(path: str | os.PathLike) -> None:
    """Ends what `lock` began, if it did."""
    file = _locks.pop(os.path.abspath(path), None)
    if file is not None:
        fcntl.flock(file, fcntl.LOCK_UN)  # forked processes have the file open, too
        os.close(file)


def holds(path: str | os.PathLike) -> bool:
    """Whether this process has locked the file that is there."""
    file = _locks.get(os.path.abspath(path))
    try:
        return file is not None and os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False
