"""Conversions to the units of the contract, and what metadata say of the offset."""

import numpy as np
import pytest

from data_pipeline import offsets, pixel_values, sensors
from data_pipeline.errors import InputError


def test_linear_power_becomes_decibels():
    power = np.array([1.0, 0.1, 0.05, 100.0], np.float32)

    db = pixel_values.linear_to_db(power)

    assert db.dtype == np.float32
    np.testing.assert_allclose(db, [0.0, -10.0, -13.0103, 20.0], atol=1e-4)


def test_power_that_is_not_positive_has_no_decibels():
    db = pixel_values.linear_to_db(np.array([0.0, -0.1, np.nan], np.float32))
    assert np.isnan(db).all()


def test_reflectance_is_rounded_to_dn():
    reflectance = np.array([0.0, 0.00016, 0.1234, 1.0], np.float32)

    dn = pixel_values.reflectance_to_dn(reflectance)

    np.testing.assert_array_equal(dn, [0, 2, 1234, 10000])


def test_reflectance_about_zero_is_the_darkest_dn_and_what_cannot_be_stays():
    dn = pixel_values.reflectance_to_dn(
        np.array([1e-5, -0.05, -0.1, -0.2, -9999.0, np.nan])
    )
    np.testing.assert_array_equal(dn, [1, 1, 1, -2000, -99990000, np.nan])


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
def test_the_offset_is_removed_and_zero_alone_stays_zero(dtype):
    dn = np.array([0, 1, 999, 1000, 1001, 12000], dtype)

    np.testing.assert_array_equal(offsets.remove(dn, 1000), [0, 1, 1, 1, 1, 11000])
    np.testing.assert_array_equal(offsets.remove(dn, 0), dn)


def test_removing_the_offset_keeps_uint16_and_shows_impossible_values():
    assert offsets.remove(np.array([5], np.uint16), 1000).dtype == np.uint16
    assert offsets.remove(np.array([200], np.uint8), 1000) == 1
    assert offsets.remove(np.array([-9999], np.int16), 1000) == -9999


@pytest.mark.parametrize(
    "text, baseline, offset",
    [
        ("S2A_MSIL2A_20220301T101031_N0400_R022_T33UUP_20220301T1", 4.0, 1000),
        ("S2A_MSIL2A_20210301T101031_N0301_R022_T33UUP.tif", 3.01, 0),
        ("S2B_MSIL1C_20230301T101031_N0509_R022_T33UUP", 5.09, 1000),
        ("PROCESSING_BASELINE=04.00", 4.0, 1000),
        ("PROCESSING_BASELINE=02.14", 2.14, 0),
        ("s2:processing_baseline: 05.11", 5.11, 1000),
        ("<PROCESSING_BASELINE>03.01</PROCESSING_BASELINE>", 3.01, 0),
        ("a_N0509_b\nPROCESSING_BASELINE=05.09", 5.09, 1000),
    ],
)
def test_the_baseline_is_found_in_names_and_tags(text, baseline, offset):
    assert offsets.processing_baseline(text) == pytest.approx(baseline)
    assert offsets.chosen("auto", text, "x", "tag") == offset


@pytest.mark.parametrize(
    "text",
    [
        "",
        "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP",
        "PROCESSING_BASELINE=99.99",
        "patch_17.tif",
        "a_N0301_b a_N0400_b",
    ],
)
def test_without_one_sure_baseline_there_is_none(text):
    assert offsets.processing_baseline(text) is None


@pytest.mark.parametrize(
    "sensor, unit, offset, value, want",
    [
        ("s1", "dB", 0, -13.0, -13.0),
        ("s1", "linear", 0, 0.1, -10.0),
        ("s2", "DN", 0, 1234, 1234),
        ("s2", "DN", 1000, 1234, 234),
        ("s2", "reflectance", 0, 0.1234, 1234),
        ("s2", "reflectance", 1000, 0.1234, 234),
    ],
)
def test_each_unit_is_brought_to_the_contract(sensor, unit, offset, value, want):
    got = sensors.to_contract(
        np.full((2, 3), value), sensors.SENSORS[sensor], unit=unit, offset=offset
    )
    np.testing.assert_allclose(got, want)


@pytest.mark.parametrize(
    "sensor, unit, known",
    [
        ("s1", "DN", "dB or linear or amplitude"),
        ("s2", "dB", "DN or reflectance"),
    ],
)
def test_unknown_units_are_refused_naming_those_that_exist(sensor, unit, known):
    with pytest.raises(InputError, match=f"{sensor} in '{unit}' .* use {known}"):
        sensors.to_contract(np.ones(3), sensors.SENSORS[sensor], unit=unit)


@pytest.mark.parametrize(
    "sensor, unit, offset", [("s2", "DN", 100), ("s1", "dB", 1000)]
)
def test_offsets_that_nobody_adds_are_refused(sensor, unit, offset):
    with pytest.raises(InputError, match=f"offset of {offset} on {sensor}"):
        sensors.to_contract(
            np.ones(3), sensors.SENSORS[sensor], unit=unit, offset=offset
        )


@pytest.mark.parametrize(
    "sensor, unit, value, message",
    [
        ("s1", "linear", -12.0, "least is -12; its median would be in dB of -12 dB"),
        (
            *("s1", "dB", 0.1),
            "above 0, .* in linear of -10 and in amplitude of -20 dB",
        ),
        ("s2", "reflectance", 900.0, "greatest is 900; .* in DN of 900 DN"),
        ("s2", "DN", 0.2, "none is above 3.2767; .* in reflectance of 2e[+]03 DN"),
    ],
)
def test_values_that_are_in_the_other_unit_are_refused(sensor, unit, value, message):
    with pytest.raises(InputError, match=message):
        sensors.to_contract(np.full(9, value), sensors.SENSORS[sensor], unit=unit)


TEXT = "PROCESSING_BASELINE=04.00"


@pytest.mark.parametrize("choice, added", [("auto", 1000), ("0", 0), ("1000", 1000)])
def test_a_number_goes_before_the_metadata(choice, added):
    assert choice in offsets.CHOICES
    assert offsets.chosen(choice, TEXT, "x", "tag") == added


def test_metadata_that_name_no_baseline_leave_the_choice_to_the_user():
    with pytest.raises(InputError, match="^x does not say .*no tag.*s2_offset=1000"):
        offsets.chosen("auto", "", "x", "tag")
    assert offsets.chosen("0", "", "x", "tag") == 0


def test_bands_choose_the_product_that_has_them():
    assert sensors.product("s1", ("HV",)) is sensors.S1_HH
    assert sensors.product("s1", ("VV", "VH")) is sensors.S1
    assert sensors.product("s2", ("B10", "B02")) is sensors.S2_L1C
    assert sensors.product("s2", ("B02",)) is sensors.S2
    assert sensors.known_bands("s1") == ("VV", "VH", "HH", "HV")
    assert sensors.known_bands("s2") == sensors.S2_L1C.band_names
