"""What every archive offers: its pairs, and the record of each of them.

An archive is one module with a function `open_archive(config)` that returns an
`Archive`, and a table `SETTINGS` of what `config.read` may say, where it has fields.
Worker processes read pairs, so an archive pickles to a few bytes.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_pipeline import sensors
from data_pipeline.description import Description
from data_pipeline.errors import InputError


@dataclasses.dataclass(frozen=True, order=True)
class Pair:
    """Two images of one place.

    Attributes:
        s2_name: the archive's name of the Sentinel-2 image; no two pairs share it.
        s1_name: the archive's name of the Sentinel-1 image.
        tile: what is held out together: an MGRS tile, a scene; "" where unknown.
        split: "train", "validation" or "test" where the archive itself says so.
        where: whatever the archive needs to find the files again.
    """

    s2_name: str
    s1_name: str
    tile: str = ""
    split: str = ""
    where: tuple = ()


class Skipped(NamedTuple):
    """An image or pair that is left out, and why.

    Attributes:
        s2_name: of the Sentinel-2 image; "" where unknown.
        s1_name: of the Sentinel-1 image; "" where unknown.
        reason: in words.
        wanted: whether that is a fault, which stops a strict build, and not a choice.
    """

    s2_name: str
    s1_name: str
    reason: str
    wanted: bool = True


class Archive(abc.ABC):
    """A source of pairs.

    What is wrong with one image is an InputError, and costs its pair. An OSError is
    none of that: the disk or the network fails, and the build with it.

    Attributes:
        description: what its records hold.
    """

    description: Description

    @abc.abstractmethod
    def find_pairs(self) -> tuple[list[Pair], list[Skipped]]:
        """All pairs in the order of their Sentinel-2 names, and what has no partner.

        Raises:
            InputError: the archive is not where it should be.
            OSError: it cannot be read.
        """

    @abc.abstractmethod
    def read_pair(self, pair: Pair) -> dict:
        """The fields of a pair's record: pixels [H, W, C] as the layout has them,
        pixel labels [H, W], label fields as lists of indices, and the texts.

        Pairs on the same ground must not be trained on and tested on, whichever
        datasets they are in; `ground.of` tells it from their `place`.

        Raises:
            InputError: a file is missing or damaged, or its content cannot be true.
            OSError: a file cannot be read.
        """

    def clean(self) -> None:
        """Removes what reading the archive left beside it."""


def pixels(
    description: Description,
    sensor: str,
    read: Callable[[str], np.ndarray],
    name: str,
) -> dict[str, np.ndarray]:
    """The stored arrays of one sensor, [H, W, C] each, of the contract's type.

    Args:
        description: of the dataset.
        sensor: which.
        read: returns the image [H, W] of a band, in the contract's unit.
        name: what the image is called in errors.

    Raises:
        InputError: an image has another shape, or values that cannot be true.
    """
    contract, fields = description.sensors[sensor], {}
    for grid in description.layout.of(sensor):
        side = description.layout.shapes[grid.field][0]
        images = []
        for band in grid.bands:
            image = read(band)
            check_image(image, (side, side), contract, f"{name}, band {band},")
            images.append(image)
        stacked = np.stack(images, axis=-1)
        if np.issubdtype(contract.dtype, np.integer) and stacked.dtype.kind == "f":
            stacked = np.rint(stacked)
        fields[grid.field] = stacked.astype(contract.dtype)
    return fields


def check_image(
    image: np.ndarray, shape: tuple[int, int], sensor: sensors.Sensor, name: str
) -> None:
    """Refuses an image [H, W] that cannot be what the contract says.

    Raises:
        InputError: another shape, values out of range, not finite, or all the same.
    """
    if image.shape != shape:
        raise InputError(
            f"{name} is {' x '.join(map(str, image.shape))} px, where this archive has "
            f"{' x '.join(map(str, shape))}; unpack it again."
        )
    low, high = sensor.valid_range
    least, most = image.min(), image.max()
    if not (low <= least and most <= high):  # also false for NaN
        raise InputError(
            f"{name} holds values from {least} to {most}, where {sensor.title} in "
            f"{sensor.unit} stays within {low:g} and {high:g}; unpack it again or "
            "leave the pair out."
        )
    if least == most and (most == 0 or sensor.name == "s1"):
        raise InputError(
            f"{name} is {most:g} everywhere, as where nothing was measured; unpack it "
            "again or leave the pair out."
        )
