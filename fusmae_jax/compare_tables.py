"""The tables and the figure of a comparison, of results as `compare` keeps them.

A result is what is known of one training: `arm`, `seed`, `rate`, `epochs`, its `cost`,
and `rows`, one for each score, with the columns of `results.SCHEMA` and `evaluation`.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusmae_jax.evaluation import results
from fusmae_jax.inputs import SENSORS
from fusmae_jax.reconstruct import PREDICTORS


def as_csv(found: Sequence[Mapping]) -> str:
    """Every score of every result, in long form."""
    columns = ("arm", "seed", "rate", "epochs", "evaluation")
    columns += tuple(k for k in results.SCHEMA if k in found[0]["rows"][0])
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for result in found:
        for row in result["rows"]:
            writer.writerow({k: result.get(k) for k in columns} | row)
    return text.getvalue()


class Cell(NamedTuple):
    """What stands in one place of a table: a score over seeds.

    Attributes:
        value: the mean.
        low, high: a standard deviation over seeds below and above; of a single seed the
            ends of the evaluation's own interval.
        count: seeds.
    """

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        value, low, high = (100 * x for x in self[:3])
        if self.count > 1:
            return f"{value:.1f} ± {high - value:.1f}"
        return f"{value:.1f}" + (f" [{low:.1f}, {high:.1f}]" if low == low else "")


def cells(found: Sequence[Mapping]) -> dict[tuple, dict[tuple, Cell]]:
    """Scores over seeds, {(evaluation, task, fraction): {(line, sensors): Cell}}.

    A line is an arm, or what it was judged beside. Several draws of a fraction of the
    labels count as one seed's mean.
    """
    gathered: dict = {}
    for result in found:
        for row in result["rows"]:
            if row["value"] is None:
                continue
            line = row["encoder"]
            if line not in results.RIVALS:
                line = result["arm"]
            elif line in (results.RANDOM, results.SUPERVISED):
                line = f"{result['arm']}, {line}"
            place = row["evaluation"], row["task"], row["fraction"]
            seeds = gathered.setdefault(place, {}).setdefault(
                (line, row["sensors"]), {}
            )
            ends = [np.nan if row[k] is None else row[k] for k in ("ci_low", "ci_high")]
            seeds.setdefault(result["seed"], []).append([row["value"], *ends])
    return {
        place: {at: _over_seeds(seeds) for at, seeds in sorted(lines.items())}
        for place, lines in sorted(gathered.items())
    }


def _over_seeds(seeds: Mapping[int, list]) -> Cell:
    means = np.array([np.mean(draws, axis=0) for draws in seeds.values()])
    if len(means) == 1:
        return Cell(*means[0].tolist(), 1)
    value, spread = means[:, 0].mean(), means[:, 0].std(ddof=1)
    return Cell(float(value), float(value - spread), float(value + spread), len(means))


def title(metric: str, of_class: str) -> str:
    name = results.METRICS.get(metric, metric)
    return f"{name} of {of_class}, %" if of_class else f"{name}, %"


def _lines(of_place: Mapping[tuple, Cell], sensors: Sequence[str]) -> Iterator[str]:
    """Lines of a table, the best first by what is in its last column."""
    names = dict.fromkeys(line for line, _ in of_place)
    last = lambda line: max(
        (c.value for (n, s), c in of_place.items() if n == line and s == sensors[-1]),
        default=-1.0,
    )
    for line in sorted(names, key=last, reverse=True):
        scores = [str(of_place.get((line, s), "-")) for s in sensors]
        counts = {c.count for (n, _), c in of_place.items() if n == line}
        yield f"| {line} | {' | '.join(scores)} | {max(counts)} |"


def _sensors(of_place: Mapping[tuple, Cell]) -> list[str]:
    return [s for s in results.SENSORS if any(s == x for _, x in of_place)]


def as_table(found: Sequence[Mapping], titles: Mapping[str, str]) -> str:
    """The comparison as Markdown: scores over seeds, and what each arm costs.

    Args:
        found: results, with the rows of one score of each evaluation.
        titles: of that score, by evaluation.
    """
    parts = []
    for (evaluation, task, fraction), of_place in cells(found).items():
        sensors = _sensors(of_place)
        share = f", {results.percent(float(fraction))} of the labels"
        of_labels = "" if task == "retrieval" else share  # which needs none
        columns = [results.SENSORS[s] for s in sensors]
        parts += [
            f"**{evaluation}: {results.TASKS[task]}{of_labels}, "
            f"{titles[evaluation]}** (mean ± standard deviation over seeds, or "
            "the 95 % interval of a single one)",
            "",
            f"| | {' | '.join(columns)} | seeds |",
            "|---" * (len(columns) + 2) + "|",
            *_lines(of_place, sensors),
            "",
        ]
    parts += _reconstructions(found)
    parts += [
        "| cost | GFLOP an image | images/s | MB a step | epochs | rate | devices |",
        "|---|---|---|---|---|---|---|",
    ]
    seen = set()
    for result in found:
        cost, arm = result["cost"], result["arm"]
        if arm in seen:
            continue
        seen.add(arm)
        speeds = [x["cost"].get("images_per_second") for x in found if x["arm"] == arm]
        speed = [x for x in speeds if x]
        memory = cost.get("step_memory_bytes")
        flops = cost["flops_per_image"]
        parts.append(
            f"| {arm} | {f'{flops / 1e9:.3g}' if flops else '-'} | "
            f"{f'{np.median(speed):.0f}' if speed else '-'} | "
            f"{f'{memory / 1e6:.0f}' if memory else '-'} | "
            f"{result.get('epochs', '-')} | {result.get('rate', 1.0):g} | "
            f"{cost.get('devices', '-')} |"
        )
    return "\n".join(parts) + "\n"


def _reconstructions(found: Sequence[Mapping]) -> Iterator[str]:
    """Lines of a table of errors on hidden patches, of arms that draw these.

    Simple predictors stand below, by the masks of the first of them.
    """
    drawn: dict = {}
    for result in found:
        if report := result.get("reconstruction"):
            first = not drawn
            for name, errors in report["mean_squared_error"].items():
                own = name not in PREDICTORS
                if own or first:
                    line = result["arm"] if own else name
                    ratio = f"{100 * report['mask_ratio']:g} %" if own else ""
                    lines = drawn.setdefault((not own, line, ratio), [])
                    lines.append([errors.get(s) for s in SENSORS])
    if not drawn:
        return
    yield "**Error on hidden patches of held-out pairs** (mean squared, less is better)"
    yield ""
    titles = " | ".join(results.SENSORS[s] for s in SENSORS)
    yield f"| | hidden | {titles} |"
    yield "|---" * (len(SENSORS) + 2) + "|"
    for (_, line, ratio), errors in sorted(drawn.items()):
        columns = ([x for x in column if x is not None] for column in zip(*errors))
        means = [f"{np.mean(x):.4f}" if x else "-" for x in columns]
        yield f"| {line} | {ratio} | {' | '.join(means)} |"
    yield ""


def draw(found: Sequence[Mapping], titles: Mapping[str, str]):
    """Draws the scores as points with intervals: a panel for each table.

    Args:
        found, titles: see `as_table`.
    """
    from matplotlib import figure

    from fusmae_jax.evaluation.plots import SENSOR_COLORS

    panels = cells(found)
    count = max(len({line for line, _ in x}) for x in panels.values())
    wide, high = 3.2 * len(panels) + 2.2, 0.34 * count + 1.5
    fig = figure.Figure(figsize=(wide, high), layout="constrained")
    alike = len({titles[evaluation] for evaluation, *_ in panels}) == 1
    axes = fig.subplots(1, len(panels), squeeze=False, sharex=alike)[0]
    for ax, ((evaluation, task, fraction), of_place) in zip(axes, panels.items()):
        sensors = _sensors(of_place)
        names = [x.split(" | ")[0][2:] for x in _lines(of_place, sensors)]
        for i, s in enumerate(sensors):
            at = [(y, of_place.get((name, s))) for y, name in enumerate(names)]
            at = [(y + 0.2 * (i - (len(sensors) - 1) / 2), c) for y, c in at if c]
            y, value = [y for y, _ in at], [100 * c.value for _, c in at]
            ends = [(c.value - c.low, c.high - c.value) for _, c in at]
            ends = 100 * np.nan_to_num(np.array(ends)).clip(min=0).T
            color = SENSOR_COLORS[s]
            ax.errorbar(
                value,
                y,
                xerr=ends,
                fmt="o",
                ms=5,
                color=color,
                label=results.SENSORS[s],
            )
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_ylim(len(names) - 0.5, -0.5)
        share = results.percent(float(fraction))
        ax.set_title(f"{evaluation}: {results.TASKS[task]}, {share}", fontsize=9)
        ax.set_xlabel(titles[evaluation], fontsize=9)
        ax.grid(axis="x", alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    shown = [ax.get_legend_handles_labels() for ax in axes]
    handles = {name: x for one in shown for x, name in zip(*one)}
    options = dict(loc="outside lower center", ncols=5, frameon=False)
    fig.legend(handles.values(), handles.keys(), **options)
    return fig
