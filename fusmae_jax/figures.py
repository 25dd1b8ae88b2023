"""Figures a person looks at: reconstructions, and the course of the loss."""

import io
import pathlib
import textwrap

import numpy as np
from matplotlib import figure, image, patches

from data_pipeline import sensors

GREY = 0.82  # of hidden patches
LEAST_RANGE = 600.0  # DN; a forest stays dark green however little it varies
# What is drawn black and what full, in dB.
RADAR_LIMITS = {"VV": (-20.0, 0.0), "VH": (-27.0, -7.0), "VV - VH": (0.0, 14.0)}
COLUMNS = ("input", "masked", "prediction", "target")


def true_color(pixels: np.ndarray, sensor: sensors.Sensor) -> np.ndarray:
    """Red, green and blue of Sentinel-2 images [..., C] in DN; grey without them."""
    names = sensor.band_names
    wanted = ("B04", "B03", "B02")
    chosen = wanted if set(wanted) <= set(names) else names[:1] * 3
    return np.stack([pixels[..., names.index(name)] for name in chosen], axis=-1)


def false_color(pixels: np.ndarray, sensor: sensors.Sensor) -> np.ndarray:
    """VV, VH and VV - VH of Sentinel-1 images [..., C] in dB; grey without both."""
    names = sensor.band_names
    if not {"VV", "VH"} <= set(names):
        return np.repeat(pixels[..., :1], 3, axis=-1)
    vv, vh = pixels[..., names.index("VV")], pixels[..., names.index("VH")]
    return np.stack([vv, vh, vv - vh], axis=-1)


def picture(
    pixels: np.ndarray, like: np.ndarray, sensor: sensors.Sensor
) -> np.ndarray:
    """An RGB picture in [0, 1] of images [..., C] in native units.

    Sentinel-2 is stretched from the 2nd to the 98th percentile of `like`, all colours
    alike, which keeps hues true; Sentinel-1 between fixed limits, which keeps speckle
    from shouting and scenes comparable.
    """
    if sensor.name == "s1":
        color = false_color(pixels, sensor)
        both = {"VV", "VH"} <= set(sensor.band_names)
        names = RADAR_LIMITS if both else sensor.band_names[:1]
        low, high = np.transpose([RADAR_LIMITS[name] for name in names])
    else:
        color = true_color(pixels, sensor)
        low, high = np.percentile(true_color(like, sensor), (2, 98))
        high = max(high, low + LEAST_RANGE)
    return np.clip((color - low) / (high - low), 0.0, 1.0)


def reconstruction_figure(samples, contract, *, note: str) -> figure.Figure:
    """Draws input, masked view, prediction and target of both sensors.

    Args:
        samples: one dict per pair: `name`, `box` (the view's top, left, height and
            width in fractions of the scene), and for each sensor a dict of images
            [H, W, C] in native units: `scene`, `prediction`, `target`, and `hidden`
            [H, W] bool.
        contract: the sensors by name.
        note: a line under the figure.
    """
    rows, cols = len(samples), 2 * len(COLUMNS)
    fig = figure.Figure(figsize=(1.75 * cols, 1.75 * rows + 0.75), layout="constrained")
    axes = fig.subplots(rows, cols, squeeze=False)
    for row, sample in zip(axes, samples):
        label = textwrap.fill(sample["name"].replace("_", " "), 22)
        row[0].set_ylabel(label, fontsize=6)
        for start, name in ((0, "s2"), (len(COLUMNS), "s1")):
            sensor, images = contract[name], sample[name]
            target = picture(images["target"], images["target"], sensor)
            masked = np.where(images["hidden"][..., None], GREY, target)
            scene = picture(images["scene"], images["target"], sensor)
            predicted = picture(images["prediction"], images["target"], sensor)
            for ax, shown in zip(row[start:], (scene, masked, predicted, target)):
                ax.imshow(shown, interpolation="nearest")
                ax.set(xticks=[], yticks=[])
            height, width = scene.shape[:2]
            top, left, tall, wide = np.array(sample["box"]) * (
                height, width, height, width
            )
            row[start].add_patch(
                patches.Rectangle(
                    (left - 0.5, top - 0.5), wide, tall, fill=False, ec="w", lw=0.8
                )
            )
    for start, title in ((0, "Sentinel-2"), (len(COLUMNS), "Sentinel-1")):
        for ax, column in zip(axes[0, start:], COLUMNS):
            ax.set_title(f"{title}\n{column}", fontsize=9)
    fig.supxlabel(note, fontsize=8, color="0.35")
    return fig


def loss_figure(rows: list[dict]) -> figure.Figure:
    """Draws training and held-out losses of the rows of `metrics.jsonl` by step."""
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
    ax.set(xlabel="step", ylabel="mean squared error on hidden patches")
    if ax.get_lines():
        ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    return fig


def save(fig: figure.Figure, path) -> np.ndarray:
    """Writes a PNG, replacing it whole, and returns its pixels [H, W, 3] uint8."""
    path = pathlib.Path(path)
    buffer = io.BytesIO()
    fig.savefig(buffer, dpi=120, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(buffer.getvalue())
    aside.replace(path)
    buffer.seek(0)
    return (image.imread(buffer)[..., :3] * 255).astype(np.uint8)


def scene_figure(scenes, *, covers: tuple[str, ...] = ()) -> figure.Figure:
    """Draws whole scenes: Sentinel-2, Sentinel-1 and, where known, land cover.

    Args:
        scenes: one dict per scene: `name`, images `s2` and `s1` [H, W, C] in native
            units with all bands, and with `covers` a `land_cover` [H, W] of indices.
        covers: names of the land covers.
    """
    rows, cols = 2 + bool(covers), len(scenes)
    size = (1.5 * cols + 1, 1.4 * rows + 0.2)
    fig = figure.Figure(figsize=size, layout="constrained")
    axes = fig.subplots(rows, cols, squeeze=False)
    for column, scene in zip(axes.T, scenes):
        for ax, name in zip(column, ("s2", "s1")):
            sensor = sensors.SENSORS[name]
            ax.imshow(picture(scene[name], scene[name], sensor))
        if covers:
            shown = column[2].imshow(
                scene["land_cover"], cmap="tab10", vmin=-0.5, vmax=len(covers) - 0.5
            )
        column[0].set_title(scene["name"], fontsize=7)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    if covers:
        bar = fig.colorbar(shown, ax=axes[2, :], ticks=range(len(covers)))
        bar.ax.set_yticklabels(covers, fontsize=5)
    return fig
