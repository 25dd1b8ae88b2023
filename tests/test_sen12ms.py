"""Matching, reading and labelling of SEN12MS triplets that the tests write."""

import pathlib
import pickle
import types

import numpy as np
import pytest
import tifffile

from configs import prepare_sen12ms
from data_pipeline import classes, sensors
from data_pipeline.archives import sen12ms
from data_pipeline.building import splits
from data_pipeline.errors import InputError

pytest.importorskip("rasterio", reason="SEN12MS is read with rasterio")

# The remap of pixels that users of the 2020 Data Fusion Contest share, 0 for unknown.
IGBP_TO_CONTEST = [0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10]
BANDS = "B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12".split()  # in the order of a file


def path_of(root, kind, season="ROIs1158_spring", scene=1, patch="p30"):
    name = f"{season}_{kind}_{scene}_{patch}.tif"
    return pathlib.Path(root) / season / f"{kind}_{scene}" / name


def write(path: pathlib.Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = {"planarconfig": "separate"} if len(image) > 1 else {}
    tifffile.imwrite(path, image, photometric="minisblack", **planes)


def write_triplet(root, *, igbp=None, s1_dtype=np.float32, **place) -> None:
    """Writes a false triplet of correct form; `igbp` is the first layer's content."""
    rng = np.random.default_rng(7)
    s1 = rng.normal(-15, 4, (2, 256, 256)).astype(s1_dtype)
    write(path_of(root, "s1", **place), s1)
    s2 = rng.integers(1, 9000, (13, 256, 256), np.uint16)
    write(path_of(root, "s2", **place), s2)
    cover = rng.integers(1, 18, (4, 256, 256), np.uint16)
    cover[0] = cover[0] if igbp is None else igbp
    write(path_of(root, "lc", **place), cover)


def opened(root) -> sen12ms.Sen12MS:
    return sen12ms.open_archive(types.SimpleNamespace(source=str(root)))


def read(root) -> dict:
    archive = opened(root)
    (pair,), _ = archive.find_pairs()
    return archive.read_pair(pair)


@pytest.mark.parametrize("below", ["", "ROIs1158_spring_s2/", "a/b/"])
def test_triplets_are_found_wherever_the_archives_were_unpacked(tmp_path, below):
    write_triplet(tmp_path / below)
    (pair,), skipped = opened(tmp_path).find_pairs()
    assert pair.name == "ROIs1158_spring_s2_1_p30"
    assert pair.images["s1"] == "ROIs1158_spring_s1_1_p30"
    assert pair.tile == "ROIs1158_spring_1" and not skipped


def test_sensors_may_be_unpacked_apart_from_each_other(tmp_path):
    write_triplet(tmp_path)
    moved = tmp_path / "sar" / "ROIs1158_spring"
    moved.mkdir(parents=True)
    (tmp_path / "ROIs1158_spring" / "s1_1").rename(moved / "s1_1")
    assert len(opened(tmp_path).find_pairs()[0]) == 1


def test_season_folder_itself_may_be_the_source(tmp_path):
    write_triplet(tmp_path)
    assert len(opened(tmp_path / "ROIs1158_spring").find_pairs()[0]) == 1


@pytest.mark.parametrize("kind", ["s1", "s2", "lc"])
def test_triplet_without_one_image_is_reported(tmp_path, kind):
    write_triplet(tmp_path)
    path_of(tmp_path, kind).unlink()
    pairs, (skip,) = opened(tmp_path).find_pairs()
    assert not pairs and skip.reason == f"there is no {kind} image of this patch"
    assert skip.name == "ROIs1158_spring_s2_1_p30"


def test_copies_and_strange_names_are_reported(tmp_path):
    write_triplet(tmp_path)
    write(path_of(tmp_path / "copy", "s2"), np.ones((13, 8, 8), np.uint16))
    write(path_of(tmp_path, "s1").with_name("mosaic.tif"), np.ones((2, 8, 8)))
    pairs, skipped = opened(tmp_path).find_pairs()
    assert len(pairs) == 1
    assert sorted(skip.name for skip in skipped) == [
        *("ROIs1158_spring_s2_1_p30.tif", "mosaic.tif")
    ]


def test_hold_out_scenes_are_for_testing(tmp_path):
    write_triplet(tmp_path, scene=63)
    write_triplet(tmp_path, scene=64)
    write_triplet(tmp_path, scene=64, season="ROIs2017_winter")
    pairs, _ = opened(tmp_path).find_pairs()
    assert {pair.tile: pair.split for pair in pairs} == {
        "ROIs1158_spring_63": "test",
        "ROIs1158_spring_64": "train",
        "ROIs2017_winter_64": "test",
    }


# SEN12MS_holdOutScenes.txt of github.com/schmitt-muc/SEN12MS.
HOLD_OUT = {
    "ROIs1158_spring": {15, 17, 63, 97, 124, 146},
    "ROIs1868_summer": {15, 19, 43, 72, 79, 104, 131},
    "ROIs1970_fall": {30, 35, 39, 47, 61, 120, 141, 144},
    "ROIs2017_winter": {32, 64, 107, 135, 146},
}


def test_the_hold_out_scenes_are_those_that_the_archive_publishes(tmp_path):
    for season in HOLD_OUT:
        for scene in range(1, 150):
            for kind in ("s1", "s2", "lc"):
                path = path_of(tmp_path, kind, season, scene)
                path.parent.mkdir(parents=True)
                path.touch()
    pairs, _ = opened(tmp_path).find_pairs()
    test = {pair.tile for pair in pairs if pair.split == "test"}
    assert test == {f"{s}_{scene}" for s in HOLD_OUT for scene in HOLD_OUT[s]}
    assert len(pairs) == 4 * 149


def test_lists_of_names_without_suffix_split_the_archive(tmp_path):
    for scene in (1, 2, 3):
        write_triplet(tmp_path / "data", scene=scene)
    names = [f"ROIs1158_spring_s2_{scene}_p30\n" for scene in (1, 2)]
    for file, name in zip(("train.csv", "test.csv", "val.csv"), [*names, ""]):
        (tmp_path / file).write_text(name)
    config = prepare_sen12ms.get_config()
    config.source, config.splits = str(tmp_path / "data"), str(tmp_path)
    config.holdout_share = 0.0
    found = opened(config.source).find_pairs()
    chosen, skipped, unlisted = splits.assign(config, *found)
    assert {s: [p.tile for p in pairs] for s, pairs in chosen.items()} == {
        "train": ["ROIs1158_spring_1"],
        "test": ["ROIs1158_spring_2"],
    }
    assert not skipped and len(unlisted) == 1


def test_folder_that_cannot_be_listed_stops_the_build(tmp_path):
    write_triplet(tmp_path)
    (tmp_path / "ROIs1158_spring" / "s1_2").symlink_to("s1_2")  # a loop
    with pytest.raises(OSError, match="symbolic links"):
        opened(tmp_path).find_pairs()


def test_source_without_scenes_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no folders like ROIs1158_spring/s2_1"):
        opened(tmp_path).find_pairs()


@pytest.mark.parametrize("s1_dtype", [np.float32, np.int16])
def test_record_has_the_stored_pixels_of_every_band(tmp_path, s1_dtype):
    write_triplet(tmp_path, s1_dtype=s1_dtype)
    record = read(tmp_path)
    s1 = tifffile.imread(path_of(tmp_path, "s1"))
    assert record["s1_10m"].dtype == np.float16
    np.testing.assert_array_equal(record["s1_10m"], s1.transpose(1, 2, 0).astype("f2"))
    s2 = dict(zip(BANDS, tifffile.imread(path_of(tmp_path, "s2"))))
    (grid,) = sen12ms.DESCRIPTION.layout.of("s2")
    assert record["s2_10m"].dtype == np.uint16 and len(grid.bands) == 13
    for band in BANDS:
        channel = grid.bands.index(sensors.canonical(band))
        np.testing.assert_array_equal(record["s2_10m"][..., channel], s2[band])


def test_record_has_the_fields_that_the_description_promises(tmp_path):
    write_triplet(tmp_path)
    record, description = read(tmp_path), sen12ms.DESCRIPTION
    shapes = {field: record[field].shape for field in description.layout.shapes}
    assert shapes == description.layout.shapes
    assert record.keys() >= description.classes.keys() | description.maps.keys()
    assert record["place"] == "ROIs1158_spring_1_p30"
    assert record["tile"] == "ROIs1158_spring_1"


def test_pixel_labels_are_the_first_layer_in_both_nomenclatures(tmp_path):
    igbp = np.random.default_rng(0).integers(0, 19, (256, 256))
    igbp[0, :3] = 254, 255, 300  # unclassified, fill
    write_triplet(tmp_path, igbp=igbp)
    record = read(tmp_path)
    known = (igbp >= 1) & (igbp <= 17)
    expected = np.where(known, igbp - 1, classes.NO_CLASS)
    np.testing.assert_array_equal(record["land_cover_17"], expected)
    contest = np.array(IGBP_TO_CONTEST)[np.where(known, igbp, 0)]
    expected = np.where(contest > 0, contest - 1, classes.NO_CLASS)
    np.testing.assert_array_equal(record["land_cover"], expected)
    assert record["land_cover"].dtype == record["land_cover_17"].dtype == np.uint8


def test_grouping_of_classes_agrees_with_both_published_ones():
    grouping = list(classes.IGBP_17_TO_10.values())
    assert grouping == [index - 1 for index in IGBP_TO_CONTEST[1:]]
    shares = np.random.default_rng(0).dirichlet(np.ones(17))
    grouped = np.bincount(grouping, weights=shares)
    p = shares  # the sums of the archive's toolbox
    summed = [p[0:5].sum(), p[5:7].sum(), p[7:9].sum(), p[9], p[10], p[11] + p[13]]
    np.testing.assert_allclose(grouped, [*summed, p[12], p[14], p[15], p[16]])


def test_names_of_classes_are_at_their_igbp_numbers():
    number = {name: index + 1 for index, name in enumerate(classes.IGBP_17)}
    assert len(number) == 17 and len(set(classes.IGBP_10)) == 10
    assert number["Mixed forest"] == 5 and number["Savanna"] == 9
    assert number["Urban and built-up land"] == 13 and number["Water"] == 17
    for name, index in classes.IGBP_17_TO_10.items():
        coarse = classes.IGBP_10[index].split()[0].lower()  # e.g. "forest", "urban"
        assert coarse in name.lower()


@pytest.mark.parametrize(
    "parts, labels, main",
    [
        ({5: 0.5, 12: 0.25, 14: 0.25}, [0, 5], [0]),  # both kinds of cropland
        ({12: 0.25, 14: 0.25, 17: 0.375, 1: 0.125}, [0, 5, 9], [5]),
        ({13: 6553 / 65536, 16: 58983 / 65536}, [8], [8]),  # urban lacks a pixel
        ({13: 6554 / 65536, 16: 58982 / 65536}, [6, 8], [8]),
        ({0: 0.9375, 11: 0.0625}, [], [4]),  # as shares of all pixels, known or not
        ({0: 1.0}, [], []),
    ],
)
def test_labels_cover_a_tenth_and_the_main_one_most(tmp_path, parts, labels, main):
    counts = [round(share * 256 * 256) for share in parts.values()]
    igbp = np.repeat(list(parts), counts).reshape(256, 256)
    write_triplet(tmp_path, igbp=igbp)
    record = read(tmp_path)
    assert (record["labels"], record["main_label"]) == (labels, main)


def test_sar_that_is_not_a_number_is_missing_in_both_bands(tmp_path):
    write_triplet(tmp_path)
    s1 = tifffile.imread(path_of(tmp_path, "s1"))
    s1[1, 9, 9] = np.nan
    write(path_of(tmp_path, "s1"), s1)
    missing = np.isnan(read(tmp_path)["s1_10m"])
    assert missing[9, 9].all() and missing.sum() == 2


@pytest.mark.parametrize("kind, count", [("s1", 3), ("s2", 12), ("lc", 1)])
def test_wrong_number_of_bands_is_refused(tmp_path, kind, count):
    write_triplet(tmp_path)
    write(path_of(tmp_path, kind), np.ones((count, 256, 256), np.uint16))
    with pytest.raises(InputError, match=f"{kind}_1_p30.tif has {count} bands, where"):
        read(tmp_path)


@pytest.mark.parametrize("kind, count", [("s1", 2), ("s2", 13), ("lc", 4)])
def test_wrong_size_is_refused(tmp_path, kind, count):
    write_triplet(tmp_path)
    write(path_of(tmp_path, kind), np.ones((count, 256, 250), np.uint16))
    with pytest.raises(InputError, match=f"{kind}_1_p30.tif.* is 256 x 250 px, where"):
        read(tmp_path)


def test_statistics_are_those_of_the_archive_where_it_has_any():
    contract = sen12ms.DESCRIPTION.sensors
    assert "[-25, 0]" in contract["s1"].source
    bands = {band.name: band for band in contract["s2"].bands}
    assert bands["B8A"].mean == 2409.1128 and bands["B02"].std == 741.6254
    others = {band.name: band for band in sensors.S2_L1C.bands}
    same = [name for name in bands if bands[name] == others[name]]
    assert same == ["B01", "B09", "B10"]
    assert all(name in contract["s2"].source for name in same)


def test_config_builds_this_archive():
    config = prepare_sen12ms.get_config()
    config.source = "somewhere"
    assert config.archive == "sen12ms" and config.is_locked
    archive = sen12ms.open_archive(config)
    assert pickle.loads(pickle.dumps(archive)) == archive
    assert len(pickle.dumps(archive)) < 200
