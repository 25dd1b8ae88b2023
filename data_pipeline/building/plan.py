"""What a build is going to do, written down so that a restart can go on with it."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence

from data_pipeline import (
    atomic,
    dataset_card,
    locks,
    name_lists,
    record_format,
    safe_io,
)
from data_pipeline.archives.base import Archive, Pair
from data_pipeline.building.shard_jobs import Shard
from data_pipeline.errors import InputError

PATHS = ("metadata", "void_ids")  # settings of readers that name files
FOLDER = "_build"  # is there until the dataset is complete


def options(config) -> dict:
    """What a restarted build must have in common with the first one."""
    return {
        "record_format": record_format.FORMAT,
        "archive": config.archive,
        "source": config.source,
        "splits": config.splits,
        "exclude": list(config.exclude),
        "holdout_tiles": list(config.holdout_tiles),
        "holdout_share": config.holdout_share,
        "pairs_per_shard": config.pairs_per_shard,
        "compression": config.compression,
        "read": json.loads(json.dumps(config.read.to_dict())),
    }


def facts(config) -> dict:
    """What the card says of the build: options that decide what is in the dataset.

    Files are named without their folders, and told apart by their checksums.
    """
    listed = {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in name_lists.files(config.splits, config.exclude)
    }
    return {
        "splits": os.path.basename(config.splits),
        "exclude": [os.path.basename(entry) for entry in config.exclude],
        "lists": {os.path.basename(path): digest for path, digest in listed.items()},
        "holdout_tiles": list(config.holdout_tiles),
        "holdout_share": config.holdout_share,
        "pairs_per_shard": config.pairs_per_shard,
        "compression": config.compression,
        "read": _plain(config.read),
    }


def _plain(read) -> dict:
    """Settings of an archive's reader, as JSON has them and without folders."""
    plain = json.loads(json.dumps(read.to_dict()))
    paths = {k: os.path.basename(v) for k, v in plain.items() if k in PATHS}
    return plain | paths


def check_out(out: pathlib.Path, plan: dict) -> None:
    """Refuses a folder in which this build can neither start nor go on.

    Raises:
        InputError: it holds something else; nothing was touched.
    """
    place = out.absolute()
    there = next(p for p in (place, *place.parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"{there} is not a folder to write into; pass another out=DIR."
        )
    if not out.exists():
        return
    begun = out / FOLDER / "plan.json"
    if not begun.exists():
        if (out / dataset_card.CARD_FILE).exists():
            raise InputError(
                f"{out} holds a complete dataset; use it, delete it, or pass another "
                "out=DIR."
            )
        if {path.name for path in out.iterdir()} - {FOLDER}:
            raise InputError(f"{out} holds other files; pass an empty out=DIR.")
        return
    if not any((out / FOLDER).glob("*-result.json")):
        return  # nothing would be lost
    other = _read(begun)
    if other.get("record_format") != plan["record_format"]:
        raise InputError(
            f"{out} holds a build of records in the format "
            f"{other.get('record_format')}, and this version writes "
            f"{plan['record_format']}; delete it, or pass another out=DIR."
        )
    other, plan = _flat(other), _flat(plan)
    differing = [key for key in plan if other.get(key) != plan[key]]
    if differing:
        raise InputError(
            f"{out} holds a build begun with "
            f"{', '.join(f'{key}={other.get(key)!r}' for key in differing)}, not "
            f"{', '.join(f'{key}={plan[key]!r}' for key in differing)}; repeat those "
            "options, delete it, or pass another out=DIR."
        )


def _read(path: pathlib.Path) -> dict:
    """A plan that was written down.

    Raises:
        InputError: it is damaged.
    """
    try:
        plan = safe_io.read_json(path)
        if not isinstance(plan, dict) or not isinstance(plan.get("read"), dict):
            raise ValueError("it holds no options of a build")
        return plan
    except ValueError as error:
        raise InputError(
            f"{path} cannot be read ({error}); delete {path.parents[1]}, or pass "
            "another out=DIR."
        ) from error


def _flat(plan: dict) -> dict:
    """The options of an archive's reader beside the others, as they are passed."""
    return plan | {f"read.{k}": v for k, v in plan["read"].items()} | {"read": None}


@contextlib.contextmanager
def lock(out: pathlib.Path) -> Iterator[None]:
    """Holds `out` against other builds; a killed process lets go of it.

    Raises:
        InputError: another build is at work there.
    """
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    path = out / FOLDER / "lock"
    try:
        locks.lock(path)
    except locks.Locked as holder:
        raise InputError(
            f"Another build is writing into {out}, {holder}; wait for it, or pass "
            "another out=DIR."
        ) from None
    try:
        yield
    finally:
        locks.unlock(path)


def begin(out: pathlib.Path, plan: dict, chosen: Mapping[str, Sequence[Pair]]) -> None:
    """Writes the plan down, or checks that it is the one that was begun."""
    names = {split: [pair.names for pair in pairs] for split, pairs in chosen.items()}
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    plan = plan | {"pairs": digest}
    check_out(out, plan)
    atomic.write_whole(out / FOLDER / "plan.json", json.dumps(plan, indent=1))
    for part in out.glob("*.part"):  # of a build that was killed
        part.unlink()


def end(out: pathlib.Path) -> None:
    """Removes what only a build needs."""
    shutil.rmtree(out / FOLDER)


def units(
    config, archive: Archive, chosen: Mapping[str, Sequence[Pair]]
) -> dict[str, list[Shard]]:
    """Plans the jobs of each split, near equal in size."""
    out, name = pathlib.Path(config.out), archive.description.name
    work = {}
    for split, pairs in chosen.items():
        total = math.ceil(len(pairs) / config.pairs_per_shard)
        work[split] = []
        for i in range(total):
            part = pairs[len(pairs) * i // total : len(pairs) * (i + 1) // total]
            shard = Shard(
                path=out / record_format.shard_name(name, split, i, total),
                result=out / FOLDER / f"{split}-{i:05d}-result.json",
                plan=out / FOLDER / f"{split}-{i:05d}-pairs.json",
                size=len(part),
                archive=archive,
                strict=config.strict,
                most_missing=config.read.most_missing,
                options=record_format.COMPRESSION[config.compression],
            )
            rows = json.dumps([dataclasses.astuple(pair) for pair in part])
            atomic.write_whole(shard.plan, rows)
            work[split].append(shard)
    return work


def check_space(work: Sequence[Shard], archive: Archive) -> None:
    """Refuses to begin what cannot end for lack of disk space.

    Raises:
        InputError: says how much is needed and how much is free.
    """
    layout, out = archive.description.layout, work[0].path.parent
    pair = 2 * sum(h * w * c for h, w, c in layout.shapes.values())  # bytes, 16 bit
    # Compression saves a sixth of real pixels and more of smooth ones: half is sure.
    least = pair * sum(shard.size for shard in work if not shard.path.exists()) / 2
    free = shutil.disk_usage(out).free
    if free < least:
        raise InputError(
            f"{out} has {free / 1e9:.1f} GB free, and this build needs at least "
            f"{least / 1e9:.1f} GB; pass another out=DIR."
        )
