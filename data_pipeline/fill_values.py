"""Fill values that no tag names: where an image is 0 because nothing was measured.

Radar in dB is 0 on bright pixels too, and optical bands are 0 over dark water, so 0
alone says little. Real single-band radar that was rounded has scattered pixels at 0 dB.
"""

from collections.abc import Sequence

import numpy as np

AREA = 64  # connected pixels at 0 dB that no bright object has


def zero_backscatter(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Where radar in dB is 0 in two bands at once, or in a whole area of one.

    Args:
        images: the bands of each grid, [C, H, W].

    Returns:
        Whether a pixel was filled, for each grid [H, W].
    """
    found = []
    for bands in images:
        zero = bands == 0
        empty = zero.sum(axis=0) >= 2
        for band in zero:
            if band.sum() >= AREA:
                empty |= _large_areas(band)
        found.append(empty)
    return found


def _large_areas(zero: np.ndarray) -> np.ndarray:
    """The connected areas of [H, W] that have `AREA` pixels at least."""
    from scipy import ndimage  # only now: most images have none

    labels, _ = ndimage.label(zero, structure=np.ones((3, 3)))
    large = np.bincount(labels.ravel()) >= AREA
    large[0] = False  # what is not 0
    return large[labels]


def zero_reflectance(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Where optical images are 0 in all of their bands.

    Args:
        images: the bands of each grid, [C, H, W]; sizes are multiples of the least.

    Returns:
        Whether a pixel was filled, for each grid [H, W]. On a coarse grid the pixel is
        0 itself, and some ground in it is so in all grids.
    """
    zero = [(bands == 0).all(axis=0) for bands in images]
    finest = max(x.shape for x in zero)
    everywhere = np.ones(finest, bool)
    for x in zero:
        everywhere &= np.kron(x, np.ones((finest[0] // len(x),) * 2, bool))
    found = []
    for x in zero:
        n = finest[0] // len(x)
        ground = everywhere.reshape(x.shape[0], n, x.shape[1], n)
        found.append(x & ground.any(axis=(1, 3)))
    return found
