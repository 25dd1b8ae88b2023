"""Figures of what is taken for what: confusion, and its like for several labels."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import figure

WRITTEN = 20  # classes, where the cells have room for numbers
NO_PAIRS = "0.93"  # of the rows of classes that no pair has


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
    return _figure(shares, names, classes, title, "predicted class", "true class")


def cooccurrence_figure(
    shares: np.ndarray, classes: Sequence[str], *, title: str
) -> figure.Figure:
    """Draws what `cooccurrence` found, [C, C]; rows need not add up to one."""
    title += "\n(a pair has several classes: rows do not add up to 100 %)"
    names = list(map(_wrapped, classes))
    return _figure(shares, names, classes, title, "predicted class", "pairs with class")


def _ratio(counts, totals):
    """Rows of counts as shares of their totals; nan where a total is 0."""
    totals, out = totals[:, None], np.full_like(counts, np.nan)
    return np.divide(counts, totals, out=out, where=totals > 0)


def _figure(shares, row_names, classes, title, xlabel, ylabel):
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


def _wrapped(name):
    return textwrap.fill(name, 44)
