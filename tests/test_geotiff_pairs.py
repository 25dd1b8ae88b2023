"""Users' own pairs of GeoTIFFs, checked with tifffile."""

import pickle

import numpy as np
import pytest
import rasterio
import tifffile

from data_pipeline import sensors
from data_pipeline.errors import InputError
from tests.geotiffs import (
    S1_BANDS,
    S2_BANDS,
    SIDE,
    only_record,
    open_archive,
    s1_image,
    s2_image,
    write,
    write_csv,
    write_pairs,
)


def test_pairs_of_a_folder_are_read_as_tifffile_reads_them(tmp_path):
    write_pairs(tmp_path)

    archive = open_archive(tmp_path)
    pairs, skipped = archive.find_pairs()

    assert [pair.name for pair in pairs] == ["p0", "p1"] and not skipped
    assert archive.description.layout.shapes == {
        "s1_10m": (SIDE, SIDE, 2),
        "s2_10m": (SIDE, SIDE, 12),
    }
    for pair in pairs:
        record = archive.read_pair(pair)
        for field, dtype in (("s1_10m", np.float16), ("s2_10m", np.uint16)):
            path = tmp_path / field[:2] / f"{pair.name}.tif"
            want = tifffile.imread(path).astype(dtype)  # bands come last in the file
            assert record[field].dtype == dtype
            np.testing.assert_array_equal(record[field], want)
        assert record["id"] == record["id_s1"] == pair.name
        assert "labels" not in record


def test_bands_go_by_name_in_whatever_order_and_spelling_they_lie(tmp_path):
    s1, s2 = s1_image(0), s2_image(0)
    angle, scene = s1[:1] * 0 + 38, s2[:1] * 0 + 7
    order = np.random.default_rng(1).permutation(12)
    names = [S2_BANDS[i].replace("B0", "b") for i in order]
    write(
        tmp_path / "s1" / "a.tif",
        np.concatenate([angle, s1[::-1]]),
        ("angle", "vh", " vv "),
    )
    write(
        tmp_path / "s2" / "a.tif",
        np.concatenate([s2[order], scene]),
        (*names, "SCL"),
    )

    record = only_record(tmp_path)

    np.testing.assert_array_equal(
        record["s1_10m"], np.moveaxis(s1, 0, -1).astype(np.float16)
    )
    np.testing.assert_array_equal(record["s2_10m"], np.moveaxis(s2, 0, -1))


def test_files_without_descriptions_take_the_names_of_the_config(tmp_path):
    write(tmp_path / "s1" / "a.tif", s1_image(0)[::-1])
    write(tmp_path / "s2" / "a.tif", s2_image(0)[:3], ("blue", "green", "red"))

    archive = open_archive(tmp_path, s1_bands=("VH", "VV"), s2_bands=("B4", "B3", "B2"))
    record = archive.read_pair(archive.find_pairs()[0][0])

    assert archive.description.sensors["s2"].band_names == ("B02", "B03", "B04")
    np.testing.assert_array_equal(
        record["s1_10m"], np.moveaxis(s1_image(0), 0, -1).astype(np.float16)
    )
    np.testing.assert_array_equal(
        record["s2_10m"], np.moveaxis(s2_image(0)[2::-1], 0, -1)
    )


def test_top_of_atmosphere_products_have_the_cirrus_band(tmp_path):
    bands = sensors.S2_L1C.band_names
    image = np.concatenate([s2_image(0), s2_image(1)[:1]])
    write(tmp_path / "s1" / "a.tif", s1_image(0), S1_BANDS)
    write(tmp_path / "s2" / "a.tif", image, bands)

    archive = open_archive(tmp_path, s2_level="L1C")

    assert archive.description.sensors["s2"] == sensors.S2_L1C
    record = archive.read_pair(archive.find_pairs()[0][0])
    np.testing.assert_array_equal(record["s2_10m"], np.moveaxis(image, 0, -1))


def test_linear_power_and_reflectance_are_converted(tmp_path):
    power = (10 ** (s1_image(0).astype(np.float64) / 10)).astype(np.float32)
    reflectance = (s2_image(0) / 10000).astype(np.float32)
    write(tmp_path / "s1" / "a.tif", power, S1_BANDS)
    write(tmp_path / "s2" / "a.tif", reflectance, S2_BANDS)

    record = only_record(tmp_path, s1_unit="linear", s2_unit="reflectance")

    want = np.moveaxis(s1_image(0), 0, -1)
    np.testing.assert_allclose(record["s1_10m"], want, atol=0.02)
    assert record["s2_10m"].dtype == np.uint16
    np.testing.assert_array_equal(record["s2_10m"], np.moveaxis(s2_image(0), 0, -1))


@pytest.mark.parametrize(
    "name, tags, added",
    [
        ("S2A_MSIL2A_20220301T101031_N0400_R022_T33UUP", {}, 1000),
        ("S2A_MSIL2A_20210301T101031_N0214_R022_T33UUP", {}, 0),
        ("a", {"PROCESSING_BASELINE": "05.09"}, 1000),
        ("a", {"PRODUCT_URI": "S2A_MSIL2A_20210301T101031_N0301_R022_T33U"}, 0),
    ],
)
def test_the_offset_follows_from_the_file_name_or_tags(tmp_path, name, tags, added):
    write(tmp_path / "s1" / f"{name}.tif", s1_image(0), S1_BANDS)
    write(tmp_path / "s2" / f"{name}.tif", s2_image(0) + added, S2_BANDS, tags)

    record = only_record(tmp_path, s2_offset="auto")

    np.testing.assert_array_equal(record["s2_10m"], np.moveaxis(s2_image(0), 0, -1))


@pytest.mark.parametrize(
    "unit, offset, water", [("DN", "1000", 985), ("reflectance", "0", -0.0015)]
)
def test_water_too_dark_for_the_contract_is_measured_and_told_from_no_data(
    tmp_path, unit, offset, water
):
    image = np.full((12, SIDE, SIDE), water, np.float32)
    image[0, 3] = 0.0  # no data
    write(tmp_path / "s1" / "a.tif", s1_image(0), S1_BANDS)
    write(tmp_path / "s2" / "a.tif", image, S2_BANDS)
    got = only_record(tmp_path, s2_unit=unit, s2_offset=offset)["s2_10m"]
    assert (got[3, :, 0] == 0).all() and (got[:, :, 1:] == 1).all()
    image[:, 3] = 0.0  # in all bands
    write(tmp_path / "s2" / "a.tif", image, S2_BANDS)
    got = only_record(tmp_path, s2_unit=unit, s2_offset=offset)["s2_10m"]
    assert (got[3] == sensors.MISSING["uint16"]).all() and (got[4:] == 1).all()


def test_metadata_that_says_nothing_of_the_offset_stops_the_build(tmp_path):
    for i in range(2):
        write(tmp_path / "s1" / f"p{i}.tif", s1_image(i), S1_BANDS)
        write(tmp_path / "s2" / f"p{i}.tif", s2_image(i) + 900, S2_BANDS)
    with pytest.raises(InputError, match=r"baseline.*s2_offset=1000 .* and =0"):
        open_archive(tmp_path, s2_offset="auto")


def test_an_explicit_offset_overrules_the_metadata(tmp_path):
    name = "S2A_MSIL2A_20220301T101031_N0400_R022_T33UUP"
    write(tmp_path / "s1" / f"{name}.tif", s1_image(0), S1_BANDS)
    image = s2_image(0) + 900  # which proves nothing
    write(tmp_path / "s2" / f"{name}.tif", image, S2_BANDS)

    assert only_record(tmp_path, s2_offset="0")["s2_10m"].min() >= 1000
    for offset in ("1000", "auto"):
        reduced = only_record(tmp_path, s2_offset=offset)["s2_10m"]
        np.testing.assert_array_equal(
            reduced, np.moveaxis(np.maximum(image, 1001) - 1000, 0, -1)
        )


def test_acquisition_times_come_from_the_names_of_products(tmp_path):
    name = "S2A_MSIL2A_20220301T101031_N0400_R022_T33UUP"
    write(tmp_path / "s1" / f"{name}.tif", s1_image(0), S1_BANDS)
    write(tmp_path / "s2" / f"{name}.tif", s2_image(0), S2_BANDS)
    assert only_record(tmp_path)["acquired_s2"] == "2022-03-01T10:10:31"


def test_classes_keep_the_order_of_the_config(tmp_path):
    write_pairs(tmp_path)
    row = dict(s1="s1/p0.tif", s2="s2/p0.tif", labels="water;forest")
    source = write_csv(tmp_path / "pairs.csv", [row])
    assert only_record(source, classes=("water", "city", "forest"))["labels"] == [0, 2]


def test_the_archive_pickles_small_and_can_be_hashed(tmp_path):
    write_pairs(tmp_path)
    archive = open_archive(tmp_path)
    copy = pickle.loads(pickle.dumps(archive))
    assert copy == archive and hash(copy) == hash(archive)
    assert len(pickle.dumps(archive)) < 10_000


NAMED = "S2A_MSIL2A_20220301T101031_N0400_R022_T33UUP"


def place(root, name, source=None, **profile) -> str:
    """The place of a pair of that name and those coordinates."""
    for sensor, image, bands in (
        ("s1", s1_image(0), S1_BANDS),
        ("s2", s2_image(0), S2_BANDS),
    ):
        write(root / sensor / f"{name}.tif", image, bands, **profile)
    return only_record(root, name=source or "pairs")["place"]


def test_a_place_is_one_grid_at_one_time_whatever_the_files_are_called(tmp_path):
    grid = "EPSG:32633 10 0 500000 0 -10 5000000"
    assert place(tmp_path / "a", "0001") == grid
    assert place(tmp_path / "b", "x", source="other") == grid
    assert place(tmp_path / "c", NAMED) == f"{grid} 2022-03-01T10:10:31"
    moved = rasterio.Affine(10, 0, 500160, 0, -10, 5000000)
    assert place(tmp_path / "d", "0001", transform=moved) != grid
    assert place(tmp_path / "e", "0001", crs="EPSG:32634") != grid


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_place_without_coordinates_is_known_in_its_own_dataset_alone(tmp_path):
    nowhere = dict(crs=None, transform=None)
    assert place(tmp_path / "a", "0001", **nowhere) == "pairs/0001"
    assert place(tmp_path / "b", "0001", "other", **nowhere) == "other/0001"


def test_the_description_holds_no_path(tmp_path):
    write_pairs(tmp_path, 1)
    assert str(tmp_path) not in str(open_archive(tmp_path).description.describe())


@pytest.mark.parametrize("size", [9.95, 10.05])
def test_a_grid_of_nearly_10_metres_is_taken_in_any_unit(tmp_path, size):
    feet = 0.3048006096  # US survey feet, of EPSG:2263
    for crs, unit in (("EPSG:32633", 1), ("EPSG:2263", feet)):
        pixel = size / unit
        grid = rasterio.Affine(pixel, 0, 900000, 0, -pixel, 200000)
        place(tmp_path, "a", crs=crs, transform=grid)
    c, s = size * np.cos(0.3), size * np.sin(0.3)  # a grid that is turned
    place(tmp_path, "a", transform=rasterio.Affine(c, s, 500000, s, -c, 5000000))
