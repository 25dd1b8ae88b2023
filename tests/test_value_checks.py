"""Values that cannot be what the contract says, and true ones that look odd."""

import dataclasses
import pathlib

import numpy as np
import pytest
import tifffile

from data_pipeline import layout, offsets, sensors, synthetic
from data_pipeline.building import value_checks
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from tests import shared_data

RNG = np.random.default_rng(0)

SETTINGS = dict(s1_unit="dB", s1_bands=(), s2_unit="DN", s2_offset="auto")


def check(description, records, settings=SETTINGS):
    value_checks.check(description, records, settings)


def describe(s2: sensors.Sensor = sensors.S2) -> Description:
    contract = {"s1": sensors.S1, "s2": s2}
    return Description("x", "X.", "", "", layout.resampled(24, contract), contract)


def draw(sensor: sensors.Sensor, mean=None, std=None) -> np.ndarray:
    """An image [24, 24, C] with the sensor's statistics, or others."""
    mean = np.array([band.mean for band in sensor.bands] if mean is None else mean)
    std = np.array([band.std for band in sensor.bands] if std is None else std)
    if sensor.name == "s1":
        return RNG.normal(mean, std, (24, 24, len(mean))).astype(np.float16)
    shape = (mean / std) ** 2  # of a gamma distribution, as reflectance is skewed
    pixels = RNG.gamma(shape, std**2 / mean, (24, 24, len(mean)))
    return np.clip(np.rint(pixels), 1, 20000).astype(np.uint16)


def records(s2: sensors.Sensor = sensors.S2, count: int = 8, **changes) -> list[dict]:
    """Records with the contract's statistics, changed field by field."""
    made = [{"s1_10m": draw(sensors.S1), "s2_10m": draw(s2)} for _ in range(count)]
    for record in made:
        record |= {field: change(record[field]) for field, change in changes.items()}
    return made


def real() -> tuple[Description, list[dict]]:
    """Real images of both versions of BigEarthNet, paired in any way."""
    description = Description(
        "x",
        "X.",
        "",
        "",
        layout.native(120, sensors.SENSORS),
        {"s1": sensors.S1, "s2": sensors.S2},
    )
    root = pathlib.Path(shared_data.bigearthnet_v1()).parent
    s1 = sorted(root.glob("BigEarthNet-v*/BigEarthNet-S1/**/*_VV.tif"))
    s2 = sorted(root.glob("BigEarthNet-v*/BigEarthNet-S2/**/*_B02.tif"))
    pairs = []
    for names in zip(s1, s2, strict=True):
        path = dict(zip(("s1", "s2"), (str(name).rsplit("_", 1)[0] for name in names)))
        pair = {}
        for grid in description.layout.grids:
            files = [f"{path[grid.sensor]}_{band}.tif" for band in grid.bands]
            image = np.stack([tifffile.imread(file) for file in files], axis=-1)
            pair[grid.field] = image.astype(sensors.SENSORS[grid.sensor].dtype)
        pairs.append(pair)
    return description, pairs


def test_any_subset_of_the_real_pairs_is_accepted():
    description, pairs = real()
    for pair in pairs:
        check(description, [pair])
    for size in (2, 3, 5, 8, 13, len(pairs)):
        for _ in range(10):
            chosen = RNG.choice(len(pairs), size, replace=False)
            check(description, [pairs[i] for i in chosen])


def test_synthetic_scenes_are_accepted():
    scenes = synthetic.Scenes(8, size=60, seed=0)
    for i in range(8):
        check(scenes.description, [scenes[i]])


def test_an_empty_sample_says_nothing():
    check(describe(), [])


@pytest.mark.parametrize("s2", [sensors.S2, sensors.S2_L1C], ids=lambda s: s.level)
@pytest.mark.parametrize("count", [1, 8])
def test_published_statistics_are_accepted(s2, count):
    check(describe(s2), records(s2, count))


# Mean DN in the band order of sensors.S2.
SURFACES = {
    "desert": (1150, 1500, 2300, 3300, 3700, 3900, 4100, 4200, 4300, 4400, 5600, 5100),
    "cloud": (6500, 6400, 6200, 6300, 6500, 6700, 6800, 6900, 6900, 6800, 4200, 3200),
    "snow": (9000, 9200, 9000, 8900, 8800, 8600, 8300, 8100, 7900, 7500, 350, 400),
    "sea": (320, 260, 180, 90, 80, 70, 65, 60, 55, 50, 30, 20),
    "bare soil": (700, 950, 1300, 1800, 2100, 2300, 2500, 2600, 2700, 2700, 3300, 2900),
}


@pytest.mark.parametrize("surface", SURFACES)
def test_a_single_scene_of_one_surface_is_accepted(surface):
    mean = np.array(SURFACES[surface])
    scene = draw(sensors.S2, mean, 0.1 * mean + 15)
    check(describe(), [{"s1_10m": draw(sensors.S1), "s2_10m": scene}])


def test_a_calm_lake_in_radar_is_accepted():
    lake = draw(sensors.S1, (-25.0, -27.1), (2.0, 2.0))
    check(describe(), [{"s1_10m": lake, "s2_10m": draw(sensors.S2)}])


def to_linear(db):
    return (10.0 ** (db.astype(np.float32) / 10.0)).astype(np.float16)


WRONG = {
    "linear power": (
        dict(s1_10m=to_linear),
        r"VV has a median of 0\.05\d* dB, .*between -30 and 0.*s1_unit=linear",
    ),
    "scaled to 0..1": (
        dict(s1_10m=lambda db: np.clip(db, -25, 0) / np.float16(25) + np.float16(1)),
        r"VV has a median of 0\.\d+ dB",
    ),
    "uncalibrated": (
        dict(s1_10m=lambda db: db + np.float16(45)),
        r"VV has a median of 32\.\d dB, .*calibrate",
    ),
    "a VH of linear power": (
        dict(s1_10m=lambda db: np.stack([db[..., 0], to_linear(db[..., 1])], -1)),
        r"VH has a median of 0\.01\d* dB, .*between -34 and -9",
    ),
    "exchanged polarisations": (
        dict(s1_10m=lambda db: db[..., ::-1]),
        r"VH has a mean of -12\.\d dB and VV one of -19\.\d, .*s1_bands",
    ),
    "reflectance": (
        dict(s2_10m=lambda dn: np.rint(dn / 10000).astype(np.uint16)),
        "no DN above [12] in any of 12 bands.*s2_unit=reflectance",
    ),
    "percent": (
        dict(s2_10m=lambda dn: np.rint(dn / 100).astype(np.uint16)),
        r"no DN above \d+ in any of 12 bands",
    ),
    "made for display": (
        dict(s2_10m=lambda dn: np.clip(dn // 12, 0, 255)),
        "no DN above 255 .*made for display",
    ),
    "the offset left in": (
        dict(s2_10m=lambda dn: dn + np.uint16(1000)),
        r"nowhere dark .*B04 10\d\d.*s2_offset=1000",
    ),
    "the offset removed twice": (
        dict(s2_10m=lambda dn: offsets.remove(dn, 1000)),
        r"0 or 1 DN in most pixels .*B04 8\d%.*s2_offset=0",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_usual_mistakes_are_refused_with_numbers_and_the_setting(mistake):
    changes, message = WRONG[mistake]
    with pytest.raises(InputError, match=message) as caught:
        check(describe(), records(**changes))
    text = str(caught.value)
    assert "Over a sample of 8 pairs" in text
    assert "(check_values=False overrides" in text


def test_the_offset_shows_on_real_pairs_but_for_snow_and_cloud():
    description, pairs = real()

    def shifted(pair):
        return {k: v + 1000 if k.startswith("s2_") else v for k, v in pair.items()}

    refused = 0
    for pair in pairs:
        try:
            check(description, [shifted(pair)])
        except InputError:
            refused += 1
    assert refused >= len(pairs) - 1
    with pytest.raises(InputError, match="s2_offset=1000"):
        check(description, [shifted(pair) for pair in pairs])


def test_the_offset_shows_in_the_cirrus_band_of_top_of_atmosphere_products():
    made = records(sensors.S2_L1C, s2_10m=lambda dn: dn + np.uint16(1000))
    with pytest.raises(InputError, match=r"B10 10\d\d"):
        check(describe(sensors.S2_L1C), made)


def test_pixels_that_were_not_measured_do_not_hide_the_offset():
    def with_holes(dn):
        dn = dn + np.uint16(1000)
        dn[:6] = 0
        return dn

    with pytest.raises(InputError, match="nowhere dark"):
        check(describe(), records(s2_10m=with_holes))


def test_blue_bands_alone_are_not_taken_for_an_offset():
    blue = sensors.S2_L1C.select(["B01", "B02"])
    bright = draw(blue, (1500, 1400), (80, 80))
    check(describe(blue), [{"s1_10m": draw(sensors.S1), "s2_10m": bright}])


def test_every_grid_of_a_layout_is_looked_at():
    description = dataclasses.replace(
        describe(), layout=layout.native(24, sensors.SENSORS)
    )
    made = []
    for _ in range(4):
        pixels = draw(sensors.S2) + np.uint16(1000)
        record = {"s1_10m": draw(sensors.S1)}
        for grid in sensors.S2.grids:
            step = grid.gsd // 10
            bands = [sensors.S2.band_names.index(band) for band in grid.bands]
            record[grid.field] = pixels[::step, ::step, bands]
        made.append(record)
    with pytest.raises(InputError, match="B02 .*B12 .*B01"):
        check(description, made)
    for record in made:
        record["s2_20m"] = record["s2_20m"] - 1000  # one dark grid is enough
    check(description, made)


def test_settings_that_an_archive_does_not_have_are_not_advised():
    with pytest.raises(InputError, match="see how the archive was made") as caught:
        check(describe(), records(s1_10m=to_linear), settings={})
    assert "s1_unit" not in str(caught.value)
