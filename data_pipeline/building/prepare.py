"""Builds a dataset of records from an archive, shard by shard, in parallel."""

import collections
import csv
import importlib
import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline import metadata, records, shards
from data_pipeline.archives import tars
from data_pipeline.building import (
    card,
    card_text,
    contact_sheet,
    engines,
    plan,
    plausibility,
    splits,
    units_of_work,
)
from data_pipeline.archive import Archive, Pair, Skipped
from data_pipeline.description import Description
from data_pipeline.errors import InputError
from data_pipeline.building.statistics import Tally
from data_pipeline.building.units_of_work import Shard

log = logging.getLogger("fusmae_jax")

ARCHIVES = (
    *("bigearthnet_v1", "bigearthnet_v2", "sen12ms", "ssl4eo", "so2sat"),
    "geotiff_pairs",
)
SAMPLED = 32  # pairs whose values are looked at before anything is written


def open_archive(config) -> Archive:
    """The archive that a `prepare` config describes.

    Raises:
        InputError: there is no reader for it, or it is not where it should be.
    """
    if config.archive not in ARCHIVES:
        raise InputError(
            f"archive is {config.archive!r}; choose one of {list(ARCHIVES)}."
        )
    reader = importlib.import_module(f"data_pipeline.archives.{config.archive}")
    return reader.open_archive(config)


def prepare(config) -> None:
    """Builds the dataset that a `prepare` config describes.

    Raises:
        InputError: the options contradict each other or the source, `out` holds
            something else, or a pair is bad and `config.strict` is set.
    """
    options, out = plan.options(config), pathlib.Path(config.out)
    splits.check(config)  # all this before an archive is searched, which takes minutes
    plan.check_out(out, options)
    archive = open_archive(config)
    pairs, unmatched = archive.find_pairs()
    chosen, skipped, unlisted = splits.assign(config, pairs, unmatched)
    if config.check_values:
        plausibility.check(archive.description, _sample(archive, chosen))

    with plan.lock(out):
        plan.begin(out, options, chosen)
        work = plan.units(config, archive, chosen)
        todo = [shard for members in work.values() for shard in members]
        plan.check_space(todo, archive)
        if config.runner:
            engines.run_beam(todo, config.runner, config.runner_options)
        else:
            engines.run_local(units_of_work.build, todo, config.workers, "writing")
        checked = engines.run_local(
            units_of_work.check, todo, config.workers, "checking"
        )
        build = {"pairs_per_shard": config.pairs_per_shard}
        build |= {"compression": config.compression}
        found = dict(zip(todo, checked))
        finish(out, archive.description, work, found, skipped, len(unlisted), build)
        plan.end(out)
    tars.clean(tars.scratch_folder(config))


def _sample(archive: Archive, chosen: Mapping[str, Sequence[Pair]]) -> list[dict]:
    """Records of a few pairs from all over the archive; bad ones are left out."""
    pairs = [pair for members in chosen.values() for pair in members]
    sample = []
    for i in np.unique(np.linspace(0, len(pairs) - 1, SAMPLED).astype(int)):
        try:
            sample.append(archive.read_pair(pairs[i]))
        except InputError:
            pass  # the build lists it, or stops there
    return sample


def finish(
    out: pathlib.Path,
    description: Description,
    work: Mapping[str, Sequence[Shard]],
    checked: Mapping[Shard, dict],
    skipped: list[Skipped],
    unlisted: int,
    build: dict,
) -> None:
    """Turns checked shards into a dataset, and says what became of every pair.

    Args:
        out: folder of the dataset.
        description: of it.
        work: shards of each split.
        checked: what `units_of_work.check` returned for each.
        skipped: pairs left out before.
        unlisted: number of pairs that no list asks for.
        build: options that the card mentions.

    Raises:
        InputError: no pair is left, or two have the same id.
    """
    reports, infos = {}, {}
    for split, members in work.items():
        results = [units_of_work.read_result(shard) for shard in members]
        skipped = skipped + [Skipped(*row) for r in results for row in r["skipped"]]
        if not any(result["count"] for result in results):
            for shard in members:  # TFDS knows no split without records
                shard.path.unlink()
            continue
        tally = Tally.from_json(description, results[0]["tally"])
        for result in results[1:]:
            tally.merge(Tally.from_json(description, result["tally"]))
        infos[split] = [
            shards.ShardInfo(r["count"], r["bytes"], r["digest"]) for r in results
        ]
        count, size = (sum(r[key] for r in results) for key in ("count", "bytes"))
        reports[split] = card.SplitReport(count, size, tally)
    if skipped:
        with (out / "skipped.csv").open("w", newline="", encoding="utf-8") as file:
            rows = [Skipped._fields, *skipped]
            csv.writer(file).writerows(row[:-1] for row in rows)
    if not reports:
        raise InputError(
            f"All {len(skipped)} pairs are bad, the first because: "
            f"{skipped[0].reason} See {out / 'skipped.csv'}."
        )
    kept = {split: [checked[shard] for shard in work[split]] for split in reports}
    write_index(out, description, kept)
    shards.write_metadata(out, description, infos)
    sums = {s.path.name: checked[s]["sha256"] for split in kept for s in work[split]}
    content = card.make(description, reports, skipped, unlisted, sums, build)
    card.write(out, content)  # from here on the dataset is complete
    draw(out, description, kept)
    counts = ", ".join(f"{report.count} in {s}" for s, report in reports.items())
    total = sum(report.count for report in reports.values()) + len(skipped) + unlisted
    left = f"; {unlisted} are in no list" if unlisted else ""
    print(f"{out}: of {total} pairs wrote {counts}; skipped {len(skipped)}{left}.")


def write_index(
    out: pathlib.Path, description: Description, kept: Mapping[str, list[dict]]
) -> None:
    """Writes the index of each split, see `records.Records.index`.

    Raises:
        InputError: two records have the same id.
    """
    indices = {
        split: {
            field: [value for part in parts for value in part["index"][field]]
            for field in parts[0]["index"]
        }
        for split, parts in kept.items()
    }
    counts = collections.Counter(i for index in indices.values() for i in index["id"])
    name, times = counts.most_common(1)[0]
    if times > 1:
        raise InputError(
            f"The id {name!r} belongs to {times} records; remove its copies from the "
            "archive, delete the build, and start it again."
        )
    for split, index in indices.items():
        for field, names in description.classes.items():
            index[field] = units_of_work.multi_hot(index[field], len(names))
        np.savez_compressed(out / metadata.index_name(split), **index)


def draw(
    out: pathlib.Path, description: Description, kept: Mapping[str, list[dict]]
) -> None:
    """Draws the contact sheet from the records as they were written."""
    opened = [records.Records(out, split) for split in kept]
    places = [(source, i) for source in opened for i in range(len(source))]
    chosen = np.unique(np.linspace(0, len(places) - 1, contact_sheet.SHOWN).astype(int))
    shown = [places[i][0][places[i][1]] for i in chosen]
    contact_sheet.draw(description, shown, out / card_text.SHEET_FILE)
