"""What a folder says of the dataset in it: its card, its metadata, its index."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format
from tensorflow_datasets.core.proto import feature_pb2

from data_pipeline import description as descriptions
from data_pipeline import ground, sensors, shards, untrusted
from data_pipeline.description import Description
from data_pipeline.errors import InputError

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
STATISTICS = ("published", "computed")
_MOST_INDEX = 1 << 14  # bytes of a pair in the index: its texts and labels
CARD_FILE = "card.json"  # makes a folder a dataset; written last
HOW_TO_BUILD = (
    "build one with launch.py --config=configs/prepare_bigearthnet.py "
    "--config.source=DIR --config.out=DIR, or pass --config.data.dir=DIR"
)


def index_name(split: str) -> str:
    """File name of the index of a split, see `records.Records.index`."""
    return f"index-{split}.npz"


def read_card(directory: str | os.PathLike) -> dict:
    """The card of a dataset.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = pathlib.Path(directory) / CARD_FILE
    try:
        card = untrusted.read_json(path)
    except FileNotFoundError:
        raise InputError(
            f"{directory} is not a dataset, as it holds no {CARD_FILE}; {HOW_TO_BUILD}."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {HOW_TO_BUILD}.") from error
    if not isinstance(card, dict) or not _is_card(card):
        raise InputError(f"{path} is no card of a dataset; {HOW_TO_BUILD}.")
    return card


def _is_card(card: dict) -> bool:
    """Whether the parts that are read in several places are what they should be."""
    splits, sums = card.get("splits"), card.get("files", {})
    return (
        isinstance(splits, dict)
        and isinstance(sums, dict)
        and all(isinstance(part, dict) for part in splits.values())
        and all(isinstance(part.get("pairs", 0), int) for part in splits.values())
        and all(isinstance(text, str) for text in sums.values())
    )


def read_description(
    directory: str | os.PathLike, statistics: str = "published"
) -> Description:
    """What a dataset holds, after its card.

    Args:
        directory: of the dataset.
        statistics: of the bands: "published" by the archive's makers, or "computed"
            from the data when they were prepared.

    Raises:
        InputError: there is no card, or it cannot be read.
    """
    if statistics not in STATISTICS:
        raise InputError(
            f"data.statistics is {statistics!r}; choose one of {list(STATISTICS)}."
        )
    card = read_card(directory)
    description = descriptions.restore(card.get("description"))
    if statistics == "published":
        return description
    try:
        split = card["reference_split"]
        bands = card["splits"][split]["sensors"]
        computed = {
            name: sensor.with_statistics(
                {band: bands[name][band]["mean"] for band in sensor.band_names},
                {band: bands[name][band]["std"] for band in sensor.band_names},
                f"computed from split {split} of {description.name}",
            )
            for name, sensor in description.sensors.items()
        }
        computed = {k: sensors.restore(v.describe()) for k, v in computed.items()}
    except (InputError, KeyError, TypeError) as error:
        raise InputError(
            f"{CARD_FILE} in {directory} lacks computed statistics ({error!r:.99}); "
            "set --config.data.statistics=published, or build the dataset again."
        ) from error
    return dataclasses.replace(description, sensors=computed)


def read_index(
    directory: str | os.PathLike, split: str, pairs: int | None = None
) -> dict[str, np.ndarray]:
    """What is known of all records of a split, see `records.Records.index`.

    Args:
        directory: of the dataset.
        split: one of its splits.
        pairs: how many there are, if that is known; a file of more is not read.

    Raises:
        InputError: the index is missing or damaged, or not as the card describes it.
    """
    path = pathlib.Path(directory) / index_name(split)
    most = math.inf if pairs is None else _MOST_INDEX * (pairs + 1)
    classes = read_description(directory).classes
    try:
        index = untrusted.read_arrays(path, most=most)
        _check_index(index, classes)
        # Of the first datasets of BigEarthNet v2 the id alone has the tile.
        named = map(ground.place, index["place"].tolist(), index["id"].tolist())
        return index | {"place": np.array([*named], str)}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {HOW_TO_BUILD}.") from error


def _check_index(index: Mapping, classes: Mapping[str, tuple[str, ...]]) -> None:
    """Raises a ValueError where an index has other arrays than the records' fields."""
    count = max((len(x) for x in index.values() if x.ndim), default=0)
    want = {name: ("text", (count,)) for name in ("id", "place")}
    want |= {k: ("uint8", (count, len(names))) for k, names in classes.items()}
    have = {
        name: ("text" if x.dtype.kind == "U" else x.dtype.name, x.shape)
        for name, x in index.items()
    }
    for name in sorted({*have, *want}):
        if have.get(name) != want.get(name):
            raise ValueError(
                f"its {name!r} is {have.get(name)} and should be {want.get(name)}"
            )


def info(directory: str) -> tfds.core.DatasetInfo:
    """What TFDS knows of a dataset.

    Raises:
        InputError: it is damaged, or would have TFDS run code from elsewhere.
    """
    read_card(directory)  # which says it better when the folder is no dataset
    try:
        fields = untrusted.read_json(pathlib.Path(directory, _FEATURES_FILE))
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
    """Refuses fields of types that `shards` does not write.

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
    wanted = shards.features(description)
    have, want = ({k: f.to_json() for k, f in d.items()} for d in (stored, wanted))
    differing = sorted(k for k in {*have, *want} if have.get(k) != want.get(k))
    if differing:
        raise InputError(
            f"The fields {differing} of {directory} are missing or not as its "
            f"{CARD_FILE} has them; {HOW_TO_BUILD}."
        )
