"""Random access to the records of a prepared dataset, and to the index of them.

`shards` knows how records are written, this file how they are read.
"""

import functools
import hashlib
import itertools
import os
from collections.abc import Iterable

import numpy as np
from array_record.python import array_record_data_source
from google.protobuf import message
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from data_pipeline import files, metadata, shards
from data_pipeline.description import Description
from data_pipeline.errors import InputError
from data_pipeline.metadata import HOW_TO_BUILD


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
            statistics: of the bands, see `metadata.read_description`.

        Raises:
            InputError: there is no such dataset, split or field, its fields are not
                what its card says, or a shard is missing or damaged.
        """
        self.directory, self.split = files.absolute(directory), split
        info = metadata.info(self.directory)
        self.description = metadata.read_description(self.directory, statistics)
        metadata.check_features(self.directory, self.description, info.features)
        self._decoders = _decoders(self.description, fields)
        self.fields = tuple(self._decoders)
        if split not in info.splits or not info.splits[split].num_examples:
            held = {name: part.num_examples for name, part in info.splits.items()}
            raise InputError(
                f"Split {split!r} of {self.directory} holds no records; its splits "
                f"hold {held}. Name another with --config.data.split or eval_split, "
                "name a dataset that has it with --config.data.eval_dir, or build this "
                "one again with --config.splits or --config.holdout_share."
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

    def where(self, index: int) -> str:
        """Names a record and where it lies."""
        shard = self._shard(index)
        return f"record {index} of split {self.split} in {self.directory} ({shard})"

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
        sums = metadata.read_card(self.directory).get("files", {})
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
        index = metadata.read_index(self.directory, self.split, len(self))
        if {len(values) for values in index.values()} != {len(self)}:
            raise InputError(
                f"{metadata.index_name(self.split)} in {self.directory} is not the "
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
    decoders = {
        field: functools.partial(_pixels, dtype=layout.dtypes[field], shape=shape)
        for field, shape in layout.shapes.items()
    }
    for field in description.maps:
        shape = (layout.size, layout.size)
        decoders[field] = functools.partial(_pixels, dtype="uint8", shape=shape)
    for field, names in description.classes.items():
        decoders[field] = functools.partial(_multi_hot, count=len(names))
    decoders |= dict.fromkeys(shards.TEXTS, _text)
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
