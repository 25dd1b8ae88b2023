"""Builds a dataset of records from an archive, shard by shard, in parallel."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline import atomic, config_fields, download
from data_pipeline.archives.base import Archive, Pair
from data_pipeline.building import (
    finish,
    options,
    plan,
    shard_jobs,
    splits,
    value_checks,
)
from data_pipeline.building.finish import Found
from data_pipeline.errors import InputError

fields, check = options.fields, options.check_config

SAMPLED = 32  # pairs whose values are looked at before anything is written


def open_archive(config) -> Archive:
    """The archive that a `prepare` config describes.

    Raises:
        InputError: it is not where it should be.
    """
    return options.reader(config.archive).open_archive(config)


def run(config, workdir) -> None:
    """What `launch.py` calls; builds in `config.out`, and not in a run directory."""
    del workdir
    prepare(config)


def prepare(config) -> None:
    """Builds the dataset that a `prepare` config describes, or fetches its archive.

    Raises:
        InputError: the options contradict each other or the source, `out` holds
            something else, or a pair is bad and `config.strict` is set.
    """
    check(config)
    config = config_fields.resolve(config, fields(config))
    if config.get("download"):
        return download.fetch(config, options.reader(config.archive).DOWNLOADS)
    begun, out = plan.options(config), pathlib.Path(config.out)
    splits.check(config)  # all this before an archive is searched, which takes minutes
    plan.check_out(out, begun)
    try:
        archive = open_archive(config)
        chosen, found = _search(config, archive)
        sample = _sample(config, archive, chosen) if config.check_values else None
    except (OSError, shard_jobs.Stopped) as error:
        raise InputError(
            f"{config.source} cannot be read ({error}); see to the disk or the "
            "network, then give the same command again."
        ) from error
    if sample is not None:
        value_checks.check(archive.description, sample, config.read)
    try:
        with plan.lock(out):
            plan.begin(out, begun, chosen)
            work = plan.units(config, archive, chosen)
            del chosen  # a gigabyte, in a large archive; now in files
            _build(config, archive, work, found)
            plan.end(out)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error}); {atomic.advice(error)}."
        ) from error
    archive.clean()


def _search(config, archive: Archive) -> tuple[dict[str, list[Pair]], Found]:
    """The pairs of each split, and what else there is."""
    pairs, unmatched = archive.find_pairs()
    chosen, skipped, unlisted = splits.assign(config, pairs, unmatched)
    return chosen, Found(config.source, skipped, len(unlisted))


def _build(config, archive: Archive, work: Mapping, found: Found) -> None:
    """Writes, checks and finishes."""
    todo = [shard for part in work.values() for shard in part]
    plan.check_space(todo, archive)
    if config.runner:
        shard_jobs.run_beam(todo, config.runner, config.runner_options)
    else:
        shard_jobs.run_local(shard_jobs.build, todo, config.workers, "writing")
    checked = shard_jobs.run_local(shard_jobs.check, todo, config.workers, "checking")
    checked = {shard.path: part for shard, part in zip(todo, checked)}
    finish.finish(config, archive, work, checked, found)


def _sample(
    config, archive: Archive, chosen: Mapping[str, Sequence[Pair]]
) -> list[dict]:
    """Records of a few pairs from all over the archive; bad ones are left out.

    Raises:
        InputError: all are bad, which is no fault of single pairs.
    """
    pairs = [pair for members in chosen.values() for pair in members]
    sample, faults = [], []
    for i in np.unique(np.linspace(0, len(pairs) - 1, SAMPLED).astype(int)):
        try:
            most = config.read.most_missing
            sample.append(shard_jobs.read_record(archive, pairs[i], most))
        except shard_jobs.Stopped:
            raise
        except InputError as error:
            faults.append(str(error))  # the build lists it, or stops there
    if not sample:
        raise InputError(
            f"All {len(faults)} pairs that were looked at are bad, the first because: "
            f"{faults[0]}"
        )
    return sample
