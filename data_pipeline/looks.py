"""How images look to people: which bands make the colours, and which colour a class."""

import colorsys
import re
from collections.abc import Sequence

import numpy as np

from data_pipeline import sensors

TRUE_COLOR = ("B04", "B03", "B02")
LEAST_RANGE = 600.0  # DN; a forest stays dark green however little it varies
# What is drawn black and what full, in dB, by family of bands; and of their ratio.
RADAR_LIMITS = {"co-polarised": (-20.0, 0.0), "cross-polarised": (-27.0, -7.0)}
RATIO_LIMITS = (0.0, 14.0)

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
    names, wanted = sensor.band_names, TRUE_COLOR
    if sensor.name == "s1":
        firsts = {band.family: band.name for band in reversed(sensor.bands)}
        wanted = tuple(firsts.get(family) for family in RADAR_LIMITS)
    return wanted if set(wanted) <= set(names) else names[:1]


def true_color(pixels: np.ndarray, sensor: sensors.Sensor) -> np.ndarray:
    """Red, green and blue of Sentinel-2 images [..., C] in DN; grey without them."""
    names, drawn = sensor.band_names, drawn_bands(sensor)
    chosen = drawn if len(drawn) == 3 else drawn * 3
    return np.stack([pixels[..., names.index(name)] for name in chosen], axis=-1)


def false_color(pixels: np.ndarray, sensor: sensors.Sensor) -> np.ndarray:
    """Co- and cross-polarised backscatter, such as VV and VH, and their ratio.

    Of Sentinel-1 images [..., C] in dB; grey without both.
    """
    names, drawn = sensor.band_names, drawn_bands(sensor)
    if len(drawn) == 1:
        return np.repeat(pixels[..., :1], 3, axis=-1)
    co, cross = (pixels[..., names.index(name)] for name in drawn)
    return np.stack([co, cross, co - cross], axis=-1)


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
        drawn = sensor.select(drawn_bands(sensor))
        limits = [RADAR_LIMITS[family] for family in drawn.families]
        limits += [RATIO_LIMITS] * (len(limits) == 2)
        low, high = np.transpose(limits)
    else:
        color = true_color(pixels, sensor)
        low, high = np.percentile(true_color(like, sensor), (2, 98))
        high = max(high, low + LEAST_RANGE)
    return np.clip((color - low) / (high - low), 0.0, 1.0)


def class_colors(names: Sequence[str]) -> np.ndarray:
    """A colour for each index of a class, [256, 3] uint8: water blue, forest green.

    Classes of one kind differ in lightness and a little in hue.
    """
    colors, kinds = np.full((256, 3), NO_COLOR, np.uint8), {}
    for i, name in enumerate(names):
        words = re.findall(r"\w+", name.lower())
        told = (HUES[key] for key in HUES if any(w.startswith(key) for w in words))
        # Steps of the golden ratio keep the other hues apart.
        hue, lightness, saturation = next(told, (i * 0.618 % 1, *OTHERS))
        alike = kinds[hue] = kinds.get(hue, -1) + 1
        lightness += 0.09 * ((alike + 1) // 2) * (-1) ** alike
        hue, lightness = (hue + 0.02 * alike) % 1, min(max(lightness, 0.12), 0.95)
        rgb = np.array(colorsys.hls_to_rgb(hue, lightness, saturation))
        colors[i] = np.rint(255 * rgb)
    return colors
