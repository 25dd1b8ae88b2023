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

    def starts(self, axis: int) -> list[int]:
        """Where windows begin along an axis; an image that is smaller has one."""
        last = max(self.shape[axis] - self.side, 0)
        return [*range(0, last, self.stride), last]

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Row and column at which each window begins, row by row."""
        return [(row, column) for row in self.starts(0) for column in self.starts(1)]

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

    def __init__(self, cover: Cover, width: int):
        """Begins with nothing said.

        Args:
            cover: the windows.
            width: numbers D that are said of a patch.
        """
        self._cover = cover
        self._total = np.zeros((*cover.shape, width), np.float32)
        self._weight = np.zeros((*cover.shape, 1), np.float32)

    def add(
        self, corner: tuple[int, int], values: np.ndarray, known: np.ndarray
    ) -> None:
        """Adds what a window says.

        Args:
            corner: of the window.
            values: [side, side, D]; what stands where nothing is known is not read.
            known: of which patches it says anything, [side, side].
        """
        row, column = corner
        rows = min(self._cover.side, self._cover.shape[0] - row)
        columns = min(self._cover.side, self._cover.shape[1] - column)
        there = np.s_[row : row + rows, column : column + columns]
        weight = (self._cover.weight * known)[:rows, :columns, None]
        values = np.where(known[..., None], values, 0.0)[:rows, :columns]
        self._total[there] += weight * values
        self._weight[there] += weight

    @property
    def known(self) -> np.ndarray:
        """Of which patches anything was said, [rows, columns] bool."""
        return self._weight[..., 0] > 0

    def mean(self) -> np.ndarray:
        """What was said, [rows, columns, D]; NaN where nothing was."""
        with np.errstate(invalid="ignore"):
            return self._total / np.where(self._weight > 0, self._weight, np.nan)
