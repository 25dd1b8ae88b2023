"""Figures of an evaluation; `fusmae_jax.figures.save` writes them.

Colours are those of Okabe and Ito, which colour-blind people tell apart; encoders
differ in their markers too.
"""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import figure

from data_pipeline.building.preview import class_colors
from fusmae_jax.evaluation.results import (
    METRICS,
    RIVALS,
    SENSORS,
    TASKS,
    Row,
    group,
    having,
    over_seeds,
    percent,
)

SENSOR_COLORS = dict(
    zip(SENSORS, ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00"))
)
RIVAL_STYLES = dict(
    zip(RIVALS, (("#777777", "s"), ("#CC79A7", "^"), ("k", "D"), ("#999933", "p")))
)
MODEL_STYLES = (
    *(("#D55E00", "o"), ("#56B4E9", "v"), ("#8A6D00", "P")),
    *(("#0072B2", "X"), ("#009E73", "*")),
)
PER_CLASS = ("ap", "recall", "iou")  # the one that is drawn
MARKERS = "os^Dv"  # of classes, whose colours may be alike
POINTS = 4000  # in a projection; more hide each other
WRITTEN = 20  # classes, where the cells of a matrix have room for numbers
NO_PAIRS = "0.93"  # of the rows of classes that no pair has


def per_class_figure(
    rows: Sequence[Row], classes: Sequence[str], *, where: str, note: str = ""
) -> figure.Figure:
    """Draws the score of each class as bars with intervals, the best class on top.

    Args:
        rows: of one setting, a row for each sensor set that was judged.
        classes: names of the C classes.
        where: dataset and split, for the title.
        note: what is to be known of the numbers, written below.

    Raises:
        ValueError: two rows have the same sensors.
    """
    by_sensors = {row.sensors: row for row in rows}
    if len(by_sensors) < len(rows):
        raise ValueError("Give one row for each sensor set: of one task and subset.")
    sensors = [s for s in SENSORS if s in by_sensors]
    row = by_sensors[sensors[0]]
    metric = next(m for m in PER_CLASS if m in row.scores.per_class)
    # [sensors, classes, (value, low, high)]
    scores = np.array([by_sensors[s].scores.per_class[metric] for s in sensors]) * 100
    known = np.nan_to_num(scores[..., 0], nan=-1.0).mean(axis=0)
    order = np.argsort(-known, kind="stable")
    thick = 0.8 / len(sensors)
    high = max(0.15 * len(sensors), 0.27) * len(classes)
    fig = figure.Figure(figsize=(8, 1.3 + high), layout="constrained")
    ax = fig.subplots()
    places = np.arange(len(classes))
    for i, s in enumerate(sensors):
        y = places + (i - (len(sensors) - 1) / 2) * thick
        value, low, up = scores[i, order].T
        ax.barh(y, value, 0.9 * thick, color=SENSOR_COLORS[s], label=SENSORS[s])
        _whiskers(ax, value, y, low, up, across=True)
    for y in places[known[order] < 0]:
        ax.text(1, y, "not in this split", va="center", fontsize=7, color="0.4")
    names = [_wrapped(classes[i]) for i in order]
    ax.set_yticks(places, names, fontsize=8)
    ax.set(ylim=(len(classes) - 0.4, -0.6), xlim=(0, 100))
    ax.set_xlabel(f"{METRICS.get(metric, metric)} of the class, %", fontsize=9)
    fig.suptitle(
        f"{_capital(TASKS[row.task])}, {row.encoder}, {percent(row.fraction)} of the "
        f"labels; lines: 95 % intervals\n"
        f"{where}, {row.test_pairs:,} pairs",
        fontsize=10,
    )
    _tidy(ax, "x")
    if len(sensors) > 1:
        options = dict(title=_filled(fig, note), ncols=len(sensors), **_BELOW)
        fig.legend(*ax.get_legend_handles_labels(), **options)
    else:
        _footnote(fig, note)
    return fig


def sensors_figure(
    rows: Sequence[Row], metric: str, *, where: str, note: str = ""
) -> figure.Figure:
    """Draws S1, S2 and both beside each other for every encoder, a panel per task.

    Of several shares of the labels the largest is drawn, as the panel says.

    Args:
        rows: of one evaluation; those without the metric are left out.
        metric: a name in `Scores.overall`.
        where: dataset and split, for the title.
        note: what is to be known of the numbers, written below.

    Raises:
        InputError: no row has the metric.
    """
    cells = group(having(rows, metric))
    panels = {}  # {task: (fraction, {encoder: cell})}
    for (task, fraction, encoder), cell in cells.items():
        if task not in panels or fraction > panels[task][0]:
            panels[task] = fraction, {}
        panels[task][1][encoder] = cell
    widths = [max(len(panel), 2) for _, panel in panels.values()]
    fig = figure.Figure(figsize=(1.0 + 1.75 * sum(widths), 4), layout="constrained")
    axes = fig.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)
    sensors = [s for s in SENSORS if any(s in cell for cell in cells.values())]
    wide = 0.8 / max(len(sensors), 2)
    for ax, (task, (fraction, panel)) in zip(axes[0], panels.items()):
        for i, s in enumerate(sensors):
            shift = (i - (len(sensors) - 1) / 2) * wide
            bars = [
                (place + shift, *np.multiply(over_seeds(cell[s], metric), 100))
                for place, cell in enumerate(panel.values())
                if s in cell
            ]
            x, value, low, up = np.array(bars).reshape(-1, 4).T
            ax.bar(x, value, 0.9 * wide, color=SENSOR_COLORS[s], label=SENSORS[s])
            _whiskers(ax, x, value, low, up)
            for place, y, top in zip(x, value, np.fmax(up, value)):
                if y == y:
                    ax.text(place, top + 1, f"{y:.1f}", ha="center", fontsize=7)
        names = [textwrap.fill(name, 16) for name in panel]
        ax.set_xticks(range(len(panel)), names, fontsize=8)
        ax.set(xlim=(-0.6, len(panel) - 0.4), ylim=(0, 105))
        title = f"{_capital(TASKS[task])}, {percent(fraction)} of the labels"
        ax.set_title(title, fontsize=9)
        _tidy(ax, "y")
    drawn = [cell for _, panel in panels.values() for cell in panel.values()]
    _caption(fig, f"{METRICS.get(metric, metric)}, %", where, drawn, note)
    return fig


def fractions_figure(
    rows: Sequence[Row], metric: str, *, where: str, note: str = ""
) -> figure.Figure:
    """Draws scores by the share of labels: a line per encoder, a panel per sensor set.

    Args:
        rows: of one evaluation; those without the metric are left out.
        metric: a name in `Scores.overall`.
        where: dataset and split, for the title.
        note: what is to be known of the numbers, written below.

    Raises:
        InputError: no row has the metric.
    """
    cells = group(having(rows, metric))
    tasks = list(dict.fromkeys(task for task, _, _ in cells))
    sensors = [s for s in SENSORS if any(s in cell for cell in cells.values())]
    names = list(dict.fromkeys(name for _, _, name in cells))
    models = [name for name in names if name not in RIVAL_STYLES]
    styles = RIVAL_STYLES | {
        name: MODEL_STYLES[i % len(MODEL_STYLES)] for i, name in enumerate(models)
    }
    size = 1.2 + 2.8 * len(sensors), 1.2 + 2.4 * len(tasks)
    fig = figure.Figure(figsize=size, layout="constrained")
    axes = fig.subplots(
        len(tasks), len(sensors), sharex=True, sharey="row", squeeze=False
    )
    for (i, j), ax in np.ndenumerate(axes):
        for name in names:
            points = [
                (fraction, *over_seeds(cell[sensors[j]], metric))
                for (task, fraction, encoder), cell in cells.items()
                if (task, encoder) == (tasks[i], name) and sensors[j] in cell
            ]
            if points:
                x, value, low, up = np.array(points).T * 100
                color, marker = styles[name]
                ax.plot(x, value, color=color, marker=marker, ms=5, label=name)
                _whiskers(ax, x, value, low, up, color=color)
        title = f"{_capital(TASKS[tasks[i]])}, {SENSORS[sensors[j]]}"
        ax.set_title(title, fontsize=9)
        _tidy(ax, "both")
    shares = sorted({fraction for _, fraction, _ in cells})
    axes[0, 0].set_xscale("log")
    axes[0, 0].set_xlim(60 * shares[0], 160 * shares[-1])
    for ax in axes.flat:
        ax.set_xticks(np.multiply(shares, 100), list(map(percent, shares)))
        ax.minorticks_off()
    for ax in axes[-1]:
        ax.set_xlabel("training labels used", fontsize=9)
    _caption(fig, f"{METRICS.get(metric, metric)}, %", where, cells.values(), note)
    return fig


def projection_figure(
    features: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    *,
    title: str,
    note: str = "",
) -> figure.Figure:
    """Draws features on their first two principal components, coloured by class.

    Of many pairs, `POINTS` are drawn, evenly spaced; the components are theirs.

    Args:
        features: [N, D].
        labels: [N, C], one where a pair has the class.
        classes: names of the C classes.
        title: of the figure.
        note: what is to be known of the features, written below.
    """
    labels = np.asarray(labels) > 0
    drawn = np.linspace(0, len(labels) - 1, min(POINTS, len(labels))).astype(int)
    rarest = _rarest(labels)[drawn]
    xy, shares = principal(np.asarray(features, np.float64)[drawn])
    found = np.unique(rarest)
    columns = 1 if len(found) <= 22 else 2
    fig = figure.Figure(figsize=(6.2 + 2.8 * columns, 5.6), layout="constrained")
    ax = fig.subplots()
    colors = class_colors(classes) / 255
    # Common classes first, or they would cover the rare ones.
    points = {
        c: ax.scatter(
            *xy[rarest == c].T,
            s=14,
            marker=MARKERS[c % len(MARKERS)],
            facecolor=colors[c],
            edgecolor="0.3",
            lw=0.2,
            alpha=0.75,
            zorder=2 + i,
        )
        for i, c in enumerate(sorted(found, key=lambda c: -(rarest == c).sum()))
    }
    names = [_wrapped(name, 34) for name in (*classes, "no class")]
    fig.legend(
        [points[c] for c in found],
        [names[c] for c in found],
        loc="outside right upper",
        fontsize=7,
        frameon=False,
        markerscale=1.6,
        ncols=columns,
    )
    several = (labels.sum(axis=1) > 1).any()
    colour = "; the colour is the pair's rarest class" if several else ""
    of = f" of {len(labels):,}" if len(drawn) < len(labels) else ""
    ax.set_title(f"{title}\n{len(drawn):,}{of} pairs{colour}", fontsize=10)
    first, second = (f"{100 * share:.0f} % of the variance" for share in shares)
    ax.set_xlabel(f"first principal component, {first}", fontsize=9)
    ax.set_ylabel(f"second principal component, {second}", fontsize=9)
    ax.set(xticks=[], yticks=[])
    ax.set_aspect("equal", adjustable="datalim")
    _tidy(ax, "both")
    _footnote(fig, note)
    return fig


# A note stands in the legend's title, as a footnote would be drawn over a legend.
_BELOW = dict(loc="outside lower center", frameon=False, fontsize=8, title_fontsize=7)


def _rarest(labels):
    """The rarest class of each pair, which says most of it; C where it has none."""
    count = np.where(labels, labels.sum(axis=0), len(labels) + 1)
    return np.where(labels.any(axis=1), count.argmin(axis=1), labels.shape[1])


def principal(features):
    """Coordinates [N, 2] and shares of the variance of the two largest components."""
    centred = features - features.mean(axis=0)
    variance, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, :-3:-1]
    # An eigenvector's sign is arbitrary; this one does not depend on the machine.
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, [0, 1]])
    total = max(variance.sum(), np.finfo(float).tiny)
    return centred @ directions, variance[:-3:-1] / total


def _whiskers(ax, x, y, low, high, *, across=False, color="0.15"):
    """Intervals as thin lines; none where they are nan."""
    known = np.isfinite(low) & np.isfinite(high)
    lines = ax.hlines if across else ax.vlines
    lines((y if across else x)[known], low[known], high[known], color=color, lw=1.0)


def _caption(fig, what, where, cells, note):
    """Title and legend of a figure; says what the lines at its scores are."""
    handles = {}
    for ax in fig.axes:
        handles |= dict(reversed(pair) for pair in zip(*ax.get_legend_handles_labels()))
    seeds = {len(rows) for cell in cells for rows in cell.values()}
    lines = ["95 % intervals"] * (1 in seeds)
    lines += [f"± standard deviation over {n} subsets" for n in sorted(seeds - {1})]
    fig.suptitle(f"{what}\n{where}", fontsize=10)
    fig.legend(
        handles.values(),
        handles,
        title="\n".join([f"lines: {', or '.join(lines)}", _filled(fig, note)]).strip(),
        ncols=min(len(handles), int(fig.get_figwidth() / 1.5)),
        **_BELOW,
    )


def _footnote(fig, note):
    if note:
        fig.supxlabel(_filled(fig, note), fontsize=7)


def _filled(fig, note):
    return textwrap.fill(note, int(15 * fig.get_figwidth()))


def _tidy(ax, grid):
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(axis=grid, alpha=0.25)


def _capital(name):
    return name if name == "kNN" else name.capitalize()


def cooccurrence(
    scores: np.ndarray, labels: np.ndarray, threshold: float = 0.5
) -> np.ndarray:
    """Of pairs with class i, the share for which class j is predicted, [C, C].

    What a confusion matrix is to single labels, roughly: a pair may have class j too.

    Args:
        scores: [N, C] probabilities.
        labels: [N, C], one where a pair has the class.
        threshold: a class is predicted above this probability.
    """
    labels = np.asarray(labels, np.float64)
    return _ratio(labels.T @ (np.asarray(scores) > threshold), labels.sum(axis=0))


def confusion_figure(
    confusion: np.ndarray, classes: Sequence[str], *, title: str
) -> figure.Figure:
    """Draws a confusion matrix [C, C] of counts, rows true, as percent of its rows."""
    confusion = np.asarray(confusion, np.float64)
    count = confusion.sum(axis=1)
    # The number follows the wrapped name: a third line would run into its neighbours.
    names = [f"{_wrapped(name)} ({n:,.0f})" for name, n in zip(classes, count)]
    shares = _ratio(confusion, count)
    return _matrix(shares, names, classes, title, "predicted class", "true class")


def cooccurrence_figure(
    shares: np.ndarray, classes: Sequence[str], *, title: str
) -> figure.Figure:
    """Draws what `cooccurrence` found, [C, C]; rows need not add up to one."""
    title += "\n(a pair has several classes: rows do not add up to 100 %)"
    names = list(map(_wrapped, classes))
    return _matrix(shares, names, classes, title, "predicted class", "pairs with class")


def _ratio(counts, totals):
    """Rows of counts as shares of their totals; nan where a total is 0."""
    totals, out = totals[:, None], np.full_like(counts, np.nan)
    return np.divide(counts, totals, out=out, where=totals > 0)


def _matrix(shares, row_names, classes, title, xlabel, ylabel):
    side = len(classes)
    cell = 0.42 if side <= WRITTEN else 0.24
    size = 4.2 + cell * side, 3.2 + cell * side
    fig = figure.Figure(figsize=size, layout="constrained")
    ax = fig.subplots()
    colors = matplotlib.colormaps["cividis"].with_extremes(bad=NO_PAIRS)
    image = ax.imshow(100 * np.ma.masked_invalid(shares), cmap=colors, vmin=0, vmax=100)
    fig.colorbar(image, ax=ax, label="% of the row", shrink=0.6)
    if side <= WRITTEN:
        for (i, j), share in np.ndenumerate(shares):
            if share == share:
                style = dict(ha="center", va="center", fontsize=7)
                color = "k" if share > 0.5 else "w"
                ax.text(j, i, f"{100 * share:.0f}", color=color, **style)
    ax.set_xticks(range(side), list(map(_wrapped, classes)), rotation=90, fontsize=7)
    ax.set_yticks(range(side), row_names, fontsize=7)
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(ylabel, fontsize=9)
    fig.suptitle(title, fontsize=10)
    return fig


def _wrapped(name, width=44):
    return textwrap.fill(name, width)
