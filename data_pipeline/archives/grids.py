"""Where the pixels of an image lie on the ground, going by its coordinates."""

from collections.abc import Mapping

import numpy as np

from data_pipeline.archives.rasters import Raster
from data_pipeline.errors import InputError

GSD = 10.0  # metres, of Sentinel-1 and Sentinel-2 as a pair has them
_SAME_GSD = 0.01  # share of it by which pixels may be larger or smaller
_ALIGNED = 0.01  # pixels by which the corners of two images may differ from rounding


def located(image: Raster) -> bool:
    """Whether an image has coordinates."""
    return bool(image.crs and image.transform)


def text(image: Raster) -> str:
    """Coordinate system and transform, rounded to whole units."""
    return " ".join([image.crs, *(f"{value:.0f}" for value in image.transform)])


def check(images: Mapping[str, Raster]) -> None:
    """Refuses grids that are not of 10 m, and two images of different places.

    Images without coordinates are believed.

    Args:
        images: of a pair, by what they are called in errors.

    Raises:
        InputError: with the numbers.
    """
    images = {name: image for name, image in images.items() if located(image)}
    for name, image in images.items():
        _check_pixel_size(name, image)
    if len(images) == 2:
        _check_aligned(*images.items())


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
