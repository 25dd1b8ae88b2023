"""How pairs look to people: pictures of bands, colours of classes, contact sheets."""

import colorsys
import io
import os
import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline import atomic, sensors
from data_pipeline.dataset_card import Description

SHOWN, COLUMNS = 24, 6  # pairs on a contact sheet, and in a row of it
PAPER, INK = (20, 23, 28), "#f2f2f0"
FONT = {"family": "DejaVu Sans", "color": INK, "parse_math": False}

# Words in the names of classes that tell a colour: hue, lightness, saturation.
HUES = {
    **dict.fromkeys(("wetland", "marsh", "mangrove"), (0.48, 0.48, 0.36)),
    **dict.fromkeys(("water", "sea", "ocean", "lagoon", "river"), (0.58, 0.46, 0.60)),
    **dict.fromkeys(("urban", "built", "road", "industr"), (0.99, 0.50, 0.58)),
    **dict.fromkeys(("bare", "barren", "beach", "sand", "soil"), (0.07, 0.74, 0.34)),
    **dict.fromkeys(("crop", "arable", "agri", "cultiv"), (0.12, 0.62, 0.72)),
    **dict.fromkeys(("grass", "pasture", "grazing"), (0.23, 0.60, 0.46)),
    **dict.fromkeys(("shrub", "moor", "heath", "savanna"), (0.17, 0.44, 0.38)),
    **dict.fromkeys(("forest", "wood", "tree"), (0.36, 0.30, 0.46)),
    **dict.fromkeys(("snow", "ice"), (0.55, 0.90, 0.45)),
}
OTHERS = (0.55, 0.35)  # lightness and saturation of classes with other names
NO_COLOR = (58, 62, 68)  # of pixels without a class
MISSING_COLOR = (250, 184, 250)  # a pink of no scene: pixels that were not measured


def drawn_bands(sensor: sensors.Sensor) -> tuple[str, ...]:
    """The bands that a picture of the sensor needs; the first one where it is grey."""
    known = {band.family: band.name for band in reversed(sensor.bands)}
    known |= {name: name for name in sensor.band_names}
    drawn = tuple(known.get(color) for color in sensor.picture.colors)
    return sensor.band_names[:1] if None in drawn else drawn


def rgb(pixels: np.ndarray, sensor: sensors.Sensor) -> np.ndarray:
    """What is drawn red, green and blue of images [..., C], [..., 3].

    Blue is the difference of red and green where a sensor has only those, and one band
    alone is grey.
    """
    at = [sensor.band_names.index(name) for name in drawn_bands(sensor)]
    drawn = [pixels[..., i] for i in at]
    if len(drawn) == 2:
        drawn.append(drawn[0] - drawn[1])
    return np.stack(drawn * (3 // len(drawn)), axis=-1)


def picture(pixels: np.ndarray, like: np.ndarray, sensor: sensors.Sensor) -> np.ndarray:
    """An RGB picture in [0, 1] of images [..., C] in native units.

    Between the limits of the sensor or, where it has none, from the 2nd to the 98th
    percentile of `like`, all colours alike, which keeps hues true. NaN, where nothing
    was measured, has a colour that no image has.
    """
    style = sensor.picture
    if style.limits:
        drawn = sensor.select(drawn_bands(sensor))
        limits = [style.limits[family] for family in drawn.families]
        limits += [style.difference] * (len(limits) == 2)
        low, high = np.transpose(limits)
    else:
        measured = rgb(like, sensor)
        measured = measured[np.isfinite(measured)]
        low, high = np.percentile(measured, (2, 98)) if measured.size else (0.0, 1.0)
        high = max(high, low + style.least_range)
    drawn = np.clip((rgb(pixels, sensor) - low) / (high - low), 0.0, 1.0)
    missing = np.isnan(drawn).any(axis=-1, keepdims=True)
    return np.where(missing, np.divide(MISSING_COLOR, 255), drawn)


def class_colors(names: Sequence[str]) -> np.ndarray:
    """A colour for each index of a class, [256, 3] uint8: water blue, forest green.

    Classes of one kind differ in lightness and a little in hue.
    """
    table, kinds = np.full((256, 3), NO_COLOR, np.uint8), {}
    for i, name in enumerate(names):
        words = re.findall(r"\w+", name.lower())
        told = (HUES[key] for key in HUES if any(w.startswith(key) for w in words))
        # Steps of the golden ratio keep the other hues apart.
        hue, lightness, saturation = next(told, (i * 0.618 % 1, *OTHERS))
        alike = kinds[hue] = kinds.get(hue, -1) + 1
        lightness += 0.09 * ((alike + 1) // 2) * (-1) ** alike
        hue, lightness = (hue + 0.02 * alike) % 1, min(max(lightness, 0.12), 0.95)
        shade = np.array(colorsys.hls_to_rgb(hue, lightness, saturation))
        table[i] = np.rint(255 * shade)
    return table


def draw(
    description: Description, records: Sequence[Mapping], path: str | os.PathLike
) -> None:
    """Draws a contact sheet of up to `SHOWN` pairs, spread evenly over `records`.

    The images of a pair stand one above the other and, where the dataset has them,
    above pixel labels. The bytes of the file depend on nothing but the records.

    Args:
        description: of the dataset.
        records: as `record_format.Records` returns them.
        path: of the PNG to write, whole or not at all.
    """
    from matplotlib import figure, patches  # only now: it is large

    count = min(SHOWN, len(records))
    shown = [records[int(i)] for i in np.linspace(0, len(records) - 1, count).round()]
    columns, rows = min(COLUMNS, count), -(-count // COLUMNS)
    maps = dict(list(description.maps.items())[:1])  # others say the same finer
    high = 2.2 * (len(description.sensors) + len(maps))  # inches, of a pair
    fig = figure.Figure((2.4 * columns, (high + 0.9) * rows + 1), layout="constrained")
    fig.set_facecolor(np.divide(PAPER, 255))
    letters = 28 * columns
    title = f"{description.name}\n{_explanation(description, count, maps)}"
    lines = [
        part for line in title.split("\n") for part in textwrap.wrap(line, letters)
    ]
    fig.suptitle("\n".join(lines), x=0.02, ha="left", fontsize=9, **FONT)
    for axes in fig.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, record in zip(fig.axes, shown):
        axes.imshow(_pictures(description, record, maps), interpolation="nearest")
        axes.set_title(_caption(description, record), loc="left", fontsize=6, **FONT)
    for field, names in maps.items():
        table, present = class_colors(names), np.unique([r[field] for r in shown])
        keys = [
            patches.Patch(color=table[i] / 255, label=names[i])
            for i in present[present < len(names)]
        ]
        fig.legend(
            handles=keys, loc="outside lower left", ncols=columns, fontsize=7,
            labelcolor=INK, frameon=False,
        )  # fmt: skip
    buffer = io.BytesIO()
    fig.savefig(buffer, dpi=100, format="png", metadata={"Software": None})
    atomic.write_whole(path, buffer.getvalue())


def _shown(description: Description) -> list[sensors.Sensor]:
    """The sensors of a dataset, from the top of a picture."""
    names = [name for name in sensors.NAMED if name in description.sensors]
    return [description.sensors[name] for name in names]


def _pictures(description: Description, record: Mapping, maps: Mapping) -> np.ndarray:
    """The pictures of a pair, one above the other, [H, W, 3] uint8."""
    parts = []
    for sensor in _shown(description):
        sensor = sensor.select(drawn_bands(sensor))
        pixels = on_finest_grid(description, record, sensor)
        parts.append(np.rint(255 * picture(pixels, pixels, sensor)))
    for field, names in maps.items():
        parts.append(class_colors(names)[record[field]])
    seam = np.full((1, description.layout.size, 3), PAPER)
    whole = np.concatenate([x for part in parts for x in (part, seam)][:-1])
    return whole.astype(np.uint8)


def on_finest_grid(
    description: Description, record: Mapping, sensor: sensors.Sensor
) -> np.ndarray:
    """The bands of a sensor [H, W, C] at 10 m; coarser pixels are repeated."""
    bands = {}
    for grid in description.layout.of(sensor.name):
        stored = record[grid.field]
        factor = description.layout.size // len(stored)
        for band in set(grid.bands) & set(sensor.band_names):
            image = stored[..., grid.bands.index(band)]
            image = np.where(sensors.is_missing(image), np.nan, image.astype("f4"))
            bands[band] = image.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.stack([bands[band] for band in sensor.band_names], axis=-1)


def _explanation(description: Description, count: int, maps: Mapping) -> str:
    """What the sheet shows, in a sentence."""
    parts = []
    for sensor in _shown(description):
        bands = drawn_bands(sensor)
        how = ", ".join(bands) + (" and their ratio" if len(bands) == 2 else "")
        limits = sensor.picture.limits
        how += ", all alike" if limits else ", every picture with a stretch of its own"
        parts.append(f"{sensor.title} {sensor.level} ({how})")
    below = "".join(f", then {field}" for field in maps)
    pairs = "1 pair" if count == 1 else f"{count} pairs"
    return (
        f"{description.title} {pairs} from all over the dataset: "
        f"{' above '.join(parts)}{below}."
    )


def _caption(description: Description, record: Mapping) -> str:
    """Name and labels of a pair, in a few short lines."""
    labels = []
    for field, names in list(description.classes.items())[:1]:  # others repeat them
        labels = [names[i] for i in np.flatnonzero(record[field])]
    name = textwrap.wrap(record["id"], 38, max_lines=2, placeholder="…")
    words = textwrap.wrap(", ".join(labels), 44, max_lines=3, placeholder=" …")
    return "\n".join([*name, *words])
