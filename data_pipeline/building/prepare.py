"""Builds a dataset of records from an archive, shard by shard, in parallel.

What the config of a build may say stands here too, and is refused before an archive is
searched.
"""

import importlib
import pathlib
import types
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline import atomic, config_fields, download, record_format
from data_pipeline.archives.base import MOST_MISSING, Archive, Pair
from data_pipeline.building import finish, plan, shard_jobs, splits, value_checks
from data_pipeline.building.finish import Found
from data_pipeline.config_fields import (
    Field,
    check_rules,
    choice,
    flag,
    group,
    location,
    number,
    several,
    text,
    whole,
)
from data_pipeline.errors import InputError

SAMPLED = 32  # pairs whose values are looked at before anything is written

ARCHIVES = (
    *("bigearthnet_v1", "bigearthnet_v2", "sen12ms", "ssl4eo", "so2sat"),
    "geotiff_pairs",
)

TABLE = {
    "task": choice("prepare", meaning="What launch.py does."),
    "archive": choice(*ARCHIVES, meaning="What the source is."),
    "source": location(meaning="Where the archive is; empty where it is downloaded."),
    "out": location(
        meaning="Folder to build in: empty, or with a build that was stopped."
    ),
    "splits": location(
        meaning="Lists of the splits: a folder with train.csv, val.csv and test.csv, "
        "or one .csv or .parquet with a column split; empty for the archive's own "
        "splits, or all for training where it has none."
    ),
    "holdout_tiles": several(
        text(filled=True),
        meaning="MGRS tiles whose training pairs become validation pairs.",
    ),
    "holdout_share": number(
        least=0.0,
        below=1.0,
        meaning="Share of the tiles, drawn by their names, that become validation.",
    ),
    "exclude": several(
        location(filled=True),
        meaning="Files of names to leave out. FILE:test leaves out the names that its "
        "column split puts there, and all that show the ground of these.",
    ),
    "pairs_per_shard": whole(1, meaning="Pairs in a file of records."),
    "workers": whole(0, 4096, meaning="Processes that build; 0 builds in this one."),
    "strict": flag(meaning="Whether the first bad pair ends the build, not listed."),
    "most_skipped": number(
        least=0.0,
        most=1.0,
        meaning="Share of the pairs that may be skipped for a fault; of more, the "
        "build fails.",
    ),
    "check_values": flag(meaning="Whether data that cannot be dB or DN are refused."),
    "compression": choice(
        *record_format.COMPRESSION,
        meaning="Compression of the records; without it they are larger by a fifth and "
        "faster to read.",
    ),
    "scratch": location(
        meaning="Folder for what was found in tars, removed at the end; empty for "
        "<out>-scratch."
    ),
    "runner": text(
        meaning="A Beam runner, such as FlinkRunner; empty for processes of this "
        "machine."
    ),
    "runner_options": several(
        text(filled=True), meaning="Passed to Beam, such as --flink_master=HOST:8081."
    ),
    "read": group(meaning="What only this archive needs."),
}

# What must hold between fields, and what is said where it does not.
RULES = (
    (
        lambda c: not c.get("download") or reader(c.archive).DOWNLOADS,
        "archive={c.archive} cannot be fetched as download={c.download}; its config in "
        "configs/ says how TFDS prepares it, and that is passed as source=DIR.",
    ),
    (
        lambda c: not c.get("download") or not c.source,
        "download and source are both given; pass one of them, first the folder to "
        "fetch into, and when that is done the same as the source to build from.",
    ),
    (
        lambda c: c.get("download") or not c.get("download_parts"),
        "download_parts is {c.download_parts}, and there is no folder to fetch them "
        "into; set download=DIR too.",
    ),
    (
        lambda c: c.get("download") or (c.source and c.out),
        "Pass source=DIR, where the archive is, and out=DIR, the folder to build in.",
    ),
    (
        lambda c: _differ(c.source, c.out, c.scratch, c.get("download", "")),
        "source={c.source}, out={c.out} and scratch={c.scratch} must be different "
        "folders, and none of them one to download into; the archive stays as it is, "
        "and scratch is emptied.",
    ),
    (
        lambda c: "," not in c.out and c.out == c.out.strip(),
        "out is {c.out!r}; it must have no comma in it and no space at its ends, which "
        "data.dir has between folders.",
    ),
    (
        lambda c: c.runner or not c.runner_options,
        "runner_options is {c.runner_options}, and there is no runner to take them; "
        "set runner=RUNNER too.",
    ),
    (
        lambda c: all(option.startswith("--") for option in c.runner_options),
        "runner_options is {c.runner_options}; each must begin with two dashes, as "
        "'--flink_master=HOST:8081' does.",
    ),
)


def _differ(*paths: str) -> bool:
    """Whether those that are not empty are different places."""
    places = [atomic.absolute(path) for path in paths if path]
    return len(set(places)) == len(places)


def reader(archive: str) -> types.ModuleType:
    """The module that reads an archive."""
    return importlib.import_module(f"data_pipeline.archives.{archive}")


def fields(config) -> dict[str, Field]:
    """What each field of the config may hold, and means; SETTINGS of its archive too.

    Raises:
        InputError: there is no such archive.
    """
    archive = config.get("archive")
    config_fields.check_value("archive", archive, TABLE["archive"])
    module = reader(archive)
    settings = getattr(module, "SETTINGS", {})  # some archives need none
    settings = {"most_missing": MOST_MISSING, **settings}
    rows = TABLE | config_fields.within("read", settings)
    if hasattr(module, "DOWNLOADS"):  # your own pairs are not downloaded
        rows |= download.fields(module.DOWNLOADS)
    return rows


def check(config) -> None:
    """Refuses what cannot work whatever the archive holds.

    Raises:
        InputError: names the fields and their values.
    """
    known = fields(config)
    like = f"the config of configs/ that reads {config.archive}"
    config_fields.check(config, known, like=like)
    check_rules(config, RULES)
    splits.check_ways(config)


def open_archive(config) -> Archive:
    """The archive that a `prepare` config describes.

    Raises:
        InputError: it is not where it should be.
    """
    return reader(config.archive).open_archive(config)


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
        return download.fetch(config, reader(config.archive).DOWNLOADS)
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
