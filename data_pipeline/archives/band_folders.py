"""An image as a folder with a file for each band, at 10, 20 and 60 m.

So Sentinel-2's own products (SAFE), Planetary Computer, Major-TOM and others keep them.
Files are called after their bands, `B02.tif`, `T33UUP_20220706T085611_B02_10m.jp2` or
`vv.tif`, and may lie in folders of the folder; where a band is there at several
resolutions, the finest is read.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping

import numpy as np

from data_pipeline import sensors
from data_pipeline.archives import rasters
from data_pipeline.archives.grids import Grid, Window
from data_pipeline.archives.rasters import Raster
from data_pipeline.errors import InputError

FILES = "FILES"  # the tag that holds the names of what was read
MOST_FILES = 1000  # of a folder; a SAFE product has some 200

_BAND = re.compile(r"(?:^|[_.-])(B\d{1,2}A?|VV|VH|HH|HV)(?=[_.-]|$)", re.IGNORECASE)
# Masks of a SAFE product are called after bands too: MSK_DETFOO_B02.jp2.
_NO_BANDS = ("QI_DATA", "AUX_DATA")


def read(path: str, window: Window | None = None) -> Raster:
    """Reads an image: a file, or a folder with files of single bands.

    Of a folder, all bands are on the finest grid: a coarser pixel is repeated.

    Args:
        path: of the file or folder.
        window: what to read of it, in pixels of the finest grid; None for all.

    Raises:
        InputError: see `rasters.read`; or the bands do not show one place, or are none.
        OSError: it cannot be read.
    """
    if not os.path.isdir(path):
        return rasters.read(path, window=window)
    files, factors, finest = _product(path, rasters.version(path))
    window = window or Window(0, 0, *finest.shape)
    bands = {}
    for name, file in files.items():
        factor = factors[name]
        band = rasters.read(file, window=window.coarser(factor))
        if len(band.pixels) != 1:
            raise InputError(
                f"Band {name} of {path} has {len(band.pixels)} bands in its file, "
                "where each has a file of its own; keep one in each."
            )
        bands[name] = _finer(band, factor, window)
    tags = {key: text for x in bands.values() for key, text in x.tags.items()}
    missing = [_missing(x) for x in bands.values()]
    return dataclasses.replace(
        next(iter(bands.values())),
        pixels=np.concatenate([x.pixels for x in bands.values()]),
        missing=np.concatenate(missing) if np.any(missing) else None,
        bands=tuple(bands),
        tags=tags | {FILES: "\n".join(files.values())},
        grid=finest.part(window),
    )


def grid(path: str) -> Grid:
    """Where the pixels of an image lie, those of the finest band of a folder."""
    if not os.path.isdir(path):
        return rasters.grid(path)
    return _product(path, rasters.version(path))[2]


@functools.lru_cache(maxsize=64)  # a scene is read in thousands of tiles
def _product(path: str, version: tuple) -> tuple[dict[str, str], dict[str, int], Grid]:
    """The file of each band, how many pixels wide its are, and the finest grid."""
    files = find(path)
    of_bands = {name: rasters.grid(file) for name, file in files.items()}
    finest = max(of_bands.values(), key=lambda band: band.shape)
    factors = {name: _factor(path, name, g, finest) for name, g in of_bands.items()}
    return files, factors, finest


def find(path: str) -> Mapping[str, str]:
    """The file of each band in a folder, by the contract's name of the band.

    Raises:
        InputError: none is called after a band, or there are too many files.
    """
    found, count = {}, 0
    for folder, inside, files in os.walk(path):
        inside[:] = sorted(set(inside) - set(_NO_BANDS))
        count += len(files)
        if count > MOST_FILES:
            raise InputError(
                f"{path} has more than {MOST_FILES} files, where a folder holds the "
                "bands of one image; name such folders in a CSV."
            )
        for file in sorted(files):
            stem, ending = os.path.splitext(file)
            names = _BAND.findall(stem)
            if names and ending.lower() in rasters.DRIVERS:
                whole = os.path.join(folder, file)
                found.setdefault(sensors.canonical(names[-1]), []).append(whole)
    if not found:
        raise InputError(
            f"{path} has no file that is called after a band, such as B02.tif or "
            "vv.tif; rename them, or write all bands into one GeoTIFF."
        )
    return {name: _finest(files) for name, files in sorted(found.items())}


def _finest(files: list[str]) -> str:
    """Of files of one band the one with the finest resolution in its name."""

    def metres(file: str) -> int:
        told = re.findall(r"[_/\\R](\d\d)m(?=[_./\\])", file)
        return int(told[-1]) if told else 0

    return min(files, key=lambda file: (metres(file), file))


def _factor(path: str, name: str, band: Grid, finest: Grid) -> int:
    """How many pixels of the finest grid a pixel of a band is wide.

    Raises:
        InputError: that is no whole number, or the band shows another place.
    """
    factor = round(finest.shape[0] / band.shape[0])
    fits = tuple(factor * side for side in band.shape) == finest.shape
    if fits and band.known and finest.known:
        a, b = np.array(band.transform), np.array(finest.transform)
        pixel = np.abs(b[[0, 4]]).max()
        scales = (1 / factor, 1 / factor, 1) * 2
        fits = band.crs == finest.crs and (np.abs(a * scales - b) < 0.01 * pixel).all()
    if not fits:
        raise InputError(
            f"Band {name} of {path} has {band.shape[0]} x {band.shape[1]} px at "
            f"{band.transform}, which is no part of the finest band's grid, "
            f"{finest.shape[0]} x {finest.shape[1]} px at {finest.transform}; resample "
            "it."
        )
    return factor


def _finer(band: Raster, factor: int, window: Window) -> Raster:
    """A window of the finest grid from the coarser pixels that cover it."""
    top, left = window.top % factor, window.left % factor
    area = np.s_[:, top : top + window.height, left : left + window.width]

    def repeat(image: np.ndarray) -> np.ndarray:
        return image.repeat(factor, axis=1).repeat(factor, axis=2)[area]

    missing = None if band.missing is None else repeat(band.missing)
    return dataclasses.replace(band, pixels=repeat(band.pixels), missing=missing)


def _missing(band: Raster) -> np.ndarray:
    if band.missing is None:
        return np.zeros(band.pixels.shape, bool)
    return band.missing
