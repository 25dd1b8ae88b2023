"""Procedural pairs whose classes are patterns, of which each sensor sees one.

Two crops share a scene, half of it each, in strips, checks or patches; that is what
optics sees. So do smooth and rough ground, in a pattern of their own, which radar
sees. The class is both patterns together.

Statistics of the pixels say little of a sensor's own pattern, since all have the same
share of either half and about the same scale. But each has an echo in the level of the
other sensor, which tells it in two of three pairs (measured: 67 % for the three
patterns of either sensor). So one sensor alone can name at most about two of three
pairs, and both together all of them; and a model that has to redraw an absent sensor
gains by telling the patterns of the present one apart, without any label.
"""

import math
import operator

import numpy as np

from data_pipeline import layout, sensors, synthetic
from data_pipeline.dataset_card import Description

SHAPES = ("strips", "checks", "patches")
CROPS = ("green crop", "soil")  # of synthetic.SPECTRA
GROUND = ((-16.0, -23.0), (-9.5, -16.0))  # mean dB of smooth and rough ground
PERIOD = (6.0, 9.0)  # pixels
# By pattern, how it shifts the level of the other sensor; and how much scenes differ.
ECHO_RADAR, SPREAD_RADAR = (-2.0, 0.0, 2.0), 1.5  # dB
ECHO_OPTICS, SPREAD_OPTICS = (-0.2, 0.0, 0.2), 0.15  # of the logarithm of brightness


class Patterns(synthetic.Scenes):
    """A random-access source of `count` pairs with one class of nine each.

    A record holds the pixel fields of `layout.native(size)` in stored unit and type,
    `labels` (one-hot, uint8) and `id`; or only those of them named in `fields`.
    """

    def _describe(self, size: int) -> Description:
        names = tuple(f"crops in {o}, ground in {r}" for o in SHAPES for r in SHAPES)
        return Description(
            name="patterns",
            title="Procedural Sentinel-1/Sentinel-2 pairs, each sensor with a pattern.",
            source="data_pipeline/patterns.py",
            licence="Apache-2.0, as this project.",
            layout=layout.native(size, sensors.SENSORS),
            sensors=sensors.SENSORS,
            classes={"labels": names},
        )

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        index = operator.index(index)
        if not 0 <= index < self.count:
            raise IndexError(f"Scene {index} of {self.count}.")
        # Every field has a random stream of its own, so leaving one out changes none.
        seen, felt = self._rng(index, 0).integers(len(SHAPES), size=2)
        labels = np.zeros(len(SHAPES) ** 2, np.uint8)
        labels[len(SHAPES) * seen + felt] = 1
        record = {"id": self._name(index), "labels": labels}
        if any(field.startswith("s1_") for field in self.fields):
            record |= self._radar(self._rng(index, 1), felt, seen)
        if any(field.startswith("s2_") for field in self.fields):
            record |= self._optics(self._rng(index, 2), seen, felt)
        return {field: record[field] for field in self.fields}

    def _radar(self, rng, felt: int, seen: int) -> dict[str, np.ndarray]:
        means = np.array(GROUND) + ECHO_RADAR[seen] + rng.normal(0.0, SPREAD_RADAR)
        pixels = means[halves(rng, SHAPES[felt], self.size)]
        return synthetic.measure_radar(rng, pixels)

    def _optics(self, rng, seen: int, felt: int) -> dict[str, np.ndarray]:
        spectra = np.array([synthetic.SPECTRA[name] for name in CROPS], float)
        middle = spectra.mean(axis=0)
        spectra = middle + rng.uniform(0.5, 1.0) * (spectra - middle)  # of contrast
        spectra *= np.exp(ECHO_OPTICS[felt] + rng.normal(0.0, SPREAD_OPTICS))
        spectra += rng.exponential(30.0) * np.array(synthetic.HAZE)
        surface = halves(rng, SHAPES[seen], self.size)
        (texture,) = synthetic.smooth(rng, 1, self._texture)
        gain = np.exp(0.07 * texture)[..., None]
        return synthetic.measure_optics(rng, spectra, surface, gain)


def halves(rng, shape: str, size: int) -> np.ndarray:
    """Which half each pixel belongs to, [H, W] of 0 and 1, as many of either."""
    angle, period = rng.uniform(0.0, math.pi), rng.uniform(*PERIOD)
    y, x = np.mgrid[:size, :size] * (2 * math.pi / period)
    across = x * math.cos(angle) + y * math.sin(angle) + rng.uniform(0.0, 2 * math.pi)
    along = y * math.cos(angle) - x * math.sin(angle) + rng.uniform(0.0, 2 * math.pi)
    if shape == "strips":
        field = np.sin(across)
    elif shape == "checks":
        field = np.sin(across) * np.sin(along)
    else:
        (field,) = synthetic.smooth(rng, 1, [synthetic.spread(size, period / 3, 1.0)])
    return (field > np.median(field)).astype(int)
