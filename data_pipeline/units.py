"""Pixel values between the units people keep them in and those of the contract.

The contract is dB for Sentinel-1 and DN, reflectance x 10000, for Sentinel-2. NaN and
values that cannot be are left as they are: `archive.check_image` refuses them.
"""

import re

import numpy as np

from data_pipeline.errors import InputError

UNITS = {"s1": ("dB", "linear"), "s2": ("DN", "reflectance")}  # the contract's first

DN_PER_REFLECTANCE = 10000.0
_MAX_REFLECTANCE = 3.2767  # what the contract can hold; clouds stay far below

# ESA's processing baseline 04.00 (25 January 2022) and later add this to every DN,
# so that reflectance down to -0.1 fits in an unsigned number.
OFFSET = 1000
OFFSET_SINCE = 4.0
# What was measured and is darker than this becomes this, as in products before that
# baseline: 0 is left to mean that nothing was measured.
DARKEST = 1

_PRODUCT = re.compile(r"_N(\d\d)(\d\d)_")
_TAG = re.compile(r"PROCESSING[_ ]?BASELINE\W{1,4}(\d\d)\.(\d\d)", re.IGNORECASE)
_CUSTOM = 99.99  # ESA's mark of reprocessing outside the operational baselines


def linear_to_db(power: np.ndarray) -> np.ndarray:
    """Backscatter in dB; NaN where the linear power is not positive."""
    return 10.0 * np.log10(np.where(power > 0, power, np.nan))


def reflectance_to_dn(reflectance: np.ndarray) -> np.ndarray:
    """Reflectance x 10000, rounded, as floating point.

    Dark surfaces may come out slightly below zero, and become `DARKEST`. 0 stays 0, for
    it means that nothing was measured; what no DN can express, less than -0.1, stays
    negative.
    """
    dn = np.rint(np.asarray(reflectance) * DN_PER_REFLECTANCE)
    dark = (reflectance != 0) & (dn < DARKEST) & (dn >= -OFFSET)
    return np.where(dark, DARKEST, dn)


def remove_offset(dn: np.ndarray, offset: int) -> np.ndarray:
    """DN without the offset of its processing baseline, at least `DARKEST`.

    0 stays 0, for it means that nothing was measured; so do negative values.
    """
    dn = np.asarray(dn)
    dn = dn.astype(np.result_type(dn, np.uint16), copy=False)  # wide enough
    return np.where(dn <= 0, dn, np.maximum(dn, offset + DARKEST) - offset)


def processing_baseline(text: str) -> float | None:
    """The processing baseline of a Sentinel-2 product.

    Args:
        text: product names ("..._N0400_...") or tags ("PROCESSING_BASELINE=04.00").

    Returns:
        E.g. 4.0 or 5.11; None where the text names none, a custom one (N9999), or
        several.
    """
    found = _PRODUCT.findall(text) + _TAG.findall(text)
    baselines = {int(major) + int(minor) / 100 for major, minor in found}
    if len(baselines) != 1 or _CUSTOM in baselines:
        return None
    return baselines.pop()


def baseline_offset(baseline: float) -> int:
    """What a processing baseline adds to every DN."""
    return OFFSET if baseline >= OFFSET_SINCE else 0


def check_unit(sensor: str, unit: str) -> None:
    """Refuses a unit that a sensor's pixels cannot be converted from.

    Raises:
        InputError: naming the units that can be.
    """
    if unit not in UNITS.get(sensor, ()):
        units = ", ".join(f"{name} in {' or '.join(u)}" for name, u in UNITS.items())
        raise InputError(f"{sensor} in {unit!r} is unknown; use {units}.")


def to_contract(
    image: np.ndarray, sensor: str, *, unit: str, offset: int = 0
) -> np.ndarray:
    """Pixels in the unit of the input contract.

    Args:
        image: of any shape.
        sensor: "s1" or "s2".
        unit: of the image, among UNITS[sensor].
        offset: what the processing baseline added to each DN of Sentinel-2.

    Raises:
        InputError: the unit is unknown, the values are not in it, or the offset is not
            one that ESA adds.
    """
    check_unit(sensor, unit)
    if offset not in ((0, OFFSET) if sensor == "s2" else (0,)):
        raise InputError(
            f"An offset of {offset} on {sensor} is unknown; use 0, or {OFFSET} for s2 "
            f"of processing baseline {OFFSET_SINCE:05.2f} or later."
        )
    # The other way round, values stay possible: `plausibility` looks at many images.
    if unit == "linear" and np.mean(image < 0) > 0.5:
        raise InputError(
            f"Most values are negative, the least is {image.min():g}, as those in dB "
            "are and no linear power is; change the unit of s1 to dB."
        )
    if unit == "reflectance" and np.mean(image > _MAX_REFLECTANCE) > 0.5:
        raise InputError(
            f"Most values are above {_MAX_REFLECTANCE:g}, the greatest is "
            f"{image.max():g}, as DN are and no reflectance is; change the unit of s2 "
            "to DN."
        )
    if sensor == "s1":
        return linear_to_db(image) if unit == "linear" else image
    dn = reflectance_to_dn(image) if unit == "reflectance" else image
    return remove_offset(dn, offset)
