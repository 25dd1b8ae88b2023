"""Procedural pairs with labels: a dataset of any size that needs no download.

Every scene is a function of (seed, index). Land cover comes first: rectangular fields,
woods, towns and water, drawn on the 10 m grid. Each class then points to one spectrum
and one backscatter, and classes share them on purpose:

                        canopy radar                flooded canopy radar
    deciduous spectrum  broad-leaved forest         flooded broad-leaved forest
    conifer spectrum    coniferous forest           flooded coniferous forest

Water under the trees returns the radar pulse and is hidden from above: optics confuses
the classes of a row, radar those of a column, and only both together name all four.
Likewise dry grassland and rough grazing differ only in radar, winter crop and bare
field only in optics. Scenes vary per spectrum and per backscatter, never per class, and
twins are laid out by one process: neither tone nor shape nor place gives a twin away.

`Scenes` are those; the classes of `Patterns` are patterns, and each sensor sees one.
"""

import dataclasses
import functools
import math
import operator

import numpy as np

from data_pipeline import layout, sensors
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError


@dataclasses.dataclass(frozen=True)
class LandCover:
    """A class: its label, its rows of `SPECTRA` and `BACKSCATTER`, what draws it."""

    name: str
    optics: str
    radar: str
    layer: str


LAND_COVERS = (
    LandCover("winter crop", "green crop", "field", "fields"),
    LandCover("bare field", "soil", "field", "fields"),
    LandCover("dry grassland", "dry grass", "field", "fields"),
    LandCover("rough grazing", "dry grass", "scrub", "fields"),
    LandCover("broad-leaved forest", "deciduous", "canopy", "woods"),
    LandCover("coniferous forest", "conifer", "canopy", "woods"),
    LandCover("flooded broad-leaved forest", "deciduous", "flooded canopy", "woods"),
    LandCover("flooded coniferous forest", "conifer", "flooded canopy", "woods"),
    LandCover("urban", "built", "built", "towns"),
    LandCover("water", "water", "water", "water"),
)

# Surface reflectance in DN, in the band order of sensors.S2.
SPECTRA = {
    "green crop": (250, 330, 620, 380, 950, 2700, 3500, 3700, 3800, 3800, 1700, 850),
    "soil": (520, 660, 900, 1180, 1420, 1600, 1750, 1900, 2050, 2100, 2600, 2200),
    "dry grass": (390, 500, 790, 900, 1300, 1950, 2200, 2400, 2520, 2500, 2350, 1500),
    "deciduous": (200, 240, 430, 260, 650, 2000, 2600, 2750, 2850, 2850, 1350, 600),
    "conifer": (180, 200, 300, 210, 430, 1150, 1400, 1500, 1580, 1600, 750, 350),
    "built": (800, 950, 1100, 1180, 1350, 1650, 1800, 1900, 1950, 2000, 1950, 1650),
    "garden": (450, 530, 760, 720, 1020, 1800, 2150, 2250, 2350, 2350, 1650, 1000),
    "water": (300, 320, 330, 220, 210, 180, 180, 160, 150, 140, 90, 60),
}

# Mean backscatter in dB, in the band order of sensors.S1.
BACKSCATTER = {
    "field": (-13.0, -20.5),
    "scrub": (-9.5, -16.0),
    "canopy": (-11.0, -16.5),
    "flooded canopy": (-6.5, -14.0),
    "built": (-8.0, -15.0),
    "water": (-20.5, -27.5),
}

# Share of haze and of vegetation vigour that reaches each band of sensors.S2.
HAZE = (1.0, 0.85, 0.6, 0.45, 0.35, 0.25, 0.2, 0.15, 0.15, 0.1, 0.05, 0.02)
VIGOUR = (-0.3, -0.4, -0.1, -0.6, 0.1, 0.9, 1.0, 1.0, 1.0, 1.0, 0.1, -0.3)

PRESENT_SHARE = 0.05  # a class is a label when it covers this much of the scene
ENL = 4.9  # equivalent number of looks of a Sentinel-1 IW GRD product
NOISE_DN = 12.0

# Smooth noise is a sum of octaves: (correlation length in pixels, amplitude).
LANDFORM = ((44.0, 0.88), (16.0, 0.42), (6.0, 0.2))
TEXTURE = ((7.0, 0.5), (1.5, 0.85))

_PARCELS = 1024  # attributes of parcels repeat beyond this many
_OPTICS_OF_CLASS = np.array([tuple(SPECTRA).index(c.optics) for c in LAND_COVERS])
_GARDEN = tuple(SPECTRA).index("garden")
_RADAR_OF_CLASS = np.array([tuple(BACKSCATTER).index(c.radar) for c in LAND_COVERS])
_FIELDS, _WOODS, _TOWNS, _WATER = (
    np.array([i for i, c in enumerate(LAND_COVERS) if c.layer == layer])
    for layer in ("fields", "woods", "towns", "water")
)
# Each stage has its own random stream, so leaving a field out changes no other.
_LAYOUT, _OPTICAL, _SAR = range(3)


def _some(rng, classes: np.ndarray, chance: float) -> np.ndarray:
    """Each class with the same chance, and one at least."""
    chosen = classes[rng.random(len(classes)) < chance]
    return chosen if len(chosen) else rng.choice(classes, 1)


def spread(size: int, length: float, amplitude: float) -> np.ndarray:
    """Weights [size, M] that, on both sides of white noise, make a smooth field."""
    knots = np.arange(-2.0, size / length + 3.0) * length
    weights = np.exp(-(((np.arange(size)[:, None] - knots) / length) ** 2))
    weights[weights < 1e-6] = 0.0  # subnormals would make the products tenfold slower
    # Rows of one norm give every pixel the same variance.
    weights *= math.sqrt(amplitude) / np.linalg.norm(weights, axis=1, keepdims=True)
    return weights.astype(np.float32)


def smooth(rng, number: int, spreads) -> np.ndarray:
    """Independent smooth fields [number, H, W], each the sum of its octaves."""
    shapes = [(number, spread.shape[1], spread.shape[1]) for spread in spreads]
    noise = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    down = [spread @ white for spread, white in zip(spreads, noise)]
    return np.concatenate(down, axis=-1) @ np.concatenate(spreads, axis=-1).T


def _parcels(rng, size: int, width: float, length: float) -> np.ndarray:
    """Numbers [H, W] of the rectangular parcels in a rotated, irregular grid."""
    angle = rng.uniform(0.0, math.pi)
    x, y = np.ogrid[:size, :size]
    across = x * math.cos(angle) + y * math.sin(angle)
    along = y * math.cos(angle) - x * math.sin(angle)
    # Rotation moves coordinates into [-size, 1.5 size]; strips must cover that.
    strips = math.ceil(5.0 * size / width)
    cuts = np.cumsum(rng.uniform(0.5, 1.5, strips) * width) - 1.5 * size
    strip = np.searchsorted(cuts, across)
    lengths = rng.uniform(0.6, 1.6, strips + 1) * length
    starts = rng.uniform(0.0, length, strips + 1)
    step = np.floor((along + starts[strip]) / lengths[strip]).astype(int)
    # The stride keeps neighbouring parcels apart after the modulus.
    return (strip * 37 + step) % _PARCELS


def measure_radar(rng, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """What Sentinel-1 makes of mean backscatter [H, W, 2] in dB: speckle is added."""
    speckle = rng.standard_gamma(ENL, pixels.shape, dtype=np.float32) / ENL
    pixels = pixels + 10.0 * np.log10(np.maximum(speckle, 1e-4))
    pixels = np.clip(pixels, *sensors.S1.valid_range)
    return {sensors.S1.grids[0].field: pixels.astype(sensors.S1.dtype)}


def measure_optics(
    rng, spectra: np.ndarray, surface: np.ndarray, gain: np.ndarray
) -> dict[str, np.ndarray]:
    """What Sentinel-2 makes of a 10 m truth: every grid averages it, and adds noise.

    Args:
        rng: of the noise.
        spectra: of the surfaces, DN, [S, 12].
        surface: which of them each pixel shows, [H, W].
        gain: brightness of each pixel, [H, W, 1].
    """
    record = {}
    for grid in sensors.S2.grids:
        bands = [sensors.S2.band_names.index(name) for name in grid.bands]
        truth = np.take(spectra[:, bands], surface, axis=0) * gain
        step = grid.gsd // sensors.FINEST_GSD
        parts = [truth[i::step, j::step] for i in range(step) for j in range(step)]
        pixels = sum(parts) / step**2
        pixels += NOISE_DN * rng.standard_normal(pixels.shape, dtype=np.float32)
        pixels = np.clip(np.rint(pixels), *sensors.S2.valid_range)
        record[grid.field] = pixels.astype(sensors.S2.dtype)
    return record


class Scenes:
    """A random-access source of `count` labelled Sentinel-1/Sentinel-2 pairs.

    A record holds the pixel fields of `layout.native(size)` in stored unit and type,
    `land_cover` (class of each 10 m pixel, [H, W] uint8), `labels` (multi-hot over
    `LAND_COVERS`, uint8) and `id`; or only those of them named in `fields`.
    """

    def __init__(self, count: int, *, size: int = 120, seed: int = 0, fields=None):
        if count < 1 or seed < 0:
            raise InputError(f"Need count > 0 and seed >= 0, not {count} and {seed}.")
        self.description = self._describe(size)
        shapes = self.description.layout.shapes
        known = ("id", *shapes, *self.description.maps, "labels")
        self.fields = known if fields is None else tuple(fields)
        if not set(self.fields) <= set(known):
            raise InputError(f"Fields {self.fields} must be among {known}.")
        self.count, self.size, self.seed = count, size, seed
        self._landform = [spread(size, *octave) for octave in LANDFORM]
        self._texture = [spread(size, *octave) for octave in TEXTURE]

    def _describe(self, size: int) -> Description:
        names = tuple(c.name for c in LAND_COVERS)
        return Description(
            name="synthetic",
            title="Procedural Sentinel-1/Sentinel-2 pairs with land cover.",
            source="data_pipeline/synthetic.py",
            licence="Apache-2.0, as this project.",
            layout=layout.native(size, sensors.SENSORS),
            sensors=sensors.SENSORS,
            classes={"labels": names},
            maps={"land_cover": names},
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        index = operator.index(index)
        if not 0 <= index < self.count:
            raise IndexError(f"Scene {index} of {self.count}.")
        cover, parcel = self._layout(self._rng(index, _LAYOUT))
        share = np.bincount(cover.ravel(), minlength=len(LAND_COVERS)) / cover.size
        record = {
            "id": self._name(index),
            "land_cover": cover,
            "labels": (share >= PRESENT_SHARE).astype(np.uint8),
        }
        if any(field.startswith("s1_") for field in self.fields):
            record |= self._sar(self._rng(index, _SAR), cover, parcel)
        if any(field.startswith("s2_") for field in self.fields):
            record |= self._optical(self._rng(index, _OPTICAL), cover, parcel)
        return {field: record[field] for field in self.fields}

    @functools.cached_property
    def index(self) -> dict[str, np.ndarray]:
        """`id` [N] and `labels` [N, classes], for which every scene is laid out."""
        like = dict(size=self.size, seed=self.seed, fields=("labels",))
        labels = type(self)(self.count, **like)
        return {
            "id": np.array([self._name(i) for i in range(self.count)]),
            "labels": np.stack([labels[i]["labels"] for i in range(self.count)]),
        }

    def fingerprint(self) -> dict:
        """What decides the content of every scene."""
        name = self.description.name
        return dict(name=name, count=self.count, size=self.size, seed=self.seed)

    def _name(self, index: int) -> str:
        return f"{self.description.name}-{index:06d}"

    def _rng(self, index: int, stage: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, index, stage])

    def _layout(self, rng) -> tuple[np.ndarray, np.ndarray]:
        """Class [H, W] uint8 and parcel number [H, W] of every pixel."""
        parcel = _parcels(rng, self.size, width=rng.uniform(11, 20), length=30.0)
        crops = _some(rng, _FIELDS, 0.6)
        weights = rng.dirichlet(np.full(len(crops), 3.0))
        cover = rng.choice(crops, _PARCELS, p=weights).astype(np.uint8)[parcel]

        trees = _some(rng, _WOODS, 0.55)
        woods, towns, water, *stands = smooth(rng, 3 + len(trees), self._landform)
        wooded = woods > rng.uniform(-1.0, 0.8)
        cover[wooded] = trees[np.argmax(stands, axis=0)][wooded]
        town = towns > rng.uniform(0.5, 2.4)
        cover[town] = _TOWNS
        parcel = np.where(town, _parcels(rng, self.size, width=6, length=10), parcel)

        level = rng.uniform(-1.2, 1.2)
        if rng.random() < 0.4:  # a river follows a contour, a lake fills a hollow
            cover[np.abs(water - level) < rng.uniform(0.05, 0.2)] = _WATER
        else:
            cover[water > 1.6 + level] = _WATER
        return cover, parcel

    def _sar(self, rng, cover, parcel) -> dict[str, np.ndarray]:
        """Backscatter: means of classes and parcels, bright walls, and speckle."""
        means = np.array(list(BACKSCATTER.values()), np.float32)
        means += rng.normal(0.0, 0.5, (len(means), 1)) + rng.normal(0.0, 0.2, (1, 2))
        tone = rng.normal(0.0, 0.8, _PARCELS)[parcel] * np.isin(cover, _FIELDS)
        # Walls facing the sensor form corner reflectors, up to 14 dB brighter.
        walls = rng.random(cover.shape, dtype=np.float32)
        tone += (cover == _TOWNS) * np.maximum(walls - 0.85, 0.0) * (14.0 / 0.15)
        pixels = means[_RADAR_OF_CLASS][cover] + tone[..., None]
        return measure_radar(rng, pixels)

    def _optical(self, rng, cover, parcel) -> dict[str, np.ndarray]:
        """Reflectance on every grid of Sentinel-2, averaged from one 10 m truth."""
        spectra = np.array(list(SPECTRA.values()), np.float32)
        sun, tint = rng.normal(0.0, 0.08), rng.normal(0.0, 0.08, (len(spectra), 1))
        vigour = rng.normal(0.0, 0.1, (len(spectra), 1)) * np.array(VIGOUR)
        spectra *= np.exp(sun + tint + vigour)
        spectra += rng.exponential(60.0) * np.array(HAZE)

        texture, green = smooth(rng, 2, self._texture)
        town, field = cover == _TOWNS, np.isin(cover, _FIELDS)
        surface = _OPTICS_OF_CLASS[cover]
        surface[town & (green > rng.normal(0.2, 0.5))] = _GARDEN
        margin = np.diff(parcel, axis=0, prepend=parcel[:1]) != 0  # streets, hedges
        tone = rng.normal(0.0, 0.14, _PARCELS)[parcel]
        gain = (0.07 + 0.08 * town) * texture + (town | field) * tone
        gain -= margin * (0.3 * town + 0.1 * field)
        gain = np.exp(np.float32(gain))[..., None]

        return measure_optics(rng, spectra, surface, gain)


SHAPES = ("strips", "checks", "patches")
CROPS = ("green crop", "soil")  # of SPECTRA
GROUND = ((-16.0, -23.0), (-9.5, -16.0))  # mean dB of smooth and rough ground
PERIOD = (6.0, 9.0)  # pixels
# By pattern, how it shifts the level of the other sensor; and how much scenes differ.
ECHO_RADAR, SPREAD_RADAR = (-2.0, 0.0, 2.0), 1.5  # dB
ECHO_OPTICS, SPREAD_OPTICS = (-0.2, 0.0, 0.2), 0.15  # of the logarithm of brightness


class Patterns(Scenes):
    """A random-access source of `count` pairs with one class of nine each.

    Two crops share a scene, half of it each, in strips, checks or patches; that is what
    optics sees. So do smooth and rough ground, in a pattern of their own, which radar
    sees. The class is both patterns together.

    Statistics of the pixels say little of a sensor's own pattern, since all have the
    same share of either half and about the same scale. But each has an echo in the
    level of the other sensor, which tells it in two of three pairs (measured: 67 % for
    the three patterns of either sensor). So one sensor alone can name at most about two
    of three pairs, and both together all of them; and a model that has to redraw an
    absent sensor gains by telling the patterns of the present one apart, without any
    label.

    A record holds the pixel fields of `layout.native(size)` in stored unit and type,
    `labels` (one-hot, uint8) and `id`; or only those of them named in `fields`.
    """

    def _describe(self, size: int) -> Description:
        names = tuple(f"crops in {o}, ground in {r}" for o in SHAPES for r in SHAPES)
        return Description(
            name="patterns",
            title="Procedural Sentinel-1/Sentinel-2 pairs, each sensor with a pattern.",
            source="data_pipeline/synthetic.py",
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
        return measure_radar(rng, pixels)

    def _optics(self, rng, seen: int, felt: int) -> dict[str, np.ndarray]:
        spectra = np.array([SPECTRA[name] for name in CROPS], float)
        middle = spectra.mean(axis=0)
        spectra = middle + rng.uniform(0.5, 1.0) * (spectra - middle)  # of contrast
        spectra *= np.exp(ECHO_OPTICS[felt] + rng.normal(0.0, SPREAD_OPTICS))
        spectra += rng.exponential(30.0) * np.array(HAZE)
        surface = halves(rng, SHAPES[seen], self.size)
        (texture,) = smooth(rng, 1, self._texture)
        gain = np.exp(0.07 * texture)[..., None]
        return measure_optics(rng, spectra, surface, gain)


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
        (field,) = smooth(rng, 1, [spread(size, period / 3, 1.0)])
    return (field > np.median(field)).astype(int)
