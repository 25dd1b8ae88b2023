"""Disks that are really full or really read-only, for tests."""

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator

import pytest

PAGE = 4096  # bytes in which a tmpfs counts


class Disk:
    """A small file system in memory; `path` is where it is mounted."""

    def __init__(self, path: pathlib.Path):
        self.path, self._filler = path, path / "filler"

    def fill(self, pages: int = 0) -> None:
        """Leaves room for so many pages, each of one file."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(PAGE)):
                pass
        os.truncate(self._filler, self._filler.stat().st_size // PAGE * PAGE)
        os.truncate(self._filler, self._filler.stat().st_size - pages * PAGE)

    def make_room(self) -> None:
        """Undoes `fill`."""
        self._filler.unlink(missing_ok=True)

    def close_for_writing(self) -> None:
        """Makes it read-only until it is unmounted."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)


@contextlib.contextmanager
def mounted(path: pathlib.Path, options: str = "size=16m") -> Iterator[Disk]:
    """A new file system at `path`; skips the test where none may be mounted."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
