"""Windows that cover an image of any size, and how what is said of them blends.

Everything is counted in patches: windows begin on whole ones, so that each patch of the
image is the same patch in every window that shows it.
"""

import dataclasses
import functools

import numpy as np

from data_pipeline.errors import InputError


@dataclasses.dataclass(frozen=True)
class Cover:
    """Windows over an image.

    Attributes:
        shape: rows and columns of the image in patches.
        side: of a window in patches.
        stride: patches from one window to the next; the last ends with the image.
    """

    shape: tuple[int, int]
    side: int
    stride: int

    def __post_init__(self):
        if not 1 <= self.stride <= self.side:
            raise InputError(
                f"Windows of {self.side} patches cannot be {self.stride} patches "
                f"apart; choose a stride from 1 to {self.side}."
            )

    @functools.cached_property
    def starts(self) -> tuple[list[int], list[int]]:
        """Rows and columns at which windows begin; a smaller image has one window."""
        last = [max(n - self.side, 0) for n in self.shape]
        return tuple([*range(0, n, self.stride), n] for n in last)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Row and column at which each window begins, row by row."""
        rows, columns = self.starts
        return [(row, column) for row in rows for column in columns]

    @functools.cached_property
    def weight(self) -> np.ndarray:
        """How much a window's word counts for each of its patches, [side, side].

        It falls linearly towards the edges, where a window knows least of what is
        around a patch; so windows that are half a window apart sum to a constant, and
        one takes over from the other without a step.
        """
        at = np.arange(self.side)
        hat = np.minimum(at + 1, self.side - at).astype(np.float32)
        return np.outer(hat, hat) / hat.max() ** 2


class Blend:
    """The weighted mean of what windows say of the patches of an image."""

    def __init__(self, cover: Cover, width: int, rows: int = 0):
        """Begins with nothing said.

        Args:
            cover: the windows.
            width: numbers D that are said of a patch.
            rows: of patches that are kept at a time, those of a window at least; 0 for
                all. Of a few, `finish` has to take the first ones away.
        """
        self._cover, self._first = cover, 0
        shape = (rows or max(cover.shape[0], cover.side), cover.shape[1])
        self._total = np.zeros((*shape, width), np.float32)
        self._weight = np.zeros((*shape, 1), np.float32)

    def add(
        self, corner: tuple[int, int], values: np.ndarray, known: np.ndarray
    ) -> None:
        """Adds what a window says.

        Args:
            corner: of the window.
            values: [side, side, D]; what stands where nothing is known is not read.
            known: of which patches it says anything, [side, side].
        """
        row, column = corner[0] - self._first, corner[1]
        side = self._cover.side
        columns = min(side, self._cover.shape[1] - column)
        there = np.s_[row : row + side, column : column + columns]
        weight = (self._cover.weight * known)[:, :columns, None]
        self._total[there] += (
            weight * np.where(known[..., None], values, 0)[:, :columns]
        )
        self._weight[there] += weight

    def skip(self, row: int) -> None:
        """Begins at a later row, before anything was said."""
        self._first = row

    def finish(self, until: int) -> np.ndarray:
        """Takes away the rows before `until`, of which nothing more will be said.

        Returns:
            What was said of them, [rows, columns, D]; NaN where nothing was.
        """
        count = until - self._first
        self._first = until
        done = []
        for kept in (self._total, self._weight):
            done.append(kept[:count].copy())
            kept[: len(kept) - count] = kept[count:].copy()
            kept[len(kept) - count :] = 0
        total, weight = done
        return total / np.where(weight > 0, weight, np.nan)
