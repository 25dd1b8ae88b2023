"""The card of a dataset as Markdown, see `card`."""

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from data_pipeline import dataset_card, record_format
from data_pipeline.dataset_card import Description
from data_pipeline.sensors import NAMED, Sensor

SHEET_FILE = "contact_sheet.png"
WIDEST = 48  # columns of a table's source are padded up to here

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
    if marked:
        few = " With so few pairs that is no surprise." if pairs < 1000 else ""
        yield _prose(
            "**Bands marked `differs`** have a mean more than half a published "
            "standard deviation away from the published one, or a standard deviation "
            f"less than half or more than twice as large.{few} Otherwise see whether "
            "unit, offset and processing level are what the card says, and normalise "
            "with the statistics of this table rather than the published ones."
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
