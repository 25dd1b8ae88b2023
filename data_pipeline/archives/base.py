"""What every archive offers: its pairs, and the record of each of them.

An archive is one module with a function `open_archive(config)` that returns an
`Archive`, and a table `SETTINGS` of what `config.read` may say, where it has fields.
Worker processes read pairs, so an archive pickles to a few bytes.

A missing file is a fault of the archive, which costs a pair. Any other error of the
disk or the network says nothing of the pair and passes on as the OSError that it is.
"""

import abc
import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_pipeline import offsets, safe_io, sensors
from data_pipeline.config_fields import choice, number
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError

MOST_BYTES = 1 << 29  # of a file, decompressed too; a patch's take some MB
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# The field of `SETTINGS` that says what was added to Sentinel-2.
S2_OFFSET = choice(
    *offsets.CHOICES,
    meaning="What was added to each DN and is taken out, as processing baselines from "
    "04.00 (2022) on add 1000; auto looks for the baseline in names and metadata.",
)

# What a network is not shown must be less than what it is: at the usual mask ratio a
# quarter of the patches is shown, and others are asked for.
MOST_MISSING = number(
    least=0.0,
    most=1.0,
    meaning="Share of a sensor's pixels above which a pair in which so much was not "
    "measured is left out.",
)

# BigEarthNet v1 lacks the leading zero of the hour in part of its names.
_TIME = re.compile(r"_(\d{4})(\d\d)(\d\d)T(\d{1,2})(\d\d)(\d\d)_")


class _Named:
    """What the names of images tell of a pair."""

    images: Mapping[str, str]

    @property
    def name(self) -> str:
        """The image that names the pair, see `sensors.NAMED`; "" where unknown."""
        return self.images.get(sensors.NAMED[0], "")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all sensors' images, as `sensors.NAMED` has them."""
        return tuple(self.images.get(sensor, "") for sensor in sensors.NAMED)


@dataclasses.dataclass(frozen=True)
class Pair(_Named):
    """Images of one place, one of each sensor; pairs sort by their names.

    Attributes:
        images: the archive's name of the image of each sensor, {sensor: name}. No two
            pairs share their `name`.
        tile: what is held out together: an MGRS tile, a scene; "" where unknown.
        split: "train", "validation" or "test" where the archive itself says so.
        where: whatever the archive needs to find the files again.
    """

    images: Mapping[str, str] = dataclasses.field(hash=False)
    tile: str = ""
    split: str = ""
    where: tuple = ()

    def __lt__(self, other: "Pair") -> bool:
        return self.names < other.names


@dataclasses.dataclass(frozen=True)
class Skipped(_Named):
    """An image or pair that is left out, and why.

    Attributes:
        images: the archive's name of each image that is known, {sensor: name}.
        reason: in words.
        wanted: whether that is a fault, which stops a strict build, and not a choice.
    """

    images: Mapping[str, str] = dataclasses.field(hash=False)
    reason: str
    wanted: bool = True


class Unmeasured(InputError):
    """Too much of a pair was not measured."""


# What `read_pair` returns beside a record's fields: what pairs have in common that is
# worth a word, such as "have DN slightly below 0, which became 1"; counted and told.
REMARKS = "remarks"
# And the sensors that the pair has an image of, where it is not all.
PRESENT = "present"


class Archive(abc.ABC):
    """A source of pairs.

    What is wrong with one image is an InputError, and costs its pair. An OSError is
    none of that: the disk or the network fails, and the build with it.

    Attributes:
        description: what its records hold.
        own_statistics: whether nobody has published statistics of it, so that the
            dataset is normalised by its own.
        expects_missing: whether pairs of which too much was not measured are no fault,
            as with the tiles of scenes, which lie beyond the swath too.
    """

    description: Description
    own_statistics = False
    expects_missing = False

    @abc.abstractmethod
    def find_pairs(self) -> tuple[list[Pair], list[Skipped]]:
        """All pairs in the order of their names, and what has no partner.

        Raises:
            InputError: the archive is not where it should be.
            OSError: it cannot be read.
        """

    @abc.abstractmethod
    def read_pair(self, pair: Pair) -> dict:
        """The fields of a pair's record: pixels [H, W, C] as the layout has them,
        pixel labels [H, W], label fields as lists of indices, the texts, and perhaps
        `REMARKS` and `PRESENT`.

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

    A pixel that is not finite in a band, or that the sensor's `Expected.filled` finds,
    was not measured: it is `sensors.MISSING` in all bands of its grid.

    Args:
        description: of the dataset.
        sensor: which.
        read: returns the image [H, W] of a band, in the contract's unit.
        name: what the image is called in errors.

    Raises:
        InputError: an image has another shape, or values that cannot be true.
    """
    contract, grids = description.sensors[sensor], description.layout.of(sensor)
    images = []
    for grid in grids:
        side = description.layout.shapes[grid.field][0]
        bands = [read(band) for band in grid.bands]
        for band, image in zip(grid.bands, bands):
            check_shape(image, (side, side), f"{name}, band {band},")
        images.append(np.stack(bands))
    fields, stored = {}, np.dtype(contract.dtype)
    for grid, image, missing in zip(grids, images, _missing(contract, images)):
        for band, values in zip(grid.bands, image):
            measured = values if missing is None else values[~missing]
            check_image(measured, contract, f"{name}, band {band},")
        if missing is not None:  # 0 until it is whole numbers, for NaN is none
            image = np.where(missing, 0, image)
        if stored.kind == "u" and image.dtype.kind == "f":
            image = np.rint(image)
        # Bands last and contiguous, as records have them.
        image = np.moveaxis(image, 0, -1).astype(stored, order="C")
        if missing is not None:
            image[missing] = sensors.MISSING[contract.dtype]
        fields[grid.field] = image
    return fields


def nothing(description: Description, sensor: str) -> dict[str, np.ndarray]:
    """The stored arrays of a sensor that a pair has no image of."""
    dtype = description.sensors[sensor].dtype
    return {
        grid.field: np.full(
            description.layout.shapes[grid.field], sensors.MISSING[dtype], dtype
        )
        for grid in description.layout.of(sensor)
    }


def _missing(contract: sensors.Sensor, images: Sequence[np.ndarray]):
    """Where nothing was measured, for each grid [H, W]; None where all was."""
    found: list[np.ndarray | None] = [None] * len(images)
    for i, image in enumerate(images):
        if image.dtype.kind == "f" and not np.isfinite(image.sum(dtype=np.float64)):
            found[i] = ~np.isfinite(image).all(axis=0)
    if all((image == 0).any() for image in images):
        for i, empty in enumerate(contract.expected.filled(images)):
            if empty.any():
                found[i] = empty if found[i] is None else found[i] | empty
    return found


def missing_shares(description: Description, fields: Mapping) -> dict[str, float]:
    """The share of each sensor's pixels that was not measured, of a record's fields."""
    shares = dict.fromkeys(description.sensors, 0.0)
    for grid in description.layout.grids:
        share = float(sensors.is_missing(fields[grid.field][..., 0]).mean())
        shares[grid.sensor] = max(shares[grid.sensor], share)
    return shares


def check_missing(description: Description, fields: Mapping, most: float) -> None:
    """Refuses a pair of which too much is missing, of the sensors that are `PRESENT`.

    Raises:
        Unmeasured: with the share.
    """
    there = fields.get(PRESENT, description.sensors)
    for name, share in missing_shares(description, fields).items():
        if share > most and name in there:
            raise Unmeasured(
                f"{share:.1%} of the pixels of {description.sensors[name].title} were "
                f"not measured, more than read.most_missing={most:g}; leave the pair "
                "out, or raise that."
            )


def check_shape(image: np.ndarray, shape: tuple[int, int], name: str) -> None:
    """Refuses an image of another size than the dataset's.

    Raises:
        InputError: with both.
    """
    if image.shape != shape:
        raise InputError(
            f"{name} is {' x '.join(map(str, image.shape))} px, where the dataset has "
            f"{' x '.join(map(str, shape))}; cut it to that, or leave the pair out."
        )


def check_image(image: np.ndarray, sensor: sensors.Sensor, name: str) -> None:
    """Refuses measured values [N] or [H, W] that cannot be what the contract says.

    Raises:
        InputError: values out of range, not finite, or all the same.
    """
    if not image.size:
        return
    low, high = sensor.valid_range
    least, most = image.min(), image.max()
    if not (low <= least and most <= high):  # also false for NaN
        raise InputError(
            f"{name} holds values from {least} to {most}, where {sensor.title} in "
            f"{sensor.unit} stays within {low:g} and {high:g}; correct its unit or "
            "what marks missing pixels, or leave the pair out."
        )
    if least == most and (most == 0 or not sensor.expected.flat):
        raise InputError(
            f"{name} is {most:g} everywhere, as where nothing was measured; write it "
            "again or leave the pair out."
        )


def read_file(path: str, count: int = -1) -> bytes:
    """The content of a file, or its first `count` bytes.

    Raises:
        InputError: there is no such file, or it is none that an archive has.
        OSError: it cannot be read.
    """
    try:
        return safe_io.read(path, MOST_BYTES, count)
    except (*MISSING, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); unpack or write it again."
        ) from None


def exists(path: str) -> bool:
    """Whether there is a file; unlike that of `os.path`, sure of it.

    Raises:
        OSError: the disk or the network does not tell.
    """
    try:
        os.stat(path)
    except MISSING:
        return False
    return True


def folders(path: str) -> list[os.DirEntry]:
    """The folders in a folder by name, none where it is not there.

    The kind of an entry comes with the listing: a million patches take no stat.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with os.scandir(path) as entries:
            found = [entry for entry in entries if entry.is_dir()]
    except MISSING:
        return []
    return sorted(found, key=lambda entry: entry.name)


def acquired(name: str) -> str:
    """Acquisition time in ISO 8601, from the name of a Sentinel image or patch.

    A name without time, or that counts 60 seconds or more, tells none: "".
    """
    found = _TIME.search(name)
    if not found or int(found[6]) > 59:
        return ""
    year, month, day, hour, minute, second = found.groups()
    return f"{year}-{month}-{day}T{int(hour):02d}:{minute}:{second}"
