"""A contact sheet: pairs from all over a dataset in one picture.

Every stored pixel is a square of whole pixels on the sheet and nothing is resampled:
what looks blurred, shifted or striped is so in the records.
"""

import io
import os
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import figure, transforms

from data_pipeline import files, sensors
from data_pipeline.building import preview
from data_pipeline.dataset_card import Description

SHOWN = 24
COLUMNS = 6
TILE = 200  # a picture is at least so many pixels high and wide

PAPER, INK, FAINT = (20, 23, 28), "#f2f2f0", "#9aa3ad"
MARGIN, GAP, SEAM, LINE = 36, 24, 3, 15  # pixels
CAPTION = 6 + 5 * LINE
TITLE = 40
SWATCH = 11
FONT = "DejaVu Sans"  # comes with matplotlib, so that all machines draw the same
LETTER = 6.0  # pixels, on average
NARROW = 0.8  # how many capitals and digits fit where there is room for one letter


def draw(
    description: Description, records: Sequence[Mapping], path: str | os.PathLike
) -> None:
    """Draws up to `SHOWN` pairs, spread evenly over `records`, and writes a PNG.

    Sentinel-2 is above Sentinel-1 and, where the dataset has them, pixel labels. The
    bytes of the file depend on nothing but the records.

    Args:
        description: of the dataset.
        records: as `record_format.Records` returns them.
        path: file to write, whole or not at all.
    """
    count = min(SHOWN, len(records))
    shown = [records[int(i)] for i in np.linspace(0, len(records) - 1, count).round()]
    tiles = [_tile(description, record) for record in shown]
    columns = min(COLUMNS, count)
    high, side = tiles[0].shape[0] + CAPTION + GAP, tiles[0].shape[1]
    width = 2 * MARGIN + columns * (side + GAP) - GAP
    letters = int((width - 2 * MARGIN) / LETTER)
    explained = textwrap.wrap(_explanation(description, count), letters)
    top = MARGIN + TITLE + len(explained) * LINE + GAP
    bottom = top + high * -(-count // columns)
    legend = _legend(description, shown, letters)
    height = bottom + LINE * (legend[-1][1] + 1 if legend else 0) + MARGIN - GAP

    sheet = _Sheet(width, height)
    sheet.write(MARGIN, MARGIN - 4, [description.name], size=22, weight="bold")
    sheet.write(MARGIN, MARGIN + TITLE, explained, color=FAINT)
    for i, (record, tile) in enumerate(zip(shown, tiles)):
        x, y = MARGIN + i % columns * (side + GAP), top + i // columns * high
        sheet.paste(x, y, tile)
        name, *labels = _caption(description, record, int(side / LETTER))
        sheet.write(x, y + len(tile) + 6, [name])
        sheet.write(x, y + len(tile) + 6 + LINE, labels, color=FAINT)
    for letter, line, name, color in legend:
        x, y = MARGIN + int(letter * LETTER), bottom + line * LINE
        sheet.paste(x, y, np.full((SWATCH, SWATCH, 3), color, np.uint8))
        sheet.write(x + SWATCH + 6, y, [name])
    sheet.save(path)


class _Sheet:
    """A picture with text on it; places are whole pixels from the upper left."""

    def __init__(self, width: int, height: int):
        self._pixels = np.full((height, width, 3), PAPER, np.uint8)
        # At 72 dpi a point is a pixel. The hundredth keeps the size from rounding down.
        size = ((width + 0.01) / 72, (height + 0.01) / 72)
        self._fig = figure.Figure(figsize=size, dpi=72)

    def paste(self, x: int, y: int, image: np.ndarray) -> None:
        """Puts down an image [H, W, 3] uint8."""
        self._pixels[y : y + image.shape[0], x : x + image.shape[1]] = image

    def write(self, x: int, y: int, lines, *, size=10.5, color=INK, weight="normal"):
        """Writes lines of text to the right of and below a place."""
        for i, line in enumerate(lines):
            self._fig.text(
                x,
                len(self._pixels) - y - i * LINE - size,
                line,
                color=color,
                family=FONT,
                fontsize=size,
                parse_math=False,
                transform=transforms.IdentityTransform(),
                weight=weight,
            )

    def save(self, path: str | os.PathLike) -> None:
        """Writes a PNG that names neither date nor software."""
        self._fig.figimage(self._pixels)
        buffer = io.BytesIO()
        self._fig.savefig(buffer, dpi=72, format="png", metadata={"Software": None})
        files.write_whole(path, buffer.getvalue())


def drawn_map(description: Description) -> dict[str, tuple[str, ...]]:
    """The map that is drawn, by field, if there is any; others say the same finer."""
    return dict(list(description.maps.items())[:1])


def _tile(description: Description, record: Mapping) -> np.ndarray:
    """The pictures of a pair, one above the other, [H, W, 3] uint8."""
    pictures = []
    for name in sensors.NAMED:
        sensor = description.sensors[name]
        sensor = sensor.select(preview.drawn_bands(sensor))
        pixels = _on_finest_grid(description, record, sensor)
        rgb = preview.picture(pixels, pixels, sensor)
        pictures.append(np.rint(255 * rgb).astype(np.uint8))
    for field, names in drawn_map(description).items():
        pictures.append(preview.class_colors(names)[record[field]])
    scale = -(-TILE // description.layout.size)
    parts = []
    for image in pictures:
        image = image.repeat(scale, axis=0).repeat(scale, axis=1)
        parts += [np.full((SEAM, image.shape[1], 3), PAPER, np.uint8), image]
    return np.concatenate(parts[1:])


def _on_finest_grid(
    description: Description, record: Mapping, sensor: sensors.Sensor
) -> np.ndarray:
    """The bands of a sensor [H, W, C] at 10 m; coarser pixels are repeated."""
    bands = {}
    for grid in description.layout.of(sensor.name):
        stored = record[grid.field]
        factor = description.layout.size // len(stored)
        for band in set(grid.bands) & set(sensor.band_names):
            image = stored[..., grid.bands.index(band)].astype(np.float32)
            bands[band] = image.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.stack([bands[band] for band in sensor.band_names], axis=-1)


def _explanation(description: Description, count: int) -> str:
    parts = []
    for sensor in (description.sensors[name] for name in sensors.NAMED):
        bands = preview.drawn_bands(sensor)
        how = ", ".join(bands) + (" and their ratio" if len(bands) == 2 else "")
        limits = sensor.picture.limits
        how += ", all alike" if limits else ", every picture with a stretch of its own"
        parts.append(f"{sensor.title} {sensor.level} ({how})")
    maps = "".join(f", then {field}" for field in drawn_map(description))
    pairs = "1 pair" if count == 1 else f"{count} pairs"
    return (
        f"{description.title} {pairs} from all over the dataset: "
        f"{' above '.join(parts)}{maps}."
    )


def _caption(description: Description, record: Mapping, letters: int) -> list[str]:
    """Name and labels of a pair, in lines of so many letters."""
    name = record["id"]
    if len(name) > letters * NARROW:  # names are mostly capitals and digits
        half = int(letters * NARROW - 1) // 2
        name = f"{name[:half]}…{name[-half:]}"
    labels = []
    for field, names in list(description.classes.items())[:1]:  # others repeat them
        for i in np.flatnonzero(record[field]):
            labels.append(textwrap.shorten(names[i], letters, placeholder=" …"))
    # The space that does not break keeps a dot from starting a line.
    words = "\u00a0· ".join(labels)
    lines = textwrap.wrap(words, letters, max_lines=4, placeholder=" …")
    return [name, *lines]


def _legend(
    description: Description, shown: Sequence[Mapping], letters: int
) -> list[tuple[int, int, str, np.ndarray]]:
    """Letter, line, name and colour of each class on the maps that are shown."""
    entries, letter, line = [], 0, 0
    for field, names in drawn_map(description).items():
        colors = preview.class_colors(names)
        present = np.unique([record[field] for record in shown])
        for i in present[present < len(names)]:
            wide = len(names[i]) + 6
            if letter and letter + wide > letters:
                letter, line = 0, line + 1
            entries.append((letter, line, names[i], colors[i]))
            letter += wide
    return entries
