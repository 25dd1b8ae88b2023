"""BigEarthNet v2 (reBEN): folders of GeoTIFF bands, or the LMDB that rico-hdl writes.

`metadata.parquet` pairs the patches of both sensors and holds labels and split. The
Sentinel-1 images are those of v1; Sentinel-2 was processed again, and the labels come
from a newer land cover map, which is there for every pixel, too.
"""

import dataclasses
import sys
from collections.abc import Iterable

import numpy as np

from data_pipeline import archive, classes, ground, layout, sensors
from data_pipeline.archives import names
from data_pipeline.archives import bigearthnet_v2_metadata as metadata
from data_pipeline.archives import bigearthnet_v2_stores as stores
from data_pipeline.archive import Pair, Skipped
from data_pipeline.description import Description
from data_pipeline.errors import InputError
from data_pipeline.config_fields import flag, location

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
    layout=layout.native(120),
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
    store = stores.open_store(config.source)
    table = config.read.metadata or metadata.find(store.root)
    maps = config.read.maps and store.has_maps()
    return BigEarthNet(store, table, maps, config.read.snow_and_clouds)


@dataclasses.dataclass(frozen=True)
class BigEarthNet(archive.Archive):
    """Patches of both sensors, and the metadata that pairs them.

    Attributes:
        store: where the patches are.
        table: path of metadata.parquet; that on flagged patches may lie beside.
        maps: whether records have pixel labels.
        snow_and_clouds: whether to keep patches that are flagged for either.
    """

    store: stores.Folders | stores.Database
    table: str
    maps: bool
    snow_and_clouds: bool

    @property
    def description(self) -> Description:
        return WITH_MAPS if self.maps else DESCRIPTION

    def find_pairs(self) -> tuple[list[Pair], list[Skipped]]:
        """Matches the metadata with the patches that are there.

        Returns:
            Pairs in the order of their Sentinel-2 names; and flagged patches, those of
            the metadata that are not there, and those that it does not know.

        Raises:
            InputError: the patches or the metadata are not there, or damaged.
        """
        s2_names, s1_names = self.store.names()
        pairs, skipped, listed_s2, listed_s1 = {}, [], set(), set()
        for file, row in metadata.rows(self.table):
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
                wanted = reason != flag
                skipped.append(Skipped(row.patch_id, row.s1_name, reason, wanted))
            else:
                pairs[row.patch_id] = _pair(row)
        reason = f"not listed in {self.table}"
        skipped += [Skipped(name, "", reason) for name in sorted(s2_names - listed_s2)]
        skipped += [Skipped("", name, reason) for name in sorted(s1_names - listed_s1)]
        return [pairs[name] for name in sorted(pairs)], skipped

    def read_pair(self, pair: Pair) -> dict:
        """Reads a pair as the fields of a record.

        Raises:
            InputError: an image is missing or damaged, or its content cannot be true.
        """
        s2v1_name, labels = pair.where
        return {
            **self._pixels("s1", pair.s1_name),
            **self._pixels("s2", pair.s2_name),
            **(self._land_cover(pair.s2_name) if self.maps else {}),
            "labels": _labels(pair.s2_name, labels),
            "id": pair.s2_name,
            "id_s1": pair.s1_name,
            "place": ground.place(s2v1_name or pair.s2_name, pair.s1_name),
            "tile": pair.tile,
            "acquired_s1": names.acquired(pair.s1_name),
            "acquired_s2": names.acquired(pair.s2_name),
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

        return archive.pixels(self.description, sensor, read, name)

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


def _pair(row: metadata.Row) -> Pair:
    # Half a million pairs share the few names of classes instead of having copies.
    labels = tuple(sys.intern(label) for label in row.labels)
    where = (row.s2v1_name, labels)
    return Pair(row.patch_id, row.s1_name, row.tile, row.split, where)


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
