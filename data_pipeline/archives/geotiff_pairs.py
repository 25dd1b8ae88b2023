"""Anybody's own pairs: one GeoTIFF of Sentinel-1 and one of Sentinel-2 for each place.

The source is a folder with s1/ and s2/, whose files pair by name, or a CSV with a row
for each pair. Bands go by name, from the files' band descriptions or the config, in
whatever order they lie; bands that the contract does not know are left out. All bands
of a pair share one 10 m grid, in metres where the files have coordinates.
"""

import dataclasses
import os
import re

import numpy as np

from data_pipeline import archive, layout, sensors, units
from data_pipeline.archives import grids, names, offsets, pair_lists, rasters
from data_pipeline.archive import Pair, Skipped
from data_pipeline.description import Description
from data_pipeline.errors import InputError
from data_pipeline.config_fields import Field, choice, several, text, whole

LEVELS = {"L2A": sensors.S2, "L1C": sensors.S2_L1C}


def _is_name(value) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[a-z]\w*", value, re.ASCII))


# What `config.read` may say. Bands that files call otherwise are left out.
SETTINGS = {
    "name": Field(
        "letters, digits and underscores, a small letter first",
        _is_name,
        meaning="Name of the dataset.",
    ),
    "licence": text(filled=True, lines=True, meaning="Licence of the images."),
    "s1_bands": several(
        text(filled=True),
        twice=True,
        meaning="Bands of the Sentinel-1 files, in their order; () reads the files' "
        "band descriptions.",
    ),
    "s2_bands": several(
        text(filled=True),
        twice=True,
        meaning="Bands of the Sentinel-2 files, likewise.",
    ),
    "s1_unit": choice(
        *units.UNITS["s1"], meaning="Unit of the Sentinel-1 pixels; linear is power."
    ),
    "s2_unit": choice(
        *units.UNITS["s2"],
        meaning="Unit of the Sentinel-2 pixels; a reflectance of 1 is a surface that "
        "scatters all light.",
    ),
    "s2_level": choice(
        *LEVELS, meaning="Processing level of the Sentinel-2 images; L1C has B10 too."
    ),
    "s2_offset": offsets.CHOICE,
    "size": whole(0, meaning="Side of a pair in pixels; 0 for that of the first."),
    "classes": several(
        text(filled=True),
        meaning="Names of the classes, in order; () is all in the CSV by alphabet.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the files do not say of themselves.

    Attributes:
        bands: names in file order of each sensor, () where the files name them.
        unit: of each sensor's pixels, among units.UNITS.
        offset: of Sentinel-2, one of offsets.CHOICES.
    """

    bands: dict[str, tuple[str, ...]] = dataclasses.field(hash=False)
    unit: dict[str, str] = dataclasses.field(hash=False)
    offset: str


def open_archive(config) -> "GeotiffPairs":
    """The archive that a `prepare` config describes.

    Raises:
        InputError: the source has no pairs, the settings contradict it or each other,
            or no file says what its bands or its offset are.
    """
    read = config.read
    settings, contract = _settings(read), _contract(read)
    rows, _ = pair_lists.rows(config.source)
    first = _first(rows, settings, contract)
    height, width = first["s2"].pixels.shape[1:]
    if not read.size and height != width:
        raise InputError(
            f"The first pair is {height} x {width} px, where pairs are square; cut the "
            "images to squares."
        )
    contract = {
        name: sensor.select([b for b in sensor.band_names if b in first["bands"][name]])
        for name, sensor in contract.items()
    }
    bands = " and ".join(
        f"{sensor.title} {', '.join(sensor.band_names)}" for sensor in contract.values()
    )
    description = Description(
        name=read.name,
        title=f"Pairs of {bands} from GeoTIFFs.",
        source="GeoTIFF pairs of the user",  # a path means nothing to anybody else
        licence=read.licence,
        layout=layout.resampled(read.size or height, contract),
        sensors=contract,
        classes=_classes(read, rows),
    )
    return GeotiffPairs(config.source, settings, description)


@dataclasses.dataclass(frozen=True)
class GeotiffPairs(archive.Archive):
    """Pairs of GeoTIFFs in a folder or a list.

    Attributes:
        source: the folder, or the CSV.
        settings: how to understand the files.
        description: what the records hold.
    """

    source: str
    settings: Settings
    description: Description = dataclasses.field(hash=False)

    def find_pairs(self) -> tuple[list[Pair], list[Skipped]]:
        """Matches file names, or reads the CSV."""
        rows, skipped = pair_lists.rows(self.source)
        pairs = {}
        for row in rows:
            if row["id"] in pairs:
                reason = f"another pair has the id {row['id']!r} too"
                skipped.append(Skipped(row["id"], pair_lists.stem(row["s1"]), reason))
                continue
            where = tuple(row[name] for name in pair_lists.COLUMNS)
            pairs[row["id"]] = Pair(
                row["id"], pair_lists.stem(row["s1"]), row["tile"], row["split"], where
            )
        return sorted(pairs.values()), skipped

    def read_pair(self, pair: Pair) -> dict:
        """Reads a pair as the fields of a record.

        Raises:
            InputError: a file is missing or damaged, lacks a band, does not cover the
                place or not at 10 m, or its content cannot be true.
            OSError: a file cannot be read.
        """
        row = dict(zip(pair_lists.COLUMNS, pair.where))
        images = {name: rasters.read(row[name]) for name in ("s1", "s2")}
        grids.check({row[name]: image for name, image in images.items()})
        s2_time = row["acquired_s2"] or names.acquired(pair_lists.stem(row["s2"]))
        fields = {}
        for name, image in images.items():
            fields |= self._pixels(name, row[name], image)
        if self.description.classes:
            fields["labels"] = self._labels(row)
        return fields | {
            "id": pair.s2_name,
            "id_s1": pair.s1_name,
            "place": self._place(pair, images["s2"], s2_time),
            "tile": pair.tile,
            "acquired_s1": row["acquired_s1"] or names.acquired(pair.s1_name),
            "acquired_s2": s2_time,
        }

    def _place(self, pair: Pair, s2: rasters.Raster, time: str) -> str:
        """Grid and time of the Sentinel-2 image, or what names it in this dataset."""
        if not grids.located(s2):
            return f"{self.description.name}/{pair.s2_name}"
        return f"{grids.text(s2)} {time}".rstrip()

    def _pixels(self, name: str, path: str, raster: rasters.Raster) -> dict:
        """Fields of one sensor."""
        sensor = self.description.sensors[name]
        bands = _band_names(path, raster, sensor, self.settings)
        missing = [band for band in sensor.band_names if band not in bands]
        if missing:
            raise InputError(
                f"{path} has no {', '.join(missing)}, which the first pair of the "
                "dataset has; add them, or take them out of the other files."
            )
        if raster.pixels.dtype.kind not in "uif":
            raise InputError(
                f"{path} is of type {raster.pixels.dtype}; write whole or real numbers."
            )
        pixels = raster.pixels[[bands.index(band) for band in sensor.band_names]]
        _check_measured(path, pixels, raster.nodata)
        offset = _offset(path, raster, self.settings) if name == "s2" else 0
        pixels = units.to_contract(
            pixels, name, unit=self.settings.unit[name], offset=offset
        )
        images = dict(zip(sensor.band_names, pixels))
        return archive.pixels(self.description, name, images.__getitem__, path)

    def _labels(self, row: dict) -> list[int]:
        """Indices of the classes of a pair."""
        classes = self.description.classes["labels"]
        present = pair_lists.names(row["labels"])
        unknown = sorted(set(present) - set(classes))
        if unknown:
            raise InputError(
                f"{row['id']} has the labels {unknown}, which are not among the "
                f"{len(classes)} of config.read.classes; correct the CSV."
            )
        return sorted({classes.index(name) for name in present})


def _settings(read) -> Settings:
    return Settings(
        bands={
            "s1": tuple(map(sensors.canonical, read.s1_bands)),
            "s2": tuple(map(sensors.canonical, read.s2_bands)),
        },
        unit={"s1": read.s1_unit, "s2": read.s2_unit},
        offset=read.s2_offset,
    )


def _contract(read) -> dict[str, sensors.Sensor]:
    """All bands that files can have."""
    return {"s1": sensors.S1, "s2": LEVELS[read.s2_level]}


def _classes(read, rows: list[dict]) -> dict[str, tuple[str, ...]]:
    """Names of the classes, as given or else all that occur, sorted."""
    found = sorted({name for row in rows for name in pair_lists.names(row["labels"])})
    if read.classes and not found:
        raise InputError(
            f"read.classes names {len(read.classes)} classes, but no pair has a label; "
            "pass a CSV with a column 'labels', names separated by ';'."
        )
    return {"labels": tuple(read.classes) or tuple(found)} if found else {}


def _first(rows: list[dict], settings: Settings, contract: dict) -> dict:
    """The rasters and band names of the first pair that can be read."""
    error = None
    for row in rows:
        try:
            images = {name: rasters.read(row[name]) for name in contract}
            grids.check({row[name]: image for name, image in images.items()})
            bands = {
                name: _band_names(row[name], images[name], sensor, settings)
                for name, sensor in contract.items()
            }
        except InputError as reason:
            error = error or reason
            continue
        _offset(row["s2"], images["s2"], settings)  # refuses here, not pair by pair
        return images | {"bands": bands}
    raise error


def _band_names(
    path: str, raster: rasters.Raster, sensor: sensors.Sensor, settings: Settings
) -> tuple[str, ...]:
    """The contract's name of each band of a file, or what the file calls it."""
    given = settings.bands[sensor.name]
    described = tuple(map(sensors.canonical, raster.bands))
    known = set(sensor.band_names)
    bands = described if known & set(described) else given
    option = f"--config.read.{sensor.name}_bands"
    if len(bands) != len(raster.bands) or not known & set(bands):
        raise InputError(
            f"{path} has {len(raster.bands)} bands called {list(raster.bands)}, none "
            f"as {sensor.title} has them ({', '.join(sensor.band_names)}); name each, "
            f"in file order, with {option}, now {list(given)}."
        )
    if given and bands != given:
        raise InputError(
            f"{path} calls its bands {list(raster.bands)} and {option} {list(given)}; "
            "correct the one that is wrong."
        )
    repeated = sorted(band for band in known if bands.count(band) > 1)
    if repeated:
        raise InputError(
            f"{path} has more than one band {', '.join(repeated)}; keep one of each."
        )
    return bands


def _offset(path: str, raster: rasters.Raster, settings: Settings) -> int:
    """What was added to each DN of a Sentinel-2 file."""
    said = [os.path.basename(path), *(f"{k}={v}" for k, v in raster.tags.items())]
    lacking = "_N0400_ or the like in its name and no tag PROCESSING_BASELINE"
    return offsets.offset(settings.offset, "\n".join(said), path, lacking)


def _check_measured(path: str, pixels: np.ndarray, nodata: float | None) -> None:
    """Refuses an image [C, H, W] with holes."""
    if nodata is None:
        return
    holes = np.isnan(pixels) if np.isnan(nodata) else pixels == nodata
    share = holes.any(axis=0).mean()
    if share:
        raise InputError(
            f"{path} has no data (value {nodata:g}) in {share:.2%} of its pixels; fill "
            "them or leave the pair out."
        )
