"""The record format: tf.train.Example in ArrayRecord shards that TFDS can read.

How records are written and how they are read; neither needs TensorFlow. A record keeps
pixels as they were measured.
"""

import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source, array_record_module
from etils import epath
from google.protobuf import json_format, message
from tensorflow_datasets.core.proto import feature_pb2
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from data_pipeline import atomic, dataset_card, safe_io
from data_pipeline.dataset_card import HOW_TO_BUILD, Description
from data_pipeline.errors import InputError

# `place` says where a pair lies and, where a dataset shows ground more than once, when
# it was acquired; `ground` says which pairs share their ground.
TEXTS = ("id", "id_s1", "place", "tile", "acquired_s1", "acquired_s2")
# Options of ArrayRecord: groups of 1 are what makes random access cheap.
COMPRESSION = {
    "zstd:3": "group_size:1,zstd:3",
    "none": "group_size:1,uncompressed",
}
OPTIONS = COMPRESSION["zstd:3"]

# Of records; more when the same pair would be written with other bytes.
FORMAT = 1
_SUFFIX = "array_record"
_FEATURES_FILE = "features.json"
_TYPES = {  # that records have, by the names that TFDS has for them
    f"{kind.__module__}.{kind.__name__}"
    for kind in (
        tfds.features.ClassLabel,
        tfds.features.FeaturesDict,
        tfds.features.Sequence,
        tfds.features.Tensor,
        tfds.features.Text,
    )
}


class ShardInfo(NamedTuple):
    """What a shard holds.

    Attributes:
        count: number of records.
        bytes: their size before compression.
        digest: sha256 of all of them, in order.
    """

    count: int  # type: ignore[assignment]  # not the method that tuples have
    bytes: int
    digest: str


def features(description: Description) -> tfds.features.FeaturesDict:
    """The fields of a record."""
    layout = description.layout
    # The default encoding writes one integer per pixel, 20 times as slow.
    encoding = tfds.features.Encoding.BYTES
    fields = {
        field: tfds.features.Tensor(
            shape=shape, dtype=np.dtype(layout.dtypes[field]), encoding=encoding
        )
        for field, shape in layout.shapes.items()
    }
    for field in description.maps:
        shape = (layout.size, layout.size)
        fields[field] = tfds.features.Tensor(
            shape=shape, dtype=np.dtype("uint8"), encoding=encoding
        )
    for field, names in description.classes.items():
        label = tfds.features.ClassLabel(names=list(names))
        fields[field] = tfds.features.Sequence(label)
    fields.update({field: tfds.features.Text() for field in TEXTS})
    return tfds.features.FeaturesDict(fields)


def shard_name(name: str, split: str, index: int, shards: int) -> str:
    """File name of one shard of a split of the dataset `name`."""
    return f"{name}-{split}.{_SUFFIX}-{index:05d}-of-{shards:05d}"


def serialize(example: dict, features: tfds.features.FeaturesDict) -> bytes:
    """One record; the same fields always give the same bytes."""
    # TFDS leaves the order of fields to chance; sorted, shards can be compared.
    record = tf_example_pb2.Example.FromString(features.serialize_example(example))
    return record.SerializeToString(deterministic=True)


def write_shard(
    path: str | os.PathLike,
    examples: Iterable[dict],
    features: tfds.features.FeaturesDict,
    options: str = OPTIONS,
) -> ShardInfo:
    """Writes one shard, which appears under its name only when it is complete.

    Args:
        path: file to write.
        examples: fields of each record.
        features: what `features` returns.
        options: of ArrayRecord.

    Raises:
        OSError: the disk is full.
    """
    path = pathlib.Path(path)
    part = atomic.aside(path)
    count, size, digest = 0, 0, hashlib.sha256()
    writer = array_record_module.ArrayRecordWriter(str(part), options)
    try:
        try:
            for example in examples:
                record = serialize(example, features)
                writer.write(record)
                count, size = count + 1, size + len(record)
                digest.update(record)
        finally:
            writer.close()
    except RuntimeError as error:  # so ArrayRecord reports a full disk, when closing
        raise atomic.from_words(str(error)) from error
    os.replace(part, path)
    return ShardInfo(count, size, digest.hexdigest())


def write_metadata(
    directory: str | os.PathLike,
    description: Description,
    splits: Mapping[str, Sequence[ShardInfo]],
) -> None:
    """Makes shards a dataset for `tfds.builder_from_directory`.

    Args:
        directory: folder that holds the shards, named by `shard_name`.
        description: of the dataset.
        splits: shards of each split, in order.
    """
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(directory),
        dataset_name=description.name,
        filetype_suffix=_SUFFIX,
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
        features=features(description),
        split_infos=infos,
        check_data=False,  # the check needs TensorFlow
        description=description.title,
        license=description.licence,
    )


def read_records(path: pathlib.Path, at_once: int = 64) -> Iterable[bytes]:
    """Yields the serialised records of a shard, in order.

    Raises:
        RuntimeError: ArrayRecord cannot read it.
    """
    reader = array_record_module.ArrayRecordReader(str(path))
    try:
        for start in range(0, reader.num_records(), at_once):
            stop = min(start + at_once, reader.num_records())
            yield from reader.read(list(range(start, stop)))
    finally:
        reader.close()


class Records:
    """Random access to the records of one split, as Grain wants its sources.

    Attributes:
        description: of the dataset.
        fields: that are decoded.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        split: str,
        fields: Iterable[str] | None = None,
        statistics: str = "published",
    ):
        """Opens a split to decode `fields` of its records, or all fields.

        Args:
            directory: folder of the dataset.
            split: one of its splits.
            fields: that are decoded.
            statistics: of the bands, see `dataset_card.read_description`.

        Raises:
            InputError: there is no such dataset, split or field, its fields are not
                what its card says, or a shard is missing or damaged.
        """
        self.directory, self.split = atomic.absolute(directory), split
        info = tfds_info(self.directory)
        self.description = dataset_card.read_description(self.directory, statistics)
        check_features(self.directory, self.description, info.features)
        self._decoders = _decoders(self.description, fields)
        self.fields = tuple(self._decoders)
        if split not in info.splits or not info.splits[split].num_examples:
            held = {name: part.num_examples for name, part in info.splits.items()}
            raise InputError(
                f"Split {split!r} of {self.directory} holds no records; its splits "
                f"hold {held}. Name another split or dataset in the fields of "
                "config.data (--explain lists them, such as eval_dir), or build this "
                "one again with other splits or a holdout_share."
            )
        self._info = info.splits[split]
        self._name = info.name
        self._source = self._open()

    def __len__(self) -> int:
        return self._info.num_examples

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        """One record.

        Returns:
            Pixels [H, W, C] and pixel labels [H, W] as stored, read-only; labels as
            uint8 [number of classes], 1 where the class is present; texts as str.

        Raises:
            InputError: it does not decode.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Record {index} of {len(self)}.")
        try:
            record = self._source[index]
            if not record:  # ArrayRecord is silent about a shard that was cut since
                raise ValueError("its shard ends before it")
            stored = tf_example_pb2.Example.FromString(record).features.feature
            if absent := [name for name in self._decoders if name not in stored]:
                raise ValueError(f"it lacks {absent}")  # what is asked for is made up
            return {name: make(stored[name]) for name, make in self._decoders.items()}
        except (RuntimeError, ValueError, message.DecodeError) as error:
            raise InputError(
                f"Record {index} of split {self.split} in {self.directory} does not "
                f"decode ({error}); copy or rebuild the shard {self._shard(index)}."
            ) from error

    def _shard(self, index: int) -> str:
        """The file that holds a record."""
        ends = itertools.accumulate(self._info.shard_lengths)
        shard = next(i for i, end in enumerate(ends) if index < end)
        return os.path.basename(self._info.filepaths[shard])

    @property
    def directories(self) -> tuple[str, ...]:
        """The folder of the dataset."""
        return (self.directory,)

    def fingerprint(self) -> dict[str, str | int]:
        """Names the data, so that a resumed run can notice when it is another."""
        return {
            "name": self._name,
            "split": self.split,
            "count": len(self),
            "bytes": int(self._info.num_bytes),
            "sha256": self._digest(),
        }

    def _digest(self) -> str:
        """One checksum for those that the card has of all shards."""
        sums = dataset_card.read_card(self.directory).get("files", {})
        names = [os.path.basename(path) for path in self._info.filepaths]
        joined = "".join(sums.get(name, "") for name in names)
        return hashlib.sha256(joined.encode()).hexdigest()

    @property
    def index(self) -> dict[str, np.ndarray]:
        """What is known of all records without reading them; read anew each time.

        Returns:
            `id` and `place` [N] as str, and each label field [N, number of classes]
            as uint8.

        Raises:
            InputError: the index is missing, damaged, or of other records.
        """
        index = dataset_card.read_index(self.directory, self.split, len(self))
        if {len(values) for values in index.values()} != {len(self)}:
            raise InputError(
                f"{dataset_card.index_name(self.split)} in {self.directory} is not the "
                f"index of the {len(self)} records there; copy it again, or "
                f"{HOW_TO_BUILD}."
            )
        return index

    @property
    def places(self) -> np.ndarray:
        """Place of all records, see `ground`; [N] as str, "" where unknown."""
        return self.index["place"]

    def _open(self) -> array_record_data_source.ArrayRecordDataSource:
        paths = [os.fspath(path) for path in self._info.filepaths]
        try:
            source = array_record_data_source.ArrayRecordDataSource(paths)
        except RuntimeError as error:
            raise InputError(
                f"A shard of split {self.split} in {self.directory} cannot be opened "
                f"({error}); copy or rebuild that shard."
            ) from error
        if len(source) != len(self):
            raise InputError(
                f"Split {self.split} of {self.directory} holds {len(source)} records "
                f"where the metadata says {len(self)}; copy it again, or "
                f"{HOW_TO_BUILD}."
            )
        return source


def _decoders(description: Description, fields: Iterable[str] | None) -> dict:
    """For each of `fields` a function of its feature in a record."""
    layout = description.layout
    decoders: dict[str, Callable] = {
        field: functools.partial(_pixels, dtype=layout.dtypes[field], shape=shape)
        for field, shape in layout.shapes.items()
    }
    for field in description.maps:
        shape = (layout.size, layout.size)
        decoders[field] = functools.partial(_pixels, dtype="uint8", shape=shape)
    for field, names in description.classes.items():
        decoders[field] = functools.partial(_multi_hot, count=len(names))
    decoders |= dict.fromkeys(TEXTS, _text)
    chosen = list(decoders if fields is None else fields)
    if not chosen or not decoders.keys() >= set(chosen):
        raise InputError(
            f"Fields {chosen} must be some of {list(decoders)}, which the pairs of "
            f"{description.name} have; name datasets that were prepared alike."
        )
    return {field: decoders[field] for field in chosen}


def _pixels(stored: tf_feature_pb2.Feature, *, dtype: str, shape: tuple) -> np.ndarray:
    (content,) = stored.bytes_list.value
    return np.frombuffer(content, dtype).reshape(shape)


def _multi_hot(stored: tf_feature_pb2.Feature, *, count: int) -> np.ndarray:
    indices = list(stored.int64_list.value)
    if stored.WhichOneof("kind") not in ("int64_list", None):
        raise ValueError(f"its labels are a {stored.WhichOneof('kind')}")
    if indices and not 0 <= min(indices) <= max(indices) < count:
        raise ValueError(f"labels {min(indices)} to {max(indices)} of {count} classes")
    labels = np.zeros(count, np.uint8)
    labels[indices] = 1
    return labels


def _text(stored: tf_feature_pb2.Feature) -> str:
    (text,) = stored.bytes_list.value
    return text.decode("utf-8")


def tfds_info(directory: str) -> tfds.core.DatasetInfo:
    """What TFDS knows of a dataset.

    Raises:
        InputError: it is damaged, or would have TFDS run code from elsewhere.
    """
    dataset_card.read_card(
        directory
    )  # which says it better when the folder is no dataset
    try:
        fields = safe_io.read_json(pathlib.Path(directory, _FEATURES_FILE))
        _check_types(json_format.ParseDict(fields, feature_pb2.Feature()))
        found = tfds.builder_from_directory(directory).info
        for part in found.splits.values():
            part.filepaths  # which TFDS makes out only when it is asked
        return found
    except Exception as error:  # whatever the parsers inside TFDS raise
        raise InputError(
            f"The metadata of {directory} cannot be read ({error}); {HOW_TO_BUILD}."
        ) from error


def _check_types(feature: feature_pb2.Feature) -> None:
    """Refuses fields of types that `features` does not have.

    TFDS imports whatever Python module a type is said to be from.
    """
    if feature.python_class_name not in _TYPES:
        raise ValueError(f"a field is of type {feature.python_class_name!r:.99}")
    if feature.WhichOneof("content") == "json_feature":
        raise ValueError("a field is described by JSON in JSON")
    for part in feature.features_dict.features.values():
        _check_types(part)
    if feature.HasField("sequence"):
        _check_types(feature.sequence.feature)


def check_features(
    directory: str, description: Description, stored: tfds.features.FeaturesDict
) -> None:
    """Refuses records whose fields are not those that the card describes."""
    wanted = features(description)
    have, want = ({k: f.to_json() for k, f in d.items()} for d in (stored, wanted))
    differing = sorted(k for k in {*have, *want} if have.get(k) != want.get(k))
    if differing:
        raise InputError(
            f"The fields {differing} of {directory} are missing or not as its "
            f"{dataset_card.CARD_FILE} has them; {HOW_TO_BUILD}."
        )
