"""Opens what `config.data` names: a prepared dataset, the sample, or synthetic."""

import pathlib
from collections.abc import Iterable

from data_pipeline import records, synthetic
from data_pipeline.errors import InputError

SPLITS = ("train", "validation", "test")
SAMPLE = pathlib.Path(__file__).parent / "sample"
HOW_TO_GET_DATA = (
    "Build a dataset:   python launch.py --config=configs/prepare_bigearthnet.py "
    "--config.source=ARCHIVE --config.out=DIR\n"
    "or name one:       python launch.py --config=... --config.data.dir=DIR"
)


def open_split(data, split: str, fields: Iterable[str] | None = None):
    """Opens one split of a dataset for random access.

    Args:
        data: the config's `data`: `source` is "records" (read from `dir`), "sample"
            (real pairs that come with the project) or "synthetic" (`count` scenes
            of `size` px, from `seed`).
        split: "train", "validation" or "test".
        fields: the record's fields that are wanted; None for all.

    Returns:
        A sequence of pairs with `size`, `classes` and `fingerprint()`.

    Raises:
        InputError: there is no such data, and what to do about it.
    """
    if data.source == "sample":
        return records.Records(SAMPLE, split, fields=fields)
    if data.source == "synthetic":
        if split not in SPLITS:
            raise InputError(f"Split {split!r} is not one of {list(SPLITS)}.")
        # Held-out scenes come from seeds of their own.
        seed = data.seed * len(SPLITS) + SPLITS.index(split)
        count = data.count if split == "train" else max(1, data.count // 10)
        return synthetic.Scenes(count, size=data.size, seed=seed, fields=fields)
    if data.source != "records":
        raise InputError(
            f"data.source is {data.source!r}; choose records, sample or synthetic."
        )
    if not data.dir:
        raise InputError(HOW_TO_GET_DATA)
    return records.Records(data.dir, split, fields=fields)
