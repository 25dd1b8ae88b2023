"""A reader that `fuzz.py` throws damaged files at."""

import dataclasses
import pathlib
from collections.abc import Callable

from tests.faults import mutations


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader and sound files for it.

    Attributes:
        seeds: content of sound files.
        read: takes a damaged one; may raise an InputError.
        mutate: ways to do damage; each input draws one.
        weight: its share of the inputs.
    """

    seeds: list[bytes]
    read: Callable[[bytes], object]
    mutate: tuple[mutations.Mutation, ...] = (mutations.blind,)
    weight: float = 1.0


def by_path(path: pathlib.Path, read: Callable[[str], object]):
    """Reads data by way of a file."""

    def written(data: bytes) -> object:
        path.write_bytes(data)
        return read(str(path))

    return written
