"""GeoTIFFs of any number of bands, compressed or tiled, read by rasterio."""

import contextlib
import dataclasses
import logging
import threading
import warnings
from collections.abc import Iterator

import numpy as np

from data_pipeline.archives import files
from data_pipeline.errors import InputError

MOST_BANDS = 1000  # of a file; each has metadata of its own


@dataclasses.dataclass(frozen=True)
class Raster:
    """The content of a GeoTIFF.

    Attributes:
        pixels: [C, H, W], of the file's type.
        bands: description of each band, "" where it has none.
        tags: metadata of the file and of its bands; the file's own come first.
        nodata: value that stands for "not measured", or None.
        crs: coordinate reference system, "" where unknown.
        transform: from (column, row) to coordinates, six numbers, or None.
        metres: that one unit of the coordinates is, or None where they are degrees.
    """

    pixels: np.ndarray
    bands: tuple[str, ...]
    tags: dict[str, str]
    nodata: float | None
    crs: str
    transform: tuple[float, ...] | None
    metres: float | None


def read(path: str) -> Raster:
    """Reads the GeoTIFF at `path`.

    Raises:
        InputError: it is not there, damaged or no GeoTIFF, or rasterio is missing.
        OSError: it cannot be read.
    """
    try:
        import rasterio
    except ImportError:
        raise InputError(
            f"Reading {path} needs rasterio; install it with "
            "`pip install -e '.[archives]'`."
        ) from None
    files.read(path, 0)  # GDAL would also take addresses and recipes
    try:
        with warnings.catch_warnings(), _complaints() as complaints:
            # Whether a patch needs coordinates is for its archive to say.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path, driver="GTiff") as file:
                _check_size(file)
                content = _content(file)
        reason = next((text for text in complaints if "IO error" in text), "")
    except (rasterio.errors.RasterioError, ValueError) as error:
        reason = str(error.__cause__ or error).rstrip(".")  # GDAL's words come first
    if reason:
        files.read(path)  # which says so if it is the disk that fails
        raise InputError(
            f"{path} is damaged or no GeoTIFF ({reason}); unpack or write it again."
        )
    return content


def _check_size(file) -> None:
    """Raises a ValueError for an image that is larger or has more bands than any patch.

    GDAL invents what a file lacks: of a few bytes can come any number of pixels.
    """
    size = file.count * file.height * file.width
    widest = max((np.dtype(name).itemsize for name in file.dtypes), default=0)
    if file.count > MOST_BANDS or size * widest > files.MOST_BYTES:
        shape = f"{file.count} x {file.height} x {file.width}"
        raise ValueError(f"an image of {shape} px, which is no patch")


def _content(file) -> Raster:
    tags = {}
    for index in file.indexes:
        tags |= file.tags(index)
    return Raster(
        pixels=file.read(),
        bands=tuple(text or "" for text in file.descriptions),
        tags=tags | file.tags(),
        nodata=file.nodata,
        crs=file.crs.to_string() if file.crs else "",
        transform=None if file.transform.is_identity else tuple(file.transform)[:6],
        metres=_metres(file.crs),
    )


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
