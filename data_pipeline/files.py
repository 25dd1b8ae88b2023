"""Writing files so that a reader sees all of one or nothing."""

import os
import pathlib
import uuid


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file that appears under its name only when it is complete."""
    path, part = pathlib.Path(path), aside(path)
    if isinstance(content, str):  # names of files in it may be no text
        content = content.encode(errors="backslashreplace")
    part.write_bytes(content)
    os.replace(part, path)


def aside(path: str | os.PathLike) -> pathlib.Path:
    """Where to write a file before it is renamed, for this writer alone.

    Two writers of one file happen: workers of a build that was killed may not have
    noticed yet, and clusters start slow work a second time.
    """
    path = pathlib.Path(path)
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
