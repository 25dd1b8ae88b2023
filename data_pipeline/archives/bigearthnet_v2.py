"""BigEarthNet v2 (reBEN): folders of GeoTIFF bands, or the LMDB that rico-hdl writes.

`metadata.parquet` pairs the patches of both sensors and holds labels and split. The
Sentinel-1 images are those of v1; Sentinel-2 was processed again, and the labels come
from a newer land cover map, which is there for every pixel, too.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from data_pipeline import classes, ground, layout, safe_io, sensors
from data_pipeline.archives import base
from data_pipeline.archives.base import Pair, Skipped
from data_pipeline.archives.bigearthnet_v2_stores import Database, Folders, open_store
from data_pipeline.config_fields import flag, location
from data_pipeline.dataset_card import SPLITS, Description, split_name
from data_pipeline.download import Download
from data_pipeline.errors import InputError

LICENCE = """\
The data in this folder is licensed under the Community Data License Agreement -
Permissive, Version 1.0 (CDLA-Permissive-1.0): https://cdla.dev/permissive-1-0/

It comes from BigEarthNet v2.0 (reBEN):

    K. N. Clasen, L. Hackel, T. Burgert, G. Sumbul, B. Demir, V. Markl, "reBEN: Refined
    BigEarthNet Dataset for Remote Sensing Image Analysis", IGARSS 2025.

It contains modified Copernicus Sentinel data 2017-2018, and labels derived from CORINE
Land Cover 2018 of the Copernicus Land Monitoring Service.

What was changed: the pixels and labels were encoded anew, as ArrayRecord files;
Sentinel-1 backscatter was rounded from 32-bit to 16-bit floating point; the codes of
the reference maps became indices of the 43 and of the 19 classes."""

# ConfigILM lists statistics for several ways of resampling to 120 px. Pixels are
# normalised here before they are resampled, and nearest neighbours, which repeat every
# 20 m pixel 4 and every 60 m pixel 36 times, leave mean and deviation as they are.
_MEAN = {
    **{"B01": 361.0767822, "B02": 438.3720703, "B03": 614.0556641, "B04": 588.4096069},
    **{"B05": 942.8433228, "B06": 1769.9316406, "B07": 2049.5515137},
    **{"B08": 2193.2919922, "B8A": 2235.5566406, "B09": 2241.4553223},
    **{"B11": 1568.2268066, "B12": 997.7324829, "VV": -12.6438637, "VH": -19.3525581},
}
_STD = {
    **{"B01": 575.0687256, "B02": 607.0268555, "B03": 603.2968140, "B04": 684.5688477},
    **{"B05": 738.4326782, "B06": 1100.4560547, "B07": 1275.8054199},
    **{"B08": 1369.3717041, "B8A": 1356.5440674, "B09": 1316.3933105},
    **{"B11": 1070.1612549, "B12": 813.5276489, "VV": 5.1334939, "VH": 5.5905056},
}
_STATISTICS = (
    "BigEarthNet v2 training split, after BENv2_utils of "
    "github.com/lhackel-tub/ConfigILM"
)

DESCRIPTION = Description(
    name="bigearthnet_v2",
    title=(
        "BigEarthNet v2 (reBEN): pairs of Sentinel-1 and Sentinel-2 patches over "
        "Europe, 2017-2018, with labels and pixel labels of CORINE land cover."
    ),
    source="https://bigearth.net",
    licence=LICENCE,
    layout=layout.native(120, sensors.SENSORS),
    sensors={
        name: sensor.with_statistics(_MEAN, _STD, _STATISTICS)
        for name, sensor in sensors.SENSORS.items()
    },
    classes={"labels": classes.BIGEARTHNET_19},
)
WITH_MAPS = dataclasses.replace(
    DESCRIPTION,
    maps={
        "land_cover": classes.BIGEARTHNET_19,
        "land_cover_43": classes.BIGEARTHNET_43,
    },
)

_STORED = {"s1": "float32", "s2": "uint16"}

METADATA = "metadata.parquet"
FLAGGED = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"

_KINDS = {  # of columns that are no texts
    "labels": list,
    "contains_seasonal_snow": bool,
    "contains_cloud_or_shadow": bool,
}
_NAME = re.compile(r"S2[AB]_MSIL2A_\d{8}T\d{6}_N\d{4}_R\d{3}_T(\d{2}[A-Z]{3})_\d+_\d+")

_ZENODO = "https://zenodo.org/records/10891137/files"
_UNPACK = "tar --zstd -xf {folder}/{file} -C {folder}"
# Sizes and md5 are those that the record at Zenodo publishes.
DOWNLOADS = (
    Download(
        part="metadata",
        url=f"{_ZENODO}/{METADATA}",
        checksum="md5:55687065e77b6d0b0f1ff604a6e7b49c",
        size=3_616_349,
        needed=lambda config: not config.read.metadata,
    ),
    Download(
        part="snow_and_clouds",
        url=f"{_ZENODO}/{FLAGGED}",
        checksum="md5:fe31856f4986d446c9468b59d6387c91",
        size=710_162,
        needed=lambda config: config.read.snow_and_clouds,
    ),
    Download(
        part="maps",
        url=f"{_ZENODO}/Reference_Maps.tar.zst",
        checksum="md5:95d85a222fa983faddcac51a19f28917",
        size=282_391_301,
        needed=lambda config: config.read.maps,
        unpack=_UNPACK,
    ),
    Download(
        part="S1",
        url=f"{_ZENODO}/BigEarthNet-S1.tar.zst",
        checksum="md5:a55eaa2cdf6a917e296bd6601ec1e348",
        size=54_439_153_171,
        unpack=_UNPACK,
    ),
    Download(
        part="S2",
        url=f"{_ZENODO}/BigEarthNet-S2.tar.zst",
        checksum="md5:2245ed2d1a93f6ce637d839bc856396e",
        size=63_251_710_377,
        unpack=_UNPACK,
    ),
)

# What `config.read` may say.
SETTINGS = {
    "metadata": location(
        meaning="Path of metadata.parquet; empty looks for it in the source."
    ),
    "maps": flag(meaning="Whether to keep pixel labels, where there are any."),
    "snow_and_clouds": flag(
        meaning="Whether to keep the 69,450 patches with snow, clouds or shadows."
    ),
}


def open_archive(config) -> "BigEarthNet":
    """The archive that a `prepare` config describes.

    Raises:
        InputError: the source holds neither folders nor a database, or no metadata.
    """
    store = open_store(config.source)
    table = config.read.metadata or find_metadata(store.root)
    maps = config.read.maps and store.has_maps()
    return BigEarthNet(store, table, maps, config.read.snow_and_clouds)


@dataclasses.dataclass(frozen=True)
class BigEarthNet(base.Archive):
    """Patches of both sensors, and the metadata that pairs them.

    Attributes:
        store: where the patches are.
        table: path of metadata.parquet; that on flagged patches may lie beside.
        maps: whether records have pixel labels.
        snow_and_clouds: whether to keep patches that are flagged for either.
    """

    store: Folders | Database
    table: str
    maps: bool
    snow_and_clouds: bool

    @property
    def description(self) -> Description:
        return WITH_MAPS if self.maps else DESCRIPTION

    def find_pairs(self) -> tuple[list[Pair], list[Skipped]]:
        """Matches the metadata with the patches that are there.

        Returns:
            Pairs in the order of their names; and flagged patches, those of
            the metadata that are not there, and those that it does not know.

        Raises:
            InputError: the patches or the metadata are not there, or damaged.
        """
        s2_names, s1_names = self.store.names()
        pairs, skipped, listed_s2, listed_s1 = {}, [], set(), set()
        for file, row in read_metadata(self.table):
            flag = "" if self.snow_and_clouds else row.flag
            reason = row.fault or flag
            absent = [row.patch_id] if row.patch_id not in s2_names else []
            absent += [row.s1_name] if row.s1_name not in s1_names else []
            if row.patch_id in listed_s2:
                reason = f"listed in {file}, but not for the first time"
            elif absent and not reason:
                missing = " and ".join(absent)
                reason = f"listed in {file}, but {missing} not in {self.store.root}"
            listed_s2.add(row.patch_id)
            listed_s1.add(row.s1_name)
            if reason:
                images = {"s2": row.patch_id, "s1": row.s1_name}
                skipped.append(Skipped(images, reason, wanted=reason != flag))
            else:
                pairs[row.patch_id] = _pair(row)
        reason = f"not listed in {self.table}"
        skipped += [Skipped({"s2": s}, reason) for s in sorted(s2_names - listed_s2)]
        skipped += [Skipped({"s1": s}, reason) for s in sorted(s1_names - listed_s1)]
        return [pairs[name] for name in sorted(pairs)], skipped

    def read_pair(self, pair: Pair) -> dict:
        """Reads a pair as the fields of a record.

        Raises:
            InputError: an image is missing or damaged, or its content cannot be true.
        """
        s2v1_name, labels = pair.where
        s1_name, s2_name = pair.images["s1"], pair.images["s2"]
        return {
            **self._pixels("s1", s1_name),
            **self._pixels("s2", s2_name),
            **(self._land_cover(s2_name) if self.maps else {}),
            "labels": _labels(s2_name, labels),
            "id": s2_name,
            "id_s1": s1_name,
            "place": ground.place(s2v1_name or s2_name, s1_name),
            "tile": pair.tile,
            "acquired_s1": base.acquired(s1_name),
            "acquired_s2": base.acquired(s2_name),
        }

    def _pixels(self, sensor: str, name: str) -> dict[str, np.ndarray]:
        bands, stored = self.store.bands(name), _STORED[sensor]

        def read(band: str) -> np.ndarray:
            image = bands(band)
            if image.dtype != stored:
                raise InputError(
                    f"{name}, band {band}, is of type {image.dtype}, where BigEarthNet "
                    f"has {stored}; unpack or write it again."
                )
            return image

        return base.pixels(self.description, sensor, read, name)

    def _land_cover(self, name: str) -> dict[str, np.ndarray]:
        side, codes = self.description.layout.size, self.store.land_cover(name)
        if codes is None:
            codes = np.zeros((side, side), np.uint16)  # no class has the code 0
        if codes.dtype != np.uint16 or codes.shape != (side, side):
            raise InputError(
                f"The reference map of {name} is {codes.dtype} {codes.shape}, where "
                f"BigEarthNet has uint16 {(side, side)}; unpack or write it again."
            )
        return {"land_cover": _TO_19[codes], "land_cover_43": _TO_43[codes]}


def _pair(row: "Row") -> Pair:
    # Half a million pairs share the few names of classes instead of having copies.
    labels = tuple(sys.intern(label) for label in row.labels)
    where = (row.s2v1_name, labels)
    return Pair(
        {"s2": row.patch_id, "s1": row.s1_name}, row.tile, split_name(row.split), where
    )


def _labels(name: str, labels: tuple[str, ...]) -> list[int]:
    """Indices in classes.BIGEARTHNET_19, ascending."""
    unknown = sorted(set(labels) - set(classes.BIGEARTHNET_19))
    if unknown or not labels:
        raise InputError(
            f"{name} has the labels {list(labels)}, which must be at least one and all "
            f"among the {len(classes.BIGEARTHNET_19)} classes of BigEarthNet; correct "
            "its row in the metadata."
        )
    return sorted(classes.BIGEARTHNET_19.index(label) for label in set(labels))


def _lookup(indices: Iterable[int | None]) -> np.ndarray:
    """Table from every 16-bit code to the index of its class, or NO_CLASS."""
    table = np.full(1 << 16, classes.NO_CLASS, np.uint8)
    for code, index in zip(classes.CORINE_CODES, indices, strict=True):
        if index is not None:
            table[code] = index
    return table


_TO_43 = _lookup(range(len(classes.BIGEARTHNET_43)))
_TO_19 = _lookup(classes.BIGEARTHNET_43_TO_19.values())


class Row(NamedTuple):
    """A row of the table; the fields are its columns, and "" where one is empty."""

    patch_id: str
    labels: list[str]
    split: str
    s1_name: str
    s2v1_name: str
    contains_seasonal_snow: bool
    contains_cloud_or_shadow: bool

    @property
    def tile(self) -> str:
        """The MGRS tile in the name of the patch, or "" where there is none."""
        named = _NAME.fullmatch(self.patch_id)
        return named[1] if named else ""

    @property
    def fault(self) -> str:
        """Why the row can make no pair, or "" when it can."""
        if not self.tile:
            return "it is not named like a Sentinel-2 patch of BigEarthNet v2"
        if split_name(self.split) not in SPLITS:
            return f"its split {self.split!r} is none of {', '.join(SPLITS)}"
        return ""

    @property
    def flag(self) -> str:
        """The column that warns of snow or clouds, or ""."""
        if self.contains_seasonal_snow:
            return "flagged contains_seasonal_snow"
        if self.contains_cloud_or_shadow:
            return "flagged contains_cloud_or_shadow"
        return ""


def find_metadata(root: str) -> str:
    """Path of the table in the folder `root` or in the one around it.

    Raises:
        InputError: neither has it.
    """
    folders = (root, os.path.dirname(os.path.abspath(root)))
    for folder in folders:
        if os.path.isfile(os.path.join(folder, METADATA)):
            return os.path.join(folder, METADATA)
    raise InputError(
        f"There is no {METADATA} in {' or '.join(folders)}; put it there, or pass its "
        "path as read.metadata=FILE."
    )


def read_metadata(path: str) -> Iterator[tuple[str, Row]]:
    """Rows of the table and of the one on flagged patches, where that lies beside.

    Returns:
        Each row with the name of the file it is in.

    Raises:
        InputError: a file is missing or damaged, or another table.
    """
    paths = dict.fromkeys([path, os.path.join(os.path.dirname(path), FLAGGED)])
    for path in paths:
        if os.path.basename(path) != FLAGGED or os.path.exists(path):
            for row in _read_table(path):
                yield os.path.basename(path), row


def _read_table(path: str) -> Iterator[Row]:
    try:
        table = safe_io.read_parquet(path, Row._fields)
        missing = sorted(set(Row._fields) - set(table))
        if missing:
            raise InputError(
                f"{path} has no columns {missing}; it must be the metadata of "
                "BigEarthNet v2."
            )
        for values in zip(*(table[column] for column in Row._fields)):
            row = Row(*("" if value is None else value for value in values))
            _check_row(row)
            yield row
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({str(error).rstrip('.')}); download it again."
        ) from None


def _check_row(row: Row) -> None:
    """Raises a ValueError where a value is of another kind than its column."""
    for name, value in row._asdict().items():
        if value != "" and not isinstance(value, _KINDS.get(name, str)):
            raise ValueError(f"{name} is {value!r:.50}")
    if not all(isinstance(label, str) for label in row.labels):
        raise ValueError(f"labels are {row.labels!r:.50}")
