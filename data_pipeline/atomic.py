"""Files of which a reader sees all or nothing, and advice where none can be written."""

import contextlib
import errno
import os
import pathlib
import uuid
from collections.abc import Iterator

# What to do where the system refuses to write for one of these reasons.
FULL = "make room, then give the same command again"
CLOSED = "see to its permissions, then give the same command again"
SEALED = "mount it for writing, then give the same command again"
FAILED = "see to the disk or the network, then give the same command again"
ADVICE = {errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EFBIG: FULL}
ADVICE |= {errno.EACCES: CLOSED, errno.EPERM: CLOSED, errno.EROFS: SEALED}
ADVICE |= {errno.EIO: FAILED, errno.ESTALE: FAILED}


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


def aside(path: str | os.PathLike) -> pathlib.Path:
    """Where to write a file before it is renamed, for this writer alone.

    Two writers of one file happen: workers of a build that was killed may not have
    noticed yet, and clusters start slow work a second time.
    """
    path = pathlib.Path(path)
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
