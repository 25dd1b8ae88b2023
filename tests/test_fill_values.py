"""What was not measured: told apart, stored as such, counted, and refused in excess."""

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from configs import prepare_pairs
from data_pipeline import dataset_card, pixel_values, record_format, sensors
from data_pipeline.building import prepare
from data_pipeline.errors import InputError
from tests.geotiffs import (
    S1_BANDS,
    S2_BANDS,
    SIDE,
    only_record,
    s1_image,
    s2_image,
    write,
)


def write_pair(root, s1=None, s2=None, name="a", s1_profile=None, s2_profile=None):
    s1 = s1_image(0) if s1 is None else s1
    s2 = s2_image(0) if s2 is None else s2
    write(root / "s1" / f"{name}.tif", s1, S1_BANDS, **(s1_profile or {}))
    write(root / "s2" / f"{name}.tif", s2, S2_BANDS, **(s2_profile or {}))


def test_zero_decibel_in_two_bands_or_in_an_area_of_one_was_filled():
    image = np.full((2, 40, 40), -12.0, np.float32)
    image[:, 0, :3] = 0.0  # both
    image[0, 10:18, 10:18] = 0.0  # 64 connected pixels of one
    image[0, 30:37, 30:39] = 0.0  # 63 of them
    image[1, 20, ::2] = 0.0  # bright pixels here and there
    (found,) = pixel_values.zero_backscatter([image])
    want = np.zeros((40, 40), bool)
    want[0, :3] = want[10:18, 10:18] = True
    np.testing.assert_array_equal(found, want)


def test_optical_bands_are_filled_where_all_are_0_on_whatever_grid():
    fine, coarse = np.full((4, 6, 6), 300), np.full((2, 2, 2), 300)
    fine[:, :4], coarse[:, 0] = 0, 0  # a border that cuts the coarse pixels of row 1
    fine[0, 5] = 0  # one dark band
    coarse[1, 1, 1] = 0
    found = pixel_values.zero_reflectance([fine, coarse])
    want = np.zeros((6, 6), bool)
    want[:3] = True  # below it, coarse bands were measured
    np.testing.assert_array_equal(found[0], want)
    np.testing.assert_array_equal(found[1], [[True, True], [False, False]])


def zero_border(s1, s2):
    s1[:, :4] = 0.0
    return s1, s2, {}, {}


def not_a_number(s1, s2):
    s1[1, :4] = np.nan
    return s1, s2, {}, {}


def minus_infinity(s1, s2):
    s1[0, :4] = -np.inf
    return s1, s2, {}, {}


def nodata_value(s1, s2):
    s1[0, :4] = -9999.0
    return s1, s2, dict(nodata=-9999.0), {}


@pytest.mark.parametrize(
    "holes", [zero_border, not_a_number, minus_infinity, nodata_value]
)
def test_what_was_not_measured_is_missing_in_all_bands_of_the_sensor(tmp_path, holes):
    s1, s2, s1_profile, s2_profile = holes(s1_image(0), s2_image(0))
    write_pair(tmp_path, s1, s2, s1_profile=s1_profile, s2_profile=s2_profile)
    record = only_record(tmp_path)
    assert np.isnan(record["s1_10m"][:4]).all()
    np.testing.assert_array_equal(
        record["s1_10m"][4:], np.moveaxis(s1[:, 4:], 0, -1).astype(np.float16)
    )
    assert not sensors.is_missing(record["s2_10m"]).any()


def test_a_nodata_value_of_0_in_one_band_alone_is_dark_and_not_missing(tmp_path):
    s2 = s2_image(0)
    s2[:, 0] = 0
    s2[11, 5] = 0  # short-wave infrared over water
    write_pair(tmp_path, s2=s2, s2_profile=dict(nodata=0))
    stored = only_record(tmp_path)["s2_10m"]
    assert (stored[0] == sensors.MISSING["uint16"]).all()
    assert not sensors.is_missing(stored[1:]).any() and (stored[5, :, 11] == 0).all()


def test_a_nodata_value_of_0_in_one_band_of_radar_is_missing(tmp_path):
    s1 = s1_image(0)
    s1[1, :4, :2] = 0
    write_pair(tmp_path, s1, s1_profile=dict(nodata=0))
    missing = np.isnan(only_record(tmp_path)["s1_10m"])
    assert missing[:4, :2].all() and missing.sum() == 16


def test_a_mask_of_the_whole_file_counts_and_opacity_is_no_band(tmp_path):
    write_pair(tmp_path)
    path = tmp_path / "s2" / "a.tif"
    opacity = np.full((1, SIDE, SIDE), 65535, np.uint16)
    opacity[:, :, :2] = 0
    image = np.concatenate([s2_image(0), opacity])
    write(path, image, (*S2_BANDS, ""))
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.gray] * 12 + [ColorInterp.alpha]
    missing = sensors.is_missing(only_record(tmp_path)["s2_10m"])
    assert missing[:, :2].all() and not missing[:, 2:].any()


def test_scale_and_offset_of_a_file_are_applied(tmp_path):
    decibel = np.rint(100 * s1_image(0)).astype(np.int16)
    write_pair(tmp_path, s1=decibel)
    for sensor, scale, offset in (("s1", 0.01, 0.0), ("s2", 0.0001, -0.1)):
        with rasterio.open(tmp_path / sensor / "a.tif", "r+") as file:
            file.scales, file.offsets = [scale] * file.count, [offset] * file.count
    write_dn = s2_image(0) + 1000
    with rasterio.open(tmp_path / "s2" / "a.tif", "r+") as file:
        file.write(write_dn)
    record = only_record(tmp_path, s2_offset="auto")
    want = np.moveaxis(s1_image(0), 0, -1)
    np.testing.assert_allclose(record["s1_10m"].astype("f4"), want, atol=0.02)
    np.testing.assert_array_equal(record["s2_10m"], np.moveaxis(s2_image(0), 0, -1))


@pytest.fixture
def config(tmp_path):
    config = prepare_pairs.get_config()
    config.source, config.out = str(tmp_path / "in"), str(tmp_path / "out")
    config.workers, config.read.s2_offset = 0, "0"
    for i in range(4):
        write_pair(tmp_path / "in", s1_image(i), s2_image(i), f"p{i}")
    return config


def test_little_that_is_missing_costs_no_pair_and_is_counted(config, tmp_path, capsys):
    s2 = s2_image(0)
    s2[:, 0] = 0
    write_pair(tmp_path / "in", s2=s2, name="p0")
    prepare.prepare(config)
    card = dataset_card.read_card(config.out)
    rows = card["splits"]["train"]["sensors"]["s2"].values()
    assert {(row["missing"], row["pixels"]) for row in rows} == {
        (SIDE, 4 * SIDE**2 - SIDE)
    }
    said = "1.56% of the pixels of Sentinel-2 were not measured."
    assert said in capsys.readouterr().out
    assert (
        "1.56% of Sentinel-2 was not measured"
        in (tmp_path / "out" / "card.md").read_text()
    )
    first = record_format.Records(config.out, "train")[0]
    assert sensors.is_missing(first["s2_10m"]).sum() == 12 * SIDE


def test_a_pair_of_which_too_much_is_missing_is_skipped_with_the_share(
    config, tmp_path
):
    s1 = s1_image(0)
    s1[:, :9] = 0.0
    write_pair(tmp_path / "in", s1, name="p0")
    config.most_skipped = 0.25
    prepare.prepare(config)
    skipped = (tmp_path / "out" / "skipped.csv").read_text()
    assert "56.2% of the pixels of Sentinel-1 were not measured" in skipped


def test_too_many_skipped_pairs_fail_the_build_and_another_share_ends_it(
    config, tmp_path
):
    for i in range(3):
        write_pair(tmp_path / "in", s1_image(i) * np.nan, name=f"p{i}")
    with pytest.raises(
        InputError, match="3 of 4 pairs .* most_skipped=0.1; .* of 3, is: 100.0% of"
    ):
        prepare.prepare(config)
    assert not (tmp_path / "out" / "card.json").exists()
    config.most_skipped = 0.75
    prepare.prepare(config)
    assert len(record_format.Records(config.out, "train")) == 1


def test_statistics_of_ones_own_pairs_are_their_own(config):
    prepare.prepare(config)
    description = dataset_card.read_description(config.out)
    images = [record["s2_10m"] for record in record_format.Records(config.out, "train")]
    blue = np.stack(images)[..., 1].astype(np.float64)
    band = description.sensors["s2"].bands[1]
    assert band.mean == pytest.approx(blue.mean(), rel=1e-5)
    assert band.std == pytest.approx(blue.std(), rel=1e-5)
    assert description.sensors["s2"].source == "computed from split train of pairs"
