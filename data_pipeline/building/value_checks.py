"""Whether the values of a dataset can be what its contract says.

A pair tells little: water is dark, snow is bright. Over a sample of pairs, the usual
mistakes stand out: another unit, exchanged polarisations, an offset left in or removed
twice. What real images of a sensor look like is data of it, `sensors.Expected`.
"""

import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from data_pipeline.offsets import DARKEST, OFFSET
from data_pipeline.sensors import Sensor, is_missing

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
    settings: Mapping[str, Any] = types.MappingProxyType({}),
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
                images = [record[grid.field][..., i] for record in records]
                measured = [image[~is_missing(image)] for image in images]
                values[band] = np.concatenate(measured)
        unit = settings.get(f"{name}_unit", sensor.units[0].name)
        for look in (functools.partial(_unit, unit=unit), _order, _holes, _offset):
            for wrong in look(sensor, values):
                setting = f"{name}_{wrong.setting}"
                known = setting in settings
                advice = wrong.advice.format(f"read.{setting}")
                advice = advice if known else "see how the archive was made"
                raise InputError(
                    f"Over a sample of {len(records)} pairs, {sensor.title} "
                    f"{wrong.reason}; {advice} (check_values=False overrides)."
                )


def _unit(
    sensor: Sensor, values: Mapping[str, np.ndarray], unit: str
) -> Iterator[Wrong]:
    """Values that lie where those of another unit than `unit`, as given, lie."""
    expected, own = sensor.expected, sensor.units[0]
    others = [known for known in sensor.units if known.name != unit]
    ways = [f"if it is {other.words}, set {{0}}={other.name}" for other in others]
    advice = f"{', '.join(ways)}, and if {expected.remedy}"
    for band in sensor.bands:
        low, high = expected.medians.get(band.family, (-np.inf, np.inf))
        measured = values[band.name].astype(np.float32)
        median = np.median(measured) if measured.size else low
        if not low <= median <= high:
            yield Wrong(
                f"{band.name} has a median of {median:.3g} {own.name}, where real "
                f"images have one between {low:g} and {high:g}",
                "unit",
                advice,
            )
    most = max(image.max(initial=0) for image in values.values())
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
