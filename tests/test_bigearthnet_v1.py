"""Pairing and reading of BigEarthNet v1 folders, real and false."""

import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import tifffile

from configs import prepare_bigearthnet
from data_pipeline import classes, sensors
from data_pipeline.archives import bigearthnet_v1
from data_pipeline.errors import InputError
from tests import shared_data


def open_archive(root, lists=""):
    config = prepare_bigearthnet.get_config()
    config.source, config.out, config.splits = str(root), str(root) + "-out", str(lists)
    return bigearthnet_v1.open_archive(config)


def find_pairs(root, lists=""):
    return open_archive(root, lists).find_pairs()


def read(root) -> dict:
    archive = open_archive(root)
    (pair,), _ = archive.find_pairs()
    return archive.read_pair(pair)


def test_43_classes_map_to_19_and_11_are_dropped():
    targets = list(classes.BIGEARTHNET_43_TO_19.values())
    assert len(classes.BIGEARTHNET_43) == 43 and targets.count(None) == 11
    assert set(targets) - {None} == set(range(19))
    assert len(classes.BIGEARTHNET_19) == 19


def test_class_table_equals_that_of_bigearthnet_common():
    constants = pytest.importorskip(
        "bigearthnet_common.constants", reason="pip install bigearthnet-common"
    )
    names = {
        old: None if index is None else classes.BIGEARTHNET_19[index]
        for old, index in classes.BIGEARTHNET_43_TO_19.items()
    }
    assert names == constants.OLD2NEW_LABELS_DICT
    assert classes.BIGEARTHNET_43 == tuple(constants.OLD_LABELS_ORIGINAL_ORDER)
    assert classes.BIGEARTHNET_19 == tuple(constants.NEW_LABELS_ORIGINAL_ORDER)


def test_pairs_are_sorted_by_sentinel_2_name(tmp_path):
    for column in (30, 4, 17):
        shared_data.write_pair(tmp_path, column)
    pairs, skipped = find_pairs(tmp_path)
    names = [pair.name for pair in pairs]
    assert len(names) == 3 and names == sorted(names) and not skipped


def test_patches_without_partner_are_reported(tmp_path):
    shared_data.write_pair(tmp_path, 1)
    s2, _ = shared_data.write_pair(tmp_path, 2)
    _, s1 = shared_data.write_pair(tmp_path, 3)
    shutil.rmtree(s2)
    shutil.rmtree(s1)
    pairs, skipped = find_pairs(tmp_path)
    assert len(pairs) == 1 and len(skipped) == 2
    assert "is not in" in skipped[0].reason and "names it" in skipped[1].reason


def test_two_patches_that_claim_one_partner_make_one_pair(tmp_path):
    s2, _ = shared_data.write_pair(tmp_path, 1)
    change = {"corresponding_s2_patch": s2.name}
    spare, _ = shared_data.write_pair(tmp_path, 2, s1_changes=change)
    shutil.rmtree(spare)
    pairs, skipped = find_pairs(tmp_path)
    assert len(pairs) == 1 and "belongs to the same" in skipped[0].reason


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"corresponding_s2_patch": "x"}', "KeyError.*labels"),
        ('{"labels": "Airports"}', "is damaged"),
        ('{"labels": [], "corresponding_s2_patch": 7}', "numbers where texts"),
        ('{"labels": []}', "'' is not in"),
    ],
)
def test_patch_with_a_damaged_json_is_reported(tmp_path, text, reason):
    _, s1 = shared_data.write_pair(tmp_path, 1)
    (s1 / f"{s1.name}_labels_metadata.json").write_text(text)
    pairs, skipped = find_pairs(tmp_path)
    assert not pairs and skipped[0].images["s1"] == s1.name
    with pytest.raises(InputError, match=reason):
        raise InputError(skipped[0].reason)


def test_archive_and_its_pairs_pickle_to_a_few_bytes(tmp_path):
    shared_data.write_pair(tmp_path, 1)
    archive = open_archive(tmp_path)
    (pair,), _ = archive.find_pairs()
    assert pickle.loads(pickle.dumps(archive)) == archive
    assert len(pickle.dumps(archive)) < 1000 and len(pickle.dumps(pair)) < 1000
    assert tuple(json.loads(json.dumps(pair.where))) == pair.where


def write_lists(folder, *rows):
    folder.mkdir()
    for name, part in (("train", rows), ("val", ()), ("test", ())):
        (folder / f"{name}.csv").write_text("".join(",".join(r) + "\n" for r in part))
    return folder


def test_lists_of_both_names_spare_the_matching(tmp_path):
    names = [[p.name for p in shared_data.write_pair(tmp_path, i)] for i in range(4)]
    for _, s1_name in names:  # matching would have to read them
        s1 = tmp_path / "BigEarthNet-S1-v1.0" / s1_name
        (s1 / f"{s1_name}_labels_metadata.json").write_text("{")
    gone = (names[3][0], "S1A_GONE")
    lists = write_lists(tmp_path / "lists", names[0], names[2], gone)
    pairs, skipped = find_pairs(tmp_path, lists)
    assert [[*p.names] for p in pairs] == [names[0], names[2]]
    assert [skip.name for skip in skipped] == [names[1][0], names[3][0]]
    assert all("lists names no patch in" in skip.reason for skip in skipped)


def test_lists_of_one_name_leave_the_matching_to_the_archive(tmp_path):
    names = [[p.name for p in shared_data.write_pair(tmp_path, i)] for i in range(2)]
    lists = write_lists(tmp_path / "lists", names[0], names[1][:1])
    assert find_pairs(tmp_path, lists) == find_pairs(tmp_path)


def test_list_that_pairs_the_wrong_patches_is_found_out_when_they_are_read(tmp_path):
    (a, s1_a), (b, s1_b) = (shared_data.write_pair(tmp_path, i) for i in range(2))
    rows = (a.name, s1_b.name), (b.name, s1_a.name)
    archive = open_archive(tmp_path, write_lists(tmp_path / "lists", *rows))
    pairs, _ = archive.find_pairs()
    assert len(pairs) == 2
    with pytest.raises(InputError, match=f"belongs to {b.name} by its json, not to"):
        archive.read_pair(pairs[0])


@pytest.mark.parametrize("missing", ["BigEarthNet-v1.0", "BigEarthNet-S1-v1.0"])
def test_missing_archive_is_an_error_that_says_what_was_looked_for(tmp_path, missing):
    shared_data.write_pair(tmp_path, 1)
    shutil.rmtree(tmp_path / missing)
    with pytest.raises(InputError, match=f"folder {missing} or .*source=DIR"):
        find_pairs(tmp_path)


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
        ("s2", "B8A", image(120), "is 120 x 120 px, where .* 60 x 60;"),
        ("s2", "B02", image(120, np.float32), "float32, where .*uint16"),
        ("s2", "B02", image(120, value=40_000), "from 40000 to 40000, where"),
        ("s2", "B09", image(20, value=0), "is 0 everywhere"),
        ("s1", "VV", image(120), "uint16, where .*float32"),
        ("s1", "VH", image(120, np.float32, 1000.0), "1000.0, where Sentinel-1 in dB"),
        ("s1", "VH", image(120, np.float32, -12.0), "is -12 everywhere"),
    ],
)
def test_bad_band_is_an_error_that_names_file_and_values(
    tmp_path, sensor, band, bad, reason
):
    folders = dict(zip(("s2", "s1"), shared_data.write_pair(tmp_path, 1)))
    shared_data.write_band(folders[sensor], band, bad)
    with pytest.raises(InputError, match=f"{band}.*{reason}") as raised:
        read(tmp_path)
    assert folders[sensor].name in str(raised.value)


def test_missing_band_is_an_error(tmp_path):
    s2, _ = shared_data.write_pair(tmp_path, 1)
    (s2 / f"{s2.name}_B11.tif").unlink()
    with pytest.raises(InputError, match="_B11.tif cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    "labels, s1_labels, reason",
    [
        (["Lava"], ["Lava"], r"labels \['Lava'\], which are not among the 43 of"),
        (["Airports"], ["Bare rock"], "must have the same labels"),
        ([], [], "at least one"),
    ],
)
def test_bad_labels_are_an_error(tmp_path, labels, s1_labels, reason):
    change = {"labels": s1_labels}
    shared_data.write_pair(tmp_path, 1, labels=labels, s1_changes=change)
    with pytest.raises(InputError, match=reason):
        read(tmp_path)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_all_22_real_pairs_hold_the_pixels_that_rasterio_reads_in_all_14_bands():
    rasterio = pytest.importorskip("rasterio", reason="pip install rasterio")
    archive = open_archive(shared_data.bigearthnet_v1())
    pairs, skipped = archive.find_pairs()
    assert len(pairs) == 22 and not skipped
    for pair in pairs:
        record = archive.read_pair(pair)
        assert record["labels"] and record["acquired_s1"] and record["acquired_s2"]
        folders, bands = dict(zip(("s2", "s1"), pair.where)), 0
        for grid in archive.description.layout.grids:
            name = {"s1": pair.images["s1"], "s2": pair.name}[grid.sensor]
            for channel, band in enumerate(grid.bands):
                path = pathlib.Path(folders[grid.sensor], f"{name}_{band}.tif")
                with rasterio.open(path) as file:
                    stored = file.read(1).astype(sensors.SENSORS[grid.sensor].dtype)
                np.testing.assert_array_equal(record[grid.field][..., channel], stored)
                bands += 1
        assert bands == 14


def test_sentinel_1_is_rounded_by_less_than_a_64th_of_a_decibel():
    archive = open_archive(shared_data.bigearthnet_v1())
    pair = archive.find_pairs()[0][0]
    path = pathlib.Path(pair.where[1], f"{pair.names[1]}_VH.tif")
    stored = tifffile.imread(path)
    got = archive.read_pair(pair)["s1_10m"][..., 1]
    assert np.abs(got.astype(np.float32) - stored).max() <= 1 / 64
