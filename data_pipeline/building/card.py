"""The card of a dataset: what it holds, where it comes from, how it is distributed.

`card.json` is for programs and makes a folder a dataset; `card.md` says the same to
people. Neither holds dates, hosts or folders: the same archive gives the same card.
"""

import collections
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_pipeline import files
from data_pipeline.building import card_text
from data_pipeline.archives.base import Skipped
from data_pipeline.dataset_card import Description, SPLITS
from data_pipeline.dataset_card import CARD_FILE
from data_pipeline.building.statistics import Tally
from data_pipeline.sensors import NAMED

TEXT_FILE = "card.md"
NAMES = tuple(f"{sensor}_name" for sensor in NAMED)  # of the images of what is skipped
REASONS = 20  # kinds of reasons that are listed one by one
# A band differs when its mean is so many published deviations away, or when the
# deviation is so many times the published one, or so many times less.
FAR, WIDE = 0.5, 2.0

_PATH = re.compile(r"[^\s'\"(),;\[\]]*[/\\][^\s'\"(),;\[\]]*[^\s'\"(),;\[\].:]")
# What sets one reason apart from its like: what is quoted, lists, names, numbers.
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\S*\d\S*|\S*…\S*|\bV[VH]\b")


class SplitReport(NamedTuple):
    """What was written of a split: records, their size in bytes, and what they hold."""

    count: int
    bytes: int
    tally: Tally


def make(
    description: Description,
    splits: Mapping[str, SplitReport],
    skipped: Sequence[Skipped],
    unlisted: int,
    checksums: Mapping[str, str],
    build: Mapping,
) -> dict:
    """The card as plain data.

    Args:
        description: of the dataset.
        splits: what was written.
        skipped: what was found and left out.
        unlisted: number of pairs that no list asks for.
        checksums: SHA-256 of each file, by name.
        build: options of the build.
    """
    summaries = {}
    for split in sorted(splits, key=(*SPLITS, *splits).index):
        count, size, tally = splits[split]
        summary = _rounded(tally.summary())
        summaries[split] = {"pairs": count, "bytes": size} | summary
    written = sum(report.count for report in splits.values())
    reference = next(iter(summaries))  # the training split where there is one
    return {
        "description": description.describe(),
        "pairs": {
            "found": written + len(skipped) + unlisted,
            "written": written,
            "skipped": len(skipped),
            "unlisted": unlisted,
        },
        "splits": summaries,
        "reference_split": reference,
        "differing": differing(description, summaries[reference]["sensors"]),
        "skipped": reasons(skipped),
        "build": dict(sorted(build.items())),
        "files": dict(sorted(checksums.items())),
    }


def differing(description: Description, measured: Mapping) -> list[dict]:
    """The bands whose statistics are far from the published ones.

    Args:
        description: of the dataset; its sensors hold the published statistics.
        measured: `mean` and `std` by sensor and band.

    Returns:
        For each, `sensor`, `band`, the `shift` of the mean in published deviations,
        and the `ratio` of the deviations.
    """
    found = []
    for name, sensor in description.sensors.items():
        for band in sensor.bands:
            here = measured[name][band.name]
            if not here["pixels"] or not band.std:
                continue
            shift = (here["mean"] - band.mean) / band.std
            ratio = here["std"] / band.std
            if abs(shift) > FAR or not 1 / WIDE <= ratio <= WIDE:
                row = {"sensor": name, "band": band.name, "shift": shift}
                found.append(_rounded(row | {"ratio": ratio}))
    return found


def reasons(skipped: Sequence[Skipped]) -> list[dict]:
    """Why pairs were left out, like reasons together, the most frequent first.

    Returns:
        For each kind the `count` and, of one `example`, the `NAMES` of its images and
        the `reason` without folders. Kinds beyond `REASONS` are one, with the
        number of `kinds` in place of the example.
    """
    kinds = collections.defaultdict(list)
    for skip in skipped:
        skip = dataclasses.replace(skip, reason=_PATH.sub(_last, skip.reason))
        kinds[_kind(skip)].append(skip)
    rows = []
    for alike in kinds.values():
        first = min(alike, key=lambda skip: (skip.names, skip.reason, skip.wanted))
        example = dict(zip(NAMES, first.names))
        example |= {"reason": first.reason, "wanted": first.wanted}
        rows.append({"count": len(alike), "example": example})
    rows.sort(key=lambda row: (-row["count"], list(row["example"].values())))
    rest = rows[REASONS:]
    if rest:
        count = sum(row["count"] for row in rest)
        rows[REASONS:] = [{"count": count, "kinds": len(rest)}]
    return rows


def write(directory: str | os.PathLike, card: Mapping) -> None:
    """Writes both files, each whole or not at all; `card.json` comes last."""
    directory = pathlib.Path(directory)
    content = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    for name, text in ((TEXT_FILE, card_text.text(card)), (CARD_FILE, content)):
        files.write_whole(directory / name, text)


def _last(path: re.Match) -> str:
    """The last part of a path; the whole where it may be words, as in "and/or"."""
    name = re.split(r"[/\\]", path[0].rstrip("/\\"))[-1]
    rooted = re.match(r"[/\\~.]|[A-Za-z]:[/\\]", path[0])
    return name if rooted or "." in name else path[0]


def _kind(skip: Skipped) -> str:
    """A reason without what sets it apart from its like."""
    reason = skip.reason
    for name in filter(None, skip.names):
        reason = reason.replace(name, "…")
    return _PARTICULARS.sub("…", reason)


def _rounded(content):
    """The same with every number rounded, so that no machine's last digit shows."""
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    return round(content, 6) if isinstance(content, float) else content
