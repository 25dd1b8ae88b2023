"""Random access to the records of a prepared dataset, and to the index of them.

`shards` knows how records are written, this file how they are read.
"""

import functools
import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator

import numpy as np
from array_record.python import array_record_data_source
from google.protobuf import message
from tensorflow_datasets.proto import tf_feature_pb2

from data_pipeline import metadata, shards
from data_pipeline.description import Description
from data_pipeline.errors import DamagedRecord, InputError
from data_pipeline.metadata import HOW_TO_BUILD

_SHIFTS = range(0, 35, 7)  # of the bytes of a length, below the 2 GiB of any message


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
        whole: bool = True,
    ):
        """Opens a split to decode `fields` of its records, or all fields.

        Args:
            directory: folder of the dataset.
            split: one of its splits.
            fields: that are decoded.
            statistics: of the bands, see `metadata.read_description`.
            whole: refuse it if a shard is missing or damaged; else those records are
                refused that cannot be read.

        Raises:
            InputError: there is no such dataset, split or field, its fields are not
                what its card says, or a shard is missing or damaged.
        """
        self.directory, self.split = os.fspath(directory), split
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
        self._source = self._open(whole)

    def __len__(self) -> int:
        return self._info.num_examples

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        """One record.

        Returns:
            Pixels [H, W, C] and pixel labels [H, W] as stored, read-only views of the
            record; labels as uint8 [number of classes], 1 where the class is present;
            texts as str.

        Raises:
            DamagedRecord: it does not decode.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Record {index} of {len(self)}.")
        try:
            record = self._source[index]
            if not record:  # ArrayRecord is silent about a shard that was cut since
                raise ValueError("its shard ends before it")
            found = {name: span for name, *span in _features(record)}
            return {
                name: decode(record, *found[name.encode()])
                for name, decode in self._decoders.items()
            }
        except (RuntimeError, ValueError, LookupError, message.DecodeError) as error:
            raise DamagedRecord(
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
        index = metadata.read_index(self.directory, self.split)
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

    def _open(self, whole: bool) -> array_record_data_source.ArrayRecordDataSource:
        paths = [os.fspath(path) for path in self._info.filepaths]
        if not whole:  # a shard of known length is not opened before it is read
            lengths = self._info.shard_lengths
            paths = [f"{path}[0:{count}]" for path, count in zip(paths, lengths)]
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
    """For each of `fields` a function of a record and the place of a feature in it."""
    layout = description.layout
    decoders = {
        field: _pixels(layout.dtypes[field], shape)
        for field, shape in layout.shapes.items()
    }
    for field in description.maps:
        decoders[field] = _pixels("uint8", (layout.size, layout.size))
    for field, names in description.classes.items():
        decoders[field] = functools.partial(_multi_hot, count=len(names))
    decoders |= dict.fromkeys(shards.TEXTS, _text)
    chosen = list(decoders if fields is None else fields)
    if not chosen or not decoders.keys() >= set(chosen):
        raise InputError(f"Fields {chosen} must be some of {list(decoders)}.")
    return {field: decoders[field] for field in chosen}


def _features(record: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Finds every feature of a serialised tf.train.Example: name, start and end.

    Protobuf would copy all pixels twice, which takes half as long as reading them.

    Raises:
        ValueError: a length points out of what it is in, or leaves something over.
    """
    end, at = _span(record, 0, len(record))  # of the features in the example
    while at < end:
        stop, at = _span(record, at, end)  # of an entry: a name and a feature
        name_end, start = _span(record, at, stop)
        name = record[start:name_end]
        at, start = _span(record, name_end, stop, tag=b"\x12")
        if at != stop:
            raise ValueError(f"an entry goes on after its feature, at byte {at}")
        yield name, start, stop
    if end != len(record):
        raise ValueError(f"the record goes on after its features, at byte {end}")


def _span(record: bytes, at: int, limit: int, tag: bytes = b"\n") -> tuple[int, int]:
    """Where the message or text at `at` ends, at `limit` at most, and where it begins.

    Raises:
        ValueError: there is none, or it would end later.
    """
    value, start = _length(record, at, tag)
    if start + value > limit:
        raise ValueError(f"a length at byte {at} is {value}, which is too large")
    return start + value, start


def _length(record: bytes, at: int, tag: bytes = b"\n") -> tuple[int, int]:
    """The length of the message or text at `at`, and where its content begins."""
    if record[at : at + 1] != tag:
        raise ValueError(f"no tf.train.Example at byte {at}")
    value = 0
    # Seven bits a byte, the lowest first, until the eighth is not set.
    for shift, byte in zip(_SHIFTS, record[at + 1 : at + 1 + len(_SHIFTS)]):
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + 2 + shift // 7
    raise ValueError(f"the length at byte {at} has no end")


def _varint(value: int) -> bytes:
    """The bytes that `_length` reads."""
    low, high = value & 127, value >> 7
    return bytes([low | 128]) + _varint(high) if high else bytes([low])


def _pixels(dtype: str, shape: tuple[int, ...]):
    """A decoder of pixels that copies nothing."""
    count = math.prod(shape)
    size = count * np.dtype(dtype).itemsize
    head = b"\n" + _varint(size)  # of the pixels; before it, of the list of this one
    head = b"\n" + _varint(len(head) + size) + head
    return functools.partial(_view, head=head, dtype=dtype, count=count, shape=shape)


def _view(record, start, end, *, head, dtype, count, shape) -> np.ndarray:
    first = start + len(head)
    size = count * np.dtype(dtype).itemsize
    if record[start:first] != head or first + size != end:
        raise ValueError(f"no pixels {shape} at byte {start}")
    return np.frombuffer(record, dtype, count, first).reshape(shape)


def _multi_hot(record, start, end, *, count: int) -> np.ndarray:
    stored = tf_feature_pb2.Feature.FromString(record[start:end])
    indices = list(stored.int64_list.value)
    if stored.WhichOneof("kind") not in ("int64_list", None):
        raise ValueError(f"no labels at byte {start}")
    if indices and not 0 <= min(indices) <= max(indices) < count:
        raise ValueError(f"labels {min(indices)} to {max(indices)} of {count} classes")
    labels = np.zeros(count, np.uint8)
    labels[indices] = 1
    return labels


def _text(record, start, end) -> str:
    stored = tf_feature_pb2.Feature.FromString(record[start:end])
    (text,) = stored.bytes_list.value
    return text.decode("utf-8")
