"""GeoTIFFs of any number of bands, compressed or tiled, read by rasterio; and where on
the ground their pixels lie."""

import contextlib
import dataclasses
import itertools
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from data_pipeline.archives import base
from data_pipeline.errors import InputError

# What is read, by the ending of a file: GDAL would also take addresses and recipes.
DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG"}
GSD = 10.0  # metres, of Sentinel-1 and Sentinel-2 as a pair has them
MOST_BANDS = 1000  # of a file; each has metadata of its own

_SAME_GSD = 0.01  # share of it by which pixels may be larger or smaller
_PNG = b"\x89PNG\r\n\x1a\n"  # how such a file begins
_ALIGNED = 0.01  # pixels by which the corners of two images may differ from rounding


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
        crs: coordinate reference system, "" where unknown.
        transform: from (column, row) to coordinates, six numbers, or None.
        metres: that one unit of the coordinates is, or None where they are degrees.
        others: whether the file holds further images, which are not read.
    """

    pixels: np.ndarray
    missing: np.ndarray | None
    nodata: float | None
    scaling: tuple[float, float] | None
    bands: tuple[str, ...]
    tags: dict[str, str]
    crs: str
    transform: tuple[float, ...] | None
    metres: float | None
    others: bool

    @property
    def grid(self) -> str:
        """Coordinate system and transform in whole units; "" without coordinates."""
        if not self.crs or not self.transform:
            return ""
        return " ".join([self.crs, *(f"{value:.0f}" for value in self.transform)])


def read(path: str, png: bool = False) -> Raster:
    """Reads the GeoTIFF or JPEG 2000 at `path`, with what lies beside it; or a PNG.

    GDAL's other drivers are not asked: some take a file for a recipe to follow.

    Args:
        path: of the file.
        png: whether it may be a PNG.

    Raises:
        InputError: it is not there, damaged or no such image, or rasterio is missing.
        OSError: it cannot be read.
    """
    rasterio = _rasterio(path)
    # GDAL would also take addresses.
    start = base.read_file(path, len(_PNG))
    driver = DRIVERS.get(os.path.splitext(path)[1].lower(), "GTiff")
    driver = "PNG" if png and start == _PNG else driver
    kind = "GeoTIFF or PNG" if png else "GeoTIFF"
    try:
        return _read(path, lambda: rasterio.open(path, driver=driver), kind)
    except InputError:
        base.read_file(path)  # which says so if it is the disk that fails
        raise


def decode(data: bytes, name: str) -> Raster:
    """Decodes the bytes of a GeoTIFF, which is called `name` in errors.

    Raises:
        InputError: it is damaged or no GeoTIFF, or rasterio is missing.
    """
    with _rasterio(name).io.MemoryFile(data) as file:
        return _read(name, lambda: file.open(driver="GTiff"))


def _rasterio(name: str):
    try:
        import rasterio.io
    except ImportError:
        raise InputError(
            f"Reading {name} needs rasterio; install it with "
            "`pip install -e '.[archives]'`."
        ) from None
    return rasterio


def _read(name: str, opened: Callable, kind: str = "GeoTIFF") -> Raster:
    from rasterio import errors

    try:
        with warnings.catch_warnings(), _complaints() as complaints:
            # Whether a patch needs coordinates is for its archive to say.
            warnings.simplefilter("ignore", errors.NotGeoreferencedWarning)
            with opened() as file:
                _check_size(file, name)
                content = _content(file)
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


def _check_size(file, name: str) -> None:
    """Refuses an image that is larger or has more bands than any patch.

    GDAL invents what a file lacks: of a few bytes can come any number of pixels.
    """
    size = file.count * file.height * file.width
    widest = max((np.dtype(name).itemsize for name in file.dtypes), default=0)
    if file.count > MOST_BANDS or size * widest > base.MOST_BYTES:
        raise InputError(
            f"{name} has {file.count} bands of {file.height} x {file.width} px, more "
            "than a pair's image can have; cut it, and its partner alike, into images "
            "of a few hundred pixels, as gdal_retile.py does."
        )


def _content(file) -> Raster:
    from rasterio.enums import ColorInterp

    tags = {}
    for index in file.indexes:
        tags |= file.tags(index)
    kinds = dict(zip(file.indexes, file.colorinterp))
    opacity = [i for i in kinds if kinds[i] == ColorInterp.alpha]
    indexes = [i for i in kinds if i not in opacity]
    at = [i - 1 for i in indexes]
    scaling = [(file.scales[i], file.offsets[i]) for i in at]
    missing, pixels = _masked(file, indexes, opacity), file.read(indexes)
    scaled = any(pair != (1.0, 0.0) for pair in scaling)
    if scaled:
        scale, offset = np.array(scaling, np.float32).T[:, :, None, None]
        pixels = pixels.astype(np.float32) * scale + offset
    return Raster(
        pixels=pixels,
        missing=missing,
        nodata=file.nodata,
        scaling=scaling[0] if scaled else None,
        bands=tuple(file.descriptions[i] or "" for i in at),
        tags=tags | file.tags(),
        crs=file.crs.to_string() if file.crs else "",
        transform=None if file.transform.is_identity else tuple(file.transform)[:6],
        metres=_metres(file.crs),
        others=bool(file.subdatasets),
    )


def _masked(file, indexes, opacity) -> np.ndarray | None:
    """Where a nodata value, a mask or opacity says that nothing was measured."""
    from rasterio.enums import MaskFlags

    flags = [file.mask_flag_enums[i - 1] for i in indexes]
    if opacity:  # GDAL itself looks at it in files of 2 or 4 bands alone
        empty = np.repeat(file.read(opacity[:1]) == 0, len(indexes), axis=0)
        return empty if empty.any() else None
    if all(MaskFlags.all_valid in flag for flag in flags):
        return None
    empty = file.read_masks(indexes) == 0
    return empty if empty.any() else None


def _metres(crs) -> float | None:
    return crs.linear_units_factor[1] if crs and crs.is_projected else None


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


def check_grids(images: Mapping[str, Raster]) -> None:
    """Refuses grids that are not of 10 m, and images of different places.

    Images without coordinates are believed.

    Args:
        images: of a pair, by what they are called in errors.

    Raises:
        InputError: with the numbers.
    """
    images = {name: image for name, image in images.items() if image.grid}
    for name, image in images.items():
        _check_pixel_size(name, image)
    for one, other in itertools.pairwise(images.items()):
        _check_aligned(one, other)


def _check_pixel_size(name: str, image: Raster) -> None:
    if image.metres is None:
        raise InputError(
            f"{name} lies in {image.crs}, whose coordinates are no metres; reproject "
            f"it to a grid of {GSD:g} m, such as UTM."
        )
    x, y = np.hypot(*_matrix(image)[:, :2]) * image.metres
    if max(abs(x - GSD), abs(y - GSD)) > _SAME_GSD * GSD:
        raise InputError(
            f"{name} has pixels of {x:g} x {y:g} m, where those of a pair have "
            f"{GSD:g} m; resample it."
        )


def _check_aligned(one: tuple[str, Raster], other: tuple[str, Raster]) -> None:
    (name, a), (other_name, b) = one, other
    height, width = b.pixels.shape[1:]
    corners = np.array([(0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1)])
    apart = np.hypot(*(_matrix(a) - _matrix(b)) @ corners.T).max() * b.metres / GSD
    if a.crs != b.crs or apart > _ALIGNED:
        raise InputError(
            f"{name} lies in {a.crs} at {a.transform} and {other_name} in {b.crs} at "
            f"{b.transform}; resample one onto the other's grid."
        )


def _matrix(image: Raster) -> np.ndarray:
    """From (column, row, 1) to coordinates, [2, 3]."""
    return np.reshape(image.transform, (2, 3))
