"""What a folder says of the dataset in it: its card, its description, its index.

A `Description` says what the records hold: which sensors, classes, from where, under
which terms. An archive's module makes one, the dataset's card saves it, and whoever
opens the records reads it there: nothing has to be guessed or passed along.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipeline import ground, safe_io, sensors
from data_pipeline import layout as layouts
from data_pipeline.errors import InputError

SPLITS = ("train", "validation", "test")  # that a dataset can have, in this order
STATISTICS = ("published", "computed")
CARD_FILE = "card.json"  # makes a folder a dataset; written last
HOW_TO_BUILD = (
    "build one with launch.py --config=configs/prepare_bigearthnet.py, or pass "
    "data.dir=DIR"
)

_MOST_INDEX = 1 << 14  # bytes of a pair in the index: its texts and labels


@dataclasses.dataclass(frozen=True)
class Description:
    """What the records of a dataset hold.

    Attributes:
        name: of the dataset, in file names too.
        title: a sentence for people.
        source: where the archive comes from.
        licence: text of the terms, or how to find them.
        layout: the stored arrays.
        sensors: the contract of every stored band, by sensor name, with the archive's
            published statistics.
        classes: names of the classes of each label field; a record holds which of
            them are present.
        maps: names of the classes of each pixel-label field; a record holds an index
            for every 10 m pixel, [H, W] uint8, or `classes.NO_CLASS`.
        unlabelled: whether a pair without any of the classes is one that nobody has
            labelled; else it is known to have none of them.
    """

    name: str
    title: str
    source: str
    licence: str
    layout: layouts.Layout
    sensors: Mapping[str, sensors.Sensor]
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    maps: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    unlabelled: bool = False

    def describe(self) -> dict:
        """The description as plain data."""
        return {
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "licence": self.licence,
            "layout": self.layout.describe(),
            "sensors": {name: s.describe() for name, s in self.sensors.items()},
            "classes": {name: list(names) for name, names in self.classes.items()},
            "maps": {name: list(names) for name, names in self.maps.items()},
            "unlabelled": self.unlabelled,
        }


def restore(described: Mapping) -> Description:
    """The description that `Description.describe` described, by way of JSON or not.

    Raises:
        InputError: that is no description of a dataset.
    """
    try:
        description = Description(
            **{key: described[key] for key in ("name", "title", "source", "licence")},
            layout=layouts.restore(described["layout"]),
            sensors={k: sensors.restore(v) for k, v in described["sensors"].items()},
            classes={k: tuple(v) for k, v in described["classes"].items()},
            maps={k: tuple(v) for k, v in described["maps"].items()},
            unlabelled=described.get("unlabelled", False),
        )
        _check(description)
        return description
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"This is no description of a dataset ({error!r:.99}); build the dataset "
            "again."
        ) from error


def _check(described: Description) -> None:
    """Raises a TypeError where parts of a restored description do not go together."""
    texts = (described.name, described.title, described.source, described.licence)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a name, title, source or licence that is no text")
    if not isinstance(described.unlabelled, bool):
        raise TypeError("unlabelled that is neither true nor false")
    for grid in described.layout.grids:
        if not set(grid.bands) <= set(described.sensors[grid.sensor].band_names):
            raise TypeError(f"{grid.field} has bands that its sensor has not")
    stored = {grid.sensor for grid in described.layout.grids}
    if stored != set(described.sensors) or any(
        name != sensor.name for name, sensor in described.sensors.items()
    ):
        raise TypeError("sensors that are not those of its layout")
    fields = (*described.layout.shapes, *described.classes, *described.maps)
    if len(set(fields)) != len(fields):
        raise TypeError("two fields of one name")
    for names in (*described.classes.values(), *described.maps.values()):
        different = {name for name in names if isinstance(name, str)}
        if not names or len(different) != len(names):
            raise TypeError("classes that are none, no texts or repeated")


def split_name(text: str) -> str:
    """Our name of a split that others call "val" or "valid"; other texts stay."""
    word = text.strip().lower()
    return {"val": "validation", "valid": "validation"}.get(word, text.strip())


def index_name(split: str) -> str:
    """File name of the index of a split, see `record_format.Records.index`."""
    return f"index-{split}.npz"


def read_card(directory: str | os.PathLike) -> dict:
    """The card of a dataset.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = pathlib.Path(directory) / CARD_FILE
    try:
        card = safe_io.read_json(path)
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


def has_missing(card: Mapping) -> bool:
    """Whether some pixel of a dataset was not measured, or a whole sensor was not.

    Raises:
        InputError: the card counts otherwise.
    """
    try:
        if sensors.SENSORS.keys() - card["description"]["sensors"].keys():
            return True
        return any(
            band.get("missing", 0) > 0
            for split in card["splits"].values()
            for bands in split.get("sensors", {}).values()
            for band in bands.values()
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"The {CARD_FILE} does not count pixels as it should ({error!r:.99}); "
            f"{HOW_TO_BUILD}."
        ) from error


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
    description = restore(card.get("description", {}))
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
            "set data.statistics=published, or build the dataset again."
        ) from error
    return dataclasses.replace(description, sensors=computed)


def read_index(
    directory: str | os.PathLike, split: str, pairs: int | None = None
) -> dict[str, np.ndarray]:
    """What is known of all records of a split, see `record_format.Records.index`.

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
        index = safe_io.read_arrays(path, most=most)
        _check_index(index, classes)
        # Of the first datasets of BigEarthNet v2 the id alone has the tile.
        named = map(ground.place, index["place"].tolist(), index["id"].tolist())
        return index | {"place": np.array([*named], str)}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {HOW_TO_BUILD}.") from error


def _check_index(index: Mapping, classes: Mapping[str, tuple[str, ...]]) -> None:
    """Raises a ValueError where an index has other arrays than the records' fields."""
    count = max((len(x) for x in index.values() if x.ndim), default=0)
    want: dict[str, tuple] = {name: ("text", (count,)) for name in ("id", "place")}
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
