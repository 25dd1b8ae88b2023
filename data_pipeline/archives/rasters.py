"""GeoTIFFs of any number of bands, compressed or tiled, whole or in parts, read and
warped by rasterio."""

import contextlib
import dataclasses
import functools
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from data_pipeline.archives import base, grids
from data_pipeline.archives.grids import Grid, Window
from data_pipeline.errors import InputError

# What is read, by the ending of a file: GDAL would also take addresses and recipes.
DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG"}
MOST_BANDS = 1000  # of a file; each has metadata of its own
# Scenes are read tile by tile. Their files stay open, so that what GDAL has decoded of
# them serves the next tiles: a row of blocks of a Sentinel-2 product takes 170 MB.
CACHE_BYTES = 320 << 20
OPEN_FILES = 64

_PNG = b"\x89PNG\r\n\x1a\n"  # how such a file begins


@dataclasses.dataclass(frozen=True)
class Raster:
    """The content of a GeoTIFF.

    Attributes:
        pixels: [C, H, W], of the file's type, or float32 where the file has a scale and
            offset, which are applied. A band of opacity is not among them.
        missing: where a nodata value, a mask or opacity says that nothing was
            measured, [C, H, W]; None for nowhere.
        nodata: the value that says so, or None.
        scaling: scale and offset of the first band, None where it has none.
        bands: description of each band, "" where it has none.
        tags: metadata of the file and of its bands; the file's own come first.
        grid: of the pixels on the ground.
        others: whether the file holds further images, which are not read.
    """

    pixels: np.ndarray
    missing: np.ndarray | None
    nodata: float | None
    scaling: tuple[float, float] | None
    bands: tuple[str, ...]
    tags: dict[str, str]
    grid: Grid
    others: bool


def read(path: str, png: bool = False, window: Window | None = None) -> Raster:
    """Reads the GeoTIFF or JPEG 2000 at `path`, with what lies beside it; or a PNG.

    GDAL's other drivers are not asked: some take a file for a recipe to follow.

    Args:
        path: of the file.
        png: whether it may be a PNG.
        window: what to read of it; pixels beyond the image are missing. None for all.

    Raises:
        InputError: it is not there, damaged or no such image, or rasterio is missing.
        OSError: it cannot be read.
    """
    return _of_file(path, png, lambda file: _content(file, path, window), window)


def grid(path: str, png: bool = False) -> Grid:
    """Where the pixels of the image at `path` lie, without reading them; see `read`."""
    return _of_file(path, png, _grid, Window(0, 0, 1, 1))


def _of_file(path: str, png: bool, take: Callable, window: Window | None):
    rasterio = _rasterio(path)
    # GDAL would also take addresses.
    start = base.read_file(path, len(_PNG))
    driver = DRIVERS.get(os.path.splitext(path)[1].lower(), "GTiff")
    driver = "PNG" if png and start == _PNG else driver
    kind = "GeoTIFF or PNG" if png else "GeoTIFF"
    try:
        if window is None:
            return _read(path, lambda: rasterio.open(path, driver=driver), take, kind)
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
            return _read(path, lambda: _kept_open(path, driver), take, kind)
    except InputError:
        if os.path.getsize(path) <= base.MOST_BYTES:
            base.read_file(path)  # which says so if it is the disk that fails
        raise


def _kept_open(path: str, driver: str):
    """A file that the next tile will ask for too; closed with the last who uses it."""
    return contextlib.nullcontext(_open(path, driver, version(path)))


def version(path: str) -> tuple[int, ...]:
    """Tells a file or folder from what it was before somebody wrote it again."""
    try:
        status = os.stat(path)
    except OSError:  # which whoever reads it says better
        return ()
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=OPEN_FILES)
def _open(path: str, driver: str, version: tuple):
    import rasterio

    return rasterio.open(path, driver=driver)


def decode(data: bytes, name: str) -> Raster:
    """Decodes the bytes of a GeoTIFF, which is called `name` in errors.

    Raises:
        InputError: it is damaged or no GeoTIFF, or rasterio is missing.
    """
    with _rasterio(name).io.MemoryFile(data) as file:
        take = lambda opened: _content(opened, name)
        return _read(name, lambda: file.open(driver="GTiff"), take)


def _rasterio(name: str):
    try:
        import rasterio.io
    except ImportError:
        raise InputError(
            f"Reading {name} needs rasterio; install it with "
            "`pip install -e '.[archives]'`."
        ) from None
    return rasterio


def _read(name: str, opened: Callable, take: Callable, kind: str = "GeoTIFF"):
    from rasterio import errors

    try:
        with warnings.catch_warnings(), _complaints() as complaints:
            # Whether a patch needs coordinates is for its archive to say.
            warnings.simplefilter("ignore", errors.NotGeoreferencedWarning)
            with opened() as file:
                content = take(file)
        reason = next((text for text in complaints if "IO error" in text), "")
    except InputError:
        raise
    except (errors.RasterioError, ValueError) as error:
        reason = str(error.__cause__ or error).rstrip(".")  # GDAL's words come first
    if reason:
        raise InputError(
            f"{name} is damaged or no {kind} ({reason}); unpack or write it again."
        )
    return content


def _check_size(file, name: str, window: Window) -> None:
    """Refuses an image that is larger or has more bands than any patch.

    GDAL invents what a file lacks: of a few bytes can come any number of pixels.
    """
    size = file.count * window.height * window.width
    widest = max((np.dtype(name).itemsize for name in file.dtypes), default=0)
    if file.count > MOST_BANDS or size * widest > base.MOST_BYTES:
        raise InputError(
            f"{name} has {file.count} bands of {window.height} x {window.width} px, "
            "more than a pair's image can have; cut it into tiles, by "
            "read.tile=120 where the images are your own pairs."
        )


def _grid(file) -> Grid:
    transform = None if file.transform.is_identity else tuple(file.transform)[:6]
    return Grid(file.shape, file.crs.to_string() if file.crs else "", transform)


def _content(file, name: str, window: Window | None = None) -> Raster:
    from rasterio import windows
    from rasterio.enums import ColorInterp

    window = window or Window(0, 0, *file.shape)
    _check_size(file, name, window)
    inside = window.inside(file.shape)
    part = windows.Window(inside.left, inside.top, inside.width, inside.height)
    tags = {}
    for index in file.indexes:
        tags |= file.tags(index)
    kinds = dict(zip(file.indexes, file.colorinterp))
    opacity = [i for i in kinds if kinds[i] == ColorInterp.alpha]
    indexes = [i for i in kinds if i not in opacity]
    at = [i - 1 for i in indexes]
    scaling = [(file.scales[i], file.offsets[i]) for i in at]
    missing = _masked(file, indexes, opacity, part)
    pixels = file.read(indexes, window=part)
    scaled = any(pair != (1.0, 0.0) for pair in scaling)
    if scaled:
        scale, offset = np.array(scaling, np.float32).T[:, :, None, None]
        pixels = pixels.astype(np.float32) * scale + offset
    raster = Raster(
        pixels=pixels,
        missing=missing,
        nodata=file.nodata,
        scaling=scaling[0] if scaled else None,
        bands=tuple(file.descriptions[i] or "" for i in at),
        tags=tags | file.tags(),
        grid=_grid(file).part(window),
        others=bool(file.subdatasets),
    )
    return raster if window == inside else _padded(raster, window, inside)


def _padded(raster: Raster, window: Window, inside: Window) -> Raster:
    """What was read of a window, with what it has beyond the image as missing."""
    shape = (len(raster.pixels), window.height, window.width)
    pixels, missing = np.zeros(shape, raster.pixels.dtype), np.ones(shape, bool)
    top, left = inside.top - window.top, inside.left - window.left
    area = np.s_[:, top : top + inside.height, left : left + inside.width]
    if min(top, left) >= 0 and pixels[area].shape == raster.pixels.shape:
        pixels[area] = raster.pixels
        missing[area] = False if raster.missing is None else raster.missing
    return dataclasses.replace(raster, pixels=pixels, missing=missing)


def read_onto(
    read: Callable[[Window], Raster], own: Grid, target: Grid
) -> tuple[Raster, bool]:
    """Reads what an image shows of another grid.

    Args:
        read: returns a window of the image.
        own: its grid.
        target: the other.

    Returns:
        The pixels, and whether they had to be warped: where the pixels of both grids
        coincide they are only cut out.

    Raises:
        InputError: see `read`, or the image cannot be warped.
    """
    if start := grids.offset(own, target):
        return read(Window(*start, *target.shape)), False
    window = grids.covering(own, target)
    raster = dataclasses.replace(read(window), grid=own.part(window))
    return warp(raster, target), True


def warp(raster: Raster, grid: Grid) -> Raster:
    """The pixel of an image that is nearest to each of another grid.

    Values stay as they were measured: means of dB, of fill values and of classes are
    none of these. What the image does not cover is missing.

    Raises:
        InputError: it cannot be warped.
    """
    import rasterio
    from rasterio import errors, warp

    def nearest(pixels: np.ndarray) -> np.ndarray:
        found = np.zeros((len(pixels), *grid.shape), pixels.dtype)
        warp.reproject(
            pixels,
            found,
            src_crs=raster.grid.crs,
            src_transform=rasterio.Affine(*raster.grid.transform),
            dst_crs=grid.crs,
            dst_transform=rasterio.Affine(*grid.transform),
            resampling=warp.Resampling.nearest,
            tolerance=0,
        )
        return found

    valid = np.ones(raster.pixels.shape, np.uint8)
    if raster.missing is not None:
        valid[raster.missing] = 0
    try:
        pixels, missing = nearest(raster.pixels), nearest(valid) == 0
    except (errors.RasterioError, ValueError) as error:
        raise InputError(
            f"An image in {raster.grid.crs} cannot be warped to {grid.crs} ({error})."
        ) from None
    return dataclasses.replace(raster, pixels=pixels, missing=missing, grid=grid)


def _masked(file, indexes, opacity, part) -> np.ndarray | None:
    """Where a nodata value, a mask or opacity says that nothing was measured."""
    from rasterio.enums import MaskFlags

    flags = [file.mask_flag_enums[i - 1] for i in indexes]
    if opacity:  # GDAL itself looks at it in files of 2 or 4 bands alone
        empty = np.repeat(
            file.read(opacity[:1], window=part) == 0, len(indexes), axis=0
        )
        return empty if empty.any() else None
    if all(MaskFlags.all_valid in flag for flag in flags):
        return None
    empty = file.read_masks(indexes, window=part) == 0
    return empty if empty.any() else None


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """What GDAL has to say; it passes over metadata that are cut off with a warning."""
    log, thread = logging.getLogger("rasterio._env"), threading.get_ident()
    complaints = []

    def keep(record: logging.LogRecord) -> bool:
        if record.thread == thread:
            complaints.append(record.getMessage())
        return record.thread != thread

    log.addFilter(keep)
    try:
        yield complaints
    finally:
        log.removeFilter(keep)
