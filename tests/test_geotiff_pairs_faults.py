"""What of users' own pairs is refused, and why."""

import numpy as np
import pytest
import rasterio
import tifffile

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


def refuse(root, message: str, **read) -> None:
    """Expects that the second pair, p1, is refused and the first is not."""
    archive = open_archive(root, **read)
    first, second = archive.find_pairs()[0]
    archive.read_pair(first)
    with pytest.raises(InputError, match=message):
        archive.read_pair(second)


def test_a_label_that_is_no_class_is_refused(tmp_path):
    write_pairs(tmp_path)
    rows = [
        dict(s1="s1/p0.tif", s2="s2/p0.tif", labels="water"),
        dict(s1="s1/p1.tif", s2="s2/p1.tif", labels="watre"),
    ]
    source = write_csv(tmp_path / "pairs.csv", rows)
    refuse(source, r"p1 has the labels \['watre'\]", classes=("water",))


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
    refuse(tmp_path, "p1.tif has no B12, which most files of the dataset have")


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


@pytest.mark.parametrize(
    "profile, message",
    [
        (dict(crs="EPSG:4326"), "p1.tif lies in EPSG:4326, whose coordinates .*align"),
        (dict(transform=(20, 0, 0, 0, -20, 0)), "20 x 20 m on .* where .* 10 m"),
        (dict(transform=(10, 0, 0, 0, -10.2, 0)), "pixels of 10 x 10.2 m"),
        (dict(crs="EPSG:2263"), "pixels of 2.965 x 2.965 m on the ground"),
    ],
)
def test_a_grid_of_other_pixels_is_refused(tmp_path, profile, message):
    write_pairs(tmp_path)
    if "transform" in profile:
        profile = {"transform": rasterio.Affine(*profile["transform"])}
    rewrite(tmp_path, "s1", s1_image(1), S1_BANDS, **profile)
    rewrite(tmp_path, "s2", s2_image(1), S2_BANDS, **profile)
    refuse(tmp_path, message)


def test_all_four_corners_must_agree(tmp_path):
    write_pairs(tmp_path)
    # As near as rounding where they begin, and 0.16 m apart where they end.
    longer = rasterio.Affine(10.01, 0, 500000, 0, -10, 5000000)
    rewrite(tmp_path, "s1", s1_image(1), S1_BANDS, transform=longer)
    refuse(tmp_path, "resample one onto the other")
    nearly = rasterio.Affine(10.005, 0, 500000.01, 0, -10, 5000000)
    rewrite(tmp_path, "s1", s1_image(1), S1_BANDS, transform=nearly)
    archive = open_archive(tmp_path)
    archive.read_pair(archive.find_pairs()[0][1])


def test_an_image_without_coordinates_is_believed(tmp_path):
    write_pairs(tmp_path, 1)
    path = tmp_path / "s1" / "p0.tif"
    planes = dict(planarconfig="separate", photometric="minisblack")
    tifffile.imwrite(path, s1_image(0), **planes)
    only_record(tmp_path, s1_bands=("VV", "VH"))


def test_a_nodata_value_that_no_pixel_has_is_no_hole(tmp_path):
    write_pairs(tmp_path, 1)
    write(tmp_path / "s2" / "p0.tif", s2_image(0), S2_BANDS, nodata=0)
    only_record(tmp_path)


@pytest.mark.parametrize("value", [100.0, -200.0])
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
    with pytest.raises(InputError, match="in dB of -1.*change read.s1_unit"):
        only_record(tmp_path, s1_unit="linear")
    with pytest.raises(InputError, match="in DN of .*change read.s2_unit"):
        only_record(tmp_path, s2_unit="reflectance")


@pytest.mark.parametrize(
    "read, message",
    [
        (dict(size=20), "band VV, is 16 x 16 px.* 20 x 20"),
        (dict(classes=("a", "b")), "2 classes, but no pair has a label"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, read, message):
    write_pairs(tmp_path, 1)
    with pytest.raises(InputError, match=message):
        only_record(tmp_path, **read)


@pytest.mark.parametrize("bands", [(), ("red1", "red2")])
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
    with pytest.raises(InputError, match="8 x 16 px .* cut the images to squares"):
        open_archive(tmp_path)
