"""Figures a person looks at: reconstructions, and the course of the loss.

Matplotlib is imported when something is drawn: the first step need not wait for it.
"""

import io
import pathlib
import textwrap

import numpy as np

from data_pipeline import atomic
from data_pipeline.building.preview import picture

GREY = 0.82  # of hidden patches
COLUMNS = ("input", "masked", "prediction", "target")


def reconstruction_figure(samples, contract, *, note: str):
    """Draws input, masked view, prediction and target of the sensors that have any.

    Args:
        samples: one dict per pair: `name`, `box` (the view's top, left, height and
            width in fractions of the scene), and for sensors a dict of images
            [H, W, C] in native units, NaN where nothing was measured: `scene`,
            `prediction`, `target`, and `hidden` [H, W] bool.
        contract: the sensors by name.
        note: a line under the figure.
    """
    from matplotlib import figure, patches

    measured = lambda name: any(
        not _missing(sample[name]["target"]).all() for sample in samples
    )
    drawn = [name for name in ("s2", "s1") if name in samples[0]]
    names = [name for name in drawn if measured(name)] or drawn[:1]
    starts = {name: i * len(COLUMNS) for i, name in enumerate(names)}
    rows, cols = len(samples), len(names) * len(COLUMNS)
    fig = figure.Figure(figsize=(1.75 * cols, 1.75 * rows + 0.75), layout="constrained")
    axes = fig.subplots(rows, cols, squeeze=False)
    for row, sample in zip(axes, samples):
        label = textwrap.fill(sample["name"].replace("_", " "), 22)
        row[0].set_ylabel(label, fontsize=6)
        for name, start in starts.items():
            sensor, images = contract[name], sample[name]
            scene, predicted, target = (
                picture(images[kind], images["target"], sensor)
                for kind in ("scene", "prediction", "target")
            )
            grey = images["hidden"] & ~_missing(images["target"])
            masked = np.where(grey[..., None], GREY, target)
            for ax, shown in zip(row[start:], (scene, masked, predicted, target)):
                ax.imshow(shown, interpolation="nearest")
                ax.set(xticks=[], yticks=[])
            height, width = scene.shape[:2]
            top, left, tall, wide = np.array(sample["box"]) * (
                height,
                width,
                height,
                width,
            )
            row[start].add_patch(
                patches.Rectangle(
                    (left - 0.5, top - 0.5), wide, tall, fill=False, ec="w", lw=0.8
                )
            )
    for name, start in starts.items():
        for ax, column in zip(axes[0, start:], COLUMNS):
            ax.set_title(f"{contract[name].title}\n{column}", fontsize=9)
    fig.supxlabel(note, fontsize=8, color="0.35")
    return fig


def _missing(image: np.ndarray) -> np.ndarray:
    """Which pixels of an image [H, W, C] were not measured, [H, W]."""
    return np.isnan(image).any(axis=-1)


def loss_figure(rows: list[dict]):
    """Draws training and held-out losses of the rows of `metrics.jsonl` by step."""
    from matplotlib import figure

    fig = figure.Figure(figsize=(7, 4), layout="constrained")
    ax = fig.subplots()
    for name, style, label in (
        ("loss_s1", "C0-", "Sentinel-1, training"),
        ("loss_s2", "C2-", "Sentinel-2, training"),
        ("eval_loss_s1", "C0o--", "Sentinel-1, held out"),
        ("eval_loss_s2", "C2o--", "Sentinel-2, held out"),
    ):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            ax.plot(*zip(*points), style, label=label, lw=1.2, ms=3)
    for name, color, label in (
        ("eval_floor_s1", "C0", "Sentinel-1, floor (estimate)"),
        ("eval_floor_s2", "C2", "Sentinel-2, floor (estimate)"),
    ):
        floor = [row[name] for row in rows if row.get(name) is not None]
        if floor:
            ax.axhline(floor[-1], color=color, ls=":", lw=1.2, label=label)
    ax.set(xlabel="step", ylabel="mean squared error on hidden patches")
    if ax.get_lines():
        fig.legend(loc="outside lower center", ncols=3, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    return fig


def save(fig, path) -> np.ndarray:
    """Writes a PNG, replacing it whole, and returns its pixels [H, W, 3] uint8."""
    from matplotlib import image

    buffer = io.BytesIO()
    fig.savefig(buffer, dpi=120, format="png")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    atomic.write_whole(path, buffer.getvalue())
    buffer.seek(0)
    return (image.imread(buffer)[..., :3] * 255).astype(np.uint8)
