"""Which split a pair is in: by lists, by the archive's own word, or by its tile."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence

from data_pipeline import ground, lists
from data_pipeline.archive import Pair, Skipped
from data_pipeline.description import SPLITS
from data_pipeline.errors import InputError

log = logging.getLogger("fusmae_jax")


def assign(
    config, pairs: Sequence[Pair], unmatched: Sequence[Skipped]
) -> tuple[dict[str, list[Pair]], list[Skipped], list[Pair]]:
    """Decides what becomes of each pair, and of each image without partner.

    Lists (`config.splits`), or else the archive's own splits, ask for pairs; a pair
    they do not ask for is unlisted. An image without partner is unlisted if there are
    lists and they do not ask for it. What is asked for but missing or bad is skipped,
    and stops a strict build; what `config.exclude` names is skipped, but not wanted.

    Args:
        config: of `prepare`.
        pairs: found in the archive.
        unmatched: found in the archive without partner.

    Returns:
        Sorted pairs of each split, what is skipped, and what is unlisted, with "" for
        an unknown name. Each pair, image and listed name is in one of them, once.

    Raises:
        InputError: options or lists contradict each other, a list or tile is not there,
            no pair is left, or `config.strict` is set and a pair must be skipped.
    """
    check(config)
    rows = _rows(config, pairs, unmatched)
    excluded = lists.excluded(config.exclude)
    _warn_of_idle(config.exclude, excluded, (*pairs, *unmatched))
    splits = {split: [] for split in SPLITS}
    skipped, unlisted, seen = [], [], set()
    for pair in pairs:
        row = rows.get(pair.s2_name)
        reason = _contradiction(row, pair, seen)
        seen.add(pair.s2_name)
        if left_out := _left_out(pair, excluded):
            skipped.append(left_out)
        elif not row:
            unlisted.append(pair)
        elif reason:
            skipped.append(Skipped(pair.s2_name, pair.s1_name, reason))
        else:
            splits[row.split].append(pair)
    for image in _with_absent(config, rows, unmatched, seen):
        if left_out := _left_out(image, excluded):
            skipped.append(left_out)
        elif config.splits and not _asks(rows.get(image.s2_name), image):
            unlisted.append(Pair(image.s2_name, image.s1_name))
        else:
            skipped.append(image)
    if config.strict:
        _refuse_faults(skipped)
    _hold_out(config, splits)
    splits = {s: sorted(chosen) for s, chosen in splits.items() if chosen}
    _check_some(config, pairs, unmatched, splits)
    return splits, skipped, unlisted


def _check_some(config, pairs, unmatched, splits) -> None:
    """Refuses to go on without a pair."""
    if not pairs:
        raise InputError(
            f"{config.source} holds no pair of this archive, only {len(unmatched)} "
            "single images; choose the config that reads it, or another source."
        )
    if not splits:
        raise InputError(
            f"None of the {len(pairs)} pairs in {config.source} belongs to a split; "
            "change config.source, config.splits or config.exclude."
        )


def count(config, pairs: Sequence[Pair], unmatched: Sequence[Skipped]) -> int:
    """How many pairs, single images and listed names `assign` must account for.

    Counted in another way than there, so that a mistake in either shows.

    Raises:
        InputError: a list cannot be read.
    """
    partners = {pair.s2_name: {""} for pair in pairs}  # any partner that is asked for
    for image in unmatched:
        partners.setdefault(image.s2_name, set()).add(image.s1_name)
    rows = lists.listed(config.splits, partners) if config.splits else {}
    absent = 0
    for name, row in rows.items():
        there = partners.get(name, set())
        absent += not there if not row.s1_name else not there & {row.s1_name, ""}
    return len(pairs) + len(unmatched) + absent


def check(config) -> None:
    """Refuses options that cannot work, before an archive is searched for hours.

    Raises:
        InputError: they contradict each other, or a file is not there.
    """
    check_ways(config)
    for path in lists.files(config.splits, config.exclude):
        if not path.is_file():
            raise InputError(
                f"{path} is missing; config.splits takes a file or a folder with "
                f"{', '.join(lists.FILES.values())}, and config.exclude takes files."
            )


def check_ways(config) -> None:
    """Refuses several ways to split at once.

    Raises:
        InputError: names the options.
    """
    ways = {
        "splits": config.splits,
        "holdout_tiles": config.holdout_tiles,
        "holdout_share": config.holdout_share,
    }
    chosen = [f"{name}={value}" for name, value in ways.items() if value]
    if len(chosen) > 1:
        raise InputError(
            f"{' and '.join(chosen)} are {len(chosen)} ways to split; set one of them."
        )


def _rows(config, pairs, unmatched) -> Mapping[str, lists.Listed]:
    """What is asked for, by name of the Sentinel-2 image."""
    if config.splits:
        known = {image.s2_name for image in (*pairs, *unmatched)}
        return lists.listed(config.splits, known)
    by_archive = any(pair.split for pair in pairs)
    return {
        pair.s2_name: lists.Listed(pair.split or "train", "", config.source)
        for pair in pairs
        if pair.split or not by_archive
    }


def _refuse_faults(skipped: Iterable[Skipped]) -> None:
    for image in skipped:
        if image.wanted:
            raise InputError(
                f"{image.s2_name or image.s1_name} cannot be used ({image.reason}); "
                "mend it, or set --config.strict=False to skip it."
            )


def _warn_of_idle(entries, excluded: Mapping[str, str], images) -> None:
    """Says which lists leave nothing out, as those of another archive do."""
    names = {name for image in images for name in _names(image)}
    used = {excluded[name] for name in names & excluded.keys()}
    for entry in set(entries) - used:
        log.warning("%s names no image that is here; is it of this archive?", entry)


def _left_out(image: Pair | Skipped, excluded: Mapping[str, str]) -> Skipped | None:
    entries = (excluded[name] for name in _names(image) if name in excluded)
    if not (entry := next(entries, "")):
        return None
    return Skipped(image.s2_name, image.s1_name, f"named by {entry}", wanted=False)


def _names(image: Pair | Skipped) -> tuple[str, ...]:
    """By what `lists.excluded` may name an image or pair: names, or its ground."""
    names = (image.s2_name, image.s1_name)
    return names + tuple(filter(None, map(ground.cell, names)))


def _contradiction(row: lists.Listed | None, pair: Pair, seen: set[str]) -> str:
    if pair.s2_name in seen:
        return "another pair has the same Sentinel-2 image"
    if row and row.s1_name not in ("", pair.s1_name):
        return f"{row.file} pairs it with {row.s1_name}"
    return ""


def _with_absent(config, rows, unmatched, seen: set[str]) -> Iterable[Skipped]:
    """Images without partner, and names that are listed and not in the archive."""
    yield from unmatched
    seen = seen | {i.s2_name for i in unmatched if _asks(rows.get(i.s2_name), i)}
    for name, row in rows.items():
        if name not in seen:
            reason = f"in {row.file}, but not in {config.source}"
            yield Skipped(name, row.s1_name, reason)


def _asks(row: lists.Listed | None, image: Skipped) -> bool:
    """Whether a list's row can mean that image."""
    return row is not None and (
        row.s1_name == image.s1_name or not row.s1_name or not image.s1_name
    )


def _hold_out(config, splits: dict[str, list[Pair]]) -> None:
    """Moves the training pairs of held-out tiles to validation."""
    named, share = set(config.holdout_tiles), config.holdout_share
    if not named and not share:
        return
    if splits["validation"]:
        raise InputError(
            f"{config.source} has {len(splits['validation'])} validation pairs of its "
            "own; drop holdout_tiles and holdout_share."
        )
    # Pairs of which no tile is known are drawn one by one.
    tiles = {pair.tile or pair.s2_name for pair in splits["train"]}
    if named - tiles:
        raise InputError(
            f"The tiles {sorted(named - tiles)} of holdout_tiles are not among the "
            f"{len(tiles)} of {config.source}, such as {sorted(tiles)[:8]}."
        )
    held_out = named or {tile for tile in tiles if _draw(tile) < share}
    if not held_out or held_out == tiles:
        raise InputError(
            f"{len(held_out)} of {len(tiles)} tiles or places would be held out; "
            f"change holdout_share={share}, or name some of {sorted(tiles)[:8]} in "
            "holdout_tiles."
        )
    train, splits["train"] = splits["train"], []
    for pair in train:
        held = (pair.tile or pair.s2_name) in held_out
        splits["validation" if held else "train"].append(pair)


def _draw(tile: str) -> float:
    """A number from 0 to 1 that depends on the tile alone: in whichever dataset, and
    however few of the tiles are there, the same tiles are held out."""
    digest = hashlib.sha256(tile.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
