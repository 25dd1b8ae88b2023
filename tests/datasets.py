"""Small datasets to test on, written as `prepare` would write them."""

import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from data_pipeline import dataset_card, layout, record_format, sensors
from data_pipeline.dataset_card import Description

SIZE = 12
CLASSES = {"labels": ("forest, mixed", "water"), "labels_43": ("a", "b/c", "d")}


def description(**changes) -> Description:
    """A dataset of 12 px pairs with two label fields."""
    known = dict(
        name="tiny",
        title="A tiny dataset.",
        source="tests/datasets.py",
        licence="none",
        layout=layout.native(SIZE, sensors.SENSORS),
        sensors=sensors.SENSORS,
        classes=CLASSES,
    )
    return Description(**known | changes)


def example(described: Description, seed: int, prefix: str = "") -> dict:
    """The record of one pair, as an archive would give it."""
    rng = np.random.default_rng(seed)
    dtypes = described.layout.dtypes
    pixels = {
        field: rng.integers(0, 900, shape).astype(dtypes[field])
        for field, shape in described.layout.shapes.items()
    }
    maps = {
        field: rng.integers(0, len(names), (SIZE, SIZE)).astype(np.uint8)
        for field, names in described.maps.items()
    }
    labels = {
        field: sorted({seed % len(names), len(names) - 1} if seed else ())
        for field, names in described.classes.items()
    }
    texts = dict.fromkeys(record_format.TEXTS, "") | {
        "id": f"é{seed}",
        "place": f"{prefix}place {seed}",
    }
    return pixels | maps | labels | texts


def write(
    directory,
    counts=(2, 3),
    *,
    split: str = "train",
    described: Description | None = None,
    prefix: str = "",
    names: Sequence[tuple[str, str]] = (),
    changed: Callable[[dict], dict] = lambda pair: {},
    **writing,
) -> pathlib.Path:
    """Writes a dataset with one split, of shards with `counts` pairs.

    Args:
        directory: in which folder.
        counts: pairs of each shard.
        split: name of the split.
        described: what the dataset holds.
        prefix: of the places.
        names: `id` and `place` of every pair, where they are not to be made up.
        changed: returns the fields of a pair that are to be others.
        **writing: of `record_format.write_shard`.
    """
    described = described or description()
    directory = pathlib.Path(directory)
    directory.mkdir(exist_ok=True)
    rows = [example(described, seed, prefix) for seed in range(sum(counts))]
    rows = [row | changed(row) for row in rows]
    for row, (name, place) in zip(rows, names):
        row.update(id=name, place=place)
    infos, start = [], 0
    for i, count in enumerate(counts):
        path = directory / record_format.shard_name(
            described.name, split, i, len(counts)
        )
        chosen = rows[start : start + count]
        features = record_format.features(described)
        infos.append(record_format.write_shard(path, chosen, features, **writing))
        start += count
    record_format.write_metadata(directory, described, {split: infos})
    write_index(directory, split, described, rows)
    card = {"description": described.describe(), "splits": {split: {}}}
    (directory / dataset_card.CARD_FILE).write_text(json.dumps(card))
    return directory


def write_index(directory, split: str, described: Description, rows) -> None:
    """Writes the index of a split."""
    index = {name: np.array([row[name] for row in rows]) for name in ("id", "place")}
    for field, names in described.classes.items():
        index[field] = np.zeros((len(rows), len(names)), np.uint8)
        for hot, row in zip(index[field], rows):
            hot[row[field]] = 1
    np.savez(directory / dataset_card.index_name(split), **index)


def assert_equal(got: dict, want: dict) -> None:
    """Compares a record that was read with the one it was written from."""
    assert got.keys() == want.keys()
    for field, value in want.items():
        if isinstance(value, list):
            hot = np.zeros(len(got[field]), np.uint8)
            hot[value] = 1
            assert got[field].dtype == np.uint8
            np.testing.assert_array_equal(got[field], hot)
        elif isinstance(value, str):
            assert got[field] == value
        else:
            assert got[field].dtype == value.dtype
            np.testing.assert_array_equal(got[field], value)
