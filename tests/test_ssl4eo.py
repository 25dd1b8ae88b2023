"""Pairing of seasons and reading of SSL4EO-S12 folders that the tests write."""

import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import tifffile

from configs import prepare_ssl4eo
from data_pipeline import sensors
from data_pipeline.archives import ssl4eo
from data_pipeline.errors import InputError

S1 = [  # the second was taken a year before the others
    "S1A_IW_GRDH_1SDV_20200607T010800_20200607T010825_032904_03CFBA_D457",
    "S1A_IW_GRDH_1SDV_20190903T131212_20190903T131237_034195_03F8F5_AC1C",
    "S1B_IW_GRDH_1SDV_20201230T010800_20201230T010825_025000_02F000_0001",
    "S1B_IW_GRDH_1SDV_20200301T010800_20200301T010825_025000_02F000_0002",
]
S2 = [  # in the order of their partners
    "20200604T054639_20200604T054831_T43RCP",
    "20200823T054639_20200823T055618_T43RCP",
    "20200102T054639_20200102T054832_T43RCP",  # three days after, in the next year
    "20200313T054639_20200313T054833_T43RCP",
]
SIDES = {10: 264, 20: 132, 60: 44}


def write_product(root, folder: str, place: str, product: str, bands, dtype) -> None:
    path = pathlib.Path(root) / folder / place / product
    path.mkdir(parents=True)
    rng = np.random.default_rng(len(product))
    for band in bands:
        shape = (SIDES[band.gsd], SIDES[band.gsd])
        values = (
            rng.normal(-15, 4, shape) if dtype == "f4" else rng.integers(1, 9000, shape)
        )
        name = band.name.replace("B0", "B")
        tifffile.imwrite(path / f"{name}.tif", values.astype(dtype), rowsperstrip=15)


def write_location(root, place="0000200", s1=S1[:1], s2=S2[:1]) -> None:
    for product in s1:
        write_product(root, "s1", place, product, sensors.S1.bands, "f4")
    for product in s2:
        write_product(root, "s2a", place, product, sensors.S2.bands, "u2")
        write_product(root, "s2c", place, product, sensors.S2_L1C.bands, "u2")


def opened(root, **options) -> ssl4eo.Ssl4eo:
    config = prepare_ssl4eo.get_config()
    config.source = str(root)
    config.read.update(options)
    return ssl4eo.open_archive(config)


def mkdirs(root, place: str, s1, s2) -> None:
    """Only the folders, which is all that pairing looks at."""
    for folder, products in (("s1", s1), ("s2a", s2)):
        for product in products:
            (pathlib.Path(root) / folder / place / product).mkdir(parents=True)


def test_seasons_are_matched_by_day_of_the_year(tmp_path):
    mkdirs(tmp_path, "0000200", S1, S2)
    pairs, skipped = opened(tmp_path).find_pairs()
    assert {pair.names for pair in pairs} == {
        (f"0000200_{s2}", s1) for s1, s2 in zip(S1, S2)
    }
    assert {pair.tile for pair in pairs} == {"0000200"} and not skipped
    assert pairs == sorted(pairs)


def products(day: str) -> tuple[str, str]:
    """Names of a Sentinel-1 and a Sentinel-2 product of a day such as 0301."""
    return f"S1A_IW_GRDH_1SDV_2020{day}T010800_x", f"2020{day}T054639_x"


def test_the_whole_assignment_counts_not_the_nearest_pair():
    s1 = [products(day)[0] for day in ("0301", "0312")]
    s2 = [products(day)[1] for day in ("0310", "0329")]
    # 10 and 12 are nearest, but then 01 and 29 are left to each other.
    matched = [(s1[0], s2[0], 9), (s1[1], s2[1], 17)]
    assert ssl4eo.match_seasons(s1, s2) == matched


def test_images_that_lie_a_season_apart_make_no_pair(tmp_path):
    (s1, _), (_, near), (_, far) = map(products, ("0301", "0430", "0501"))
    mkdirs(tmp_path, "0000001", [s1], [near])  # 60 days
    mkdirs(tmp_path, "0000002", [s1], [far])  # 61 days
    (pair,), (skip,) = opened(tmp_path).find_pairs()
    assert pair.tile == "0000001"
    assert skip.names == (f"0000002_{far}", s1)
    assert skip.reason.startswith("61 days ") and skip.wanted


def test_as_many_pairs_as_can_be_are_near_enough():
    s1 = [products(day)[0] for day in ("0401", "0601")]
    s2 = [products(day)[1] for day in ("0601", "0802")]
    # Both ways the sum is 123 days; one has 61 and 62, the other 0 and 123.
    assert sorted(apart for *_, apart in ssl4eo.match_seasons(s1, s2)) == [0, 123]


@pytest.mark.parametrize("few, many", [("s1", "s2"), ("s2", "s1")])
def test_what_has_no_season_left_is_reported(tmp_path, few, many):
    products = {"s1": S1, "s2": S2}
    products[few] = products[few][1:3]
    mkdirs(tmp_path, "0000200", **products)
    pairs, skipped = opened(tmp_path).find_pairs()
    assert {(p.name[8:], p.images["s1"]) for p in pairs} == set(zip(S2[1:3], S1[1:3]))
    rest = [S1[0], S1[3]] if many == "s1" else [f"0000200_{S2[i]}" for i in (0, 3)]
    assert {skip.images.get("s1") or skip.name for skip in skipped} == set(rest)
    partner = "Sentinel-2" if many == "s1" else "Sentinel-1"
    assert all(f"no {partner} product left" in skip.reason for skip in skipped)


def test_location_of_one_sensor_is_reported(tmp_path):
    mkdirs(tmp_path, "0000001", S1[:1], S2[:1])
    mkdirs(tmp_path, "0000002", S1[:1], [])
    mkdirs(tmp_path, "0000003", [], S2[:1])
    pairs, skipped = opened(tmp_path).find_pairs()
    assert [pair.tile for pair in pairs] == ["0000001"]
    assert [skip.names for skip in skipped] == [
        *(("", S1[0]), (f"0000003_{S2[0]}", ""))
    ]


@pytest.mark.parametrize("name", ["mosaic", "20201399T054639_20201399T054831_T43RCP"])
def test_product_of_unknown_date_is_reported(tmp_path, name):
    mkdirs(tmp_path, "0000200", S1[:1], [name, S2[0]])
    (pair,), (skip,) = opened(tmp_path).find_pairs()
    assert pair.name == f"0000200_{S2[0]}"
    assert skip.name == f"0000200_{name}" and "tells no date" in skip.reason


def test_location_with_too_many_products_is_reported(tmp_path):
    fifth = "20201111T054639_20201111T054831_T43RCP"
    mkdirs(tmp_path, "0000200", S1, [*S2, fifth])
    pairs, skipped = opened(tmp_path).find_pairs()
    assert not pairs and len(skipped) == 9
    assert "4 Sentinel-1 and 5 Sentinel-2" in skipped[0].reason


def test_folder_that_is_no_location_is_reported(tmp_path):
    mkdirs(tmp_path, "old", S1[:1], S2[:1])
    pairs, skipped = opened(tmp_path).find_pairs()
    assert not pairs and len(skipped) == 2 and "by seven digits" in skipped[0].reason


def test_void_locations_are_reported(tmp_path):
    mkdirs(tmp_path / "data", "0124990", S1[:1], S2[:1])
    mkdirs(tmp_path / "data", "0124989", S1[:1], S2[:1])
    void = tmp_path / "void_ids.csv"
    void.write_text("124990\n124991\n")
    pairs, skipped = opened(tmp_path / "data", void_ids=str(void)).find_pairs()
    assert [pair.tile for pair in pairs] == ["0124989"] and len(skipped) == 2
    assert all("0124990 is listed as void" in skip.reason for skip in skipped)


def test_bad_list_of_void_locations_is_an_error(tmp_path):
    void = tmp_path / "void_ids.csv"
    void.write_text("id\n124990\n")
    with pytest.raises(InputError, match="void_ids.csv cannot be read as one number"):
        opened(tmp_path, void_ids=str(void))


@pytest.mark.parametrize("missing, level", [("s1", "L2A"), ("s2c", "L1C")])
def test_missing_folder_is_an_error_that_names_it(tmp_path, missing, level):
    write_location(tmp_path)
    shutil.rmtree(tmp_path / missing)
    with pytest.raises(InputError, match=f"no folder {missing}; pass .*source=DIR"):
        opened(tmp_path, level=level).find_pairs()


def read(root, **options) -> dict:
    archive = opened(root, **options)
    (pair,), _ = archive.find_pairs()
    return archive.read_pair(pair)


@pytest.mark.parametrize("level, folder", [("L2A", "s2a"), ("L1C", "s2c")])
def test_record_has_the_stored_pixels_of_every_band(tmp_path, level, folder):
    write_location(tmp_path)
    record, description = (
        read(tmp_path, level=level),
        opened(tmp_path, level=level).description,
    )
    folders = {"s1": ("s1", S1[0]), "s2": (folder, S2[0])}
    assert len(description.sensors["s2"].bands) == {"L2A": 12, "L1C": 13}[level]
    for grid in description.layout.grids:
        kind, product = folders[grid.sensor]
        for channel, band in enumerate(grid.bands):
            name = band.replace("B0", "B")
            path = tmp_path / kind / "0000200" / product / f"{name}.tif"
            stored = tifffile.imread(path)
            got = record[grid.field][..., channel]
            assert got.dtype == {"s1": "f2", "s2": "u2"}[grid.sensor]
            np.testing.assert_array_equal(got, stored.astype(got.dtype))


def test_record_has_names_times_and_place(tmp_path):
    write_location(tmp_path)
    record = read(tmp_path)
    assert (record["id"], record["id_s1"]) == (f"0000200_{S2[0]}", S1[0])
    assert record["place"] == record["tile"] == "0000200"
    assert record["acquired_s1"] == "2020-06-07T01:08:00"
    assert record["acquired_s2"] == "2020-06-04T05:46:39"
    assert not opened(tmp_path).description.classes


@pytest.mark.parametrize("baseline, offset", [("02.14", 0), ("04.00", 1000)])
def test_offset_of_the_processing_baseline_is_taken_away(tmp_path, baseline, offset):
    write_location(tmp_path)
    product = tmp_path / "s2a" / "0000200" / S2[0]
    image = np.arange(264 * 264, dtype=np.uint16).reshape(264, 264) // 3
    tifffile.imwrite(product / "B3.tif", image)
    content = {"PROCESSING_BASELINE": baseline, "SPACECRAFT_NAME": "Sentinel-2B"}
    (product / "metadata.json").write_text(json.dumps(content))
    for choice, taken in (("auto", offset), ("0", 0), ("1000", 1000)):
        got = read(tmp_path, s2_offset=choice)["s2_10m"][..., 1]
        want = np.where(image > 0, np.maximum(image, taken + 1) - taken, 0)
        np.testing.assert_array_equal(got, want)


def test_offset_must_be_said_where_the_metadata_do_not_tell_it(tmp_path):
    write_location(tmp_path)
    image = tifffile.imread(tmp_path / "s2a" / "0000200" / S2[0] / "B3.tif")
    np.testing.assert_array_equal(read(tmp_path)["s2_10m"][..., 1], image)
    with pytest.raises(InputError, match="metadata.json cannot be read"):
        read(tmp_path, s2_offset="auto")
    (tmp_path / "s2a" / "0000200" / S2[0] / "metadata.json").write_text("{}")
    with pytest.raises(InputError, match="metadata.json does not say .*s2_offset=1000"):
        read(tmp_path, s2_offset="auto")


def test_location_that_cannot_be_listed_stops_the_build(tmp_path):
    mkdirs(tmp_path, "0000200", S1[:1], S2[:1])
    (tmp_path / "s1" / "0000300").symlink_to("0000300")  # a loop, which nobody can open
    with pytest.raises(OSError, match="symbolic links"):
        opened(tmp_path).find_pairs()


@pytest.mark.parametrize(
    "file, bad, reason",
    [
        ("s2a/{}/B11.tif", np.ones((264, 264), "u2"), "264 x 264 px, where .* 132 x"),
        ("s2a/{}/B2.tif", np.ones((264, 264), "f4"), "float32, where .*uint16"),
        ("s2a/{}/B2.tif", np.zeros((264, 264), "u2"), "0 everywhere"),
        ("s1/{}/VH.tif", np.ones((264, 264), "u2"), "uint16, where .*float32"),
    ],
)
def test_bad_band_is_an_error_that_names_it(tmp_path, file, bad, reason):
    write_location(tmp_path)
    folder = S1[0] if file.startswith("s1") else S2[0]
    tifffile.imwrite(tmp_path / file.format(f"0000200/{folder}"), bad)
    band = pathlib.Path(file).stem
    wanted = f"{sensors.canonical(band)},|{band}.tif"
    with pytest.raises(InputError, match=f"({wanted}) .*{reason}"):
        read(tmp_path)


def test_missing_band_is_an_error(tmp_path):
    write_location(tmp_path)
    (tmp_path / "s2a" / "0000200" / S2[0] / "B8A.tif").unlink()
    with pytest.raises(InputError, match="B8A.tif cannot be read"):
        read(tmp_path)


def test_bands_have_the_names_of_the_archive():
    names = [ssl4eo.short_name(name) for name in sensors.S2_L1C.band_names]
    assert names == "B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12".split()
    assert [sensors.canonical(name) for name in names] == [*sensors.S2_L1C.band_names]


def test_statistics_are_those_of_the_level():
    means = {
        level: {band.name: band.mean for band in d.sensors["s2"].bands}
        for level in ssl4eo.FOLDERS
        for d in [ssl4eo.describe(level)]
    }
    assert means["L2A"]["B02"] == 884.29673756 and "B10" not in means["L2A"]
    assert means["L1C"]["B02"] == 1390.78157673
    assert means["L1C"]["B10"] == 22.10351321


def test_archive_pickles_to_a_few_bytes(tmp_path):
    archive = opened("/data", level="L1C")
    assert pickle.loads(pickle.dumps(archive)) == archive
    assert len(pickle.dumps(archive)) < 300
