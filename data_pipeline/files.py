"""Files of which a reader sees all or nothing, and which have one writer at a time."""

import contextlib
import errno
import fcntl
import logging
import os
import pathlib
import socket
import time
import uuid
from collections.abc import Iterator

# File systems that know no locks say so in one of these ways.
UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_locks: dict[str, int] = {}  # descriptors of the files that this process has locked


# What to do where the system refuses to write for one of these reasons.
FULL = "make room, then give the same command again"
CLOSED = "see to its permissions, then give the same command again"
SEALED = "mount it for writing, then give the same command again"
FAILED = "see to the disk or the network, then give the same command again"
ADVICE = {errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EFBIG: FULL}
ADVICE |= {errno.EACCES: CLOSED, errno.EPERM: CLOSED, errno.EROFS: SEALED}
ADVICE |= {errno.EIO: FAILED, errno.ESTALE: FAILED}

log = logging.getLogger("fusmae_jax")


class Locked(Exception):
    """Another process holds a file; says which, where, and since when."""


def absolute(path: str | os.PathLike, folder: str = "") -> str:
    """A path without `~` and from the root, which every library reads alike.

    TFDS expands `~`, and `open` does not; other processes may be in other folders.

    Args:
        path: "" and addresses, such as gs://bucket, stay as they are.
        folder: what it is relative to; "" for the current one.
    """
    path = os.fspath(path)
    if not path or "://" in path:
        return path
    return os.path.abspath(os.path.join(folder, os.path.expanduser(path)))


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file that appears under its name only when it is complete.

    It is on the disk then, so that a machine taken away leaves no empty file either.
    """
    path, part = pathlib.Path(path), aside(path)
    if isinstance(content, str):  # names of files in it may be no text
        content = content.encode(errors="backslashreplace")
    with whole(path, part):
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def whole(path: pathlib.Path, part: pathlib.Path) -> Iterator[None]:
    """Gives `part`, written in the meantime, its name `path`, or removes it."""
    try:
        with named(path):
            yield
            os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def named(path: str | os.PathLike) -> Iterator[None]:
    """Lets what fails in writing say the name of the file: the system tells it of
    files that cannot be opened, not of a disk that is full later."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def advice(error: OSError) -> str:
    """What to do about an error, as a part of a sentence."""
    return ADVICE.get(error.errno, "mend it, then give the same command again")


def explain(error: OSError) -> str:
    """What of a run cannot be written and what to do about it, in a sentence."""
    return (
        f"{error.filename or 'A file of this run'} cannot be written "
        f"({error.strerror or error}); {advice(error)}, or choose another --workdir."
    )


def from_words(text: str) -> OSError:
    """The error of the system that the words of another library tell of."""
    code = next((code for code in ADVICE if os.strerror(code) in text), None)
    return OSError(code, text) if code else OSError(text)


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


def aside(path: str | os.PathLike) -> pathlib.Path:
    """Where to write a file before it is renamed, for this writer alone.

    Two writers of one file happen: workers of a build that was killed may not have
    noticed yet, and clusters start slow work a second time.
    """
    path = pathlib.Path(path)
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")


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
        with named(path):
            os.ftruncate(file, 0)
            os.pwrite(file, holder.encode(), 0)
            os.fsync(file)
    except OSError as error:
        who = os.pread(file, 1000, 0).decode(errors="replace")
        os.close(file)
        if isinstance(error, BlockingIOError):
            raise Locked(who or "another process") from None
        raise
    unlock(path)  # of one in a folder that was deleted since, and made anew
    _locks[os.path.abspath(path)] = file
    return True


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
