"""The record format: tf.train.Example in ArrayRecord shards that TFDS can read.

A record keeps pixels as they were measured, at native resolution. Only this file
knows how they are encoded, and it needs no TensorFlow.
"""

import functools
import itertools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from google.protobuf import message
from tensorflow_datasets.proto import tf_example_pb2

from data_pipeline import sensors
from data_pipeline.errors import InputError

TEXTS = ("id", "id_s1", "tile", "acquired_s1", "acquired_s2")
METADATA_FILE = "dataset_info.json"

_DTYPES = {g.field: s.dtype for s in sensors.SENSORS.values() for g in s.grids}
_SUFFIX = "array_record"
_BUILD = (
    "build one with launch.py --config=configs/prepare_bigearthnet.py "
    "--config.source=DIR --config.out=DIR, or pass --config.data.dir=DIR"
)


class ShardInfo(NamedTuple):
    """Number of records of a shard, and their size before compression."""

    count: int
    bytes: int


def features(
    size: int, classes: Mapping[str, Sequence[str]]
) -> tfds.features.FeaturesDict:
    """The fields of a record.

    Args:
        size: side of a pair in pixels at 10 m.
        classes: names of the classes of each label field, in the order of indices.
    """
    fields = {
        # The default encoding writes one integer per pixel, 20 times as slow.
        field: tfds.features.Tensor(
            shape=shape,
            dtype=np.dtype(_DTYPES[field]),
            encoding=tfds.features.Encoding.BYTES,
        )
        for field, shape in sensors.shapes(size).items()
    }
    for field, names in classes.items():
        label = tfds.features.ClassLabel(names=list(names))
        fields[field] = tfds.features.Sequence(label)
    fields.update({field: tfds.features.Text() for field in TEXTS})
    return tfds.features.FeaturesDict(fields)


def shard_name(name: str, split: str, index: int, shards: int) -> str:
    """File name of one shard of a split of the dataset `name`."""
    return f"{name}-{split}.{_SUFFIX}-{index:05d}-of-{shards:05d}"


def write_shard(
    path: str | os.PathLike,
    examples: Iterable[dict],
    features: tfds.features.FeaturesDict,
    options: str = "group_size:1,zstd:3",
) -> ShardInfo:
    """Writes one shard, which appears under its name only when it is complete.

    Args:
        path: file to write.
        examples: fields of each record.
        features: what `features` returns.
        options: of ArrayRecord; groups of 1 are what makes random access cheap.
    """
    path = pathlib.Path(path)
    part = path.with_name(path.name + ".part")
    writer = array_record_module.ArrayRecordWriter(str(part), options)
    count, size = 0, 0
    try:
        for example in examples:
            # TFDS leaves the order of fields to chance; sorted, shards can be compared.
            record = features.serialize_example(example)
            record = tf_example_pb2.Example.FromString(record)
            record = record.SerializeToString(deterministic=True)
            writer.write(record)
            count, size = count + 1, size + len(record)
    finally:
        writer.close()
    os.replace(part, path)
    return ShardInfo(count, size)


def write_metadata(
    directory: str | os.PathLike,
    name: str,
    features: tfds.features.FeaturesDict,
    splits: Mapping[str, Sequence[ShardInfo]],
    *,
    description: str,
    licence: str,
) -> None:
    """Makes shards a dataset for `tfds.builder_from_directory` and `Records`.

    Args:
        directory: folder that holds the shards, named by `shard_name`.
        name: of the dataset.
        features: what the function of that name returns.
        splits: shards of each split, in order.
        description: a sentence for people.
        licence: text, which TFDS also writes to the file LICENSE.
    """
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(directory), dataset_name=name, filetype_suffix=_SUFFIX
    )
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.count for shard in shards],
            num_bytes=sum(shard.bytes for shard in shards),
            filename_template=template.replace(split=split),
        )
        for split, shards in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features,
        split_infos=infos,
        check_data=False,  # the check needs TensorFlow
        description=description,
        license=licence,
    )


class Records:
    """Random access to the records of one split, as Grain wants its sources.

    Attributes:
        size: side of a pair in pixels at 10 m.
        classes: names of the classes of each label field.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        split: str,
        fields: Iterable[str] | None = None,
    ):
        """Opens a split to decode `fields` of its records, or all fields.

        Raises:
            InputError: there is no such dataset, split or field, its fields are not
                those of `sensors`, or a shard is missing or damaged.
        """
        self.directory, self.split = os.fspath(directory), split
        info = _dataset_info(self.directory)
        self.size, self.classes = _contract(self.directory, info.features)
        self._decoders = _decoders(self.size, self.classes, fields)
        if split not in info.splits or not info.splits[split].num_examples:
            held = {name: part.num_examples for name, part in info.splits.items()}
            raise InputError(
                f"Split {split!r} of {self.directory} holds no records; its splits "
                f"hold {held}, so choose another or {_BUILD}."
            )
        self._info = info.splits[split]
        self._name = info.name
        self._source = self._open()

    def __len__(self) -> int:
        return self._info.num_examples

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        """One record.

        Returns:
            Pixels [H, W, C] as stored, read-only; labels as uint8 [number of classes],
            1 where the class is present; texts as str.

        Raises:
            InputError: the record does not decode.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Record {index} of {len(self)}.")
        try:
            example = tf_example_pb2.Example.FromString(self._source[index])
            stored = example.features.feature
            return {name: read(stored[name]) for name, read in self._decoders.items()}
        except (RuntimeError, ValueError, IndexError, message.DecodeError) as error:
            ends = itertools.accumulate(self._info.shard_lengths)
            shard = next(i for i, end in enumerate(ends) if index < end)
            raise InputError(
                f"Record {index} of split {self.split} in {self.directory} does not "
                f"decode ({error}); copy or rebuild the shard "
                f"{os.path.basename(self._info.filepaths[shard])}."
            ) from error

    def fingerprint(self) -> dict[str, str | int]:
        """Names the data, so that a resumed run can notice when it is another."""
        return {
            "name": self._name,
            "split": self.split,
            "count": len(self),
            "bytes": int(self._info.num_bytes),
        }

    def _open(self) -> grain.sources.ArrayRecordDataSource:
        try:
            source = grain.sources.ArrayRecordDataSource(
                [os.fspath(path) for path in self._info.filepaths]
            )
        except RuntimeError as error:
            raise InputError(
                f"A shard of split {self.split} in {self.directory} cannot be opened "
                f"({error}); copy or rebuild that shard."
            ) from error
        if len(source) != len(self):
            raise InputError(
                f"Split {self.split} of {self.directory} holds {len(source)} records "
                f"where {METADATA_FILE} says {len(self)}; copy it again, or {_BUILD}."
            )
        return source


def _dataset_info(directory: str) -> tfds.core.DatasetInfo:
    if not (epath.Path(directory) / METADATA_FILE).exists():
        raise InputError(
            f"{directory} is not a dataset, as it holds no {METADATA_FILE}; {_BUILD}."
        )
    try:
        return tfds.builder_from_directory(directory).info
    except Exception as error:  # whatever the parsers inside TFDS raise
        raise InputError(
            f"The metadata of {directory} cannot be read ({error}); {_BUILD}."
        ) from error


def _contract(
    directory: str, stored: tfds.features.FeaturesDict
) -> tuple[int, dict[str, tuple[str, ...]]]:
    """Size and classes of a dataset whose fields are those of `features`."""
    classes = {
        name: tuple(feature.feature.names)
        for name, feature in stored.items()
        if isinstance(feature, tfds.features.Sequence)
        and isinstance(feature.feature, tfds.features.ClassLabel)
    }
    finest, coarsest = sensors.S2.grids[0], sensors.S2.grids[-1]
    # Without its finest field any valid size serves to say that the field is missing.
    size = stored[finest.field].shape[0] if finest.field in stored else coarsest.gsd
    wanted = features(size, classes)
    have, want = ({k: f.to_json() for k, f in d.items()} for d in (stored, wanted))
    differing = sorted(k for k in {*have, *want} if have.get(k) != want.get(k))
    if differing:
        raise InputError(
            f"The fields {differing} of {directory} are missing or not as "
            f"data_pipeline/sensors.py has them; {_BUILD}."
        )
    return size, classes


def _decoders(size: int, classes: Mapping[str, Sequence[str]], fields) -> dict:
    """A function for each of `fields` that reads it from a tf.train.Feature."""
    decoders = {
        field: functools.partial(_pixels, dtype=_DTYPES[field], shape=shape)
        for field, shape in sensors.shapes(size).items()
    }
    for field, names in classes.items():
        decoders[field] = functools.partial(_multi_hot, count=len(names))
    decoders |= dict.fromkeys(TEXTS, _text)
    chosen = list(decoders if fields is None else fields)
    if not chosen or not decoders.keys() >= set(chosen):
        raise InputError(f"Fields {chosen} must be some of {list(decoders)}.")
    return {field: decoders[field] for field in chosen}


def _pixels(stored, *, dtype: str, shape: tuple[int, int, int]) -> np.ndarray:
    return np.frombuffer(stored.bytes_list.value[0], dtype).reshape(shape)


def _multi_hot(stored, *, count: int) -> np.ndarray:
    labels = np.zeros(count, np.uint8)
    labels[list(stored.int64_list.value)] = 1
    return labels


def _text(stored) -> str:
    return stored.bytes_list.value[0].decode("utf-8")
