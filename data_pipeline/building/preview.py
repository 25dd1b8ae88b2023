"""How images look to people: which bands make the colours, and which colour a class."""

import colorsys
import re
from collections.abc import Sequence

import numpy as np

from data_pipeline import sensors

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


def drawn_bands(sensor: sensors.Sensor) -> tuple[str, ...]:
    """The bands that a picture of the sensor needs; the first one where it is grey."""
    known = {band.family: band.name for band in reversed(sensor.bands)}
    known |= {name: name for name in sensor.band_names}
    drawn = tuple(known.get(color) for color in sensor.picture.colors)
    return sensor.band_names[:1] if None in drawn else drawn


def colors(pixels: np.ndarray, sensor: sensors.Sensor) -> np.ndarray:
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
    percentile of `like`, all colours alike, which keeps hues true.
    """
    style = sensor.picture
    if style.limits:
        drawn = sensor.select(drawn_bands(sensor))
        limits = [style.limits[family] for family in drawn.families]
        limits += [style.difference] * (len(limits) == 2)
        low, high = np.transpose(limits)
    else:
        low, high = np.percentile(colors(like, sensor), (2, 98))
        high = max(high, low + style.least_range)
    return np.clip((colors(pixels, sensor) - low) / (high - low), 0.0, 1.0)


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
        rgb = np.array(colorsys.hls_to_rgb(hue, lightness, saturation))
        table[i] = np.rint(255 * rgb)
    return table
