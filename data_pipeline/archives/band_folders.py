"""An image as a folder with a file for each band, at 10, 20 and 60 m.

So Sentinel-2's own products (SAFE), Planetary Computer, Major-TOM and others keep them.
Files are called after their bands, `B02.tif`, `T33UUP_20220706T085611_B02_10m.jp2` or
`vv.tif`, and may lie in folders of the folder; where a band is there at several
resolutions, the finest is read.
"""

import dataclasses
import os
import re

import numpy as np

from data_pipeline import sensors
from data_pipeline.archives import rasters
from data_pipeline.archives.rasters import Raster
from data_pipeline.errors import InputError

FILES = "FILES"  # the tag that holds the names of what was read
MOST_FILES = 1000  # of a folder; a SAFE product has some 200

_BAND = re.compile(r"(?:^|[_.-])(B\d{1,2}A?|VV|VH|HH|HV)(?=[_.-]|$)", re.IGNORECASE)


def read(path: str) -> Raster:
    """Reads an image: a file, or a folder with files of single bands.

    Of a folder, all bands are on the finest grid: a coarser pixel is repeated.

    Raises:
        InputError: see `rasters.read`; or the bands do not show one place, or are none.
        OSError: it cannot be read.
    """
    if not os.path.isdir(path):
        return rasters.read(path)
    bands = {name: rasters.read(file) for name, file in find(path).items()}
    for name, band in bands.items():
        if len(band.pixels) != 1:
            raise InputError(
                f"Band {name} of {path} has {len(band.pixels)} bands in its file, "
                "where each has a file of its own; keep one in each."
            )
    finest = max(bands.values(), key=lambda band: band.pixels.shape[1:])
    factors = {name: _factor(path, name, x, finest) for name, x in bands.items()}
    tags = {key: text for x in bands.values() for key, text in x.tags.items()}
    return dataclasses.replace(
        finest,
        pixels=_stack([x.pixels for x in bands.values()], factors.values()),
        missing=_missing(bands, factors),
        bands=tuple(bands),
        tags=tags | {FILES: "\n".join(find(path).values())},
    )


def find(path: str) -> dict[str, str]:
    """The file of each band in a folder, by the contract's name of the band.

    Raises:
        InputError: none is called after a band, or there are too many files.
    """
    found, count = {}, 0
    for folder, inside, files in os.walk(path):
        inside.sort()
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


def _factor(path: str, name: str, band: Raster, finest: Raster) -> int:
    """How many pixels of the finest grid a pixel of a band is wide.

    Raises:
        InputError: that is no whole number, or the band shows another place.
    """
    height, width = band.pixels.shape[1:]
    factor = round(finest.pixels.shape[1] / height)
    fits = (height * factor, width * factor) == finest.pixels.shape[1:]
    if fits and band.grid and finest.grid:
        a, b = np.array(band.transform), np.array(finest.transform)
        pixel = np.abs(b[[0, 4]]).max()
        scales = (1 / factor, 1 / factor, 1) * 2
        fits = band.crs == finest.crs and (np.abs(a * scales - b) < 0.01 * pixel).all()
    if not fits:
        raise InputError(
            f"Band {name} of {path} has {height} x {width} px at {band.transform}, "
            f"which is no part of the finest band's grid, {finest.pixels.shape[1]} x "
            f"{finest.pixels.shape[2]} px at {finest.transform}; resample it."
        )
    return factor


def _stack(images, factors) -> np.ndarray:
    """Images [1, h, w] on one grid, [C, H, W]."""
    return np.concatenate(
        [x.repeat(f, axis=1).repeat(f, axis=2) for x, f in zip(images, factors)]
    )


def _missing(bands: dict[str, Raster], factors: dict[str, int]) -> np.ndarray | None:
    masks = [
        np.zeros(x.pixels.shape, bool) if x.missing is None else x.missing
        for x in bands.values()
    ]
    if not any(mask.any() for mask in masks):
        return None
    return _stack(masks, factors.values())
