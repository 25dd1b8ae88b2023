"""Users' own pairs of GeoTIFFs, written with rasterio and checked with tifffile."""

import csv
import pathlib
import pickle

import numpy as np
import pytest
import rasterio
import tifffile

from configs import prepare_pairs
from data_pipeline import sensors
from data_pipeline.archives import geotiff_pairs
from data_pipeline.building import plausibility
from data_pipeline.errors import InputError

S1_BANDS = ("VV", "VH")
S2_BANDS = sensors.S2.band_names
SIDE = 16
GRID = rasterio.Affine(10, 0, 500000, 0, -10, 5000000)


def s1_image(seed: int, side: int = SIDE) -> np.ndarray:
    """Backscatter [2, H, W] in dB, VV first."""
    mean = np.array([-12.0, -19.0])[:, None, None]
    noise = np.random.default_rng(seed).normal(0, 2, (2, side, side))
    return (mean + noise).astype(np.float32)


def s2_image(seed: int, side: int = SIDE) -> np.ndarray:
    """DN [12, H, W] in canonical order."""
    rng = np.random.default_rng(seed)
    return rng.integers(100, 6000, (12, side, side), np.uint16)


def write(path: pathlib.Path, image: np.ndarray, bands=(), tags=None, **profile):
    """Writes [C, H, W] as one GeoTIFF whose bands have descriptions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        **dict(driver="GTiff", dtype=image.dtype, crs="EPSG:32633", transform=GRID),
        **dict(zip(("count", "height", "width"), image.shape)),
    } | profile
    with rasterio.open(path, "w", **profile) as file:
        file.write(image)
        for index, band in enumerate(bands, start=1):
            file.set_band_description(index, band)
        file.update_tags(**(tags or {}))


def write_pairs(root: pathlib.Path, count: int = 2) -> None:
    for i in range(count):
        write(root / "s1" / f"p{i}.tif", s1_image(i), S1_BANDS)
        write(root / "s2" / f"p{i}.tif", s2_image(i), S2_BANDS)


def write_csv(path: pathlib.Path, rows: list[dict]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def open_archive(source, **read):
    config = prepare_pairs.get_config()
    config.source = str(source)
    config.read.s2_offset = "0"
    config.read.update(read)
    return geotiff_pairs.open_archive(config)


def only_record(source, **read) -> dict:
    archive = open_archive(source, **read)
    (pair,), skipped = archive.find_pairs()
    assert not skipped
    return archive.read_pair(pair)


def refuse(root, message: str, **read) -> None:
    """Expects that the second pair, p1, is refused and the first is not."""
    archive = open_archive(root, **read)
    first, second = archive.find_pairs()[0]
    archive.read_pair(first)
    with pytest.raises(InputError, match=message):
        archive.read_pair(second)


def test_pairs_of_a_folder_are_read_as_tifffile_reads_them(tmp_path):
    write_pairs(tmp_path)

    archive = open_archive(tmp_path)
    pairs, skipped = archive.find_pairs()

    assert [pair.s2_name for pair in pairs] == ["p0", "p1"] and not skipped
    assert archive.description.layout.shapes == {
        "s1_10m": (SIDE, SIDE, 2),
        "s2_10m": (SIDE, SIDE, 12),
    }
    for pair in pairs:
        record = archive.read_pair(pair)
        for field, dtype in (("s1_10m", np.float16), ("s2_10m", np.uint16)):
            path = tmp_path / field[:2] / f"{pair.s2_name}.tif"
            want = tifffile.imread(path).astype(dtype)  # bands come last in the file
            assert record[field].dtype == dtype
            np.testing.assert_array_equal(record[field], want)
        assert record["id"] == record["id_s1"] == record["place"] == pair.s2_name
        assert "labels" not in record


def test_bands_go_by_name_in_whatever_order_and_spelling_they_lie(tmp_path):
    s1, s2 = s1_image(0), s2_image(0)
    angle, cirrus = s1[:1] * 0 + 38, s2[:1] * 0 + 7
    order = np.random.default_rng(1).permutation(12)
    names = [S2_BANDS[i].replace("B0", "b") for i in order]
    write(
        tmp_path / "s1" / "a.tif",
        np.concatenate([angle, s1[::-1]]),
        ("angle", "vh", " vv "),
    )
    write(
        tmp_path / "s2" / "a.tif",
        np.concatenate([s2[order], cirrus]),
        (*names, "B10"),
    )

    record = only_record(tmp_path)

    np.testing.assert_array_equal(
        record["s1_10m"], np.moveaxis(s1, 0, -1).astype(np.float16)
    )
    np.testing.assert_array_equal(record["s2_10m"], np.moveaxis(s2, 0, -1))


def test_files_without_descriptions_take_the_names_of_the_config(tmp_path):
    write(tmp_path / "s1" / "a.tif", s1_image(0)[::-1])
    write(tmp_path / "s2" / "a.tif", s2_image(0)[:3], ("blue", "green", "red"))

    archive = open_archive(
        tmp_path, s1_bands=("VH", "VV"), s2_bands=("B4", "B3", "B2")
    )
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


def test_metadata_that_says_nothing_of_the_offset_stops_the_build(tmp_path):
    write_pairs(tmp_path)
    with pytest.raises(InputError, match=r"baseline.*s2_offset=1000 .* and =0"):
        open_archive(tmp_path, s2_offset="auto")


def test_an_explicit_offset_overrules_the_metadata(tmp_path):
    name = "S2A_MSIL2A_20220301T101031_N0400_R022_T33UUP"
    write(tmp_path / "s1" / f"{name}.tif", s1_image(0), S1_BANDS)
    write(tmp_path / "s2" / f"{name}.tif", s2_image(0), S2_BANDS)

    assert only_record(tmp_path, s2_offset="0")["s2_10m"].min() >= 100
    reduced = only_record(tmp_path, s2_offset="1000")["s2_10m"]
    np.testing.assert_array_equal(
        reduced, np.moveaxis(np.maximum(s2_image(0), 1000) - 1000, 0, -1)
    )


def test_acquisition_times_come_from_the_names_of_products(tmp_path):
    name = "S2A_MSIL2A_20220301T101031_N0400_R022_T33UUP"
    write(tmp_path / "s1" / f"{name}.tif", s1_image(0), S1_BANDS)
    write(tmp_path / "s2" / f"{name}.tif", s2_image(0), S2_BANDS)
    assert only_record(tmp_path)["acquired_s2"] == "2022-03-01T10:10:31"


def test_a_csv_says_what_belongs_together(tmp_path):
    write_pairs(tmp_path / "images", 3)
    absolute = str(tmp_path / "images" / "s2" / "p1.tif")
    both = [
        dict(s1="images/s1/p2.tif", s2="images/s2/p0.tif", id="x", split="train"),
        dict(s1="images/s1/p0.tif", s2=absolute, id="", split="test"),
    ]
    both[0] |= dict(tile="T1", labels="water; forest", acquired_s1="2020-01-02")
    both[1] |= dict(tile="T2", labels="", acquired_s1="")
    archive = open_archive(write_csv(tmp_path / "pairs.csv", both))

    pairs, _ = archive.find_pairs()
    records = [archive.read_pair(pair) for pair in pairs]

    assert [(p.s2_name, p.s1_name, p.tile, p.split) for p in pairs] == [
        ("p1", "p0", "T2", "test"),
        ("x", "p2", "T1", "train"),
    ]
    assert archive.description.classes == {"labels": ("forest", "water")}
    assert [record["labels"] for record in records] == [[], [0, 1]]
    assert records[1]["acquired_s1"] == "2020-01-02"
    np.testing.assert_array_equal(
        records[1]["s2_10m"], np.moveaxis(s2_image(0), 0, -1)
    )


def test_classes_keep_the_order_of_the_config(tmp_path):
    write_pairs(tmp_path)
    row = dict(s1="s1/p0.tif", s2="s2/p0.tif", labels="water;forest")
    source = write_csv(tmp_path / "pairs.csv", [row])
    assert only_record(source, classes=("water", "city", "forest"))["labels"] == [0, 2]


def test_a_label_that_is_no_class_is_refused(tmp_path):
    write_pairs(tmp_path)
    rows = [
        dict(s1="s1/p0.tif", s2="s2/p0.tif", labels="water"),
        dict(s1="s1/p1.tif", s2="s2/p1.tif", labels="watre"),
    ]
    source = write_csv(tmp_path / "pairs.csv", rows)
    refuse(source, r"p1 has the labels \['watre'\]", classes=("water",))


def test_the_archive_pickles_small_and_can_be_hashed(tmp_path):
    write_pairs(tmp_path)
    archive = open_archive(tmp_path)
    copy = pickle.loads(pickle.dumps(archive))
    assert copy == archive and hash(copy) == hash(archive)
    assert len(pickle.dumps(archive)) < 10_000


def test_files_without_partner_and_double_names_are_listed(tmp_path):
    write_pairs(tmp_path, 1)
    write(tmp_path / "s1" / "only1.tif", s1_image(0), S1_BANDS)
    write(tmp_path / "s2" / "only2.TIFF", s2_image(0), S2_BANDS)
    for name in ("twice.tif", "twice.tiff"):
        write(tmp_path / "s2" / name, s2_image(0), S2_BANDS)
    write(tmp_path / "s1" / "twice.tif", s1_image(0), S1_BANDS)
    (tmp_path / "s1" / "readme.txt").write_text("")

    pairs, skipped = open_archive(tmp_path).find_pairs()

    assert [pair.s2_name for pair in pairs] == ["p0"]
    assert [(s.s2_name, s.s1_name) for s in skipped] == [
        ("", "only1"),
        ("only2", ""),
        ("twice", "twice"),
    ]
    assert "1 files in s1/ and 2 in s2/" in skipped[2].reason


def test_of_pairs_with_one_id_the_first_stays(tmp_path):
    write_pairs(tmp_path)
    rows = [dict(s1=f"s1/p{i}.tif", s2=f"s2/p{i}.tif", id="x") for i in range(2)]
    pairs, skipped = open_archive(write_csv(tmp_path / "p.csv", rows)).find_pairs()
    assert [pair.s1_name for pair in pairs] == ["p0"]
    assert [skip.s1_name for skip in skipped] == ["p1"]


def test_a_damaged_first_pair_does_not_stop_the_build(tmp_path):
    write_pairs(tmp_path)
    whole = (tmp_path / "s2" / "p0.tif").read_bytes()
    (tmp_path / "s2" / "p0.tif").write_bytes(whole[:-50])

    archive = open_archive(tmp_path)
    pairs, _ = archive.find_pairs()

    with pytest.raises(InputError, match="p0.tif is damaged"):
        archive.read_pair(pairs[0])
    archive.read_pair(pairs[1])


def rewrite(root, sensor, image, bands, **profile):
    write(root / sensor / "p1.tif", image, bands, **profile)


@pytest.mark.parametrize("size", [0, SIDE])
def test_another_size_is_refused(tmp_path, size):
    write_pairs(tmp_path)
    rewrite(tmp_path, "s1", s1_image(1, 12), S1_BANDS)
    refuse(tmp_path, "p1.tif, band VV, is 12 x 12 px.* 16 x 16", size=size)


def test_a_missing_band_is_refused(tmp_path):
    write_pairs(tmp_path)
    rewrite(tmp_path, "s2", s2_image(1)[:-1], S2_BANDS[:-1])
    refuse(tmp_path, "p1.tif has no B12, which the first pair .* has")


def test_a_repeated_band_is_refused(tmp_path):
    write_pairs(tmp_path)
    rewrite(tmp_path, "s1", s1_image(1), ("VV", "vv"))
    refuse(tmp_path, "more than one band VV")


def test_other_coordinates_are_refused(tmp_path):
    write_pairs(tmp_path)
    shifted = rasterio.Affine(10, 0, 500010, 0, -10, 5000000)
    rewrite(tmp_path, "s1", s1_image(1), S1_BANDS, transform=shifted)
    refuse(tmp_path, "500010.* and .*500000.*; resample")
    rewrite(tmp_path, "s1", s1_image(1), S1_BANDS, crs="EPSG:32634")
    refuse(tmp_path, "lies in EPSG:32634 .* EPSG:32633")


def test_an_image_without_coordinates_is_believed(tmp_path):
    write_pairs(tmp_path, 1)
    path = tmp_path / "s1" / "p0.tif"
    planes = dict(planarconfig="separate", photometric="minisblack")
    tifffile.imwrite(path, s1_image(0), **planes)
    only_record(tmp_path, s1_bands=("VV", "VH"))


@pytest.mark.parametrize("nodata", [0, np.nan])
def test_holes_are_refused_with_their_share(tmp_path, nodata):
    write_pairs(tmp_path)
    image = s1_image(1)
    image[1, :4, :2] = nodata
    rewrite(tmp_path, "s1", image, S1_BANDS, nodata=nodata)
    refuse(tmp_path, r"p1.tif has no data \(value (0|nan)\) in 3.12% of its pixels")


def test_a_nodata_value_that_no_pixel_has_is_no_hole(tmp_path):
    write_pairs(tmp_path, 1)
    write(tmp_path / "s2" / "p0.tif", s2_image(0), S2_BANDS, nodata=0)
    only_record(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -200.0])
def test_backscatter_that_cannot_be_is_refused(tmp_path, value):
    write_pairs(tmp_path)
    image = s1_image(1)
    image[1, 3, 3] = value
    rewrite(tmp_path, "s1", image, S1_BANDS)
    refuse(tmp_path, "p1.tif, band VH, holds values from")


def test_complex_pixels_are_refused(tmp_path):
    write_pairs(tmp_path)
    rewrite(tmp_path, "s1", s1_image(1).astype(np.complex64), S1_BANDS)
    refuse(tmp_path, "of type complex64")


def test_a_unit_that_the_values_are_not_in_is_refused(tmp_path):
    write_pairs(tmp_path, 1)
    with pytest.raises(InputError, match="change the unit of s1 to dB"):
        only_record(tmp_path, s1_unit="linear")
    with pytest.raises(InputError, match="change the unit of s2 to DN"):
        only_record(tmp_path, s2_unit="reflectance")


def test_a_unit_that_is_not_said_shows_in_the_sample(tmp_path):
    write_pairs(tmp_path, 1)
    power = (10 ** (s1_image(0).astype(np.float64) / 10)).astype(np.float32)
    write(tmp_path / "s1" / "p0.tif", power, S1_BANDS)
    archive = open_archive(tmp_path)
    record = archive.read_pair(archive.find_pairs()[0][0])
    with pytest.raises(InputError, match="s1_unit=linear"):
        plausibility.check(archive.description, [record])


@pytest.mark.parametrize(
    "read, message",
    [
        (dict(s1_unit="amplitude"), "s1 in 'amplitude' is unknown; use s1 in dB"),
        (dict(s2_unit="dn"), "s2 in 'dn' is unknown"),
        (dict(s2_level="L2"), "s2_level is 'L2'; use .*L2A.*L1C"),
        (dict(s2_offset="500"), "s2_offset is '500'; use 'auto', '0' or '1000'"),
        (dict(name="my pairs"), "name is 'my pairs'"),
        (dict(size=20), "band VV, is 16 x 16 px.* 20 x 20"),
        (dict(s1_bands=("VH", "VV")), "calls its bands .*correct the one"),
        (dict(classes=("a", "b")), "2 classes, but no pair has a label"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, read, message):
    write_pairs(tmp_path, 1)
    with pytest.raises(InputError, match=message):
        only_record(tmp_path, **read)


@pytest.mark.parametrize("bands", [(), ("blue", "green")])
def test_bands_that_nobody_names_are_refused(tmp_path, bands):
    write(tmp_path / "s1" / "a.tif", s1_image(0), S1_BANDS)
    write(tmp_path / "s2" / "a.tif", s2_image(0)[:2], bands)
    with pytest.raises(InputError, match="has 2 bands called .*read.s2_bands, now .."):
        open_archive(tmp_path)
    with pytest.raises(InputError, match="has 2 bands called .*B02', 'B03', 'B04"):
        open_archive(tmp_path, s2_bands=("B02", "B03", "B04"))


def test_a_first_pair_that_is_not_square_is_refused(tmp_path):
    write(tmp_path / "s1" / "a.tif", s1_image(0)[:, :8], S1_BANDS)
    write(tmp_path / "s2" / "a.tif", s2_image(0)[:, :8], S2_BANDS)
    with pytest.raises(InputError, match="8 x 16 px"):
        open_archive(tmp_path)


def test_a_source_without_pairs_is_refused(tmp_path):
    with pytest.raises(InputError, match="s1 is no folder"):
        open_archive(tmp_path)
    for sensor in ("s1", "s2"):
        (tmp_path / sensor).mkdir()
    with pytest.raises(InputError, match="has no pairs"):
        open_archive(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("s1,s3\na,b\n", "it needs s1 and s2"),
        ("s1,s2,label\na,b,c\n", r"columns \['s1', 's2', 'label'\]"),
        ("s1,s2\na\n", "Row 1 .* another number of fields than the 2"),
        ("s1,s2\na,b\na,b,c\n", "Row 2 .* another number of fields"),
        ("s1,s2,split\na,b,val\n", "split='val'.*train, validation, test"),
        ("s1,s2\na,\n", "Row 1 .*s2=''"),
        ("s1,s2\n", "has no pairs"),
        ("", "it needs s1 and s2"),
        ("s1,s2\na,b\n", "a is not a file"),
        ('s1,s2\n"a,b\n', "cannot be read as a CSV"),
        ("s1,s2\n\xff\xfe", "cannot be read as a CSV"),
    ],
)
def test_a_csv_that_cannot_be_meant_is_refused(tmp_path, text, message):
    path = tmp_path / "pairs.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        open_archive(path)


def test_a_csv_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="gone.csv cannot be read"):
        open_archive(tmp_path / "gone.csv")
