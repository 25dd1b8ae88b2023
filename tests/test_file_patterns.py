"""Images and masks found by patterns: names of Sen1Floods11, class folders, SAFE."""

import logging
import os
import pickle

import numpy as np
import pytest

from data_pipeline.errors import InputError
from tests.geotiffs import (
    S1_BANDS,
    S2_BANDS,
    SIDE,
    open_archive,
    s1_image,
    s2_image,
    write,
    write_csv,
)

FLOODS = dict(
    s1_files="S1Hand/{id}_S1Hand.tif",
    s2_files="S2Hand/{id}_S2Hand.tif",
    mask_files="LabelHand/{id}_LabelHand.tif",
)
CHIPS = ("Ghana_103272", "Sri-Lanka_10", "Ghana_5")


def write_s1(path, seed=0):
    write(path, s1_image(seed), S1_BANDS)


def write_s2(path, seed=0):
    write(path, s2_image(seed), S2_BANDS)


def write_mask(path, seed=0):
    write(path, mask(seed)[None])


def mask(seed):
    return np.random.default_rng(seed).integers(0, 2, (SIDE, SIDE), np.uint8)


@pytest.fixture
def floods(tmp_path):
    """Three chips as Sen1Floods11 has them, with a mask for each."""
    for i, chip in enumerate(CHIPS):
        write_s1(tmp_path / "S1Hand" / f"{chip}_S1Hand.tif", i)
        write_s2(tmp_path / "S2Hand" / f"{chip}_S2Hand.tif", i)
        write_mask(tmp_path / "LabelHand" / f"{chip}_LabelHand.tif", i)
    return tmp_path


def images(root, *paths):
    """Sentinel-2 images of their own each at these paths."""
    for i, path in enumerate(paths):
        write_s2(root / path, i)
    return root


def pairs_of(root, **read):
    """The pairs, none of which may be skipped."""
    pairs, skipped = open_archive(root, **read).find_pairs()
    assert not skipped
    return pairs


def test_images_and_masks_pair_by_the_same_id(floods):
    archive = open_archive(floods, **FLOODS)
    pairs, skipped = archive.find_pairs()
    assert [pair.name for pair in pairs] == sorted(CHIPS) and not skipped
    for pair in pairs:
        seed, record = CHIPS.index(pair.name), archive.read_pair(pair)
        want = np.moveaxis(s2_image(seed), 0, -1)
        np.testing.assert_array_equal(record["s2_10m"], want)
        want = np.moveaxis(s1_image(seed), 0, -1).astype(np.float16)
        np.testing.assert_array_equal(record["s1_10m"], want)
        np.testing.assert_array_equal(record["mask"], mask(seed))
        assert record["id_s1"] == f"{pair.name}_S1Hand"


def test_a_sensor_without_pattern_is_not_there_whatever_folders_are(floods):
    write_s1(floods / "s1" / "x.tif")
    archive = open_archive(floods, s2_files=FLOODS["s2_files"])
    assert list(archive.description.sensors) == ["s2"]
    assert not archive.description.maps
    assert len(archive.find_pairs()[0]) == 3


def test_class_folders_give_the_label_and_ids_that_do_not_collide(tmp_path):
    images(tmp_path, "Forest/1.tif", "River, wide/1.tif", "River, wide/2.tif")
    archive = open_archive(tmp_path, s2_files="{label}/{id}.tif")
    records = {p.name: archive.read_pair(p) for p in archive.find_pairs()[0]}
    assert archive.description.classes == {"labels": ("Forest", "River, wide")}
    assert {name: record["labels"] for name, record in records.items()} == {
        "Forest_1": [0],
        "River, wide_1": [1],
        "River, wide_2": [1],
    }


def test_numbered_classes_stand_by_number_and_may_be_given(tmp_path):
    images(tmp_path, "10/1.tif", "9/1.tif")
    read = dict(s2_files="{label}/{id}.tif")
    labels = open_archive(tmp_path, **read).description.classes["labels"]
    assert labels == ("9", "10")
    labels = open_archive(tmp_path, **read, classes=("10", "9")).description.classes
    assert labels == {"labels": ("10", "9")}
    images(tmp_path, "11.tif")
    with pytest.raises(InputError, match="no pair has a label; .* {label} into a patt"):
        open_archive(tmp_path, s2_files="{id}.tif", classes=("9",))


def test_a_placeholder_that_comes_again_is_the_same_text(tmp_path):
    images(tmp_path, "Annual_Crop/Annual_Crop_1.tif", "Forest/Forest_2.tif")
    images(tmp_path, "Forest/stray_3.tif")
    pairs = pairs_of(tmp_path, s2_files="{label}/{label}_{id}.tif")
    assert [pair.name for pair in pairs] == ["Annual_Crop_1", "Forest_2"]


def test_splits_and_tiles_come_from_folders(tmp_path):
    images(tmp_path, "train/A/33UUP_1.tif", "val/A/33UUP_1.tif", "test/B/32TNT_1.tif")
    pairs = pairs_of(tmp_path, s2_files="{split}/{label}/{tile}_{id}.tif")
    assert [(pair.name, pair.split, pair.tile) for pair in pairs] == [
        ("test_B_32TNT_1", "test", "32TNT"),
        ("train_A_33UUP_1", "train", "33UUP"),
        ("val_A_33UUP_1", "validation", "33UUP"),
    ]


def test_sensors_pair_by_what_their_patterns_share(tmp_path):
    images(tmp_path, "T1/s2/a.tif", "T2/s2/a.tif")
    for tile in ("T1", "T2"):
        write_s1(tmp_path / tile / "s1" / "a.tif")
    read = dict(s1_files="{tile}/s1/{id}.tif", s2_files="{tile}/s2/{id}.tif")
    assert [p.name for p in pairs_of(tmp_path, **read)] == ["T1_a", "T2_a"]
    write_s1(tmp_path / "radar" / "a.tif")
    read["s1_files"] = "radar/{id}.tif"
    with pytest.raises(InputError, match="T1/s2/a.tif', .*T2/s2/a.tif' stand for one"):
        open_archive(tmp_path, **read)
    (tmp_path / "T2/s2/a.tif").rename(tmp_path / "T2/s2/b.tif")
    pairs, skipped = open_archive(tmp_path, **read).find_pairs()
    assert [pair.name for pair in pairs] == ["T1_a"]
    reason = f"its partner {tmp_path}/radar/b.tif is missing"
    assert [(skip.names, skip.reason) for skip in skipped] == [(("b", ""), reason)]


def test_a_mask_may_say_the_class(tmp_path):
    images(tmp_path, "s2/a.tif")
    write_mask(tmp_path / "wet" / "a.tif")
    read = dict(s2_files="s2/{id}.tif", mask_files="{label}/{id}.tif")
    archive = open_archive(tmp_path, **read | {"mask_files": "w{label}/{id}.tif"})
    (pair,), _ = archive.find_pairs()
    assert pair.name == "a" and archive.description.classes == {"labels": ("et",)}


def test_what_lacks_a_partner_or_has_two_is_skipped_with_what_is_wrong(floods):
    (floods / "S1Hand" / "Ghana_5_S1Hand.tif").unlink()
    (floods / "LabelHand" / "Sri-Lanka_10_LabelHand.tif").unlink()
    pairs, skipped = open_archive(floods, **FLOODS).find_pairs()
    assert [pair.name for pair in pairs] == ["Ghana_103272", "Sri-Lanka_10"]
    assert [skip.names for skip in skipped] == [("Ghana_5", "")]
    want = f"its partner {floods}/S1Hand/Ghana_5_S1Hand.tif is missing"
    assert skipped[0].reason == want
    write_mask(floods / "LabelHand" / "Ghana_103272_LabelHand2.tif")
    pattern = {"mask_files": "LabelHand/{id}_LabelHand*.tif"}
    pairs, skipped = open_archive(floods, **FLOODS | pattern).find_pairs()
    assert [pair.name for pair in pairs] == ["Sri-Lanka_10"]
    assert "LabelHand2.tif' stand for one pair, which has one mask" in skipped[0].reason


def test_masks_of_no_image_are_told(floods, caplog):
    write_mask(floods / "LabelHand" / "Peru_1_LabelHand.tif")
    with caplog.at_level(logging.WARNING, "fusmae_jax"):
        open_archive(floods, **FLOODS)
    assert "1 of 4 masks" in caplog.text and "Peru_1" in caplog.text
    with pytest.raises(
        InputError, match="None of the 4 masks .*LabelHand/Ghana_.*mask_f"
    ):
        open_archive(floods, **FLOODS | {"mask_files": "LabelHand/{id}.tif"})


def test_a_folder_with_a_file_for_each_band_matches_too(tmp_path):
    for i, name in enumerate(("a", "b")):
        for band, image in zip(S2_BANDS, s2_image(i)):
            write(tmp_path / "in" / f"{name}.SAFE" / f"{band}.tif", image[None])
    archive = open_archive(tmp_path, s2_files="in/{id}.SAFE")
    first, second = archive.find_pairs()[0]
    assert (first.name, second.name) == ("a", "b")
    want = np.moveaxis(s2_image(1), 0, -1)
    np.testing.assert_array_equal(archive.read_pair(second)["s2_10m"], want)


def test_links_are_followed_and_hidden_or_other_files_are_not_images(tmp_path):
    images(tmp_path / "elsewhere", "1.tif", "2.tif", ".3.tif", "._4.tif")
    (tmp_path / "elsewhere" / "1.tif.aux.xml").write_text("")
    (tmp_path / "here" / ".hidden").mkdir(parents=True)
    images(tmp_path, "here/.hidden/1.tif")
    (tmp_path / "here" / "Forest").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here" / "loop").symlink_to(tmp_path / "here")
    names = [p.name for p in pairs_of(tmp_path / "here", s2_files="{label}/{id}.*")]
    assert names == ["Forest_1", "Forest_2"]


def test_each_folder_is_listed_once_as_deep_as_the_patterns(floods, monkeypatch):
    images(floods, "S2Hand/deeper/1.tif", "other/1.tif", "S2Hand/deeper/still/1.tif")
    listed, scandir = [], os.scandir
    archive = open_archive(floods, **FLOODS)
    monkeypatch.setattr(os, "scandir", lambda p: listed.append(str(p)) or scandir(p))
    archive.find_pairs()
    folders = ["LabelHand", "S1Hand", "S2Hand"]
    assert [os.path.relpath(path, floods) for path in listed] == [".", *folders]


def test_an_archive_of_patterns_pickles_small_and_can_be_hashed(floods):
    archive = open_archive(floods, **FLOODS)
    copy = pickle.loads(pickle.dumps(archive))
    assert copy == archive and hash(copy) == hash(archive)
    assert copy.find_pairs() == archive.find_pairs()
    assert len(pickle.dumps(archive)) < 10_000


@pytest.mark.parametrize(
    "read, message",
    [
        (
            dict(s2_files="S2Hand/{id}_S2.tif"),
            "s2_files='S2Hand/{id}_S2.tif' matches no .tif, .* or folder below .*; "
            "correct it, .*/S2Hand/ holds 'Ghana_103272_S2Hand.tif', .*10_S2Hand.tif'",
        ),
        (
            dict(s2_files="S2hand/{id}.tif"),
            "correct it, .* holds 'LabelHand', 'S1Hand', 'S2Hand', 1 more",
        ),
        (dict(s2_files="S2Hand/{id}.jpg"), "matches no .tif, .tiff, .jp2 or folder"),
        (dict(s2_files="empty/{id}.tif"), "/empty/ holds nothing"),
        (dict(mask_files="LabelHand/{id}.tif"), "mask_files is given alone; set"),
        (
            dict(s2_files="S2Hand/{tile}_{id}_S2Hand.tif", mask_files="empty/{id}.tif"),
            "mask_files='empty/{id}.tif' matches no .tif, .tiff, .png below",
        ),
        (
            dict(s2_files="S2Hand/{label}_{id}.tif"),
            "leaves open whether {label} of S2Hand/Ghana_103272_S2Hand.tif is 'Ghana' "
            "or 'Ghana_103272'; write more",
        ),
        (
            dict(s2_files="S2Hand/{split}_{id}_S2Hand.tif"),
            "finds the splits 'Ghana', 'Sri-Lanka'; {split} must be train, validation, "
            "test or val",
        ),
        (
            dict(s1_files="S1Hand/{id}.tif", s2_files="S2Hand/{id}.tif"),
            "has no pairs by its patterns .* 'Ghana_103272_S1Hand' its partner .*/S2Han"
            "d/Ghana_103272_S1Hand.tif is missing",
        ),
    ],
)
def test_patterns_that_do_not_fit_are_refused_with_what_is_there(floods, read, message):
    (floods / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        open_archive(floods, **read)


def test_patterns_are_for_folders(floods):
    source = write_csv(floods / "pairs.csv", [dict(s2="a.tif")])
    with pytest.raises(InputError, match="s1_files is a pattern .* is a CSV, which"):
        open_archive(source, **FLOODS)
    with pytest.raises(InputError, match="gone is not a folder; .* that the patterns"):
        open_archive(floods / "gone", **FLOODS)
    with pytest.raises(InputError, match="no folder s1 or s2; .* read.s2_files="):
        open_archive(floods)
