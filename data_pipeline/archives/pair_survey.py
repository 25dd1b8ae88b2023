"""What most of a user's pairs are, and what single files tell of themselves.

Before anything is read for good, some pairs from all over the source are looked at: the
dataset has the size, the bands and the level that most of them have, and a pair that
proves nothing of its offset goes by the others.
"""

import collections
import dataclasses
import functools
import itertools
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline import offsets, sensors
from data_pipeline.archives import band_folders, pair_tiles, rasters
from data_pipeline.archives.grids import Window
from data_pipeline.archives.pair_tiles import Cut
from data_pipeline.errors import InputError
from data_pipeline.sensors import SENSORS, Sensor

log = logging.getLogger("fusmae_jax")

LEVELS = {sensor.level: sensor for sensor in sensors.PRODUCTS["s2"]}
LOOKED_AT = 64  # pairs from all over the source
_ALONG = 4  # tiles of a scene, each way, that are looked at for its offset
LACKING = "_N0400_ or the like in its name and no tag PROCESSING_BASELINE"

_LEVEL = re.compile(r"MSI(L1C|L2A)")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the files do not say of themselves.

    Attributes:
        bands: names in file order of each sensor, () where the files name them.
        unit: of each sensor's pixels, the name of one of its `units`.
        offset: of each sensor that can have one, among `offsets.CHOICES`.
        proof: whether pixels overrule what is said of them.
        cut: how images come onto one grid.
    """

    bands: dict[str, tuple[str, ...]] = dataclasses.field(hash=False)
    unit: dict[str, str] = dataclasses.field(hash=False)
    offset: dict[str, str] = dataclasses.field(hash=False)
    proof: bool = True
    cut: Cut = Cut()


class Others(NamedTuple):
    """What the pairs of a survey say of one that proves nothing of its offset.

    Attributes:
        wrong: whether one whose name tells of an offset has none.
        right: whether one whose name tells of an offset has it.
        all: what all pairs have that tell anything; None if they differ or none does.
    """

    wrong: bool = False
    right: bool = False
    all: int | None = None


class Seen(NamedTuple):
    """A pair that was looked at.

    Attributes:
        shape: height and width.
        bands: the contract's names, or the files' own, in file order, by sensor.
        level: of Sentinel-2, as the file tells; "" for nothing.
        proven: what its pixels prove was added to each DN, or what a list says,
        said: and what its name or tags say; None for nothing.
        path: of the Sentinel-2 file, "" where there is none.
    """

    shape: tuple[int, int]
    bands: Mapping[str, tuple[str, ...]]
    level: str
    proven: int | None
    said: int | None
    path: str


def look(rows: Sequence[dict], settings: Settings) -> list[Seen]:
    """Looks at pairs from all over a list, but those that cannot be read.

    Raises:
        InputError: that are all, with what is wrong with the first.
    """
    found, error = [], None
    places = np.linspace(0, len(rows) - 1, LOOKED_AT).round().astype(int)
    for i in np.unique(places):
        try:
            found.append(_look(rows[i], settings))
        except InputError as reason:
            error = error or reason
    if not found:
        raise error
    return found


def _look(row: dict, settings: Settings) -> Seen:
    images = pair_tiles.read(row | {"mask": ""}, settings.cut).sensors
    bands = {
        name: band_names(row[name], image, sensors.PRODUCTS[name], settings)
        for name, image in images.items()
    }
    shape = next(iter(images.values())).pixels.shape[1:]
    if "s2" not in images:
        return Seen(shape, bands, level="", proven=None, said=None, path="")
    path, raster = row["s2"], images["s2"]
    image, unit = measured("s2", raster, settings)
    if unit != sensors.S2.units[0].name:
        proven = 0  # reflectance is never guessed to carry it
    elif row["s2_offset"] not in ("", "auto"):
        proven = int(row["s2_offset"])
    else:
        proven = offsets.proven(dict(zip(bands["s2"], image)))
    return Seen(
        shape=shape,
        bands=bands,
        level=told_level(path, raster, bands["s2"]),
        proven=proven,
        said=offsets.said(says(path, raster)),
        path=path,
    )


def proven_by_scene(path: str, settings: Settings) -> int | None:
    """What the pixels of a whole Sentinel-2 scene prove was added to each DN.

    A scene has one offset, and some tiles of it prove nothing. Tiles from all over it
    are looked at; as DN below the offset are proof, and a cirrus band near it may be
    clouds, the least that any proves counts.
    """
    return _proven_by_scene(path, rasters.version(path), settings)


@functools.lru_cache(maxsize=64)  # thousands of tiles ask for the same scene
def _proven_by_scene(path: str, version: tuple, settings: Settings) -> int | None:
    side, shape = settings.cut.tile, band_folders.grid(path).shape
    starts = (np.linspace(0, max(n - side, 0), _ALONG).astype(int) for n in shape)
    proofs = set()
    for top, left in itertools.product(*starts):
        raster = band_folders.read(path, Window(int(top), int(left), side, side))
        bands = band_names(path, raster, sensors.PRODUCTS["s2"], settings)
        image, _ = measured("s2", raster, settings)
        proofs.add(offsets.proven(dict(zip(bands, image))))
    return min(proofs - {None}, default=None)


def _counts(found: Mapping) -> str:
    """How many pairs have what, in words, the most first."""
    total = sum(found.values())
    most = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:5]
    most = ", ".join(f"{n} {key}" for key, n in most)
    return f"of {total} pairs looked at, {most}"


def side(given: int, found: Sequence[Seen]) -> int:
    """The side of a pair in pixels, as given, or else that of most pairs."""
    if given:
        return given
    shapes = collections.Counter(seen.shape for seen in found)
    (height, width), _ = shapes.most_common(1)[0]
    counts = collections.Counter({f"{h} x {w} px": n for (h, w), n in shapes.items()})
    if height != width:
        raise InputError(
            f"Most pairs are {height} x {width} px ({_counts(counts)}), where pairs "
            "are square; cut the images to squares."
        )
    if len(shapes) > 1:
        log.warning("Pairs of another size are left out: %s.", _counts(counts))
    return height


def level(given: str, found: Sequence[Seen]) -> str:
    """The processing level of Sentinel-2 images.

    Raises:
        InputError: the files contradict each other or what was given.
    """
    levels = collections.Counter(seen.level for seen in found if seen.level)
    if len(levels) > 1:
        raise InputError(
            f"Levels are mixed ({_counts(levels)}); prepare each as a dataset of its "
            "own."
        )
    told = next(iter(levels), "")
    if "auto" not in (given, told or "auto") and given != told:
        raise InputError(
            f"The Sentinel-2 files are {told}, as their bands or names tell, and "
            f"read.s2_level={given}; set it to {told} or auto."
        )
    if given == "auto" and not told:
        log.info("No file tells the level of Sentinel-2, so it is taken for L2A.")
    return told or ("L2A" if given == "auto" else given)


def told_level(path: str, raster: rasters.Raster, bands: Sequence[str]) -> str:
    """The level that a file's bands or names tell; "" for none or several."""
    told = set(_LEVEL.findall(says(path, raster)))
    if offsets.CIRRUS in bands:
        told.add("L1C")
    return told.pop() if len(told) == 1 else ""


def contract(name: str, products: Sequence[Sensor], found: Sequence[Seen]) -> Sensor:
    """The product of a sensor that most files are, with the bands that most have."""
    kinds, found = collections.Counter(), [s for s in found if name in s.bands]
    if not found:
        raise InputError(
            f"None of the {products[0].title} files that were looked at can be read; "
            "correct them, or leave that sensor out of the source."
        )
    for seen in found:
        known = [
            tuple(b for b in product.band_names if b in seen.bands[name])
            for product in products
        ]
        best = max(range(len(products)), key=lambda i: len(known[i]))
        kinds[best, known[best]] += 1
    # Of two that are as frequent, the one with more bands.
    best, bands = max(kinds, key=lambda kind: (kinds[kind], len(kind[1]), kind))
    sensor = products[best]
    if not bands:
        raise InputError(
            f"Most {sensor.title} files have none of the bands "
            f"{', '.join(sensor.band_names)}; name them in read.{name}_bands."
        )
    others = {b for seen in found for b in seen.bands[name]} - set(bands)
    if others:
        log.info(
            "%s: %s are read, and %s left out.",
            sensor.title,
            ", ".join(bands),
            ", ".join(sorted(others - {""}) or ["bands without a name are"]),
        )
    if len(kinds) > 1:
        counts = collections.Counter()
        for (_, having), n in kinds.items():
            counts[" ".join(having) or "none"] += n
        log.warning(
            "%s: pairs that lack bands are left out: %s.", sensor.title, _counts(counts)
        )
    return sensor.select(bands)


def others(found: Sequence[Seen]) -> Others:
    """What the pairs prove or say of the offset of Sentinel-2.

    Raises:
        InputError: no pair tells it.
    """
    tells = {s.said if s.proven is None else s.proven for s in found} - {None}
    if not tells:
        path = next(seen.path for seen in found if seen.path)
        raise InputError(f"{path} {offsets.unknown(LACKING)}")
    return Others(
        wrong=any(seen.said and seen.proven == 0 for seen in found),
        right=any(seen.said and seen.proven for seen in found),
        all=tells.pop() if len(tells) == 1 else None,
    )


def says(path: str, raster: rasters.Raster) -> str:
    """A file's name and tags."""
    tags = (f"{key}={value}" for key, value in raster.tags.items())
    return "\n".join([os.path.basename(path), *tags])


def measured(
    name: str, raster: rasters.Raster, settings: Settings
) -> tuple[np.ndarray, str]:
    """Pixels of a sensor's file, NaN where nothing was measured, and their unit."""
    image, unit = raster.pixels, settings.unit[name]
    if raster.missing is not None:
        dark = raster.nodata == 0 and SENSORS[name].expected.zero_is_dark
        missing = raster.missing.all(axis=0) if dark else raster.missing.any(axis=0)
        image = np.where(missing, np.nan, image.astype(np.float32))
    if raster.scaling:  # which often makes another unit than that of the others
        units = SENSORS[name].units
        fitting = [known.name for known in units if not known.doubt(image)]
        if unit not in fitting and len(fitting) == 1:
            unit = fitting[0]
    return image, unit


def band_names(
    path: str,
    raster: rasters.Raster,
    products: Sequence[Sensor],
    settings: Settings,
) -> tuple[str, ...]:
    """The contract's name of each band of a file, or what the file calls it.

    Names that were given overrule those in the file.

    Args:
        path: of the file.
        raster: its content.
        products: what the file may hold, all of one sensor.
        settings: what was given.
    """
    name, title = products[0].name, products[0].title
    given = settings.bands[name]
    bands = given or tuple(map(sensors.canonical, raster.bands))
    known = {band for product in products for band in product.band_names}
    if len(bands) != len(raster.bands) or not known & set(bands):
        expected = ", or ".join(", ".join(p.band_names) for p in products)
        raise InputError(
            f"{path} has {len(raster.bands)} bands called {list(raster.bands)}, none "
            f"as {title} has them ({expected}); name each, in file order, in "
            f"read.{name}_bands, now {list(given)}."
        )
    repeated = sorted(band for band in known if bands.count(band) > 1)
    if repeated:
        raise InputError(
            f"{path} has more than one band {', '.join(repeated)}; keep one of each."
        )
    return bands
