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
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from data_pipeline import atomic, dataset_card, record_format, sensors
from data_pipeline.archives.base import Skipped
from data_pipeline.building.statistics import Tally
from data_pipeline.dataset_card import CARD_FILE, SPLITS, Description
from data_pipeline.sensors import NAMED, Sensor

TEXT_FILE = "card.md"
SHEET_FILE = "contact_sheet.png"
WIDEST = 48  # columns of a table's source are padded up to here
NAMES = tuple(f"{sensor}_name" for sensor in NAMED)  # of the images of what is skipped
REASONS = 20  # kinds of reasons that are listed one by one
# A band differs when its mean is so many published deviations away, or when the
# deviation is so many times the published one, or so many times less.
FAR, WIDE = 0.5, 2.0

_PATH = re.compile(r"[^\s'\"(),;\[\]]*[/\\][^\s'\"(),;\[\]]*[^\s'\"(),;\[\].:]")
# What sets one reason apart from its like: what is quoted, lists, names, numbers.
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\S*\d\S*|\S*…\S*|\bV[VH]\b")
_OPEN = """\
```python
from data_pipeline.record_format import Records

records = Records("DIR", "{split}")  # DIR is this folder
pair = records[0]  # {field} is {shape} {dtype}, labels are 0 or 1 for each class
```

or, without this project:

```python
import tensorflow_datasets as tfds

source = tfds.builder_from_directory("DIR").as_data_source("{split}")
```"""


class SplitReport(NamedTuple):
    """What was written of a split: records, their size in bytes, and what they hold."""

    count: int
    bytes: int
    tally: Tally
    remarks: Mapping[str, int] = {}


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
    for split in _ordered(splits):
        count, size, tally, _ = splits[split]
        summary = _rounded(tally.summary())
        summaries[split] = {"pairs": count, "bytes": size} | summary
    written = sum(report.count for report in splits.values())
    first = reference(splits)
    return {
        "description": description.describe(),
        "pairs": {
            "found": written + len(skipped) + unlisted,
            "written": written,
            "skipped": len(skipped),
            "unlisted": unlisted,
        },
        "splits": summaries,
        "reference_split": first,
        "differing": differing(description, summaries[first]["sensors"]),
        "skipped": reasons(skipped),
        "remarks": all_remarks(splits),
        "build": dict(sorted(build.items())),
        "files": dict(sorted(checksums.items())),
    }


def _ordered(splits: Iterable[str]) -> list[str]:
    return sorted(splits, key=(*SPLITS, *splits).index)


def reference(splits: Iterable[str]) -> str:
    """The split that statistics are taken from: for training, where there is one."""
    return _ordered(splits)[0]


def missing_share(splits: Mapping[str, Mapping], sensor: str) -> float:
    """The share of a sensor's stored pixels that was not measured, in all splits."""
    bands = [b for part in splits.values() for b in part["sensors"][sensor].values()]
    missing, pixels = (sum(b.get(k, 0) for b in bands) for k in ("missing", "pixels"))
    return missing / max(missing + pixels, 1)


def all_remarks(splits: Mapping[str, SplitReport]) -> dict[str, int]:
    """How many of the pairs that were written have what was worth a remark."""
    total = collections.Counter()
    for report in splits.values():
        total.update(report.remarks)
    return dict(sorted(total.items()))


def in_words(remarks: Mapping[str, int]) -> list[str]:
    """Sentences of `all_remarks`, which fit one pair and many."""
    return [f"Pairs that {remark}: {pairs:,}." for remark, pairs in remarks.items()]


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
    atomic.write_whole(directory / TEXT_FILE, text(card))
    atomic.write_whole(directory / CARD_FILE, content)


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


def text(card: Mapping) -> str:
    """The card as Markdown."""
    description = dataset_card.restore(card["description"])
    parts = [
        f"# {description.name}",
        _prose(description.title),
        f"Source: {description.source}",
        f"![Pairs from all over the dataset]({SHEET_FILE})",
        "## Pairs",
        *_pairs(card),
        "## Opening it",
        _opening(card, description),
        "## Sensors",
        *_sensors(description),
        "## Distribution of the pixels",
        *_distributions(card, description),
        *_classes(card, description),
        *_skipped(card),
        "## Licence",
        f"```text\n{description.licence.strip()}\n```",
        "## Files",
        *_files(card),
    ]
    return "\n\n".join(parts) + "\n"


def _pairs(card: Mapping) -> Iterable[str]:
    pairs = card["pairs"]
    rows = [
        (f"`{split}`", f"{part['pairs']:,}", _size(part["bytes"]))
        for split, part in card["splits"].items()
    ]
    yield _table(("Split", "Pairs", "Uncompressed"), rows)
    yield _prose(
        f"Of {pairs['found']:,} pairs found, {pairs['written']:,} were written, "
        f"{pairs['skipped']:,} skipped, and {pairs['unlisted']:,} left out because no "
        "list asks for them."
    )
    chosen = {k: v for k, v in card["build"].items() if v not in ("", [], {}, 0.0)}
    if chosen:
        lines = [f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in chosen.items()]
        yield "Built with these options:"
        yield "```text\n" + "\n".join(lines) + "\n```"


def _opening(card: Mapping, description: Description) -> str:
    field, shape = next(iter(description.layout.shapes.items()))
    return _OPEN.format(
        split=card["reference_split"],
        field=field,
        shape=list(shape),
        dtype=description.layout.dtypes[field],
    )


def _sensors(description: Description) -> Iterable[str]:
    layout, lines, rows = description.layout, [], []
    for sensor in description.sensors.values():
        low, high = sensor.valid_range
        lines.append(
            f"- **{sensor.title}** {sensor.level} in {sensor.unit}, between {low:g} "
            f"and {high:g}"
        )
    yield "\n".join(lines)
    for grid in layout.grids:
        sensor = description.sensors[grid.sensor]
        native = {b.gsd for b in sensor.bands if b.name in grid.bands}
        rows.append(
            (
                f"`{grid.field}`",
                " ".join(grid.bands),
                ", ".join(f"{gsd} m" for gsd in sorted(native)),
                f"{grid.gsd} m",
                " x ".join(map(str, layout.shapes[grid.field])),
                layout.dtypes[grid.field],
            )
        )
    header = ("Field", "Bands, in this order", "Measured at", "Stored at")
    yield _table((*header, "Shape", "Type"), rows, right=())
    others = [f"`{field}`" for field in (*description.maps, *description.classes)]
    texts = ", ".join(f"`{field}`" for field in record_format.TEXTS)
    labels = f"the labels {', '.join(others)} and " if others else ""
    yield _prose(f"A record also holds {labels}the texts {texts}.")


def _distributions(card: Mapping, description: Description) -> Iterable[str]:
    split = card["reference_split"]
    pairs = card["splits"][split]["pairs"]
    yield _prose(
        f"Of all stored pixels of the {pairs:,} pairs of `{split}`, each on its own "
        "grid, beside the published mean and standard deviation. `card.json` has the "
        "other splits too."
    )
    measured = card["splits"][split]["sensors"]
    marked = {(row["sensor"], row["band"]) for row in card["differing"]}
    for name, sensor in description.sensors.items():
        yield f"### {sensor.title}, {sensor.unit}"
        yield _distribution_table(sensor, measured[name], marked)
        yield _prose(f"Published: {sensor.source}.")
        yield from _missing(card, sensor)
    if marked:
        few = " With so few pairs that is no surprise." if pairs < 1000 else ""
        yield _prose(
            "**Bands marked `differs`** have a mean more than half a published "
            "standard deviation away from the published one, or a standard deviation "
            f"less than half or more than twice as large.{few} Otherwise see whether "
            "unit, offset and processing level are what the card says, and normalise "
            "with the statistics of this table rather than the published ones."
        )


def _missing(card: Mapping, sensor: Sensor) -> Iterable[str]:
    """How much of a sensor was not measured, where something was not."""
    share = missing_share(card["splits"], sensor.name)
    if share:
        yield _prose(
            f"{share:.2%} of {sensor.title} was not measured, and is stored as "
            f"{sensors.MISSING[sensor.dtype]}."
        )


def _distribution_table(sensor: Sensor, measured: Mapping, marked: set) -> str:
    places = 2 if sensor.dtype.startswith("float") else 0
    rows, percentiles = [], ()
    for band in sensor.bands:
        here = measured[band.name]
        if not here["pixels"]:
            continue
        percentiles = tuple(here["percentiles"])
        middle = (here["mean"], band.mean, here["std"], band.std)
        values = (here["min"], *here["percentiles"].values(), here["max"])
        rows.append(
            (
                band.name,
                *(f"{value:.{max(places, 1)}f}" for value in middle),
                *(f"{value:.{places}f}" for value in values),
                "`differs`" if (sensor.name, band.name) in marked else "",
            )
        )
    header = ("Band", "Mean", "published", "Std", "published", "Min")
    return _table((*header, *(f"{p} %" for p in percentiles), "Max", ""), rows)


def _classes(card: Mapping, description: Description) -> Iterable[str]:
    splits = card["splits"]
    if description.classes or description.maps:
        yield "## Classes"
    for field, names in description.classes.items():
        yield f"### `{field}`: pairs of each of {len(names)} classes"
        counts = {split: part["classes"][field] for split, part in splits.items()}
        rows = [
            (name or "*none of them*", *(f"{of[name]:,}" for of in counts.values()))
            for name in (*names, "")
            if name or any(of[""] for of in counts.values())
        ]
        yield _table(("Class", *counts), rows)
    for field, names in description.maps.items():
        yield f"### `{field}`: share of the pixels, of {len(names)} classes"
        counts = {split: part["maps"][field] for split, part in splits.items()}
        totals = {split: max(sum(of.values()), 1) for split, of in counts.items()}
        rows = [
            (
                name or "*none of them*",
                *(f"{of[name] / totals[s]:.2%}" for s, of in counts.items()),
            )
            for name in (*names, "")
            if name or any(of[""] for of in counts.values())
        ]
        yield _table(("Class", *counts), rows)


def _skipped(card: Mapping) -> Iterable[str]:
    yield from map(_prose, in_words(card["remarks"]))
    if not card["skipped"]:
        return
    yield "## What was skipped"
    rows = []
    for row in card["skipped"]:
        if "example" in row:
            example = row["example"]
            names = (example[f"{sensor}_name"] for sensor in NAMED)
            name = f"`{next(filter(None, names))}`"
            rows.append((f"{row['count']:,}", example["reason"], name))
        else:
            rows.append((f"{row['count']:,}", f"{row['kinds']} other reasons", ""))
    yield _table(("Pairs", "Why, for example", "Here"), rows, right=(0,))
    yield "`skipped.csv` lists every one."


def _files(card: Mapping) -> Iterable[str]:
    if card["files"]:
        yield "`sha256sum --check card.md` in this folder compares them."
        sums = "\n".join(f"{digest}  {name}" for name, digest in card["files"].items())
        yield f"```text\n{sums}\n```"


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[int] | None = None,
) -> str:
    """A table that can be read unrendered too.

    Args:
        header: of the columns.
        rows: of cells.
        right: columns of numbers; all but the first by default.
    """
    right = range(1, len(header)) if right is None else right
    rows = [header, *([_cell(cell) for cell in row] for row in rows)]
    columns = [[len(cell) for cell in column] for column in zip(*rows)]
    widths = [max(3, *(n for n in column if n <= WIDEST)) for column in columns]
    rule = ["-" * (w - (i in right)) + ":" * (i in right) for i, w in enumerate(widths)]
    lines = [
        " | ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in (header, rule, *rows[1:])
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", r"\|")


def _prose(words: str) -> str:
    return textwrap.fill(words, 80, break_long_words=False, break_on_hyphens=False)


def _size(count: int) -> str:
    """A number of bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
