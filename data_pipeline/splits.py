"""Which split a pair belongs to: published lists of names, or whole tiles held out."""

import csv
import pathlib
from collections.abc import Iterator

from data_pipeline import bigearthnet
from data_pipeline.errors import InputError

LISTS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}


def assign(
    config,
    pairs: list[bigearthnet.Pair],
    unmatched: list[bigearthnet.Skipped],
) -> tuple[dict[str, list[bigearthnet.Pair]], list[bigearthnet.Skipped]]:
    """Decides the split of each pair.

    Returns:
        Sorted pairs of each split, and what was asked for but cannot be used.

    Raises:
        InputError: a list is missing or contradicts another, a tile is not there, or
            no pair is left.
    """
    if config.splits_dir:
        splits, skipped = _listed(config, pairs, unmatched)
    else:
        splits, skipped = {split: [] for split in LISTS}, unmatched
        absent = sorted(set(config.holdout_tiles) - {pair.tile for pair in pairs})
        if absent:
            raise InputError(
                f"The tiles {absent} of holdout_tiles are not among those of "
                f"{config.source}: {sorted({pair.tile for pair in pairs})}."
            )
        for pair in pairs:
            held_out = pair.tile in config.holdout_tiles
            splits["validation" if held_out else "train"].append(pair)
    splits = {split: sorted(chosen) for split, chosen in splits.items() if chosen}
    if not splits:
        raise InputError(
            f"None of the {len(pairs)} pairs in {config.source} belongs to a split; "
            "change config.source or config.splits_dir."
        )
    return splits, skipped


def _listed(config, pairs, unmatched):
    """The same by lists of patch names, which also leave pairs out."""
    by_name = {pair.s2_name: pair for pair in pairs}
    reasons = {skip.s2_name: skip.reason for skip in unmatched}
    splits, skipped, seen = {split: [] for split in LISTS}, [], {}
    for split, file in LISTS.items():
        path = pathlib.Path(config.splits_dir) / file
        for s2_name, s1_name in _read_list(path):
            if s2_name in seen:
                raise InputError(
                    f"{s2_name} is listed in {seen[s2_name]} and again in {file}; "
                    f"keep it in one list of {config.splits_dir}."
                )
            seen[s2_name] = file
            pair = by_name.get(s2_name)
            if pair is None:
                reason = reasons.get(s2_name, f"in {file}, but not in {config.source}")
                skipped.append(bigearthnet.Skipped(s2_name, s1_name, reason))
            elif s1_name not in ("", pair.s1_name):
                reason = f"{file} pairs it with another patch than {pair.s1_name}"
                skipped.append(bigearthnet.Skipped(s2_name, s1_name, reason))
            else:
                splits[split].append(pair)
    return splits, skipped


def _read_list(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields Sentinel-2 and Sentinel-1 names, the latter "" where there is none."""
    if not path.is_file():
        raise InputError(
            f"{path} is missing; config.splits_dir needs {', '.join(LISTS.values())}."
        )
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file):
            if row:
                yield row[0].strip(), row[1].strip() if len(row) > 1 else ""
