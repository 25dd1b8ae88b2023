"""Pictures of bands and pairs: the right bands in the right colours."""

import dataclasses
import hashlib

import matplotlib.image
import numpy as np
import pytest

from configs import prepare_pairs
from data_pipeline import classes, dataset_card, layout, record_format, sensors
from data_pipeline.building import prepare, preview
from data_pipeline.dataset_card import Description
from tests import builds, geotiffs

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
    got = preview.rgb(x, sensors.S2)
    want = [sensors.S2.band_names.index(name) for name in ("B04", "B03", "B02")]
    np.testing.assert_array_equal(got[0, 0], want)


def test_true_colour_finds_bands_by_name():
    some = sensors.S2.select(("B02", "B08", "B04", "B03"))
    got = preview.rgb(np.arange(4.0).reshape(1, 1, 4), some)
    np.testing.assert_array_equal(got[0, 0], [2, 3, 0])


def test_false_colour_is_vv_vh_and_their_ratio():
    swapped = sensors.S1.select(("VH", "VV"))
    got = preview.rgb(np.array([[[-20.0, -12.0]]]), swapped)
    np.testing.assert_array_equal(got[0, 0], [-12.0, -20.0, 8.0])


@pytest.mark.parametrize(
    "sensor", [sensors.S2.select(("B08", "B04")), sensors.S1.select(("VH",))]
)
def test_without_the_bands_for_colour_the_first_is_grey(sensor):
    x = pixels(sensor)
    got = preview.rgb(x, sensor)
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


COVERS = ("Water", "Mixed forest", "Arable land")
DESCRIPTION = Description(
    name="small",
    title="Small pairs.",
    source="this test",
    licence="none",
    layout=layout.native(60, sensors.SENSORS),
    sensors=sensors.SENSORS,
    classes={"labels": COVERS},
)


def record(seed: int, description: Description = DESCRIPTION) -> dict:
    rng = np.random.default_rng(seed)
    fields = {"id": f"pair_{seed}", "labels": np.array([1, 0, seed % 2], np.uint8)}
    for field, shape in description.layout.shapes.items():
        if field.startswith("s1"):
            fields[field] = rng.normal(-14, 4, shape).astype(np.float16)
        else:
            fields[field] = rng.integers(0, 4000, shape).astype(np.uint16)
    side = description.layout.size
    for field in description.maps:
        fields[field] = rng.integers(0, 2, (side, side)).astype(np.uint8)
    return fields


def drawn(path) -> np.ndarray:
    """Pixels [H, W, 3] of a PNG."""
    return np.rint(matplotlib.image.imread(path)[..., :3] * 255).astype(np.uint8)


def shown(path, picture: np.ndarray) -> float:
    """The share of a picture's colours that are on a sheet."""
    colors = lambda x: np.unique(x.astype(int) @ (1 << 16, 1 << 8, 1))
    want = colors(np.rint(picture * 255))
    return np.isin(want, colors(drawn(path))).mean()


def test_every_stored_pixel_is_on_the_sheet_in_its_colour(tmp_path):
    one = record(0)
    preview.draw(DESCRIPTION, [one], tmp_path / "sheet.png")
    # The 10 m field holds B02, B03, B04 and B08.
    stored = sensors.S2.select(("B02", "B03", "B04", "B08"))
    want = preview.picture(one["s2_10m"], one["s2_10m"], stored)
    assert shown(tmp_path / "sheet.png", want) == 1
    want = preview.picture(one["s1_10m"].astype(np.float32), None, sensors.S1)
    assert shown(tmp_path / "sheet.png", want) == 1
    assert shown(tmp_path / "sheet.png", 1 - want) < 0.1


def test_bands_of_coarser_grids_are_drawn_too_and_single_ones_grey(tmp_path):
    contract = {"s1": sensors.S1.select(("VH",)), "s2": sensors.S2.select(("B11",))}
    some = dataclasses.replace(
        DESCRIPTION, layout=layout.native(60, contract), sensors=contract
    )
    one = record(0, some)
    preview.draw(some, [one], tmp_path / "sheet.png")
    assert one["s2_20m"].shape == (30, 30, 1)
    want = preview.picture(one["s2_20m"], one["s2_20m"], contract["s2"])
    assert shown(tmp_path / "sheet.png", want) == 1
    grey = drawn(tmp_path / "sheet.png")[-200:].reshape(-1, 3).astype(int)
    assert (np.ptp(grey, axis=1) < 9).all()  # the paper is nearly grey


def test_pixel_labels_are_drawn_in_the_colours_of_the_legend(tmp_path):
    contract = {"s1": sensors.S1, "s2": sensors.S2_L1C}
    mapped = dataclasses.replace(
        DESCRIPTION,
        layout=layout.resampled(256, contract),
        sensors=contract,
        maps={"land_cover": COVERS},
    )
    one = record(0, mapped)
    one["land_cover"][:] = 0
    one["land_cover"][:5] = classes.NO_CLASS
    preview.draw(mapped, [one], tmp_path / "sheet.png")
    sheet = drawn(tmp_path / "sheet.png")
    table = preview.class_colors(COVERS)
    counts = [(sheet == color).all(axis=-1).sum() for color in table[[0, 1, 2, 255]]]
    assert counts[0] > 20_000 and counts[3] > 100
    assert max(counts[1:3]) < 100  # these classes are nowhere on the map
    below = sheet[-60:].reshape(-1, 3)
    assert (below == table[0]).all(axis=-1).sum() > 50  # the legend's


def test_radar_of_other_polarisations_is_drawn_by_their_families(tmp_path, monkeypatch):
    bands = zip(("HH", "HV"), sensors.S1.bands)
    polarised = tuple(dataclasses.replace(b, name=name) for name, b in bands)
    other = dataclasses.replace(sensors.S1, bands=polarised)
    monkeypatch.setitem(sensors.SENSORS, "s1", other)
    for i in range(2):
        geotiffs.write(tmp_path / "s1" / f"{i}.tif", geotiffs.s1_image(i), ("HH", "HV"))
        geotiffs.write(
            tmp_path / "s2" / f"{i}.tif", geotiffs.s2_image(i), geotiffs.S2_BANDS
        )
    config = prepare_pairs.get_config()
    config.source, config.out = str(tmp_path), str(tmp_path / "out")
    config.read.s2_offset, config.holdout_share, config.workers = "0", 0.0, 0
    prepare.prepare(config)
    one = record_format.Records(config.out, "train")[0]
    description = dataset_card.read_description(config.out)
    assert description.sensors["s1"].band_names == ("HH", "HV")
    same = sensors.SENSORS["s1"]  # in VV and VH
    want = preview.picture(one["s1_10m"].astype(np.float32), None, same)
    assert shown(tmp_path / "out" / "contact_sheet.png", want) > 0.9


def test_a_picture_that_fails_leaves_a_whole_dataset_and_a_warning(
    tmp_path, monkeypatch, lines
):
    config = builds.false_archive(tmp_path)

    def fail(*_):
        raise ZeroDivisionError("nothing to draw")

    monkeypatch.setattr(preview, "picture", fail)
    prepare.prepare(config)
    assert len(record_format.Records(config.out, "train")) == 6
    assert sum("contact_sheet.png" in x and "nothing to draw" in x for x in lines) == 1
    content = {path.name for path in builds.out_files(config)}
    assert "card.json" in content and "contact_sheet.png" not in content


def test_pairs_are_spread_over_the_dataset(tmp_path, monkeypatch):
    class Source:
        asked = []

        def __len__(self):
            return 1000

        def __getitem__(self, index):
            self.asked.append(index)
            return record(index)

    monkeypatch.setattr(preview, "SHOWN", 5)
    preview.draw(DESCRIPTION, Source(), tmp_path / "sheet.png")
    assert Source.asked == [0, 250, 500, 749, 999]


def test_the_bytes_depend_on_the_records_only(tmp_path, monkeypatch):
    digests = []
    for time in ("0", "1000000000"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", time)
        preview.draw(DESCRIPTION, [record(0)], tmp_path / "sheet.png")
        content = (tmp_path / "sheet.png").read_bytes()
        digests.append(hashlib.sha256(content).hexdigest())
        assert b"Software" not in content and b"Date" not in content
    assert digests[0] == digests[1]
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.journey
@pytest.mark.parametrize("count", [1, 7, 24])
def test_the_sheet_holds_all_pairs_whatever_their_number(tmp_path, count):
    tiny = dataclasses.replace(DESCRIPTION, layout=layout.native(6, sensors.SENSORS))
    pairs = [record(seed, tiny) for seed in range(count)]
    preview.draw(tiny, pairs, tmp_path / "sheet.png")
    assert drawn(tmp_path / "sheet.png").shape[1] == 240 * min(count, 6)
    for one in pairs:
        want = preview.picture(one["s1_10m"].astype(np.float32), None, sensors.S1)
        assert shown(tmp_path / "sheet.png", want) == 1


def test_long_names_and_many_labels_leave_the_pictures_their_room(tmp_path):
    long = "Land principally occupied by agriculture, with significant areas of nature"
    names = tuple(f"{i} {long}" for i in range(9))
    described = dataclasses.replace(DESCRIPTION, classes={"labels": names})
    one = record(0) | {"id": "S2A_" + 90 * "7", "labels": np.ones(9, np.uint8)}
    preview.draw(described, [one], tmp_path / "sheet.png")
    want = preview.picture(one["s1_10m"].astype(np.float32), None, sensors.S1)
    assert shown(tmp_path / "sheet.png", want) == 1


@pytest.mark.parametrize("sensor", [sensors.S1, sensors.S2])
def test_what_was_not_measured_has_a_colour_of_its_own(sensor):
    low, high = sensor.valid_range
    rng = np.random.default_rng(0)
    image = rng.uniform(low, high, (8, 8, len(sensor.bands)))
    image[:2] = np.nan
    got = preview.picture(image, image, sensor)
    np.testing.assert_allclose(
        got[:2] * 255, np.broadcast_to(preview.MISSING_COLOR, (2, 8, 3))
    )
    assert np.isfinite(got).all() and got[2:].std() > 0
    assert np.isfinite(preview.picture(image[:2], image[:2], sensor)).all()
