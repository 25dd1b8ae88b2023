"""Anybody's own pairs: one GeoTIFF of Sentinel-1 and one of Sentinel-2 for each place.

The source is a folder with s1/ and s2/, whose files pair by name, or a CSV with a row
for each pair. Bands go by name, from the files' band descriptions or the config, in
whatever order they lie; bands that the contract does not know are left out. All bands
of a pair share one 10 m grid, in metres where the files have coordinates.
"""

import csv
import dataclasses
import io
import os
import re

import numpy as np

from data_pipeline import atomic, layout, safe_io, sensors
from data_pipeline.archives import base, rasters
from data_pipeline.archives.base import Pair, Skipped
from data_pipeline.config_fields import Field, choice, several, text, whole
from data_pipeline.dataset_card import SPLITS, Description
from data_pipeline.errors import InputError
from data_pipeline.sensors import NAMED

LEVELS = {"L2A": sensors.S2, "L1C": sensors.S2_L1C}

# s1 and s2 are paths, labels class names between semicolons, the times ISO 8601.
COLUMNS = (
    *sensors.SENSORS,
    *("id", "split", "tile", "labels"),
    *(f"acquired_{name}" for name in sensors.SENSORS),
)
_SUFFIXES = (".tif", ".tiff")


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
        *(unit.name for unit in sensors.S1.units),
        meaning="Unit of the Sentinel-1 pixels; linear is power.",
    ),
    "s2_unit": choice(
        *(unit.name for unit in sensors.S2.units),
        meaning="Unit of the Sentinel-2 pixels; a reflectance of 1 is a surface that "
        "scatters all light.",
    ),
    "s2_level": choice(
        *LEVELS, meaning="Processing level of the Sentinel-2 images; L1C has B10 too."
    ),
    "s2_offset": base.S2_OFFSET,
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
        unit: of each sensor's pixels, the name of one of its `units`.
        offset: of each sensor that can have one, among sensors.OFFSETS.
    """

    bands: dict[str, tuple[str, ...]] = dataclasses.field(hash=False)
    unit: dict[str, str] = dataclasses.field(hash=False)
    offset: dict[str, str] = dataclasses.field(hash=False)


def open_archive(config) -> "GeotiffPairs":
    """The archive that a `prepare` config describes.

    Raises:
        InputError: the source has no pairs, the settings contradict it or each other,
            or no file says what its bands or its offset are.
    """
    read = config.read
    settings, contract = _settings(read), _contract(read)
    rows, _ = find_files(config.source)
    first = _first(rows, settings, contract)
    height, width = first[NAMED[0]].pixels.shape[1:]
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
class GeotiffPairs(base.Archive):
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
        rows, skipped = find_files(self.source)
        pairs = {}
        for row in rows:
            images = {name: _stem(row[name]) for name in sensors.SENSORS}
            images |= {NAMED[0]: row["id"]}
            if row["id"] in pairs:
                reason = f"another pair has the id {row['id']!r} too"
                skipped.append(Skipped(images, reason))
                continue
            where = tuple(row[name] for name in COLUMNS)
            pairs[row["id"]] = Pair(images, row["tile"], row["split"], where)
        return sorted(pairs.values()), skipped

    def read_pair(self, pair: Pair) -> dict:
        """Reads a pair as the fields of a record.

        Raises:
            InputError: a file is missing or damaged, lacks a band, does not cover the
                place or not at 10 m, or its content cannot be true.
            OSError: a file cannot be read.
        """
        row = dict(zip(COLUMNS, pair.where))
        images = {name: rasters.read(row[name]) for name in self.description.sensors}
        rasters.check_grids({row[name]: image for name, image in images.items()})
        times = {
            name: row[f"acquired_{name}"] or base.acquired(_stem(row[name]))
            for name in images
        }
        fields = {f"acquired_{name}": time for name, time in times.items()}
        for name, image in images.items():
            fields |= self._pixels(name, row[name], image)
        if self.description.classes:
            fields["labels"] = self._labels(row)
        return fields | {
            "id": pair.name,
            "id_s1": pair.images["s1"],
            "place": self._place(pair, images[NAMED[0]], times[NAMED[0]]),
            "tile": pair.tile,
        }

    def _place(self, pair: Pair, image: rasters.Raster, time: str) -> str:
        """Grid and time of the image that names the pair, or else that name."""
        if not image.grid:
            return f"{self.description.name}/{pair.name}"
        return f"{image.grid} {time}".rstrip()

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
        offset = _offset(path, raster, self.settings.offset.get(name, "0"))
        unit = self.settings.unit[name]
        pixels = sensors.to_contract(pixels, sensor, unit=unit, offset=offset)
        images = dict(zip(sensor.band_names, pixels))
        return base.pixels(self.description, name, images.__getitem__, path)

    def _labels(self, row: dict) -> list[int]:
        """Indices of the classes of a pair."""
        classes = self.description.classes["labels"]
        present = _class_names(row["labels"])
        unknown = sorted(set(present) - set(classes))
        if unknown:
            raise InputError(
                f"{row['id']} has the labels {unknown}, which are not among the "
                f"{len(classes)} of config.read.classes; correct the CSV."
            )
        return sorted({classes.index(name) for name in present})


def _settings(read) -> Settings:
    names = sensors.SENSORS
    return Settings(
        bands={n: tuple(map(sensors.canonical, read[f"{n}_bands"])) for n in names},
        unit={name: read[f"{name}_unit"] for name in names},
        offset={n: read[f"{n}_offset"] for n in names if f"{n}_offset" in SETTINGS},
    )


def _contract(read) -> dict[str, sensors.Sensor]:
    """All bands that files can have."""
    return sensors.SENSORS | {"s2": LEVELS[read.s2_level]}


def _classes(read, rows: list[dict]) -> dict[str, tuple[str, ...]]:
    """Names of the classes, as given or else all that occur, sorted."""
    found = sorted({name for row in rows for name in _class_names(row["labels"])})
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
            rasters.check_grids({row[name]: image for name, image in images.items()})
            bands = {
                name: _band_names(row[name], images[name], sensor, settings)
                for name, sensor in contract.items()
            }
        except InputError as reason:
            error = error or reason
            continue
        for name, offset in settings.offset.items():
            _offset(row[name], images[name], offset)  # refuses here, not pair by pair
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


def _offset(path: str, raster: rasters.Raster, choice: str) -> int:
    """What was added to each pixel of a file."""
    said = [os.path.basename(path), *(f"{k}={v}" for k, v in raster.tags.items())]
    lacking = "_N0400_ or the like in its name and no tag PROCESSING_BASELINE"
    return sensors.offset_of(choice, "\n".join(said), path, lacking)


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


def find_files(source: str) -> tuple[list[dict], list[Skipped]]:
    """The pairs of a folder or CSV, and the files without partner.

    Returns:
        For each pair the text of all `COLUMNS`, with paths that can be opened.

    Raises:
        InputError: the source is not there, has no pairs, or is no such CSV.
    """
    found, skipped = (_listed if source.lower().endswith(".csv") else _matched)(source)
    if not found:
        raise InputError(
            f"{source} has no pairs; it must be a folder with s1/ and s2/, whose "
            "GeoTIFFs pair by name, or a CSV with a row for each pair."
        )
    return found, skipped


def _matched(root: str) -> tuple[list[dict], list[Skipped]]:
    """Files of s1/ and s2/ that have the same name."""
    files_of = {name: {} for name in sensors.SENSORS}
    for sensor, found in files_of.items():
        folder = os.path.join(root, sensor)
        if not os.path.isdir(folder):
            raise InputError(
                f"{folder} is no folder; pass with --config.source a folder that has "
                "s1/ and s2/, or a CSV."
            )
        for file in sorted(os.listdir(folder)):
            if file.lower().endswith(_SUFFIXES):
                found.setdefault(_stem(file), []).append(os.path.join(folder, file))
    table, skipped = [], []
    for name in sorted(set().union(*files_of.values())):
        found = {sensor: paths.get(name, []) for sensor, paths in files_of.items()}
        if all(len(paths) == 1 for paths in found.values()):
            row = {sensor: path for sensor, (path,) in found.items()} | {"id": name}
            table.append(dict.fromkeys(COLUMNS, "") | row)
        else:
            reason = (
                f"{len(found['s1'])} files in s1/ and {len(found['s2'])} in s2/ have "
                "this name, where a pair has one in each"
            )
            present = {sensor: name for sensor, paths in found.items() if paths}
            skipped.append(Skipped(present, reason))
    return table, skipped


def _listed(path: str) -> tuple[list[dict], list[Skipped]]:
    """Rows of a CSV, with paths from its own folder."""
    try:
        file = safe_io.open_file(path)
        with io.TextIOWrapper(file, "utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header, given = reader.fieldnames or (), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV ({error}).") from None
    unknown = [name for name in header if name not in COLUMNS]
    if unknown or not {"s1", "s2"} <= set(header):
        raise InputError(
            f"{path} has the columns {list(header)}; it needs s1 and s2 and may have "
            f"{', '.join(COLUMNS[2:])}, no others."
        )
    table = []
    for number, values in enumerate(given, start=1):
        if None in values or None in values.values():
            raise InputError(
                f"Row {number} of {path} has another number of fields than the "
                f"{len(header)} of its header; correct it."
            )
        row = dict.fromkeys(COLUMNS, "")
        row |= {name: text.strip() for name, text in values.items()}
        if not row["s1"] or not row["s2"] or row["split"] not in ("", *SPLITS):
            raise InputError(
                f"Row {number} of {path} has s1={row['s1']!r}, s2={row['s2']!r} and "
                f"split={row['split']!r}; it needs both files, and a split among "
                f"{', '.join(SPLITS)} or none."
            )
        for name in sensors.SENSORS:
            row[name] = atomic.absolute(row[name], os.path.dirname(path))
        table.append(row | {"id": row["id"] or _stem(row["s2"])})
    return table, []


def _stem(path: str) -> str:
    """Name of a file without folder and ending."""
    return os.path.splitext(os.path.basename(path))[0]


def _class_names(text: str) -> list[str]:
    """Class names in a field of the CSV."""
    return [name.strip() for name in text.split(";") if name.strip()]
