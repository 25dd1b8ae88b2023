"""Several datasets as one: their pairs in chosen proportions."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from data_pipeline.layout import Layout
from data_pipeline.sensors import Sensor


class Mixture:
    """The pairs of several sources, one source after another.

    `batches.train_batches` draws from the parts by their shares instead.

    Attributes:
        parts: the sources.
        shares: of each part in what is drawn; they sum to 1.
        description: what the parts have in common, with statistics of the mixture.
        fields: that the pairs hold.
    """

    def __init__(self, parts: Sequence, weights: Sequence[float] = ()):
        """Mixes `parts`, which are alike, by `weights` or by their numbers of pairs.

        Raises:
            InputError: a weight is missing or not positive.
        """
        weights = list(weights) or [len(part) for part in parts]
        check_weights(weights, len(parts))
        self.parts = tuple(parts)
        self.shares = tuple(weight / sum(weights) for weight in weights)
        self.fields = self.parts[0].fields
        self.description = _common(self.parts, self.shares)
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"Pair {index} of {len(self)}.")
        part, place = self._find(index)
        return part[place]

    def _find(self, index: int) -> tuple:
        """The part that holds a pair, and its place there."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part], index - int(self._starts[part])

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


def _common(parts: Sequence, shares: Sequence[float]) -> Description:
    descriptions = [part.description for part in parts]
    first = descriptions[0]
    grids = [grid for grid in first.layout.grids if grid.field in parts[0].fields]
    stored = {
        name: [
            band
            for band in sensor.band_names
            if any(g.sensor == name and band in g.bands for g in grids)
        ]
        for name, sensor in first.sensors.items()
    }
    classes, maps = (
        {
            field: names
            for field, names in getattr(first, kind).items()
            if all(getattr(d, kind).get(field) == names for d in descriptions)
        }
        for kind in ("classes", "maps")
    )
    return dataclasses.replace(
        first,
        name="+".join(d.name for d in descriptions),
        title=" ".join(d.title for d in descriptions),
        source=" ".join(d.source for d in descriptions),
        licence="\n\n".join(dict.fromkeys(d.licence for d in descriptions)),
        layout=Layout(first.layout.size, tuple(grids)),
        sensors={
            name: _pooled([d.sensors[name].select(bands) for d in descriptions], shares)
            for name, bands in stored.items()
            if bands
        },
        classes=classes,
        maps=maps,
    )


def _pooled(sensors: Sequence[Sensor], shares: Sequence[float]) -> Sensor:
    """A sensor with the statistics of the mixture."""
    if len({(sensor.bands, sensor.source) for sensor in sensors}) == 1:
        return sensors[0]
    means, deviations = {}, {}
    for band in sensors[0].bands:
        bands = [next(b for b in s.bands if b.name == band.name) for s in sensors]
        mean = sum(w * b.mean for w, b in zip(shares, bands))
        square = sum(w * (b.std**2 + b.mean**2) for w, b in zip(shares, bands))
        means[band.name], deviations[band.name] = mean, (square - mean**2) ** 0.5
    source = " and ".join(dict.fromkeys(sensor.source for sensor in sensors))
    return sensors[0].with_statistics(means, deviations, f"mixture of: {source}")
