"""Anybody's own pairs: one GeoTIFF of Sentinel-1 and one of Sentinel-2 for each place.

The source is a folder with s1/ and s2/, whose files pair by name, or one whose files
are called by a pattern, or a CSV with a row for each pair. Bands go by name, from the
files' band descriptions or the config, in whatever order they lie; bands that the
contract does not know are left out. All bands of a pair share one 10 m grid, as they
are or warped; so does a mask with the class of each pixel, where a pair has one. Whole
scenes are cut into tiles, each a pair.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from data_pipeline import layout, offsets, sensors
from data_pipeline.archives import (
    band_folders,
    base,
    file_patterns,
    pair_lists,
    pair_masks,
    pair_survey,
    pair_tiles,
    rasters,
)
from data_pipeline.archives.base import Pair, Skipped
from data_pipeline.archives.pair_lists import COLUMNS, stem
from data_pipeline.archives.pair_masks import Legend
from data_pipeline.archives.pair_survey import LEVELS, Others, Settings
from data_pipeline.archives.pair_tiles import AT, Cut
from data_pipeline.classes import NO_CLASS
from data_pipeline.config_fields import (
    MOST,
    Field,
    choice,
    flag,
    several,
    text,
    whole,
)
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from data_pipeline.sensors import NAMED

# What is counted of the pairs that are written, beside those that are not.
CLAMPED = "have DN slightly below 0, which became 1"
HARMONISED = f"carry no offset of {offsets.OFFSET}, though their names or tags say so"
UNEXPECTED = f"carry an offset of {offsets.OFFSET}, though their names or tags say not"
WARPED = "had an image warped onto another grid, at the nearest of its pixels"


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
    "s1_files": file_patterns.field(
        "Paths of the Sentinel-1 images, of folders too that have a file for each "
        "band; where a pattern is given, only what matches one is read.",
    ),
    "s2_files": file_patterns.field("Paths of the Sentinel-2 images, likewise."),
    "mask_files": file_patterns.field("Paths of the masks, likewise."),
    "s1_bands": several(
        text(filled=True),
        twice=True,
        meaning="Bands of the Sentinel-1 files, in their order, whatever the files "
        "call them; () reads the files' band descriptions.",
    ),
    "s2_bands": several(
        text(filled=True),
        twice=True,
        meaning="Bands of the Sentinel-2 files, likewise.",
    ),
    "s1_unit": choice(
        *(unit.name for unit in sensors.S1.units),
        meaning="Unit of the Sentinel-1 pixels; linear is power, and amplitude its "
        "square root.",
    ),
    "s2_unit": choice(
        *(unit.name for unit in sensors.S2.units),
        meaning="Unit of the Sentinel-2 pixels; a reflectance of 1 is a surface that "
        "scatters all light.",
    ),
    "s2_level": choice(
        "auto",
        *LEVELS,
        meaning="Processing level of the Sentinel-2 images; L1C has B10 too. auto "
        "looks for B10 and for names of products, and else takes L2A.",
    ),
    "s2_offset": dataclasses.replace(
        base.S2_OFFSET,
        meaning="What was added to each DN and is taken out, as processing baselines "
        "from 04.00 (2022) on add 1000; auto asks the pixels of each pair, then its "
        "name and tags, then the other pairs.",
    ),
    "size": whole(
        0,
        meaning="Side of a pair in pixels; 0 for that of most pairs, or of the tiles.",
    ),
    "tile": whole(
        0,
        meaning="Side in pixels of the tiles that whole scenes are cut into; 0 for "
        "images that are pairs as they are.",
    ),
    "stride": whole(
        0, meaning="Pixels from one tile to the next; 0 for tiles side by side."
    ),
    "edges": choice(
        "drop",
        "fill",
        meaning="Whether what is too narrow for a tile at the edges of a scene is left "
        "out, or fills a tile whose other pixels are missing.",
    ),
    "align": flag(
        meaning="Whether images on other grids, in degrees or in other projections are "
        "warped onto the grid of 10 m of the pair's Sentinel-2 image, or one in UTM, "
        "at the nearest pixel; else such pairs are refused.",
    ),
    "classes": several(
        text(filled=True),
        meaning="Names of the classes, in order; () is all in the CSV by alphabet, or "
        "by number where all are numbers.",
    ),
    "mask_classes": several(
        text(filled=True),
        meaning="Names of the classes of masks, of the values 0, 1, 2 and so on, or "
        "each as 'value=name', such as '10=tree cover'; () looks at all masks, and the "
        "values that they hold are the names.",
    ),
    "mask_nodata": several(
        whole(-MOST),
        meaning="Values of masks that mean no class, beside what files mark so.",
    ),
}


def open_archive(config) -> "GeotiffPairs":
    """The archive that a `prepare` config describes.

    Raises:
        InputError: the source has no pairs, the settings contradict it or each other,
            or no file says what its bands or its offset are.
    """
    read = config.read
    settings = _settings(read, proof=config.check_values)
    patterns = file_patterns.given(read)
    rows, _ = _rows(config.source, patterns, settings.cut)
    found = pair_survey.look(rows, settings)
    side = settings.cut.tile or pair_survey.side(read.size, found)
    products, there = dict(sensors.PRODUCTS), pair_lists.present(rows)
    if "s2" in there:
        products["s2"] = (LEVELS[pair_survey.level(read.s2_level, found)],)
    contract = {s: pair_survey.contract(s, products[s], found) for s in there}
    paths = [row["mask"] for row in rows if row["mask"]]
    masks = pair_masks.legend(read.mask_classes, read.mask_nodata, paths)
    bands = " and ".join(
        f"{sensor.title} {', '.join(sensor.band_names)}" for sensor in contract.values()
    )
    description = Description(
        name=read.name,
        title=f"{'Pairs of' if len(there) > 1 else 'Images of'} {bands} from GeoTIFFs.",
        source="GeoTIFF pairs of the user",  # a path means nothing to anybody else
        licence=read.licence,
        layout=layout.resampled(side, contract),
        sensors=contract,
        classes=_classes(read, rows),
        maps=masks.maps,
        unlabelled=True,  # which an empty field of the CSV says
    )
    asked = "s2" in there and settings.offset["s2"] == "auto"
    others = pair_survey.others(found) if asked else Others()
    return GeotiffPairs(config.source, settings, description, others, masks, patterns)


@dataclasses.dataclass(frozen=True)
class GeotiffPairs(base.Archive):
    """Pairs of GeoTIFFs in a folder or a list.

    Attributes:
        source: the folder, or the CSV.
        settings: how to understand the files.
        description: what the records hold.
        others: what is known of the offset of pairs that prove nothing.
        masks: what their values mean.
        patterns: of the paths of images and masks below the folder, see
            `file_patterns`; empty for its s1/, s2/ and mask/.
    """

    source: str
    settings: Settings
    description: Description = dataclasses.field(hash=False)
    others: Others = Others()
    masks: Legend = Legend()
    patterns: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)

    own_statistics = True

    @property
    def expects_missing(self) -> bool:
        return bool(self.settings.cut.tile)

    def find_pairs(self) -> tuple[list[Pair], list[Skipped]]:
        """Matches file names, or reads the CSV."""
        rows, skipped = _rows(self.source, self.patterns, self.settings.cut)
        pairs = {}
        for row in rows:
            tile = "".join(f"_{at:05d}" for at in row[AT])
            images = {s: row[s] and stem(row[s]) + tile for s in sensors.SENSORS}
            images |= {NAMED[0]: row["id"]}
            if row["id"] in pairs:
                reason = f"another pair has the id {row['id']!r} too"
                skipped.append(Skipped(images, reason))
                continue
            where = tuple(row[name] for name in (*COLUMNS, AT))
            pairs[row["id"]] = Pair(images, row["tile"], row["split"], where)
        return sorted(pairs.values()), skipped

    def read_pair(self, pair: Pair) -> dict:
        """Reads a pair as the fields of a record.

        Raises:
            InputError: a file is missing or damaged, lacks a band, does not cover the
                place or not at 10 m, or its content cannot be true; or a mask has a
                value of no class.
            OSError: a file cannot be read.
        """
        row = dict(zip((*COLUMNS, AT), pair.where, strict=True))
        there, side = pair_lists.present([row]), self.description.layout.size
        images, mask, warped = pair_tiles.read(row, self.settings.cut, side)
        times = {
            name: row[f"acquired_{name}"]
            or base.acquired(stem(row[name]))
            or base.acquired(image.tags.get(band_folders.FILES, ""))
            for name, image in images.items()
        }
        fields = {f"acquired_{name}": times.get(name, "") for name in sensors.SENSORS}
        remarks = [WARPED] if warped else []
        for name in set(self.description.sensors) - set(there):
            fields |= base.nothing(self.description, name)
        for name, image in images.items():
            fields |= self._pixels(name, row, image, remarks)
        if self.description.classes:
            fields["labels"] = self._labels(row)
        for field in self.description.maps:
            fields[field] = self._mask(row["mask"], mask)
        return fields | {
            "id": pair.name,
            "id_s1": pair.images["s1"],
            "place": self._place(pair, images, times),
            "tile": pair.tile,
            base.REMARKS: remarks,
            base.PRESENT: there,
        }

    def _place(self, pair: Pair, images: Mapping, times: Mapping) -> str:
        """Grid and time of the image that names the pair, or else that name."""
        name = next(name for name in NAMED if name in images)
        if not images[name].grid.known:
            return f"{self.description.name}/{pair.name}"
        return f"{images[name].grid.text} {times[name]}".rstrip()

    def _pixels(self, name: str, row: dict, raster: rasters.Raster, remarks) -> dict:
        """Fields of one sensor; adds what is worth a remark."""
        sensor, path = self.description.sensors[name], row[name]
        bands = pair_survey.band_names(path, raster, (sensor,), self.settings)
        lacking = [band for band in sensor.band_names if band not in bands]
        if lacking:
            raise InputError(
                f"{path} has no {', '.join(lacking)}, which most files of the dataset "
                "have; add them, or take them out of the other files."
            )
        if raster.pixels.dtype.kind not in "uif":
            raise InputError(
                f"{path} is of type {raster.pixels.dtype}; write whole or real numbers."
            )
        _check_level(path, raster, bands, sensor)
        image, unit = pair_survey.measured(name, raster, self.settings)
        image = image[[bands.index(band) for band in sensor.band_names]]
        offset = 0
        if sensor.offsets:
            if image.dtype.kind != "u" and (image < 0).any():
                remarks.append(CLAMPED)
            by_band = dict(zip(sensor.band_names, image))
            offset = self.offset(row, raster, by_band, unit, remarks)
        image = sensors.to_contract(image, sensor, unit=unit, offset=offset)
        images = dict(zip(sensor.band_names, image))
        return base.pixels(self.description, name, images.__getitem__, path)

    def offset(self, row: dict, raster, images, unit: str, remarks: list) -> int:
        """What was added to each DN of a pair's images, by name of the band.

        Raises:
            InputError: that cannot be told, or the pixels prove it wrong.
        """
        path, sensor = row["s2"], self.description.sensors["s2"]
        given = row["s2_offset"] or self.settings.offset["s2"]
        if unit != sensor.units[0].name:  # reflectance, and nobody says that it is off
            scaled_out = raster.scaling and raster.scaling[1] < 0
            return 0 if given == "auto" or scaled_out else int(given)
        proven = offsets.proven(images)
        if proven is None and row[AT]:
            proven = pair_survey.proven_by_scene(path, self.settings)
        said = offsets.said(pair_survey.says(path, raster))
        if given != "auto":
            if self.settings.proof and proven not in (None, int(given)):
                raise InputError(_contradicted(path, images, int(given)))
            return int(given)
        if proven is not None:
            if said not in (None, proven):
                remarks.append(HARMONISED if said else UNEXPECTED)
            return proven
        if said and self.others.wrong:
            if self.others.right:
                raise InputError(
                    f"{path} proves nothing of its offset, and of the other pairs "
                    "whose names tell of one some have it and some do not; say it in "
                    "a column s2_offset of a CSV."
                )
            remarks.append(HARMONISED)
            return 0
        offset = self.others.all if said is None else said
        if offset is None:
            raise InputError(f"{path} {offsets.unknown(pair_survey.LACKING)}")
        return offset

    def _mask(self, path: str, mask: rasters.Raster | None) -> np.ndarray:
        """Index of the class of each pixel, [H, W]; of none in a pair without mask."""
        side = self.description.layout.size
        if mask is None:
            return np.full((side, side), NO_CLASS, np.uint8)
        return self.masks.labels(path, mask, side)

    def _labels(self, row: dict) -> list[int]:
        """Indices of the classes of a pair."""
        classes = self.description.classes["labels"]
        present = pair_lists.class_names(row["labels"], classes)
        unknown = sorted(set(present) - set(classes))
        if unknown:
            raise InputError(
                f"{row['id']} has the labels {unknown}, which are not among the "
                f"{len(classes)} of config.read.classes; correct them."
            )
        return sorted({classes.index(name) for name in present})


def _settings(read, proof: bool) -> Settings:
    names = sensors.SENSORS
    return Settings(
        bands={n: tuple(map(sensors.canonical, read[f"{n}_bands"])) for n in names},
        unit={name: read[f"{name}_unit"] for name in names},
        offset={n: read[f"{n}_offset"] for n in names if f"{n}_offset" in SETTINGS},
        proof=proof,
        cut=_cut(read),
    )


def _cut(read) -> Cut:
    if not read.tile and (read.stride or read.edges != "drop"):
        raise InputError(
            "read.stride and read.edges say how scenes are cut into tiles; set "
            "read.tile=120, the side of a tile, or another, too."
        )
    if read.tile and read.size not in (0, read.tile):
        raise InputError(
            f"read.tile={read.tile} is the side of a pair, and read.size={read.size}; "
            "leave read.size=0."
        )
    fill = read.edges == "fill"
    return Cut(read.tile, read.stride or read.tile, fill, read.align)


def _rows(source: str, patterns: Mapping, cut: Cut) -> tuple[list[dict], list[Skipped]]:
    """What is listed, cut into tiles if it is to be, and what cannot be used."""
    rows, skipped = pair_lists.find_files(source, patterns)
    if cut.tile and any(row["labels"] for row in rows):
        raise InputError(
            f"{source} has labels, which tell what a whole scene holds and not which "
            f"of its tiles; leave them out, or read.tile={cut.tile}."
        )
    rows, cannot = pair_tiles.tiles(rows, cut)
    return rows, [*skipped, *cannot]


def _check_level(path, raster, bands, sensor: sensors.Sensor) -> None:
    """Refuses a file of another level than the dataset's."""
    told = pair_survey.told_level(path, raster, bands) if sensor.offsets else ""
    if told and told != sensor.level:
        raise InputError(
            f"{path} is {told}, as its bands or name tell, and the dataset is "
            f"{sensor.level}; prepare it in a dataset of its own."
        )


_OFFSET_ADVICE = (
    "set read.s2_offset=auto, or say it pair by pair in a column s2_offset of "
    "a CSV (check_values=False overrides)."
)


def _contradicted(path: str, images: Mapping[str, np.ndarray], said: int) -> str:
    if said:
        return (
            f"{path} should carry an offset of {said}, but "
            f"{offsets.low_share(images):.1%} of its DN lie between {offsets.DARKEST} "
            f"and {offsets.FLOOR}, where it would leave hardly any; {_OFFSET_ADVICE}"
        )
    return (
        f"{path} should carry no offset, but {offsets.CIRRUS}, which sees no ground, "
        f"is nowhere near 0 (median {np.median(images[offsets.CIRRUS]):.0f} DN); "
        f"{_OFFSET_ADVICE}"
    )


def _classes(read, rows: list[dict]) -> dict[str, tuple[str, ...]]:
    """Names of the classes, as given or else all that occur, in order."""
    found = {
        name
        for row in rows
        for name in pair_lists.class_names(row["labels"], read.classes)
    }
    if read.classes and not found:
        raise InputError(
            f"read.classes names {len(read.classes)} classes, but no pair has a label; "
            "pass a CSV with a column 'labels', names separated by ';', or write "
            "{label} into a pattern of files."
        )
    names = tuple(read.classes) or pair_lists.in_order(found)
    return {"labels": names} if found else {}
