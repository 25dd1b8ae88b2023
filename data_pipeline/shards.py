"""The record format: tf.train.Example in ArrayRecord shards that TFDS can read.

A record keeps pixels as they were measured. This file knows how records are written,
`records` how they are read; neither needs TensorFlow.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from data_pipeline import files
from data_pipeline.description import Description

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


class ShardInfo(NamedTuple):
    """What a shard holds.

    Attributes:
        count: number of records.
        bytes: their size before compression.
        digest: sha256 of all of them, in order.
    """

    count: int
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
    part = files.aside(path)
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
        raise files.from_words(str(error)) from error
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
