"""Whether the values of a dataset can be what its contract says.

A pair tells little: water is dark, snow is bright. Over a sample of pairs, the usual
mistakes stand out: another unit, exchanged polarisations, an offset left in or removed
twice. What real images of a sensor look like is data of it, `sensors.Expected`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from data_pipeline.sensors import DARKEST, OFFSET, Sensor

# With the offset in, no band has anything darker than about `OFFSET`, and yet the
# visible bands are as dark as vegetation: that sets it apart from sand and cloud.
OFFSET_FLOOR, OFFSET_CEILING = 900, 2000
_DARK = 5  # percentile that stands for the darkest surfaces


class Wrong(NamedTuple):
    """What is implausible, the setting of the sensor that may mend it, and how."""

    reason: str
    setting: str
    advice: str


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
        for look in (_unit, _order, _holes, _offset):
            for wrong in look(sensor, values):
                setting = f"{name}_{wrong.setting}"
                known = setting in settings
                advice = wrong.advice.format(f"--config.read.{setting}")
                advice = advice if known else "see how the archive was made"
                raise InputError(
                    f"Over a sample of {len(records)} pairs, {sensor.title} "
                    f"{wrong.reason}; {advice} (--config.check_values=False overrides)."
                )


def _unit(sensor: Sensor, values: Mapping[str, np.ndarray]) -> Iterator[Wrong]:
    """Values that lie where those of another unit lie."""
    expected, (own, other) = sensor.expected, sensor.units
    advice = f"if it is {other.words}, set {{}}={other.name}, and if {expected.remedy}"
    for band in sensor.bands:
        low, high = expected.medians.get(band.family, (-np.inf, np.inf))
        median = np.median(values[band.name].astype(np.float32))
        if not low <= median <= high:
            yield Wrong(
                f"{band.name} has a median of {median:.3g} {own.name}, where real "
                f"images have one between {low:g} and {high:g}, as {other.words} has",
                "unit",
                advice,
            )
    most = max(image.max() for image in values.values())
    if most < expected.peak:
        yield Wrong(
            f"has no {own.name} above {most} in any of {len(values)} bands, where "
            f"the unit is {sensor.unit}",
            "unit",
            advice,
        )


def _order(sensor: Sensor, values: Mapping[str, np.ndarray]) -> Iterator[Wrong]:
    """Two bands that were exchanged."""
    names = sensor.expected.brighter
    if not names or not set(names) <= values.keys():
        return
    bright, dim = (values[name].mean(dtype=np.float64) for name in names)
    if dim > bright:
        yield Wrong(
            f"{names[1]} has a mean of {dim:.1f} {sensor.units[0].name} and {names[0]} "
            f"one of {bright:.1f}, where {names[0]} is the brighter one on every "
            "surface",
            "bands",
            "exchange their names, as with {}",
        )


def _holes(sensor: Sensor, values: Mapping[str, np.ndarray]) -> Iterator[Wrong]:
    """Bands in which hardly anything was measured."""
    empty = {
        band.name: np.mean(values[band.name] <= DARKEST)
        for band in sensor.bands
        if band.family == sensor.expected.visible
    }
    if empty and min(empty.values()) > 0.5:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in empty.items())
        yield Wrong(
            f"is 0 or {DARKEST} DN in most pixels ({shares}), as where nothing was "
            "measured",
            "offset",
            f"if the offset of {OFFSET} DN was removed before, set {{}}=0",
        )


def _offset(sensor: Sensor, values: Mapping[str, np.ndarray]) -> Iterator[Wrong]:
    """An offset that was left in."""
    expected = sensor.expected
    if not set(expected.dark) & values.keys():
        return
    dark = {name: _darkest(image) for name, image in values.items()}
    visible = [b.name for b in sensor.bands if b.family == expected.visible]
    bright = any(dark[name] > OFFSET_CEILING for name in visible)
    like_sand = bright and expected.always_dark not in dark
    if min(dark.values()) >= OFFSET_FLOOR and not like_sand:
        floors = ", ".join(f"{name} {value:.0f}" for name, value in dark.items())
        yield Wrong(
            f"is nowhere dark (percentile {_DARK} of DN: {floors}), as with the offset "
            f"of {OFFSET} DN that processing baseline 04.00 and later add",
            "offset",
            f"take it out with {{}}={OFFSET}",
        )


def _darkest(image: np.ndarray) -> float:
    """The darkest DN that are measured; no image here is 0 everywhere."""
    return float(np.percentile(image[image > 0], _DARK)) if image.any() else 0.0
