"""What a dataset is: which sensors, stored how, labelled with what, under which terms.

An archive's module makes one, the dataset's card saves it, and whoever opens the
records reads it there: nothing about a dataset has to be guessed or passed along.
"""

import dataclasses
from collections.abc import Mapping

from data_pipeline import layout as layouts
from data_pipeline import sensors
from data_pipeline.errors import InputError

SPLITS = ("train", "validation", "test")  # that a dataset can have, in this order


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
    """

    name: str
    title: str
    source: str
    licence: str
    layout: layouts.Layout
    sensors: Mapping[str, sensors.Sensor]
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    maps: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

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
        texts = [name for name in names if isinstance(name, str)]
        if not names or len(set(texts)) != len(names):
            raise TypeError("classes that are none, no texts or repeated")
