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
        return Description(
            **{key: described[key] for key in ("name", "title", "source", "licence")},
            layout=layouts.restore(described["layout"]),
            sensors={k: sensors.restore(v) for k, v in described["sensors"].items()},
            classes={k: tuple(v) for k, v in described["classes"].items()},
            maps={k: tuple(v) for k, v in described["maps"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"This is no description of a dataset ({error!r}); build the dataset again."
        ) from error
