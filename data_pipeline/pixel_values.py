"""What the numbers of an image mean: its unit, and 0 where nothing was measured.

Pixels are converted to the contract's dB and DN. Where no tag names a fill value, it is
told apart: radar in dB is 0 on bright pixels too, and optical bands are 0 over dark
water, so 0 alone says little. Real single-band radar that was rounded has scattered
pixels at 0 dB.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from data_pipeline.offsets import DARKEST, OFFSET

DN_PER_REFLECTANCE = 10000.0
AREA = 64  # connected pixels at 0 dB that no bright object has


def unchanged(image: np.ndarray) -> np.ndarray:
    """The conversion of a unit that is the contract's own."""
    return image


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit that people keep pixels in.

    Attributes:
        name: in configs.
        words: what it is called in sentences.
        convert: makes of an image one in the contract's unit. NaN and values that
            cannot be stay so: `base.pixels` sees to them.
        least: most values of an image in this unit are not below it,
        most: and not above it.
        peak: the greatest value of an image is not below it.
    """

    name: str
    words: str
    convert: Callable[[np.ndarray], np.ndarray] = unchanged
    least: float = -np.inf
    most: float = np.inf
    peak: float = -np.inf

    def doubt(self, image: np.ndarray) -> str:
        """Why the measured values of an image cannot be in this unit; "" if they can.

        Whatever surface a single image shows, these differ by orders of magnitude.

        Args:
            image: [H, W], or [C, H, W], of which no band can be in another unit.
        """
        images = image.reshape(-1, *image.shape[-2:])
        known = (band[np.isfinite(band) & (band != 0)] for band in images)
        bands = [band for band in known if band.size]
        for band in bands:
            if np.mean(band < self.least) > 0.5:
                return f"most are below {self.least:g}, the least is {band.min():.3g}"
            if np.mean(band > self.most) > 0.5:
                return f"most are above {self.most:g}, the greatest is {band.max():.3g}"
        if bands and max(band.max() for band in bands) < self.peak:
            return f"none is above {self.peak:g}"
        return ""


def linear_to_db(power: np.ndarray) -> np.ndarray:
    """Backscatter in dB; NaN where the linear power is not positive."""
    return 10.0 * np.log10(np.where(power > 0, power, np.nan))


def amplitude_to_db(amplitude: np.ndarray) -> np.ndarray:
    """Backscatter in dB of its square root; NaN where that is not positive."""
    return 2 * linear_to_db(amplitude)


def clamp_dn(dn: np.ndarray) -> np.ndarray:
    """DN of which those slightly below 0, as of dark water, become `DARKEST`.

    What no DN can express, less than -1000, stays negative.
    """
    if dn.dtype.kind == "u":
        return dn
    return np.where((dn < 0) & (dn >= -OFFSET), DARKEST, dn)


def reflectance_to_dn(reflectance: np.ndarray) -> np.ndarray:
    """Reflectance x 10000, rounded, as floating point.

    Dark surfaces may come out slightly below zero, and become `DARKEST`. 0 stays 0, for
    it means that nothing was measured; what no DN can express, less than -0.1, stays
    negative.
    """
    dn = np.rint(np.asarray(reflectance) * DN_PER_REFLECTANCE)
    dark = (reflectance != 0) & (dn < DARKEST) & (dn >= -OFFSET)
    return np.where(dark, DARKEST, dn)


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
