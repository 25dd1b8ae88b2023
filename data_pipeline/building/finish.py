"""Turns checked shards into a dataset, and says what became of every pair."""

import collections
import csv
import dataclasses
import io
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline import atomic, dataset_card, record_format
from data_pipeline.archives.base import Archive, Skipped
from data_pipeline.building import card, plan, preview, shard_jobs
from data_pipeline.building.shard_jobs import Shard
from data_pipeline.building.statistics import Tally
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from data_pipeline.sensors import NAMED

log = logging.getLogger("fusmae_jax")


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search of the archive came to, apart from the pairs to write.

    Attributes:
        source: where the archive is.
        skipped: what is left out before any pixel is read.
        unlisted: number of those that no list asks for.
    """

    source: str
    skipped: list[Skipped]
    unlisted: int


def finish(
    config,
    archive: Archive,
    work: Mapping[str, Sequence[Shard]],
    checked: Mapping[pathlib.Path, dict],
    found: Found,
) -> None:
    """Writes what makes shards a dataset: metadata, index, card and contact sheet.

    Args:
        config: of the build.
        archive: what was read.
        work: shards of each split.
        checked: what `shard_jobs.check` returned for each, by path.
        found: what the search came to.

    Raises:
        InputError: no pair is left, too many were skipped, or two have the same id.
    """
    out, description = pathlib.Path(config.out), archive.description
    reports, infos, skipped = {}, {}, list(found.skipped)
    for split, members in work.items():
        reports[split], infos[split], bad = summarise(description, members)
        skipped += bad
    # The same archive elsewhere gives the same list.
    folder = os.path.join(found.source, "")
    skipped = [
        dataclasses.replace(skip, reason=skip.reason.replace(folder, ""))
        for skip in skipped
    ]
    write_skipped(out, skipped)
    if reason := too_many_skipped(reports, skipped, config.most_skipped):
        _forget_skipped(work)
        raise InputError(
            f"{reason} See {out / 'skipped.csv'}; mend them, or set "
            "most_skipped=1.0 to go without, and give the same command again."
        )
    empty = [split for split, report in reports.items() if not report.count]
    for split in empty:
        for shard in work[split]:  # TFDS knows no split without records
            shard.path.unlink()
        del reports[split], infos[split]
    if archive.own_statistics:
        description = with_own_statistics(description, reports)
    kept = {split: [checked[shard.path] for shard in work[split]] for split in reports}
    write_index(out, kept)
    record_format.write_metadata(out, description, infos)
    written = [shard.path for split in kept for shard in work[split]]
    sums = {path.name: checked[path]["sha256"] for path in written}
    build = plan.facts(config)
    content = card.make(description, reports, skipped, found.unlisted, sums, build)
    card.write(out, content)  # from here on the dataset is complete
    try:
        draw(out, description, list(kept))
    except Exception as error:  # whatever is wrong with a picture, the dataset is whole
        log.warning("%s was not drawn: %r", out / card.SHEET_FILE, error)
    _tell(out, description, content, empty)


def _forget_skipped(work: Mapping[str, Sequence[Shard]]) -> None:
    """Lets the same command read pairs again that were skipped."""
    for shard in [shard for members in work.values() for shard in members]:
        if shard_jobs.read_result(shard)["skipped"]:
            shard.path.unlink()


def too_many_skipped(
    reports: Mapping[str, card.SplitReport], skipped: Sequence[Skipped], most: float
) -> str:
    """Why a dataset lacks more pairs than anybody can want, or ""."""
    written = sum(report.count for report in reports.values())
    faults = [skip for skip in skipped if skip.wanted]
    if not written:
        return (
            f"All {len(skipped)} pairs are bad, the first because: {skipped[0].reason}"
        )
    if len(faults) > most * (written + len(faults)):
        worst = card.reasons(faults)[0]
        return (
            f"{len(faults)} of {written + len(faults)} pairs cannot be used, more than "
            f"most_skipped={most:g}; the commonest reason, of {worst['count']}, is: "
            f"{worst['example']['reason']}"
        )
    return ""


def with_own_statistics(
    description: Description, reports: Mapping[str, card.SplitReport]
) -> Description:
    """The description with statistics of the data themselves, of the first split."""
    split = card.reference(reports)
    measured = reports[split].tally.summary()["sensors"]
    own = {
        name: sensor.with_statistics(
            {b.name: measured[name][b.name].get("mean", b.mean) for b in sensor.bands},
            {b.name: measured[name][b.name].get("std") or b.std for b in sensor.bands},
            f"computed from split {split} of {description.name}",
        )
        for name, sensor in description.sensors.items()
    }
    return dataclasses.replace(description, sensors=own)


def summarise(
    description: Description, members: Sequence[Shard]
) -> tuple[card.SplitReport, list[record_format.ShardInfo], list[Skipped]]:
    """What the results of a split's shards come to, read one after another."""
    tally, infos, skipped, remarks = Tally(description), [], [], collections.Counter()
    for shard in members:
        result = shard_jobs.read_result(shard)
        tally.merge(Tally.from_json(description, result["tally"]))
        info = {name: result[name] for name in record_format.ShardInfo._fields}
        infos.append(record_format.ShardInfo(**info))
        remarks.update(result["remarks"])
        for *names, reason, wanted in result["skipped"]:
            skipped.append(Skipped(dict(zip(NAMED, names)), reason, wanted))
    count, size = (sum(getattr(i, key) for i in infos) for key in ("count", "bytes"))
    return card.SplitReport(count, size, tally, remarks), infos, skipped


def write_skipped(out: pathlib.Path, skipped: Sequence[Skipped]) -> None:
    """Lists what was left out, if anything was."""
    path = out / "skipped.csv"
    if not skipped:
        path.unlink(missing_ok=True)  # of an earlier attempt
        return
    text = io.StringIO(newline="")
    rows = [(*skip.names, skip.reason) for skip in skipped]
    csv.writer(text).writerows([(*card.NAMES, "reason"), *rows])
    atomic.write_whole(path, text.getvalue())


def write_index(out: pathlib.Path, kept: Mapping[str, list[dict]]) -> None:
    """Writes the index of each split, see `record_format.Records.index`.

    Raises:
        InputError: two records have the same id.
    """
    indices = {
        split: {
            field: np.concatenate([part["index"][field] for part in parts])
            for field in parts[0]["index"]
        }
        for split, parts in kept.items()
    }
    ids = np.concatenate([index["id"] for index in indices.values()]).tolist()
    name, times = collections.Counter(ids).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"The id {name!r} belongs to {times} records; remove its copies from the "
            "archive, delete the build, and start it again."
        )
    for split, index in indices.items():
        content = io.BytesIO()
        np.savez_compressed(content, **index)
        atomic.write_whole(out / dataset_card.index_name(split), content.getvalue())


def draw(out: pathlib.Path, description: Description, splits: Sequence[str]) -> None:
    """Draws the contact sheet from the records as they were written."""
    opened = [record_format.Records(out, split) for split in splits]
    starts = np.cumsum([0, *map(len, opened)])
    places = np.linspace(0, starts[-1] - 1, preview.SHOWN).astype(int)
    shown = []
    for place in np.unique(places):
        part = int(np.searchsorted(starts, place, side="right")) - 1
        shown.append(opened[part][int(place - starts[part])])
    preview.draw(description, shown, out / card.SHEET_FILE)


def _tell(
    out: pathlib.Path,
    description: Description,
    content: Mapping,
    empty: Sequence[str],
) -> None:
    """Prints what the card of a dataset, `content`, holds for whoever built it."""
    pairs, splits = content["pairs"], content["splits"]
    counts = ", ".join(f"{part['pairs']} in {name}" for name, part in splits.items())
    bad = f"skipped {pairs['skipped']}"
    left = f"; {pairs['unlisted']} are in no list" if pairs["unlisted"] else ""
    left += "".join(f"; no good pair is left in {split}" for split in empty)
    print(f"{out}: of {pairs['found']} pairs wrote {counts}; {bad}{left}.")
    for remark in card.in_words(content["remarks"]):
        print(remark)
    for name, sensor in description.sensors.items():
        if share := card.missing_share(splits, name):
            print(f"{share:.2%} of the pixels of {sensor.title} were not measured.")
