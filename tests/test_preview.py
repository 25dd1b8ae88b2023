"""Pictures of bands: the right bands in the right colours."""

import dataclasses

import numpy as np
import pytest

from data_pipeline import classes, sensors
from data_pipeline.building import preview


OTHER_RADAR = dataclasses.replace(
    sensors.S1,
    bands=tuple(
        dataclasses.replace(band, name=name)
        for band, name in zip(sensors.S1.bands, ("HH", "HV"))
    ),
)


def pixels(sensor, seed=0, side=8):
    rng = np.random.default_rng(seed)
    mean, std = np.array([(b.mean, b.std) for b in sensor.bands]).T
    return rng.normal(mean, std, (side, side, len(mean))).astype(np.float32)


def test_true_colour_is_red_green_blue():
    x = np.arange(12.0).reshape(1, 1, 12)
    got = preview.colors(x, sensors.S2)
    want = [sensors.S2.band_names.index(name) for name in ("B04", "B03", "B02")]
    np.testing.assert_array_equal(got[0, 0], want)


def test_true_colour_finds_bands_by_name():
    some = sensors.S2.select(("B02", "B08", "B04", "B03"))
    got = preview.colors(np.arange(4.0).reshape(1, 1, 4), some)
    np.testing.assert_array_equal(got[0, 0], [2, 3, 0])


def test_false_colour_is_vv_vh_and_their_ratio():
    swapped = sensors.S1.select(("VH", "VV"))
    got = preview.colors(np.array([[[-20.0, -12.0]]]), swapped)
    np.testing.assert_array_equal(got[0, 0], [-12.0, -20.0, 8.0])


@pytest.mark.parametrize(
    "sensor", [sensors.S2.select(("B08", "B04")), sensors.S1.select(("VH",))]
)
def test_without_the_bands_for_colour_the_first_is_grey(sensor):
    x = pixels(sensor)
    got = preview.colors(x, sensor)
    np.testing.assert_array_equal(got, x[..., :1].repeat(3, axis=-1))


def test_true_colour_is_stretched_as_another_picture_asks_and_keeps_hues():
    like = np.linspace(0.0, 1000.0, 101)[:, None, None].repeat(12, axis=-1)
    shades = np.array([[[0.0, 200.0, 400.0, 800.0] + [0.0] * 8]])
    got = preview.picture(shades, like, sensors.S2)[0, 0]
    names = sensors.S2.band_names
    blue, green, red = (shades[0, 0, names.index(b)] for b in ("B02", "B03", "B04"))
    want = (np.array([red, green, blue]) - 20.0) / 960.0  # the middle 96 percent
    np.testing.assert_allclose(got, np.clip(want, 0.0, 1.0))


def test_false_colour_has_limits_of_its_own():
    got = preview.picture(np.array([[[-10.0, -17.0]]]), None, sensors.S1)
    np.testing.assert_allclose(got[0, 0], 0.5)
    alone = preview.picture(np.array([[[-27.0]]]), None, sensors.S1.select(("VH",)))
    np.testing.assert_array_equal(alone[0, 0], 0.0)
    other = preview.picture(np.array([[[-10.0, -17.0]]]), None, OTHER_RADAR)
    np.testing.assert_allclose(other[0, 0], 0.5)


def test_a_constant_image_can_be_drawn():
    flat = np.full((4, 4, 12), 7.0, np.float32)
    np.testing.assert_array_equal(preview.picture(flat, flat, sensors.S2), 0.0)


def test_bands_of_one_grid_in_another_order_give_the_same_picture():
    x = pixels(sensors.S2_L1C)
    some = sensors.S2_L1C.select(("B02", "B03", "B04", "B08"))
    at = [sensors.S2_L1C.band_names.index(name) for name in some.band_names]
    np.testing.assert_array_equal(
        preview.picture(x, x, sensors.S2_L1C),
        preview.picture(x[..., at], x[..., at], some),
    )


@pytest.mark.parametrize(
    "names, want",
    [
        (("VH", "VV"), ("VV", "VH")),
        (("VH",), ("VH",)),
        (("HV", "HH"), ("HH", "HV")),
        (("HV",), ("HV",)),
        (("B08", "B02", "B03", "B04"), ("B04", "B03", "B02")),
        (("B08", "B04"), ("B08",)),
    ],
)
def test_a_picture_needs_only_the_bands_of_its_colours(names, want):
    sensor = {"V": sensors.S1, "H": OTHER_RADAR, "B": sensors.S2}[names[0][0]]
    assert preview.drawn_bands(sensor.select(names)) == want


@pytest.mark.parametrize(
    "names",
    [
        classes.BIGEARTHNET_19,
        ("Forest", "Shrubland", "Savanna", "Water", "Snow/Ice", "Urban", "Barren"),
        tuple(f"class {i}" for i in range(17)),
    ],
)
def test_every_class_has_a_colour_of_its_own(names):
    colors = preview.class_colors(names)
    assert colors.shape == (256, 3) and colors.dtype == np.uint8
    assert len(np.unique(colors[: len(names)], axis=0)) == len(names)
    assert (colors[[len(names), classes.NO_CLASS]] == preview.NO_COLOR).all()


def test_classes_look_like_what_they_are_called():
    red, green, blue = preview.class_colors(("Marine waters", "Mixed forest"))[:2].T
    assert blue[0] > max(red[0], green[0])
    assert green[1] > max(red[1], blue[1])
