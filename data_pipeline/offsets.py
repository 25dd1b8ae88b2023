"""What Sentinel-2's processing baselines add to every DN, and what tells it.

ESA's processing baseline 04.00 (25 January 2022) and later add 1000, so that
reflectance down to -0.1 fits in an unsigned number. Many who pass images on take it
away again and leave the product's name as it is ("harmonised"), so pixels are asked
before names are.
"""

import re
from collections.abc import Mapping

import numpy as np

from data_pipeline.errors import InputError

OFFSET = 1000
SINCE = 4.0  # the processing baseline
CHOICES = ("auto", "0", str(OFFSET))  # what a config may say of it
# What was measured and is darker than this becomes this, as in products before that
# baseline: 0 is left to mean that nothing was measured.
DARKEST = 1

# With the offset in, dark water lies at 985 to 1000 and hardly anything below `FLOOR`.
FLOOR = 900
MANY = 0.01  # share of the pixels between 1 and `FLOOR` that proves that it is gone
# No ground is seen in the cirrus band, which is near 0 but for thick, high clouds.
CIRRUS, CIRRUS_CEILING = "B10", 1600

_PRODUCT = re.compile(r"_N(\d\d)(\d\d)_")
_TAG = re.compile(r"PROCESSING[_ ]?BASELINE\W{1,4}(\d\d)\.(\d\d)", re.IGNORECASE)
_CUSTOM = 99.99  # ESA's mark of reprocessing outside the operational baselines


def remove(dn: np.ndarray, offset: int) -> np.ndarray:
    """DN without the offset of its processing baseline, at least `DARKEST`.

    0 stays 0, for it means that nothing was measured; so do negative values and NaN.
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


def said(text: str) -> int | None:
    """What names or tags say was added, see `processing_baseline`; None for nothing."""
    baseline = processing_baseline(text)
    return None if baseline is None else OFFSET if baseline >= SINCE else 0


def chosen(choice: str, text: str, name: str, lacking: str) -> int:
    """What was added to each DN of a Sentinel-2 image.

    Args:
        choice: one of `CHOICES`, a number, or "auto" for the baseline in the text.
        text: what the metadata say, see `processing_baseline`.
        name: what the image is called in errors.
        lacking: what of it would tell the baseline, in words.

    Raises:
        InputError: the text names no baseline, and had to.
    """
    offset = said(text) if choice == "auto" else int(choice)
    if offset is None:
        raise InputError(f"{name} {unknown(lacking)}")
    return offset


def unknown(lacking: str, field: str = "read.s2_offset") -> str:
    """What to do about an image that tells nothing, as the end of a sentence.

    Args:
        lacking: what of it would tell the baseline, in words.
        field: of the config that can say it instead.
    """
    return (
        "does not say by which processing baseline it was made (it has no "
        f"{lacking}); pass {field}={OFFSET} when {OFFSET} was added "
        "to each DN, as since January 2022, and =0 when not or when it was removed."
    )


def low_share(images: Mapping[str, np.ndarray]) -> float:
    """The share of an image's DN, above 0, that are at most `FLOOR`."""
    low = sum(np.count_nonzero((x >= DARKEST) & (x <= FLOOR)) for x in images.values())
    measured = sum(np.count_nonzero(x > 0) for x in images.values())
    return low / max(measured, 1)


def proven(images: Mapping[str, np.ndarray]) -> int | None:
    """What the pixels prove was added to them, whatever anybody says of them.

    Args:
        images: DN [H, W] by the contract's names of the bands.

    Returns:
        0 or `OFFSET`, or None: bright ground alone looks the same with and without it.
    """
    if low_share(images) >= MANY:
        return 0
    cirrus = images.get(CIRRUS, np.zeros(0))
    cirrus = cirrus[cirrus > 0]
    if cirrus.size and np.percentile(cirrus, 5) >= FLOOR:
        return OFFSET if np.median(cirrus) <= CIRRUS_CEILING else None
    return None
