"""Pairing and reading of BigEarthNet v1 folders, real and false."""

import pathlib
import shutil

import numpy as np
import pytest
import tifffile

from data_pipeline import bigearthnet
from data_pipeline import sensors
from data_pipeline.errors import InputError
from tests import shared_data


def test_43_classes_map_to_19_and_11_are_dropped():
    targets = list(bigearthnet.CLASSES_43_TO_19.values())
    assert len(bigearthnet.CLASSES_43) == 43 and targets.count(None) == 11
    assert set(targets) - {None} == set(range(19))
    assert len(bigearthnet.CLASSES_19) == 19


def test_class_table_equals_that_of_bigearthnet_common():
    constants = pytest.importorskip("bigearthnet_common.constants")
    names = {
        old: None if index is None else bigearthnet.CLASSES_19[index]
        for old, index in bigearthnet.CLASSES_43_TO_19.items()
    }
    assert names == constants.OLD2NEW_LABELS_DICT
    assert bigearthnet.CLASSES_43 == constants.OLD_LABELS_ORIGINAL_ORDER
    assert bigearthnet.CLASSES_19 == constants.NEW_LABELS_ORIGINAL_ORDER


def test_pairs_are_sorted_by_sentinel_2_name(tmp_path):
    for column in (30, 4, 17):
        shared_data.write_pair(tmp_path, column)
    pairs, skipped = bigearthnet.find_pairs(tmp_path)
    names = [pair.s2_name for pair in pairs]
    assert len(names) == 3 and names == sorted(names) and not skipped


def test_patches_without_partner_are_reported(tmp_path):
    shared_data.write_pair(tmp_path, 1)
    s2, _ = shared_data.write_pair(tmp_path, 2)
    _, s1 = shared_data.write_pair(tmp_path, 3)
    shutil.rmtree(s2)
    shutil.rmtree(s1)
    pairs, skipped = bigearthnet.find_pairs(tmp_path)
    assert len(pairs) == 1 and len(skipped) == 2
    assert "is not in" in skipped[0].reason and "names it" in skipped[1].reason


def test_two_patches_that_claim_one_partner_make_one_pair(tmp_path):
    s2, _ = shared_data.write_pair(tmp_path, 1)
    change = {"corresponding_s2_patch": s2.name}
    spare, _ = shared_data.write_pair(tmp_path, 2, s1_changes=change)
    shutil.rmtree(spare)
    pairs, skipped = bigearthnet.find_pairs(tmp_path)
    assert len(pairs) == 1 and "belongs to the same" in skipped[0].reason


def test_patch_with_a_damaged_json_is_reported(tmp_path):
    _, s1 = shared_data.write_pair(tmp_path, 1)
    (s1 / f"{s1.name}_labels_metadata.json").write_text("{")
    pairs, skipped = bigearthnet.find_pairs(tmp_path)
    assert not pairs and "cannot be read" in skipped[0].reason


@pytest.mark.parametrize("missing", ["BigEarthNet-v1.0", "BigEarthNet-S1-v1.0"])
def test_missing_archive_is_an_error_that_says_what_was_looked_for(tmp_path, missing):
    shared_data.write_pair(tmp_path, 1)
    shutil.rmtree(tmp_path / missing)
    with pytest.raises(InputError, match=f"no folder {missing} or .*config.source"):
        bigearthnet.find_pairs(tmp_path)


def read(root) -> dict:
    (pair,), _ = bigearthnet.find_pairs(root)
    return bigearthnet.read_pair(pair)


def test_record_has_the_stored_pixels_of_every_band(tmp_path):
    folders = dict(zip(("s2", "s1"), shared_data.write_pair(tmp_path, 1)))
    record = read(tmp_path)
    for sensor in sensors.SENSORS.values():
        for grid in sensor.grids:
            for channel, band in enumerate(grid.bands):
                folder = folders[sensor.name]
                stored = tifffile.imread(folder / f"{folder.name}_{band}.tif")
                got = record[grid.field][..., channel]
                assert got.dtype == sensor.dtype
                np.testing.assert_array_equal(got, stored.astype(sensor.dtype))


def test_record_has_labels_names_and_times(tmp_path):
    s2, s1 = shared_data.write_pair(tmp_path, 1)
    record = read(tmp_path)
    assert record["labels"] == shared_data.LABELS_19
    assert record["labels_43"] == [24, 39]
    assert (record["id"], record["id_s1"]) == (s2.name, s1.name)
    assert record["tile"] == "35VPK"
    assert record["acquired_s1"] == "2017-06-29T15:32:02"
    assert record["acquired_s2"] == "2017-07-01T09:30:31"  # one-digit hour


def test_time_in_the_json_goes_before_that_in_the_name(tmp_path):
    change = {"acquisition_date": "2018-02-04 09:41:56"}
    shared_data.write_pair(tmp_path, 1, s2_changes=change)
    assert read(tmp_path)["acquired_s2"] == "2018-02-04T09:41:56"


def test_labels_that_the_19_classes_drop_leave_no_target(tmp_path):
    shared_data.write_pair(tmp_path, 1, labels=["Airports"])
    record = read(tmp_path)
    assert record["labels"] == [] and record["labels_43"] == [5]


def image(side, dtype=np.uint16, value=1):
    return np.full((side, side), value, dtype)


@pytest.mark.parametrize(
    "sensor, band, bad, reason",
    [
        ("s2", "B8A", image(120), r"uint16 \(120, 120\), where .*\(60, 60\)"),
        ("s2", "B02", image(120, np.float32), "float32 .*, where .*uint16"),
        ("s2", "B02", image(120, value=40_000), "from 40000 to 40000, where"),
        ("s1", "VV", image(120), "uint16 .*, where .*float32"),
        ("s1", "VH", image(120, np.float32, np.nan), "from nan to nan"),
        ("s1", "VH", image(120, np.float32, -np.inf), "from -inf"),
        ("s1", "VH", image(120, np.float32, 1000.0), "1000.0, where Sentinel-1 in dB"),
    ],
)
def test_bad_band_is_an_error_that_names_file_and_values(
    tmp_path, sensor, band, bad, reason
):
    folders = dict(zip(("s2", "s1"), shared_data.write_pair(tmp_path, 1)))
    shared_data.write_band(folders[sensor], band, bad)
    with pytest.raises(InputError, match=f"_{band}.tif .*{reason}"):
        read(tmp_path)


def test_missing_band_is_an_error(tmp_path):
    s2, _ = shared_data.write_pair(tmp_path, 1)
    (s2 / f"{s2.name}_B11.tif").unlink()
    with pytest.raises(InputError, match="_B11.tif cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    "labels, s1_labels, reason",
    [
        (["Lava"], ["Lava"], r"labels \['Lava'\], which are not among the 43"),
        (["Airports"], ["Bare rock"], "must have the same labels"),
        ([], [], "at least one"),
    ],
)
def test_bad_labels_are_an_error(tmp_path, labels, s1_labels, reason):
    change = {"labels": s1_labels}
    shared_data.write_pair(tmp_path, 1, labels=labels, s1_changes=change)
    with pytest.raises(InputError, match=reason):
        read(tmp_path)


def test_all_22_real_pairs_are_found_and_read():
    pairs, skipped = bigearthnet.find_pairs(shared_data.bigearthnet_v1())
    assert len(pairs) == 22 and not skipped
    for pair in pairs:
        record = bigearthnet.read_pair(pair)
        assert record["labels"] and record["acquired_s1"] and record["acquired_s2"]


def test_sentinel_1_is_rounded_by_less_than_a_64th_of_a_decibel():
    pair = bigearthnet.find_pairs(shared_data.bigearthnet_v1())[0][0]
    stored = tifffile.imread(pathlib.Path(pair.s1_folder, f"{pair.s1_name}_VH.tif"))
    got = bigearthnet.read_pair(pair)["s1_10m"][..., 1]
    assert np.abs(got.astype(np.float32) - stored).max() <= 1 / 64
