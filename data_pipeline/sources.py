"""Opens what `config.data` names: prepared datasets, the sample, or synthetic."""

import hashlib
import itertools
import logging
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from data_pipeline import (
    atomic,
    dataset_card,
    ground,
    mixtures,
    record_format,
    subsets,
    synthetic,
)
from data_pipeline.dataset_card import SPLITS, Description
from data_pipeline.errors import InputError

log = logging.getLogger("fusmae_jax")

PROCEDURAL = {"synthetic": synthetic.Scenes, "patterns": synthetic.Patterns}
SOURCES = ("records", "sample", *PROCEDURAL)
SAMPLE = pathlib.Path(__file__).parent / "sample"
HOW_TO_GET_DATA = (
    "Build a dataset:   python launch.py --config=configs/prepare_bigearthnet.py "
    "--config.source=ARCHIVE --config.out=DIR\n"
    "or name one:       python launch.py --config=... --config.data.dir=DIR"
)


def open_split(data, split: str, fields: Iterable[str] | None = None):
    """Opens one split of one or several datasets for random access.

    Where one of them lacks a sensor that the training data have, its pairs have the
    arrays of it all the same, of which no pixel was measured.

    Args:
        data: the config's `data`: `source` is "records" (read from `dir`, or from
            several folders with commas between them), "sample" (real pairs that come
            with the project), "synthetic" or "patterns" (`count` scenes of `size` px,
            from `seed`). It may have `eval_dir`, where splits other than `data.split`
            are; `statistics` of the bands, "published" or "computed"; `weights` of
            several datasets, else they count by their pairs; `classes`, of which a pair
            must have one; and `fraction` and `subset_seed` of the pairs that are drawn
            of the split `data.split`. Datasets without a held-out split have no part in
            it.
        split: "train", "validation" or "test".
        fields: the record's fields that are wanted; None for all.

    Returns:
        A sequence of pairs with `description`, `fields`, `fingerprint()`, `index` of
        what is known without reading and, unless synthetic, `places`.

    Raises:
        InputError: there is no such data, and what to do about it.
    """
    fields = None if fields is None else tuple(fields)
    known = describe(data)
    if fields is not None:
        known = mixtures.reading(known, fields)
    parts = [_part(data, split, source) for source in _open(data, split, fields, known)]
    for first, other in itertools.combinations(parts, 2):
        check_alike(first, other, _shared(first, other))
    weights = data.get("weights", ()) if split == data.get("split") else ()
    if len(parts) == 1 and known.sensors.keys() <= parts[0].description.sensors.keys():
        return parts[0]
    check_alike(Described(known, tuple(folders(data))), parts[0], ())
    mixture = mixtures.Mixture(parts, weights, known)
    lacks = [
        f"{_name(part)} has no {mixture.description.sensors[name].title}"
        for part, names in zip(parts, mixture.lacking)
        for name in names
    ]
    if lacks:
        log.info("Split %s: %s; that counts as missing.", split, ", ".join(lacks))
    return mixture


def _shared(first, other) -> set[str]:
    """The fields of two sources, without those of sensors that only one of them has."""
    both = first.description.sensors.keys() & other.description.sensors.keys()
    grids = (*first.description.layout.grids, *other.description.layout.grids)
    alone = {grid.field for grid in grids if grid.sensor not in both}
    return {*first.fields, *other.fields} - alone


class Described(NamedTuple):
    """What folders hold, by their cards, where nothing of it is to be read."""

    description: Description
    directories: tuple[str, ...]


def describe(data, split: str | None = None) -> Description:
    """What the datasets of `config.data` hold, without opening their records.

    Args:
        data: see `open_split`.
        split: of the datasets that have it, by default the one that is learnt from.

    Returns:
        The description of the first, with the sensors that only others have.

    Raises:
        InputError: there is no such data, or its scenes differ in size.
    """
    if data.source in PROCEDURAL:
        return PROCEDURAL[data.source](1, size=data.size).description
    first, *others = (
        Described(dataset_card.read_description(x, _statistics(data)), (x,))
        for x in _having(data, split or data.get("split"))
    )
    for other in others:
        check_alike(first, other, ())
    return mixtures.together(x.description for x in (first, *others))


def has_missing(data) -> bool:
    """Whether some pixel of `config.data` was not measured, in whatever split.

    Raises:
        InputError: there is no such data, and what to do about it.
    """
    found = {folder for split in SPLITS for folder in folders(data, split)}
    return any(map(dataset_card.has_missing, map(dataset_card.read_card, found)))


class Places(NamedTuple):
    """The places of a split, where nothing else of it is wanted."""

    title: str
    places: np.ndarray


def held_out(data) -> Iterator[Places]:
    """The places of every split of `config.data` that is not for training."""
    if data.source in PROCEDURAL:
        return
    for folder in folders(data):
        for split, part in dataset_card.read_card(folder)["splits"].items():
            if split != data.split:
                index = dataset_card.read_index(folder, split, part.get("pairs"))
                yield Places(f"split {split} of {folder}", index["place"])


def check_alike(first, other, fields: Iterable[str] | None = None) -> None:
    """Refuses two sources that cannot take each other's place.

    They can if scenes have one size, and if what is read of both means the same: every
    array holds the same bands, in the same order, at the same level and in the same
    unit, and every label the same classes.

    Args:
        first: pairs, with a `description` and the `fields` that they hold.
        other: pairs that are mixed with those, or that are to show what was learnt
            from them.
        fields: that are compared; by default all that pairs of either hold.

    Raises:
        InputError: they differ.
    """
    compared = {*first.fields, *other.fields} if fields is None else {*fields}
    a, b = (_meanings(source.description, compared) for source in (first, other))
    differing = sorted(key for key in {*a, *b} if a.get(key) != b.get(key))
    if differing:
        what = "; ".join(f"{k} ({a.get(k)} and {b.get(k)})" for k in differing)
        raise InputError(
            f"Pairs of {_name(first)} and of {_name(other)} do not go together, as "
            f"they differ in {what}; name datasets that were prepared alike."
        )


def _name(source) -> str:
    """A dataset's name, and where it lies, as several may have one name."""
    folders = ", ".join(getattr(source, "directories", ()))
    return source.description.name + (f" in {folders}" if folders else "")


def _meanings(description: Description, fields: set[str]) -> dict:
    """What the stored values of some fields mean."""
    found: dict[str, object] = {"size": description.layout.size}
    for grid in description.layout.grids:
        if grid.field in fields:
            sensor = description.sensors[grid.sensor]
            found[f"bands of {grid.field}"] = grid.bands
            found[f"level of {sensor.title}"] = sensor.level
            found[f"unit of {sensor.title}"] = sensor.unit
    known = {**description.classes, **description.maps}
    return found | {f"classes of {k}": v for k, v in known.items() if k in fields}


def check_overlap(train, other, allow: bool = False) -> int:
    """Counts pairs of `other` on ground that training pairs show, at whatever time.

    Sources that do not know their places pass, as do pairs of which it is unknown. Of
    pairs that tell their acquisition alone only those are found that share it, and the
    log says so.

    Args:
        train: the training pairs.
        other: pairs, or `Places`, that must not be among them.
        allow: count, but do not refuse.

    Raises:
        InputError: there are some.
    """
    # Each is asked once: places are read from disk.
    seen, places = _places(train), _places(other)
    title = getattr(other, "title", "the held-out pairs")
    known = set().union(*map(ground.keys, set(seen)))
    shared = [place for place in places if not known.isdisjoint(ground.keys(place))]
    if shared and not allow:
        first = ground.of(shared[0]) or shared[0]
        raise InputError(
            f"{len(shared)} of {len(places)} in {title} show the ground of training "
            f"pairs, such as {first}; train on other splits or datasets, or pass "
            "data.allow_overlap=True."
        )
    untold = sum(bool(place) and not ground.of(place) for place in (*seen, *places))
    if untold:
        log.warning(
            "Whether %s show ground that is trained on is not known of %d pairs, whose "
            "names lack the tile; build their datasets again, with this version.",
            *(title, untold),
        )
    return len(shared)


def place_codes(source) -> np.ndarray:
    """Ground and acquisition of each pair as numbers, for comparing datasets later.

    Two of a million places share a code with a chance of three in a hundred million.

    Returns:
        [N, 2] uint64, 0 where unknown.
    """
    places = _places(source) or [""] * len(source)
    return np.array(
        [[_code(ground.of(p)), _code(ground.acquisition(p))] for p in places], "<u8"
    ).reshape(-1, 2)


def _code(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") if text else 0


def _places(source) -> list[str]:
    """The places of a source, none where it does not know them."""
    return getattr(source, "places", np.empty(0, str)).tolist()


def _open(data, split: str, fields, known: Description) -> list:
    """The whole split of each dataset; of `fields`, those of sensors that it has."""
    if data.source in PROCEDURAL:
        if split not in SPLITS:
            raise InputError(f"Split {split!r} is not one of {list(SPLITS)}.")
        # Held-out scenes come from seeds of their own.
        seed = data.seed * len(SPLITS) + SPLITS.index(split)
        count = data.count if split == "train" else max(1, data.count // 10)
        make = PROCEDURAL[data.source]
        return [make(count, size=data.size, seed=seed, fields=fields)]
    statistics, parts = _statistics(data), []
    sensors = {grid.field: grid.sensor for grid in known.layout.grids}
    for folder in _having(data, split):
        there, wanted = dataset_card.read_description(folder, statistics), fields
        lacks = known.sensors.keys() - there.sensors.keys()
        if lacks and lacks == known.sensors.keys():
            titles = " or ".join(sensor.title for sensor in known.sensors.values())
            raise InputError(
                f"{there.name} in {folder} has nothing of {titles}, which is all that "
                f"is wanted; name another dataset for split {split}."
            )
        if fields is not None:
            wanted = [field for field in fields if sensors.get(field) not in lacks]
        parts.append(record_format.Records(folder, split, wanted, statistics))
    return parts


def _having(data, split: str) -> list[str]:
    """The folders of the datasets that have a split; all must have that for training.

    Where none has it all are, of which the first says what it has. Settings are then
    chosen on the pairs for that purpose beside those for training, as one who tests on
    a second dataset has no others.
    """
    found = folders(data, split)
    if split == data.get("split"):
        return found
    having = lambda found: [
        f for f in found if split in dataset_card.read_card(f)["splits"]
    ]
    if split == data.get("val_split") != data.get("test_split"):
        return having(found) or having(folders(data)) or found
    return having(found) or found


def folders(data, split: str | None = None) -> list[str]:
    """Where the datasets are that may have a split, by default that for training.

    Procedural scenes are nowhere.

    Raises:
        InputError: no folder is named, or there is no such source.
    """
    if data.source == "sample":
        return [str(SAMPLE)]
    if data.source in PROCEDURAL:
        return []
    if data.source != "records":
        raise InputError(
            f"data.source is {data.source!r}; choose records, sample, "
            f"{' or '.join(PROCEDURAL)}."
        )
    elsewhere = data.get("eval_dir", "") if split != data.get("split") else ""
    named = (split and elsewhere) or data.dir
    found = [atomic.absolute(x.strip()) for x in named.split(",") if x.strip()]
    if not found:
        raise InputError(HOW_TO_GET_DATA)
    return found


def _statistics(data) -> str:
    return data.get("statistics", "published")


def _part(data, split: str, source):
    """What the config wants of one dataset."""
    if classes := data.get("classes", ()):
        source = subsets.with_classes(source, classes, data.get("labels", ""))
    fraction = data.get("fraction", 1.0)
    if split == data.get("split") and fraction != 1.0:
        source = subsets.with_fraction(source, fraction, data.get("subset_seed", 0))
    return source
