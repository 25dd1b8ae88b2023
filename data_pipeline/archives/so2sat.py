"""So2Sat LCZ42, as TensorFlow Datasets prepares it: local climate zones of cities.

TFDS does the download and decides what a record is; this reads its `so2sat/all`, with
all bands, and turns linear Sentinel-1 into dB and reflectance into DN. Sentinel-2 is
top of atmosphere (L1C): the images are of 2017, when Google Earth Engine, which made
the mosaics, had no other.
"""

import dataclasses
import functools

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from data_pipeline import classes, layout, pixel_values, sensors
from data_pipeline.archives import base
from data_pipeline.archives.base import Pair, Skipped
from data_pipeline.config_fields import choice
from data_pipeline.dataset_card import SPLITS, Description
from data_pipeline.errors import InputError

DATASET = "so2sat/all"
SIZE = 32
S2_BANDS = "B02 B03 B04 B05 B06 B07 B08 B8A B11 B12".split()  # in the order stored

# Channels of sentinel1: real and imaginary part of the signal, or its intensity after
# a refined Lee filter, which removes speckle. The rest is the covariance of VH and VV.
UNFILTERED = {"VH": (0, 1), "VV": (2, 3)}
LEE_FILTERED = {"VH": 4, "VV": 5}
# What `config.read` may say.
SETTINGS = {
    "speckle": choice(
        "lee",
        "none",
        meaning="Sentinel-1 intensity: filtered by the archive, or unfiltered.",
    )
}

LICENCE = """\
The data in this folder is licensed under Creative Commons Attribution 4.0
International (CC BY 4.0): https://creativecommons.org/licenses/by/4.0/

It comes from So2Sat LCZ42:

    X. X. Zhu et al., "So2Sat LCZ42: A Benchmark Data Set for the Classification of
    Global Local Climate Zones", IEEE Geoscience and Remote Sensing Magazine, 2020.

It contains modified Copernicus Sentinel data 2016-2017.

What was changed: Sentinel-1 was turned into dB and rounded to 16-bit floating point,
Sentinel-2 into whole numbers of reflectance x 10000; both were encoded anew, as
ArrayRecord files."""

_CORRUPTED = "Corrupted"  # what ArrayRecord calls bytes that are not those written
_NONE_PUBLISHED = "of another dataset, for So2Sat publishes none in this unit: "

_CONTRACT = {
    name: dataclasses.replace(sensor, source=_NONE_PUBLISHED + sensor.source)
    for name, sensor in {
        "s1": sensors.S1,
        "s2": sensors.S2_L1C.select(S2_BANDS),
    }.items()
}

DESCRIPTION = Description(
    name="so2sat",
    title=(
        "So2Sat LCZ42: pairs of Sentinel-1 and Sentinel-2 (L1C) patches of 42 cities "
        "and ten further areas, 2017, with local climate zones."
    ),
    source="https://doi.org/10.14459/2018mp1454690",
    licence=LICENCE,
    layout=layout.resampled(SIZE, _CONTRACT),
    sensors=_CONTRACT,
    classes={"labels": classes.LOCAL_CLIMATE_ZONES},
)


DOWNLOADS = ()  # TFDS does it


def open_archive(config) -> "So2Sat":
    """The archive that a `prepare` config describes."""
    return So2Sat(config.source, config.read.speckle)


@dataclasses.dataclass(frozen=True)
class So2Sat(base.Archive):
    """The dataset in a data directory of TFDS.

    Attributes:
        data_dir: that directory.
        speckle: "lee" for the filtered intensity, "none" for the unfiltered one.
    """

    data_dir: str
    speckle: str = "lee"
    description = DESCRIPTION

    def find_pairs(self) -> tuple[list[Pair], list[Skipped]]:
        """All records, in the splits that TFDS has.

        Raises:
            InputError: the dataset is not prepared there, or not for random access.
        """
        held = _builder(self.data_dir).info.splits
        pairs = [
            Pair({"s2": name, "s1": name}, split=split, where=(split, index))
            for split in SPLITS
            if split in held
            for index in range(held[split].num_examples)
            for name in [f"so2sat-{split}-{index:06d}"]
        ]
        return sorted(pairs), []

    def read_pair(self, pair: Pair) -> dict:
        """Reads a pair as the fields of a record.

        Raises:
            InputError: the record is damaged, or its content cannot be true.
            OSError: its file cannot be read.
        """
        split, index = pair.where
        name = f"Record {index} of split {split} of {DATASET} in {self.data_dir}"
        try:
            stored = _records(self.data_dir, split)[index]
            label, sample = int(stored["label"]), int(stored["sample_id"])
            if not 0 <= label < len(classes.LOCAL_CLIMATE_ZONES):
                raise ValueError(f"its label is {label}")
        except (RuntimeError, TypeError, ValueError, LookupError, DecodeError) as error:
            content = isinstance(error, ValueError | LookupError | DecodeError)
            if not content and _CORRUPTED not in str(error):
                raise OSError(f"{name}: {error}") from error
            raise InputError(
                f"{name} does not decode ({error}); copy or prepare that dataset again."
            ) from error
        return {
            **self._pixels("s1", self._backscatter(stored["sentinel1"]), pair),
            **self._pixels("s2", _reflectance(stored["sentinel2"]), pair),
            "labels": [label],
            "id": pair.name,
            "id_s1": pair.images["s1"],
            # The row in the archive's file of this split, whatever order TFDS gave it.
            "place": f"so2sat {split} {sample}",
            "tile": "",  # the archive does not say which city it is
            "acquired_s1": "",
            "acquired_s2": "",
        }

    def _backscatter(self, stored: np.ndarray) -> dict[str, np.ndarray]:
        """Bands [H, W] in dB, from channels [H, W, 8]."""
        if self.speckle == "lee":
            power = {band: stored[..., i] for band, i in LEE_FILTERED.items()}
        else:
            power = {
                band: np.square(stored[..., list(parts)]).sum(axis=-1)
                for band, parts in UNFILTERED.items()
            }
        return {band: pixel_values.linear_to_db(image) for band, image in power.items()}

    def _pixels(self, sensor: str, images: dict[str, np.ndarray], pair: Pair) -> dict:
        return base.pixels(DESCRIPTION, sensor, images.__getitem__, pair.name)


def _reflectance(stored: np.ndarray) -> dict[str, np.ndarray]:
    """Bands [H, W] in DN, from channels [H, W, 10]."""
    dn = pixel_values.reflectance_to_dn(stored)
    return {band: dn[..., i] for i, band in enumerate(S2_BANDS)}


def _builder(data_dir: str) -> tfds.core.DatasetBuilder:
    builder = tfds.builder(DATASET, data_dir=data_dir)
    file_format = builder.info.file_format
    if not builder.is_prepared() or file_format.value != "array_record":
        have = f"as {file_format.value}" if builder.is_prepared() else "not prepared"
        raise InputError(
            f"{DATASET} is {have} in {data_dir}, where it must be as array_record; "
            "prepare it (TensorFlow must be installed for that) with `import "
            f"tensorflow_datasets as tfds; tfds.builder('{DATASET}', data_dir=DIR, "
            "file_format='array_record').download_and_prepare()` and pass "
            "source=DIR."
        )
    return builder


@functools.cache  # each process opens the files once
def _records(data_dir: str, split: str):
    return _builder(data_dir).as_data_source(split)
