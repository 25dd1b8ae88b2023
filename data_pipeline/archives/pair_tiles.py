"""The images of a user's own pairs on one grid: as they are, warped, or in tiles."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import tqdm

from data_pipeline.archives import band_folders, grids, pair_lists, pair_masks, rasters
from data_pipeline.archives.base import Skipped
from data_pipeline.archives.grids import Grid, Window
from data_pipeline.errors import InputError
from data_pipeline.sensors import NAMED

AT = "at"  # of a row: where its tile begins in the scene, () of an image that is whole


@dataclasses.dataclass(frozen=True)
class Cut:
    """How images come onto one grid.

    Attributes:
        tile: side of the tiles that scenes are cut into, in pixels; 0 for images that
            are pairs as they are.
        stride: from one tile to the next.
        fill: whether the last tiles reach beyond the scene, rather than be left out.
        align: whether images are warped onto one grid, rather than refused.
    """

    tile: int = 0
    stride: int = 0
    fill: bool = False
    align: bool = False


class Images(NamedTuple):
    """What a row of a list shows, on one grid.

    Attributes:
        sensors: the image of each sensor that is there.
        mask: None where there is none.
        warped: whether one had to be.
    """

    sensors: dict[str, rasters.Raster]
    mask: rasters.Raster | None
    warped: bool


def tiles(rows: Sequence[dict], cut: Cut) -> tuple[list[dict], list[Skipped]]:
    """The rows of all tiles of the scenes that rows list, and scenes that have none.

    The tiles of a scene are held out together, and with those of every other scene on
    the same grid, unless the list says what is.
    """
    if not cut.tile:
        return [row | {AT: ()} for row in rows], []
    found, skipped = [], []
    for row in tqdm.tqdm(rows, desc="scenes", unit="scene", leave=False, delay=1):
        try:
            scene, _ = grids_of(row, cut)
        except InputError as error:
            skipped.append(Skipped(_images(row), str(error)))
            continue
        together = row["tile"] or scene.text or row["id"]
        places = grids.tiles(scene.shape, cut.tile, cut.stride, cut.fill)
        if not places:
            height, width = scene.shape
            reason = f"{height} x {width} px hold no tile of read.tile={cut.tile}"
            skipped.append(Skipped(_images(row), reason))
        for top, left in places:
            at = f"{row['id']}_{top:05d}_{left:05d}"
            found.append(row | {"id": at, "tile": together, AT: (top, left)})
    if not found:
        raise InputError(
            f"None of {len(rows)} scenes can be cut into tiles, the first because: "
            f"{skipped[0].reason}"
        )
    return found, skipped


def _images(row: dict) -> dict[str, str]:
    return {name: pair_lists.stem(row[name]) for name in pair_lists.present([row])}


def read(row: dict, cut: Cut, side: int = 0) -> Images:
    """Reads the images of a row, and its mask, on one grid.

    Args:
        row: of `tiles`.
        cut: how.
        side: of pairs, where one that is whole has to be warped to other coordinates;
            0 for that of the largest square in it.

    Raises:
        InputError: a file is missing or damaged, or they do not show one place at 10 m.
        OSError: a file cannot be read.
    """
    there = pair_lists.present([row])
    readers = {p: functools.partial(band_folders.read, p) for p in map(row.get, there)}
    if row["mask"]:
        readers[row["mask"]] = functools.partial(pair_masks.read, row["mask"])
    window = Window(*row[AT], cut.tile, cut.tile) if row[AT] else None
    found, warped = {}, False
    if cut.align:
        target, own = grids_of(row, cut, side)
        target = target.part(window) if window else target
        for path, reader in readers.items():
            found[path], moved = rasters.read_onto(reader, own[path], target)
            warped |= moved
    else:
        found = {path: reader(window) for path, reader in readers.items()}
        grids.check({path: image.grid for path, image in found.items()})
    images = {name: found[row[name]] for name in there}
    return Images(images, found.get(row["mask"]), warped)


def grids_of(row: dict, cut: Cut, side: int = 0) -> tuple[Grid, dict[str, Grid]]:
    """The grid of a row, and the own grids of its files by path; see `read`.

    Raises:
        InputError: there is no such grid.
        OSError: a file cannot be read.
    """
    # The image that names a pair is first.
    paths = tuple(row[name] for name in NAMED if row[name])
    versions = tuple(map(rasters.version, (*paths, row["mask"])))
    return _grids_of(paths, row["mask"], versions, cut, side)


@functools.lru_cache(maxsize=64)  # thousands of tiles ask for the same scene
def _grids_of(paths: tuple[str, ...], mask: str, versions: tuple, cut: Cut, side: int):
    own = {path: band_folders.grid(path) for path in paths}
    first = own[paths[0]]
    if mask:
        own[mask] = rasters.grid(mask, png=True)
        if not own[mask].known and own[mask].shape == first.shape:
            own[mask] = first
    if not cut.align:
        grids.check(own)
        for path, grid in own.items():
            if grid.shape != first.shape:
                raise InputError(
                    f"{path} is {grid.shape[0]} x {grid.shape[1]} px, and "
                    f"{paths[0]} {first.shape[0]} x {first.shape[1]} px; cut both "
                    "alike, or set read.align=True."
                )
        return first, own
    for path, grid in own.items():
        if not grid.known:
            raise InputError(
                f"{path} has no coordinates, without which it cannot be aligned; add "
                "them, or leave read.align=False."
            )
    if not cut.tile:
        side = side or grids.square(first)
    return grids.common(tuple(own.values()), 0 if cut.tile else side), own
