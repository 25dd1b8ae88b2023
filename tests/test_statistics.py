"""Statistics: what numpy finds in all pixels at once, from counts that add up."""

import json
import random

import numpy as np
import pytest
import shared_data
from ml_collections import ConfigDict

from data_pipeline import layout, sensors
from data_pipeline.archives import bigearthnet_v1
from data_pipeline.building.statistics import PERCENTILES, Tally
from data_pipeline.classes import NO_CLASS
from data_pipeline.dataset_card import Description

COVERS = ("field", "wood", "lake")
SMALL = Description(
    name="small",
    title="Small pairs.",
    source="this test",
    licence="none",
    layout=layout.native(12, sensors.SENSORS),
    sensors=sensors.SENSORS,
    classes={"labels": COVERS},
    maps={"land_cover": COVERS},
)


def record(seed: int, description: Description = SMALL) -> dict:
    """A record as archives return them, with values all over the valid range."""
    rng = np.random.default_rng(seed)
    fields = {}
    for field, shape in description.layout.shapes.items():
        if field.startswith("s1"):
            fields[field] = rng.uniform(-80, 40, shape).astype(np.float16)
        else:
            fields[field] = rng.integers(0, 32768, shape).astype(np.uint16)
    side = description.layout.size
    fields["land_cover"] = rng.integers(0, 3, (side, side)).astype(np.uint8)
    return fields | {"labels": sorted(set(fields["land_cover"][0].tolist()))}


def counted(records, description: Description = SMALL) -> Tally:
    tally = Tally(description)
    for one in records:
        tally.add(one)
    return tally


def check_bands(summary: dict, records, description: Description) -> None:
    """Compares a summary with what numpy says of all pixels."""
    for grid in description.layout.grids:
        pixels = np.stack([one[grid.field] for one in records]).astype(np.float64)
        for i, band in enumerate(grid.bands):
            got, want = summary["sensors"][grid.sensor][band], pixels[..., i].ravel()
            assert got["pixels"] == want.size
            assert got["mean"] == pytest.approx(want.mean(), rel=1e-12)
            assert got["std"] == pytest.approx(want.std(), rel=1e-12)
            assert (got["min"], got["max"]) == (want.min(), want.max())
            exact = np.percentile(want, PERCENTILES, method="inverted_cdf")
            assert list(got["percentiles"].values()) == exact.tolist()


def test_the_summary_is_what_numpy_says_of_all_pixels():
    records = [record(seed) for seed in range(7)]
    summary = counted(records).summary()
    assert summary["pairs"] == 7
    assert list(summary["sensors"]["s2"]) == list(sensors.S2.band_names)
    check_bands(summary, records, SMALL)


def test_sensors_on_one_grid_and_with_more_bands_are_counted_too():
    contract = {"s1": sensors.S1, "s2": sensors.S2_L1C}
    description = Description(
        *("x", "x", "x", "x"), layout.resampled(8, contract), contract
    )
    records = [record(seed, description) for seed in range(3)]
    check_bands(counted(records, description).summary(), records, description)


def test_classes_are_counted_by_pair_and_by_pixel():
    one, two, three = (record(seed) for seed in range(3))
    one["labels"], two["labels"], three["labels"] = [0, 2], [2], []
    maps = np.concatenate([r["land_cover"] for r in (one, two, three)])
    three["land_cover"][:2] = NO_CLASS
    summary = counted([one, two, three]).summary()
    assert summary["classes"] == {"labels": {"field": 1, "wood": 0, "lake": 2, "": 1}}
    maps[24:26] = NO_CLASS
    want = [int((maps == i).sum()) for i in (0, 1, 2, NO_CLASS)]
    assert list(summary["maps"]["land_cover"].values()) == want
    assert want[-1] == 24


def test_shards_add_up_to_the_same_in_any_order_and_by_way_of_json():
    records = [record(seed) for seed in range(6)]
    whole = counted(records)
    parts = [
        json.dumps(counted(records[start : start + 2]).to_json()) for start in (0, 2, 4)
    ]
    random.Random(0).shuffle(parts)
    total = Tally(SMALL)
    for part in parts:
        total.merge(Tally.from_json(SMALL, json.loads(part)))
    assert total.to_json() == whole.to_json()
    assert total.summary() == whole.summary()


def test_zeros_of_both_signs_are_one_value_in_order():
    one = record(0)
    one["s1_10m"][..., 0] = np.resize(np.float16([-1.0, -0.0, 0.0, 1.0]), (12, 12))
    got = counted([one]).summary()["sensors"]["s1"]["VV"]
    assert (got["min"], got["max"], got["mean"]) == (-1.0, 1.0, 0.0)
    assert got["percentiles"]["25"] == -1.0 and got["percentiles"]["50"] == 0.0


def test_many_bright_pixels_do_not_overflow():
    tally = Tally(SMALL)
    one = record(0)
    one["s2_10m"][...] = 32767
    tally.add(one)
    for _ in range(40):
        tally.merge(Tally.from_json(SMALL, tally.to_json()))
    got = tally.summary()["sensors"]["s2"]["B02"]
    assert got["pixels"] == 144 * 2**40
    assert (got["mean"], got["std"]) == (32767.0, 0.0)


def test_without_pixels_there_is_nothing_to_say():
    summary = Tally(SMALL).summary()
    nothing = {"pixels": 0, "missing": 0}
    assert summary["sensors"]["s1"] == {"VV": nothing, "VH": nothing}


def test_missing_pixels_are_counted_apart():
    full, holes = record(0), record(0)
    for field, dtype in SMALL.layout.dtypes.items():
        holes[field][:1] = sensors.MISSING[dtype]
    summary = counted([holes]).summary()
    for grid in SMALL.layout.grids:
        for i, band in enumerate(grid.bands):
            got = summary["sensors"][grid.sensor][band]
            want = full[grid.field][1:, :, i].astype(np.float64)
            missing = full[grid.field][:1, :, i].size
            assert (got["pixels"], got["missing"]) == (want.size, missing)
            assert got["mean"] == pytest.approx(want.mean(), rel=1e-12)
            assert got["max"] == want.max()


def test_a_sensor_that_is_missing_everywhere_has_no_distribution():
    empty = record(0)
    empty["s1_10m"][...] = np.nan
    summary = counted([empty]).summary()
    missing = {"pixels": 0, "missing": empty["s1_10m"][..., 0].size}
    assert summary["sensors"]["s1"] == {"VV": missing, "VH": missing}


def test_real_pairs_are_distributed_like_the_published_archive(tmp_path):
    config = ConfigDict(
        {"source": shared_data.bigearthnet_v1(), "scratch": str(tmp_path), "splits": ""}
    )
    archive = bigearthnet_v1.open_archive(config)
    records = [archive.read_pair(pair) for pair in archive.find_pairs()[0]]
    summary = counted(records, archive.description).summary()
    check_bands(summary, records, archive.description)
    for name, sensor in archive.description.sensors.items():
        for band in sensor.bands:
            got = summary["sensors"][name][band.name]
            assert abs(got["mean"] - band.mean) < 0.5 * band.std
            assert 0.5 < got["std"] / band.std < 2.0
    labels = [i for one in records for i in one["labels"]]
    assert sum(summary["classes"]["labels"].values()) == len(labels)
