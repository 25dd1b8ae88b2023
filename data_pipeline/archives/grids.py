"""Where the pixels of images lie on the ground, and how scenes are cut into tiles."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.errors import InputError

GSD = 10.0  # metres, of Sentinel-1 and Sentinel-2 as a pair has them

_SAME_GSD = 0.015  # share of it by which pixels may be larger or smaller
_ALIGNED = 0.01  # pixels by which the corners of two images may differ from rounding
# Sides of pixels that can be warped to 10 m by taking the nearest: coarser ones measure
# something else, and of finer ones most would be passed over.
_WARPED = (4.0, 25.0)
_ALONG = np.linspace(0, 1, 21)  # of an edge, which another projection may bend
_UTM = re.compile(r"EPSG:32[67]\d\d")


class Window(NamedTuple):
    """A part of an image in pixels; it may reach beyond the image."""

    top: int
    left: int
    height: int
    width: int

    def inside(self, shape: tuple[int, int]) -> "Window":
        """What of it an image [H, W] has, one pixel at least."""
        top, left = (
            min(max(at, 0), side - 1) for at, side in zip(self[:2], shape, strict=True)
        )
        bottom = min(max(self.top + self.height, top + 1), shape[0])
        right = min(max(self.left + self.width, left + 1), shape[1])
        return Window(top, left, bottom - top, right - left)

    def coarser(self, factor: int) -> "Window":
        """The pixels, `factor` times as wide, that cover it."""
        top, left = self.top // factor, self.left // factor
        bottom = -(-(self.top + self.height) // factor)
        right = -(-(self.left + self.width) // factor)
        return Window(top, left, bottom - top, right - left)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The pixels of an image on the ground.

    Attributes:
        shape: height and width in pixels.
        crs: coordinate reference system, "" where unknown.
        transform: from (column, row) to coordinates, six numbers, or None.
    """

    shape: tuple[int, int]
    crs: str = ""
    transform: tuple[float, ...] | None = None

    @property
    def known(self) -> bool:
        """Whether anything says where it lies."""
        return bool(self.crs and self.transform)

    @property
    def text(self) -> str:
        """Coordinate system and transform in whole units; "" without coordinates."""
        if not self.known:
            return ""
        return " ".join([self.crs, *(f"{value:.0f}" for value in self.transform)])

    @property
    def matrix(self) -> np.ndarray:
        """From (column, row, 1) to coordinates, [2, 3]."""
        return np.reshape(self.transform, (2, 3))

    def part(self, window: Window) -> "Grid":
        """The grid of a window."""
        shape = (window.height, window.width)
        if self.transform is None:
            return Grid(shape, self.crs)
        matrix = self.matrix.copy()
        matrix[:, 2] = self.matrix @ (window.left, window.top, 1)
        return Grid(shape, self.crs, tuple(matrix.ravel().tolist()))


def pixel_size(grid: Grid) -> tuple[float, float]:
    """Width and height of a pixel on the ground in metres, in the middle of a grid.

    Units of a map are not metres on the ground: those of Web Mercator are 0.5 m at 60
    degrees north.

    Raises:
        InputError: the grid lies nowhere on Earth.
    """
    if _UTM.fullmatch(grid.crs):  # within 0.1 %
        return tuple(np.hypot(*grid.matrix[:, :2]).tolist())
    row, column = np.divide(grid.shape, 2)
    points = [(column, row, 1), (column + 1, row, 1), (column, row + 1, 1)]
    points = _project(grid.matrix @ np.transpose(points), grid.crs, utm_zone(grid))
    return tuple(np.hypot(*(points[:, 1:] - points[:, :1])).tolist())


def utm_zone(grid: Grid) -> str:
    """The UTM zone of the middle of a grid, such as "EPSG:32633".

    Raises:
        InputError: the grid lies nowhere on Earth.
    """
    middle = grid.matrix @ (grid.shape[1] / 2, grid.shape[0] / 2, 1)
    (longitude,), (latitude,) = _project(middle[:, None], grid.crs, "EPSG:4326")
    zone = int((longitude + 180) % 360 // 6) + 1
    return f"EPSG:{(32600 if latitude >= 0 else 32700) + zone}"


def _project(points: np.ndarray, crs: str, onto: str) -> np.ndarray:
    """Points [2, N] in other coordinates."""
    from rasterio import errors, warp

    try:
        found = np.array(warp.transform(crs, onto, *points.tolist()))
    except (errors.RasterioError, ValueError) as error:
        found, reason = np.array([np.nan]), f" ({error})"
    else:
        reason = ""
    if not np.isfinite(found).all():
        raise InputError(
            f"{crs} at {points[:, 0].tolist()} is nowhere on Earth{reason}; correct "
            "the coordinates of the file."
        )
    return found


def check(grids: Mapping[str, Grid]) -> None:
    """Refuses grids that are not of 10 m, and images of different places.

    Images without coordinates are believed.

    Args:
        grids: of a pair's images, by what they are called in errors.

    Raises:
        InputError: with the numbers.
    """
    grids = {name: grid for name, grid in grids.items() if grid.known}
    for name, grid in grids.items():
        if not _in_metres(grid):
            raise InputError(
                f"{name} lies in {grid.crs}, whose coordinates are no metres; set "
                f"read.align=True, which warps it to a grid of {GSD:g} m."
            )
        x, y = pixel_size(grid)
        if not _is_gsd(x, y):
            raise InputError(
                f"{name} has pixels of {x:.4g} x {y:.4g} m on the ground, where those "
                f"of a pair have {GSD:g} m; resample it, or set "
                "read.align=True."
            )
    for (name, one), (other_name, other) in itertools.pairwise(grids.items()):
        if offset(one, other) != (0, 0):
            raise InputError(
                f"{name} lies in {one.crs} at {one.transform} and {other_name} in "
                f"{other.crs} at {other.transform}; resample one onto the other's "
                "grid, or set read.align=True."
            )


def _in_metres(grid: Grid) -> bool:
    from rasterio import crs

    return crs.CRS.from_user_input(grid.crs).is_projected


def _is_gsd(x: float, y: float) -> bool:
    return max(abs(x - GSD), abs(y - GSD)) <= _SAME_GSD * GSD


def offset(grid: Grid, other: Grid) -> tuple[int, int] | None:
    """Row and column of `grid` at which `other` begins; None if pixels do not coincide.

    They may lie outside of `grid`.
    """
    if grid.crs != other.crs:
        return None
    height, width = other.shape
    corners = np.array([(0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1)])
    corners = corners.T
    moved = other.matrix @ corners - grid.matrix[:, 2:]
    there = np.linalg.solve(grid.matrix[:, :2], moved)  # in columns and rows of `grid`
    start = np.rint(there[:, :1])
    if np.abs(there - start - corners[:2]).max() > _ALIGNED:
        return None
    column, row = start.ravel().astype(int).tolist()
    return row, column


def covering(grid: Grid, other: Grid) -> Window:
    """What of an image shows the ground of another grid, one pixel more on each side.

    Raises:
        InputError: that ground is nowhere in the image's coordinates.
    """
    return _around(grid, other).inside(grid.shape)


def overlap(grid: Grid, other: Grid) -> bool:
    """Whether two images show any common ground, going by their corners.

    Raises:
        InputError: the ground of the other is nowhere in the first's coordinates.
    """
    window = _around(grid, other)
    return all(
        at < n and at + length > 0
        for at, length, n in zip(window[:2], window[2:], grid.shape)
    )


def _around(grid: Grid, other: Grid) -> Window:
    points = _project(other.matrix @ _edge(other.shape), other.crs, grid.crs)
    points = np.linalg.solve(grid.matrix[:, :2], points - grid.matrix[:, 2:])
    left, top = np.floor(points.min(axis=1)).astype(int).tolist()
    right, bottom = np.ceil(points.max(axis=1)).astype(int).tolist()
    return Window(top - 1, left - 1, bottom - top + 2, right - left + 2)


def _edge(shape: tuple[int, int]) -> np.ndarray:
    """(column, row, 1) of points along the edge of an image, [3, N]."""
    at = [(0, t) for t in _ALONG] + [(1, t) for t in _ALONG]
    at = np.array(at + [(t, side) for side, t in at])
    return np.column_stack([at * shape[::-1], np.ones(len(at))]).T


def common(grids: Sequence[Grid], side: int = 0) -> Grid:
    """The grid onto which the images of a pair are warped.

    That is the first image's if its pixels have 10 m on the ground; else one in UTM.

    Args:
        grids: of the images, whose coordinates are known.
        side: of a square around the middle of the first, in pixels, if that is warped;
            0 for all that it covers.

    Raises:
        InputError: an image lies nowhere, or has pixels of quite another size.
    """
    for grid in grids:
        x, y = pixel_size(grid)
        if not (_WARPED[0] <= min(x, y) and max(x, y) <= _WARPED[1]):
            raise InputError(
                f"An image has pixels of {x:.4g} x {y:.4g} m, where those from "
                f"{_WARPED[0]:g} to {_WARPED[1]:g} m can be warped to {GSD:g} m; "
                "resample it, with averages if its pixels are smaller."
            )
    first = grids[0]
    if _in_metres(first) and _is_gsd(*pixel_size(first)):
        return first
    zone, (height, width) = utm_zone(first), first.shape
    if side:
        middle = first.matrix @ (width / 2, height / 2, 1)
        left, top = _project(middle[:, None], first.crs, zone).ravel()
        left, top = left - side * GSD / 2, top + side * GSD / 2
        shape = (side, side)
    else:
        x, y = _project(first.matrix @ _edge(first.shape), first.crs, zone)
        left, top = x.min(), y.max()
        shape = tuple(int(np.rint(np.ptp(v) / GSD)) for v in (y, x))
    left, top = (float(np.rint(value / GSD) * GSD) for value in (left, top))
    return Grid(shape, zone, (GSD, 0.0, left, 0.0, -GSD, top))


def square(grid: Grid) -> int:
    """Side in pixels of 10 m of the largest square that an image has on the ground."""
    return int(min(np.multiply(grid.shape[::-1], pixel_size(grid))) / GSD + _ALIGNED)


def tiles(shape: tuple[int, int], side: int, stride: int, fill: bool) -> list[tuple]:
    """Row and column at which each tile of a scene begins, row by row.

    Args:
        shape: of the scene in pixels.
        side: of a tile.
        stride: from one tile to the next.
        fill: whether the last tiles reach beyond the scene rather than be left out.
    """
    return list(itertools.product(*(_starts(n, side, stride, fill) for n in shape)))


def _starts(length: int, side: int, stride: int, fill: bool) -> range:
    if fill:
        return range(0, min(max(length - side, 0) + stride, length), stride)
    return range(0, length - side + 1, stride)
