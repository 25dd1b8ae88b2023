"""Builds a dataset of records from an archive, shard by shard, in parallel.

A shard is one unit of work: it depends on nothing but its pairs, and once its result
is written beside it a restarted build passes it over.
"""

import concurrent.futures
import csv
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import pathlib

import tqdm

from data_pipeline import bigearthnet
from data_pipeline import records
from data_pipeline import splits
from data_pipeline.errors import InputError

_PLAN_FILE = "build.json"  # is there until the dataset is complete


@dataclasses.dataclass(frozen=True)
class Shard:
    """One unit of work.

    Attributes:
        path: file to write.
        result: file that says what was written, once it was.
        pairs: what goes in, in order.
        strict: whether the first bad pair stops the build.
    """

    path: pathlib.Path
    result: pathlib.Path
    pairs: tuple[bigearthnet.Pair, ...]
    strict: bool


def prepare(config) -> None:
    """Builds the dataset that a `prepare` config describes.

    Raises:
        InputError: the options contradict each other or the source, `out` holds
            something else, or a pair is bad and `config.strict` is set.
    """
    options = _options(config)
    out = pathlib.Path(config.out)
    _check_out(out, options)  # before the archives are scanned, which takes minutes
    pairs, unmatched = bigearthnet.find_pairs(config.source)
    chosen, skipped = splits.assign(config, pairs, unmatched)
    if skipped and config.strict:
        raise InputError(
            f"{skipped[0].s2_name or skipped[0].s1_name} cannot be used "
            f"({skipped[0].reason}); mend it, or set --config.strict=False to skip it."
        )
    plan = options | {"pairs": _digest(chosen)}
    _check_out(out, plan)
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / _PLAN_FILE, plan)

    shards = _shards(out, chosen, config.pairs_per_shard, config.strict)
    results = _build(shards, config.workers)
    placed = {pair.s2_name for members in chosen.values() for pair in members}
    placed |= {skip.s2_name for skip in skipped}
    unlisted = sum(pair.s2_name not in placed for pair in pairs)
    _finish(out, config.licence, shards, results, skipped, unlisted)


def build_shard(shard: Shard) -> dict:
    """Writes one shard, unless an earlier run did.

    Returns:
        Its "count" and "bytes", and the pairs "skipped".
    """
    if shard.result.exists() and shard.path.exists():
        result = json.loads(shard.result.read_text())
        if not (shard.strict and result["skipped"]):
            return result
    skipped = []

    def examples():
        for pair in shard.pairs:
            try:
                yield bigearthnet.read_pair(pair)
            except InputError as error:
                if shard.strict:
                    raise
                skipped.append((pair.s2_name, pair.s1_name, str(error)))

    features = records.features(bigearthnet.SIZE, bigearthnet.CLASSES)
    info = records.write_shard(shard.path, examples(), features)
    result = {**info._asdict(), "skipped": skipped}
    _write_json(shard.result, result)
    return result


def _options(config) -> dict:
    """What a restarted build must have in common with the first one."""
    if not config.source or not config.out:
        raise InputError(
            "Pass --config.source=DIR, the folder with the unpacked archives, and "
            "--config.out=DIR, the folder to build in."
        )
    if config.splits_dir and config.holdout_tiles:
        raise InputError(
            f"splits_dir={config.splits_dir} and holdout_tiles={config.holdout_tiles} "
            "are two ways to split; set one of them."
        )
    if config.pairs_per_shard < 1 or config.workers < 0:
        raise InputError(
            f"pairs_per_shard={config.pairs_per_shard} must be at least 1 and "
            f"workers={config.workers} at least 0; change them."
        )
    return {
        "source": os.path.abspath(config.source),
        "splits_dir": config.splits_dir and os.path.abspath(config.splits_dir),
        "holdout_tiles": list(config.holdout_tiles),
        "pairs_per_shard": config.pairs_per_shard,
    }


def _check_out(out: pathlib.Path, plan: dict) -> None:
    """Refuses a folder in which this build can neither start nor go on."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is not a folder; pass another --config.out=DIR.")
    if not (out / _PLAN_FILE).exists():
        if (out / records.METADATA_FILE).exists():
            raise InputError(
                f"{out} holds a complete dataset; use it, delete it, or pass another "
                "--config.out=DIR."
            )
        if any(out.iterdir()):
            raise InputError(
                f"{out} holds other files; pass an empty --config.out=DIR."
            )
        return
    begun = json.loads((out / _PLAN_FILE).read_text())
    differing = [key for key in plan if begun.get(key) != plan[key]]
    if differing:
        raise InputError(
            f"{out} holds a build begun with "
            f"{', '.join(f'{key}={begun.get(key)!r}' for key in differing)}, not "
            f"{', '.join(f'{key}={plan[key]!r}' for key in differing)}; repeat those "
            "options, delete it, or pass another --config.out=DIR."
        )


def _digest(chosen: dict[str, list[bigearthnet.Pair]]) -> str:
    names = {
        split: [(pair.s2_name, pair.s1_name) for pair in pairs]
        for split, pairs in chosen.items()
    }
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _shards(out, chosen, pairs_per_shard: int, strict: bool) -> dict[str, list[Shard]]:
    """The units of work of each split, near equal in size."""
    shards = {}
    for split, pairs in chosen.items():
        total = math.ceil(len(pairs) / pairs_per_shard)
        for i in range(total):
            shard = Shard(
                path=out / records.shard_name(bigearthnet.NAME, split, i, total),
                result=out / f"build-{split}-{i:05d}.json",
                pairs=tuple(
                    pairs[len(pairs) * i // total : len(pairs) * (i + 1) // total]
                ),
                strict=strict,
            )
            shards.setdefault(split, []).append(shard)
    return shards


def _build(shards: dict[str, list[Shard]], workers: int) -> dict[Shard, dict]:
    """Runs all units of work and returns their results."""
    todo = [shard for split in shards.values() for shard in split]
    results = {}
    with tqdm.tqdm(total=sum(len(s.pairs) for s in todo), unit="pair") as progress:
        if not workers:
            for shard in todo:
                results[shard] = build_shard(shard)
                progress.update(len(shard.pairs))
            return results
        # Forking would copy the locks of threads that TFDS and Grain have started.
        with concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn")
        ) as pool:
            futures = {pool.submit(build_shard, shard): shard for shard in todo}
            try:
                for future in concurrent.futures.as_completed(futures):
                    results[futures[future]] = future.result()
                    progress.update(len(futures[future].pairs))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return results


def _finish(out, licence: str, shards, results, skipped, unlisted: int) -> None:
    """Turns finished shards into a dataset and says what became of every pair."""
    infos = {}
    for split, members in shards.items():
        parts = [results[shard] for shard in members]
        if any(part["count"] for part in parts):
            infos[split] = [records.ShardInfo(p["count"], p["bytes"]) for p in parts]
        skipped = skipped + [
            bigearthnet.Skipped(*row) for part in parts for row in part["skipped"]
        ]
    if skipped:
        with (out / "skipped.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([bigearthnet.Skipped._fields, *skipped])
    if not infos:
        raise InputError(
            f"All {len(skipped)} pairs are bad, the first because: "
            f"{skipped[0].reason} See {out / 'skipped.csv'}."
        )
    for split in shards.keys() - infos.keys():  # TFDS knows no split without records
        for shard in shards[split]:
            shard.path.unlink()
    records.write_metadata(
        out,
        bigearthnet.NAME,
        records.features(bigearthnet.SIZE, bigearthnet.CLASSES),
        infos,
        description=bigearthnet.DESCRIPTION,
        licence=licence,
    )
    (out / _PLAN_FILE).unlink()  # from here on the dataset is complete
    for members in shards.values():
        for shard in members:
            shard.result.unlink()
    written = {split: sum(i.count for i in infos[split]) for split in infos}
    total = sum(written.values()) + len(skipped) + unlisted
    counts = ", ".join(f"{count} in {split}" for split, count in written.items())
    left = f"; {unlisted} are in no list" if unlisted else ""
    print(f"{out}: of {total} pairs wrote {counts}; skipped {len(skipped)}{left}.")


def _write_json(path: pathlib.Path, content) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1))
    os.replace(part, path)
