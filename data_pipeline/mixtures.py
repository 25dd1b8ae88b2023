"""Several datasets as one: their pairs in chosen proportions."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from data_pipeline.archives import base
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from data_pipeline.layout import Layout
from data_pipeline.sensors import Sensor


class Mixture:
    """The pairs of several sources, one source after another.

    `batches.train_batches` draws from the parts by their shares instead. All pairs have
    the arrays of all sensors: of one that their part lacks, nothing was measured.

    Attributes:
        parts: the sources.
        shares: of each part in what is drawn; they sum to 1.
        description: what the parts have in common, and the sensors of all of them, with
            statistics of the mixture.
        fields: that the pairs hold.
        lacking: names of the sensors that each part lacks.
    """

    def __init__(
        self,
        parts: Sequence,
        weights: Sequence[float] = (),
        wanted: Description | None = None,
    ):
        """Mixes `parts`, which are alike, by `weights` or by their numbers of pairs.

        Args:
            parts: the sources, alike in what they share.
            weights: one for each.
            wanted: sensors that pairs are to have though no part may, and their arrays.

        Raises:
            InputError: a weight is missing or not positive.
        """
        weights = list(weights) or [len(part) for part in parts]
        check_weights(weights, len(parts))
        self.parts = tuple(parts)
        self.shares = tuple(weight / sum(weights) for weight in weights)
        self.description = _common(self.parts, weights, wanted)
        present = [part.description.sensors for part in self.parts]
        names = self.description.sensors
        self.lacking = tuple(
            tuple(name for name in names if name not in there) for there in present
        )
        # Made once, and copied into batches.
        self._nothing = [self._make_nothing(lacks) for lacks in self.lacking]
        self.fields = (*self.parts[0].fields, *self._nothing[0])
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def _make_nothing(self, lacks: Iterable[str]) -> dict[str, np.ndarray]:
        """The arrays of a pair that lacks some sensors, of these."""
        found = {}
        for name in lacks:
            found |= base.nothing(self.description, name)
        return found

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"Pair {index} of {len(self)}.")
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        pair = self.parts[part][index - int(self._starts[part])]
        return pair | self._nothing[part]

    @property
    def directories(self) -> tuple[str, ...]:
        """The folders of all parts."""
        return tuple(
            folder for part in self.parts for folder in getattr(part, "directories", ())
        )

    @property
    def index(self) -> dict[str, np.ndarray]:
        """The index of all parts, as far as they have the same classes."""
        indices = [part.index for part in self.parts]
        fields = ("id", "place", *self.description.classes)
        return {
            field: np.concatenate([index[field] for index in indices])
            for field in fields
            if all(field in index for index in indices)
        }

    @property
    def places(self) -> np.ndarray:
        """Place of the pairs, see `ground`."""
        known = [part.places for part in self.parts if hasattr(part, "places")]
        return np.concatenate([np.empty(0, str), *known])

    def fingerprint(self) -> dict:
        """Names the parts and their shares."""
        parts = [part.fingerprint() for part in self.parts]
        return {"count": len(self), "parts": parts, "shares": list(self.shares)}


def check_weights(weights: Sequence[float], count: int) -> None:
    """Refuses weights that are not one for each of `count` datasets.

    Raises:
        InputError: one is missing or not positive.
    """
    if len(weights) != count or not all(0 < w < np.inf for w in weights):
        raise InputError(
            f"data.weights {list(weights)} must be {count} positive numbers, one for "
            "each dataset."
        )


def together(descriptions: Iterable[Description]) -> Description:
    """The first of some descriptions, with the sensors that only others have.

    Where any has pairs that nobody has labelled, so do all of them together.
    """
    found, *others = descriptions
    for other in others:
        new = {k: v for k, v in other.sensors.items() if k not in found.sensors}
        grids = [grid for grid in other.layout.grids if grid.sensor in new]
        found = dataclasses.replace(
            found,
            layout=Layout(found.layout.size, (*found.layout.grids, *grids)),
            sensors={**found.sensors, **new},
            unlabelled=found.unlabelled or other.unlabelled,
        )
    return found


def reading(description: Description, fields: Iterable[str]) -> Description:
    """A description without the arrays and bands that are in none of some fields."""
    fields = set(fields)
    grids = [grid for grid in description.layout.grids if grid.field in fields]
    sensors = {}
    for name, sensor in description.sensors.items():
        stored = {band for g in grids if g.sensor == name for band in g.bands}
        if stored:
            sensors[name] = sensor.select(b for b in sensor.band_names if b in stored)
    layout = Layout(description.layout.size, tuple(grids))
    return dataclasses.replace(description, layout=layout, sensors=sensors)


def _common(
    parts: Sequence, weights: Sequence[float], wanted: Description | None
) -> Description:
    descriptions = [reading(part.description, part.fields) for part in parts]
    first = descriptions[0]
    everything = together(descriptions if wanted is None else (*descriptions, wanted))
    classes, maps = (
        {
            field: names
            for field, names in getattr(first, kind).items()
            if all(getattr(d, kind).get(field) == names for d in descriptions)
        }
        for kind in ("classes", "maps")
    )
    return dataclasses.replace(
        everything,
        name="+".join(d.name for d in descriptions),
        title=" ".join(d.title for d in descriptions),
        source=" ".join(d.source for d in descriptions),
        licence="\n\n".join(dict.fromkeys(d.licence for d in descriptions)),
        sensors={
            name: _pooled(
                [
                    (d.sensors[name], weight)
                    for d, weight in zip(descriptions, weights)
                    if name in d.sensors
                ]
                or [(sensor, 1.0)]
            )
            for name, sensor in everything.sensors.items()
        },
        classes=classes,
        maps=maps,
    )


def _pooled(weighted: Sequence[tuple[Sensor, float]]) -> Sensor:
    """A sensor with the statistics of all that have it, by their weights."""
    sensors, weights = zip(*weighted)
    if len({(sensor.bands, sensor.source) for sensor in sensors}) == 1:
        return sensors[0]
    shares = [weight / sum(weights) for weight in weights]
    means, deviations = {}, {}
    for band in sensors[0].bands:
        bands = [next(b for b in s.bands if b.name == band.name) for s in sensors]
        mean = sum(w * b.mean for w, b in zip(shares, bands))
        square = sum(w * (b.std**2 + b.mean**2) for w, b in zip(shares, bands))
        means[band.name], deviations[band.name] = mean, (square - mean**2) ** 0.5
    source = " and ".join(dict.fromkeys(sensor.source for sensor in sensors))
    return sensors[0].with_statistics(means, deviations, f"mixture of: {source}")
