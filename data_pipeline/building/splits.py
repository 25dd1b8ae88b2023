"""Which split a pair is in: by lists, by the archive's own word, or by its tile."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence

from data_pipeline import config_fields, ground, name_lists, sensors
from data_pipeline.archives.base import Pair, Skipped
from data_pipeline.dataset_card import SPLITS
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
        Sorted pairs of each split, what is skipped, and what is unlisted. Each pair,
        image and listed name is in one of them, once.

    Raises:
        InputError: options or lists contradict each other, a list or tile is not there,
            no pair is left, or `config.strict` is set and a pair must be skipped.
    """
    check(config)
    rows = _rows(config, pairs, unmatched)
    excluded = name_lists.excluded(config.exclude)
    _warn_of_idle(config.exclude, excluded, (*pairs, *unmatched))
    splits = {split: [] for split in SPLITS}
    skipped, unlisted, seen = [], [], set()
    for pair in pairs:
        row = rows.get(pair.name)
        reason = _contradiction(row, pair, seen)
        seen.add(pair.name)
        if left_out := _left_out(pair, excluded):
            skipped.append(left_out)
        elif not row:
            unlisted.append(pair)
        elif reason:
            skipped.append(Skipped(pair.images, reason))
        else:
            splits[row.split].append(pair)
    for image in _with_absent(config, rows, unmatched, seen):
        if left_out := _left_out(image, excluded):
            skipped.append(left_out)
        elif config.splits and not _asks(rows.get(image.name), image):
            unlisted.append(Pair(image.images))
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


def check(config) -> None:
    """Refuses options that cannot work, before an archive is searched for hours.

    Raises:
        InputError: they contradict each other, or a file is not there.
    """
    check_ways(config)
    for path in name_lists.files(config.splits, config.exclude):
        if not path.is_file():
            raise InputError(
                f"{path} is missing; config.splits takes a file or a folder with "
                f"{', '.join(name_lists.FILES.values())}, and config.exclude takes "
                "files."
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
    chosen = [f"{k}={config_fields.show(v)}" for k, v in ways.items() if v]
    if len(chosen) > 1:
        raise InputError(
            f"{' and '.join(chosen)} are {len(chosen)} ways to split; set one of them."
        )


def _rows(config, pairs, unmatched) -> Mapping[str, name_lists.Listed]:
    """What is asked for, by name of the pair."""
    if config.splits:
        known = {image.name for image in (*pairs, *unmatched)}
        return name_lists.listed(config.splits, known)
    by_archive = any(pair.split for pair in pairs)
    return {
        pair.name: name_lists.Listed(pair.split or "train", {}, config.source)
        for pair in pairs
        if pair.split or not by_archive
    }


def _refuse_faults(skipped: Iterable[Skipped]) -> None:
    for image in skipped:
        if image.wanted:
            raise InputError(
                f"{next(filter(None, image.names))} cannot be used ({image.reason}); "
                "mend it, or set strict=False to skip it."
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
    return Skipped(image.images, f"named by {entry}", wanted=False)


def _names(image: Pair | Skipped) -> tuple[str, ...]:
    """By what `name_lists.excluded` may name an image or pair: names, or its ground."""
    return image.names + tuple(filter(None, map(ground.cell, image.names)))


def _contradiction(row: name_lists.Listed | None, pair: Pair, seen: set[str]) -> str:
    if pair.name in seen:
        title = sensors.SENSORS[sensors.NAMED[0]].title
        return f"another pair has the same {title} image"
    if row and not row.agrees(pair.images):
        return f"{row.file} pairs it with {' and '.join(row.partners.values())}"
    return ""


def _with_absent(config, rows, unmatched, seen: set[str]) -> Iterable[Skipped]:
    """Images without partner, and names that are listed and not in the archive."""
    yield from unmatched
    seen = seen | {i.name for i in unmatched if _asks(rows.get(i.name), i)}
    for name, row in rows.items():
        if name not in seen:
            reason = f"in {row.file}, but not in {config.source}"
            yield Skipped({sensors.NAMED[0]: name, **row.partners}, reason)


def _asks(row: name_lists.Listed | None, image: Skipped) -> bool:
    """Whether a list's row can mean that image."""
    return row is not None and row.agrees(image.images)


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
    tiles = {pair.tile or pair.name for pair in splits["train"]}
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
        held = (pair.tile or pair.name) in held_out
        splits["validation" if held else "train"].append(pair)


def _draw(tile: str) -> float:
    """A number from 0 to 1 that depends on the tile alone: in whichever dataset, and
    however few of the tiles are there, the same tiles are held out."""
    digest = hashlib.sha256(tile.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
