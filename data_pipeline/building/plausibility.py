"""Whether the values of a dataset can be what its contract says.

A pair tells little: water is dark, snow is bright. Over a sample of pairs, the usual
mistakes stand out: another unit, exchanged polarisations, an offset left in or removed
twice.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline import sensors, units
from data_pipeline.description import Description
from data_pipeline.errors import InputError

# Where the median lies for real backscatter in dB: above the sensor's noise, and below
# what only a few walls reach. Linear power and uncalibrated DN lie higher.
BACKSCATTER = {"co-polarised": (-36.0, 0.0), "cross-polarised": (-40.0, -5.0)}

# With the offset in, no band has anything darker than about `units.OFFSET`, and yet
# the visible bands are as dark as vegetation: that sets it apart from sand and cloud.
OFFSET_FLOOR, OFFSET_CEILING = 900, 2000
_DARK = 5  # percentile that stands for the darkest surfaces


def check(
    description: Description,
    records: Sequence[Mapping[str, np.ndarray]],
    settings: Collection[str] = (),
) -> None:
    """Refuses values that cannot be what the description says.

    Args:
        description: of the dataset.
        records: pixel fields of a sample of its pairs, [H, W, C] each.
        settings: of the archive's reader, fields of `config.read`.

    Raises:
        InputError: naming the band, the numbers, and the setting to change.
    """
    if not records:
        return
    for name, sensor in description.sensors.items():
        values = {}
        for grid in description.layout.of(name):
            for i, band in enumerate(grid.bands):
                images = [record[grid.field][..., i].ravel() for record in records]
                values[band] = np.concatenate(images)
        wrong = (_wrong_s1 if name == "s1" else _wrong_s2)(sensor, values)
        if wrong:
            known = wrong.setting in settings
            advice = wrong.advice if known else "see how the archive was made"
            raise InputError(
                f"Over a sample of {len(records)} pairs, {sensor.title} "
                f"{wrong.reason}; {advice} (--config.check_values=False overrides)."
            )


class Wrong(NamedTuple):
    """What is implausible, the setting that may mend it, and how."""

    reason: str
    setting: str
    advice: str


def _wrong_s1(sensor: sensors.Sensor, values: Mapping[str, np.ndarray]) -> Wrong | None:
    """What is implausible about backscatter."""
    for band in sensor.bands:
        low, high = BACKSCATTER[band.family]
        median = np.median(values[band.name].astype(np.float32))
        if not low <= median <= high:
            return Wrong(
                f"{band.name} has a median of {median:.3g} dB, where real backscatter "
                f"has one between {low:g} and {high:g}, as linear power has",
                "s1_unit",
                "if it is linear power, set --config.read.s1_unit=linear, and if it is "
                "uncalibrated, calibrate it",
            )
    if {"VV", "VH"} <= values.keys():
        vv, vh = (values[name].mean(dtype=np.float64) for name in ("VV", "VH"))
        if vh > vv:
            return Wrong(
                f"VH has a mean of {vh:.1f} dB and VV one of {vv:.1f}, where VV is the "
                "brighter one on every surface",
                "s1_bands",
                "exchange their names, as with --config.read.s1_bands",
            )
    return None


def _wrong_s2(sensor: sensors.Sensor, values: Mapping[str, np.ndarray]) -> Wrong | None:
    """What is implausible about DN."""
    most = max(image.max() for image in values.values())
    if most < 256:
        return Wrong(
            f"has no DN above {most} in any of {len(values)} bands, where DN are "
            "reflectance x 10000",
            "s2_unit",
            "if it is reflectance, set --config.read.s2_unit=reflectance, and if it "
            "was made for display, take the original",
        )
    visible = [band.name for band in sensor.bands if band.family == "visible"]
    empty = {name: np.mean(values[name] <= units.DARKEST) for name in visible}
    if visible and min(empty.values()) > 0.5:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in empty.items())
        return Wrong(
            f"is 0 or {units.DARKEST} DN in most pixels ({shares}), as where nothing "
            "was measured",
            "s2_offset",
            f"if the offset of {units.OFFSET} DN was removed before, set "
            "--config.read.s2_offset=0",
        )
    dark = {name: _dark(image) for name, image in values.items()}
    # Blue bands alone are as bright through haze; cirrus is dark over sand and cloud.
    telling = {"B04", "B10", "B12"} & dark.keys()
    like_sand = "B10" not in dark and any(dark[b] > OFFSET_CEILING for b in visible)
    if telling and min(dark.values()) >= OFFSET_FLOOR and not like_sand:
        floors = ", ".join(f"{name} {value:.0f}" for name, value in dark.items())
        return Wrong(
            f"is nowhere dark (percentile {_DARK} of DN: {floors}), as with the offset "
            f"of {units.OFFSET} DN that processing baseline 04.00 and later add",
            "s2_offset",
            f"take it out with --config.read.s2_offset={units.OFFSET}",
        )
    return None


def _dark(image: np.ndarray) -> float:
    """The darkest DN that are measured; no image here is 0 everywhere."""
    return float(np.percentile(image[image > 0], _DARK)) if image.any() else 0.0
