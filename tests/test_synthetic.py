import numpy as np
import pytest

from data_pipeline import layout, sensors, synthetic
from data_pipeline.errors import InputError

NAMES = synthetic.Scenes(1).description.classes["labels"]
WATER = NAMES.index("water")
B08 = sensors.S2.grids[0].bands.index("B08")
B8A = sensors.S2.grids[1].bands.index("B8A")


@pytest.fixture(scope="module")
def records():
    """Scenes that the tests share and leave as they are."""
    return list(synthetic.Scenes(64))


def gaps(records, field, first, second):
    """Differences [scenes, C] of two classes' mean pixels where both are common."""
    rows = []
    for record in records:
        masks = [record["land_cover"] == NAMES.index(n) for n in (first, second)]
        if min(mask.sum() for mask in masks) > 300:
            one, other = (record[field][m].mean(axis=0, dtype=float) for m in masks)
            rows.append(one - other)
    assert len(rows) > 5
    return np.array(rows)


def test_a_scene_depends_on_seed_and_index_alone():
    one = synthetic.Scenes(4, size=24, seed=7)[3]
    other = synthetic.Scenes(100, size=24, seed=7)[np.int64(3)]
    assert one["id"] == other["id"] == "synthetic-000003"
    for field in one:
        np.testing.assert_array_equal(one[field], other[field])


def test_scenes_differ_by_index_and_by_seed():
    scenes = synthetic.Scenes(2, size=24)
    reseeded = synthetic.Scenes(2, size=24, seed=1)
    for field in layout.native(24, sensors.SENSORS).shapes:
        assert (scenes[0][field] != scenes[1][field]).any()
        assert (scenes[0][field] != reseeded[0][field]).any()


def test_chosen_fields_are_those_of_the_whole_record(records):
    for field in records[0]:
        (alone,) = synthetic.Scenes(64, fields=[field])[5].items()
        assert alone[0] == field
        np.testing.assert_array_equal(alone[1], records[5][field])


@pytest.mark.parametrize("size", [6, 120, 264])
def test_records_keep_the_contract(size):
    scenes = synthetic.Scenes(3, size=size)
    for record in scenes:
        shapes = layout.native(size, sensors.SENSORS).shapes
        assert set(record) == {"id", "land_cover", "labels", *shapes}
        assert record["land_cover"].shape == (size, size)
        assert record["land_cover"].dtype == record["labels"].dtype == np.uint8
        assert record["labels"].shape == (len(NAMES),)
        for sensor in sensors.SENSORS.values():
            for grid in sensor.grids:
                pixels = record[grid.field]
                assert pixels.shape == shapes[grid.field]
                assert pixels.dtype == sensor.dtype
                assert np.isfinite(pixels).all()
                low, high = sensor.valid_range
                assert low < pixels.min() and pixels.max() < high


def test_band_means_are_near_the_contract(records):
    for sensor in sensors.SENSORS.values():
        bands = {band.name: band for band in sensor.bands}
        for grid in sensor.grids:
            pixels = np.stack([r[grid.field] for r in records]).astype(float)
            for index, name in enumerate(grid.bands):
                band = bands[name]
                assert abs(pixels[..., index].mean() - band.mean) < band.std
                assert 0.25 < pixels[..., index].std() / band.std < 1.5


def test_both_sensors_see_the_same_water(records):
    lakes = [r for r in records if 0.05 < (r["land_cover"] == WATER).mean() < 0.95]
    assert len(lakes) > 10
    for record in lakes:
        wet = record["land_cover"] == WATER
        vv = record["s1_10m"][..., 0].astype(float)
        nir = record["s2_10m"][..., B08].astype(float)
        assert vv[wet].mean() < vv[~wet].mean() - 4.0
        assert nir[wet].mean() < 0.5 * nir[~wet].mean()


def test_grids_are_registered(records):
    fine = np.stack([r["s2_10m"][..., B08] for r in records[:16]]).astype(float)
    coarse = np.stack([r["s2_20m"][..., B8A] for r in records[:16]]).astype(float)
    means = fine.reshape(16, 60, 2, 60, 2).mean(axis=(2, 4))
    aligned = np.corrcoef(means.ravel(), coarse.ravel())[0, 1]
    shifted = np.corrcoef(means[:, 1:].ravel(), coarse[:, :-1].ravel())[0, 1]
    assert aligned > 0.99 and aligned > shifted


def test_speckle_has_the_stated_number_of_looks(records):
    looks = []
    for record in records:
        tiles = record["land_cover"].reshape(20, 6, 20, 6).swapaxes(1, 2)
        calm = (tiles == WATER).all(axis=(2, 3))
        db = record["s1_10m"].astype(float).reshape(20, 6, 20, 6, 2).swapaxes(1, 2)
        power = 10.0 ** (db[calm].reshape(-1, 36, 2) / 10.0)
        looks.append(power.var(axis=1, ddof=1) / power.mean(axis=1) ** 2)
    assert 1.0 / np.concatenate(looks).mean() == pytest.approx(synthetic.ENL, rel=0.1)


@pytest.mark.parametrize(
    "first, second",
    [
        ("broad-leaved forest", "flooded broad-leaved forest"),
        ("coniferous forest", "flooded coniferous forest"),
        ("dry grassland", "rough grazing"),
    ],
)
def test_only_radar_separates_classes_of_one_spectrum(records, first, second):
    assert np.abs(gaps(records, "s2_10m", first, second).mean(axis=0)).max() < 80.0
    assert np.abs(gaps(records, "s1_10m", first, second).mean(axis=0)).max() > 3.0


@pytest.mark.parametrize(
    "first, second",
    [
        ("broad-leaved forest", "coniferous forest"),
        ("flooded broad-leaved forest", "flooded coniferous forest"),
        ("winter crop", "bare field"),
    ],
)
def test_only_optics_separates_classes_of_one_backscatter(records, first, second):
    assert np.abs(gaps(records, "s1_10m", first, second).mean(axis=0)).max() < 0.4
    assert np.abs(gaps(records, "s2_10m", first, second).mean(axis=0)).max() > 800.0


def test_labels_are_the_classes_that_cover_enough(records):
    for record in records[:8]:
        share = [(record["land_cover"] == i).mean() for i in range(len(NAMES))]
        expected = np.array(share) >= synthetic.PRESENT_SHARE
        np.testing.assert_array_equal(record["labels"], expected)


def test_every_class_is_neither_rare_nor_everywhere():
    labels = [r["labels"] for r in synthetic.Scenes(400, fields=["labels"])]
    presence = np.mean(labels, axis=0)
    assert presence.min() > 0.15 and presence.max() < 0.6


def test_fingerprint_names_what_decides_the_content():
    assert synthetic.Scenes(5, size=12, seed=3).fingerprint() == {
        "name": "synthetic",
        "count": 5,
        "size": 12,
        "seed": 3,
    }


def test_iteration_ends_and_indices_out_of_range_are_refused():
    scenes = synthetic.Scenes(3, size=6, fields=["id"])
    assert len(list(scenes)) == len(scenes) == 3
    for index in (-1, 3):
        with pytest.raises(IndexError):
            scenes[index]


@pytest.mark.parametrize(
    "arguments",
    [
        {"count": 1, "size": 100},
        {"count": 1, "size": 0},
        {"count": 0},
        {"count": 1, "seed": -1},
        {"count": 1, "fields": ["s3_10m"]},
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments):
    with pytest.raises(InputError):
        synthetic.Scenes(**arguments)
