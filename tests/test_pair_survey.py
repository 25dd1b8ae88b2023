"""What a user's files tell of themselves: units, offsets, levels, bands, labels."""

import numpy as np
import pytest

from data_pipeline import offsets, sensors
from data_pipeline.archives import pair_lists
from data_pipeline.archives.geotiff_pairs import CLAMPED, HARMONISED, UNEXPECTED
from data_pipeline.building import shard_jobs
from data_pipeline.errors import InputError
from tests.geotiffs import (
    S1_BANDS,
    S2_BANDS,
    open_archive,
    s1_image,
    s2_image,
    write,
    write_csv,
)

NEW = "S2A_MSIL2A_20230101T101031_N0509_R022_T33UUP_2023010{}T000000"
L1C = sensors.S2_L1C.band_names


def write_pair(root, name, s2, bands=S2_BANDS, s1=None, s1_bands=S1_BANDS, tags=None):
    s1 = s1_image(0, s2.shape[-1]) if s1 is None else s1
    write(root / "s1" / f"{name}.tif", s1, s1_bands)
    write(root / "s2" / f"{name}.tif", s2, bands, tags)


def bright(seed: int) -> np.ndarray:
    """DN that prove nothing of their offset."""
    return np.random.default_rng(seed).integers(1100, 6000, (12, 16, 16), np.uint16)


def top_of_atmosphere(seed: int) -> np.ndarray:
    """Bright DN of all 13 bands, B10 near 0."""
    image = np.insert(bright(seed), 10, 12, axis=0)
    image[10] += np.random.default_rng(seed).integers(0, 30, (16, 16), np.uint16)
    return image


def records(source, **read) -> dict:
    """What each pair gives: its record, or why it is none."""
    archive, found = open_archive(source, **read), {}
    for pair in archive.find_pairs()[0]:
        try:
            found[pair.name] = archive.read_pair(pair)
        except InputError as error:
            found[pair.name] = str(error)
    return found


def same(record: dict, image: np.ndarray) -> bool:
    return np.array_equal(record["s2_10m"], np.moveaxis(image, 0, -1))


def test_dark_pixels_prove_that_the_offset_is_gone_whatever_the_name_says(tmp_path):
    for i in range(3):
        write_pair(tmp_path, NEW.format(i), s2_image(i))
    write_pair(tmp_path, NEW.format(3), bright(3))  # goes by the others
    got = list(records(tmp_path, s2_offset="auto").values())
    for record, image in zip(got, [*map(s2_image, range(3)), bright(3)], strict=True):
        assert same(record, image) and record["remarks"] == [HARMONISED]


def test_dark_water_just_below_the_offset_proves_nothing(tmp_path):
    water = bright(0)
    water[:, :8] = 985
    write_pair(tmp_path, NEW.format(0), water)
    (record,) = records(tmp_path, s2_offset="auto").values()
    assert same(record, np.maximum(water.astype(int) - 1000, 1))


def test_where_names_are_right_and_wrong_a_pair_that_proves_nothing_is_refused(
    tmp_path,
):
    gone, there, unknown = map(NEW.format, range(3))
    for name, image in (
        (gone, top_of_atmosphere(0)),
        (there, top_of_atmosphere(1) + np.uint16(1000)),
    ):
        write_pair(tmp_path, name.replace("L2A", "L1C"), image, L1C)
    high = top_of_atmosphere(2)
    high[10] = 2000  # cloud as high as the cirrus band sees
    write_pair(tmp_path, unknown.replace("L2A", "L1C"), high, L1C)
    first, second, third = records(tmp_path, s2_offset="auto").values()
    assert same(first, top_of_atmosphere(0)) and same(second, top_of_atmosphere(1))
    assert "proves nothing of its offset" in third and "column s2_offset" in third


def test_the_cirrus_band_proves_an_offset_that_tags_deny(tmp_path):
    image = top_of_atmosphere(0) + np.uint16(1000)
    write_pair(tmp_path, "a", image, L1C, tags=dict(PROCESSING_BASELINE="03.01"))
    record = records(tmp_path, s2_offset="auto")["a"]
    assert same(record, top_of_atmosphere(0)) and record["remarks"] == [UNEXPECTED]


@pytest.mark.parametrize(
    "image, bands, said, reason",
    [
        (s2_image(0), S2_BANDS, "1000", r"but 1\d.\d% of its DN lie between 1 and 900"),
        (top_of_atmosphere(0) + 1000, L1C, "0", r"B10, .* nowhere near 0 .*102\d DN"),
    ],
)
def test_pixels_contradict_what_is_said_of_them(tmp_path, image, bands, said, reason):
    write_pair(tmp_path, "a", image.astype(np.uint16), bands)
    archive = open_archive(tmp_path, s2_offset=said)
    with pytest.raises(InputError, match=reason):
        archive.read_pair(archive.find_pairs()[0][0])


def test_a_column_says_the_offset_pair_by_pair(tmp_path):
    rows = []
    for i, offset in enumerate(("0", "1000", "")):
        write_pair(tmp_path, f"p{i}", bright(i))
        rows.append(dict(s1=f"s1/p{i}.tif", s2=f"s2/p{i}.tif", s2_offset=offset))
    got = records(write_csv(tmp_path / "pairs.csv", rows), s2_offset="auto")
    assert same(got["p0"], bright(0)) and same(got["p1"], bright(1) - 1000)
    assert "does not say by which processing baseline" in got["p2"]
    rows[0]["s2_offset"] = "500"
    with pytest.raises(InputError, match="s2_offset='500'; it must be one of auto, 0"):
        open_archive(write_csv(tmp_path / "pairs.csv", rows))


def test_a_few_dn_below_0_become_1_and_are_told(tmp_path):
    image = s2_image(0).astype(np.int16)
    image[2, 3, 4] = -7
    write_pair(tmp_path, "a", image)
    record = records(tmp_path)["a"]
    assert record["s2_10m"][3, 4, 2] == 1 and record["remarks"] == [CLAMPED]
    image[2, 3, 4] = -9999
    write_pair(tmp_path, "a", image)
    assert "values from -9999" in records(tmp_path)["a"]


def test_one_file_in_another_unit_is_named_and_what_it_may_be(tmp_path):
    for i in range(3):
        write_pair(tmp_path, f"p{i}", s2_image(i))
    power = 10 ** (s1_image(3) / 10)
    write_pair(tmp_path, "p3", s2_image(3), s1=power)
    reflectance = (s2_image(4) / 10000).astype(np.float32)
    write_pair(tmp_path, "p4", reflectance)
    half = np.stack([s1_image(5)[0], 10 ** (s1_image(5)[1] / 10)])
    write_pair(tmp_path, "p5", s2_image(5), s1=half)
    got = records(tmp_path)
    assert all(isinstance(got[f"p{i}"], dict) for i in range(3))
    assert "cannot be dB" in got["p3"] and "in linear of -1" in got["p3"]
    assert "cannot be dB" in got["p5"]
    assert "none is above" in got["p4"] and "in reflectance of" in got["p4"]


def test_amplitude_is_the_square_root_of_power(tmp_path):
    write_pair(tmp_path, "a", s2_image(0), s1=10 ** (s1_image(0) / 20))
    record = records(tmp_path, s1_unit="amplitude")["a"]
    want = np.moveaxis(s1_image(0), 0, -1)
    np.testing.assert_allclose(record["s1_10m"].astype("f4"), want, atol=0.02)


def test_the_cirrus_band_makes_a_file_top_of_atmosphere(tmp_path):
    write_pair(tmp_path, "a", top_of_atmosphere(0), L1C)
    assert open_archive(tmp_path).description.sensors["s2"].level == "L1C"
    with pytest.raises(InputError, match="files are L1C, .*s2_level=L2A"):
        open_archive(tmp_path, s2_level="L2A")
    write_pair(tmp_path, NEW.format(0), s2_image(0))
    with pytest.raises(InputError, match="Levels are mixed .*1 L1C, 1 L2A"):
        open_archive(tmp_path)


def test_size_and_bands_are_those_of_most_pairs(tmp_path):
    write_pair(tmp_path, "a", s2_image(0, 12))  # the first, and smaller
    write_pair(tmp_path, "b", s2_image(1)[:6], S2_BANDS[:6])  # has fewer bands
    for name in "cde":
        write_pair(tmp_path, name, s2_image(2))
    archive, got = open_archive(tmp_path), records(tmp_path)
    assert archive.description.layout.size == 16
    assert archive.description.sensors["s2"].band_names == S2_BANDS
    assert "12 x 12 px, where the dataset has 16 x 16" in got["a"]
    assert "has no B07, " in got["b"] and "which most files" in got["b"]
    assert [type(got[name]) for name in "cde"] == [dict] * 3


def test_names_that_are_given_overrule_those_in_the_files(tmp_path):
    bands = ("B2", "B3", "B4", "infra")
    write_pair(tmp_path, "a", s2_image(0)[:4], bands)
    assert open_archive(tmp_path).description.sensors["s2"].band_names == (
        *("B02", "B03", "B04"),
    )
    given = open_archive(tmp_path, s2_bands=("B02", "B03", "B08", "B04"))
    assert given.description.sensors["s2"].band_names == ("B02", "B03", "B04", "B08")
    pair = given.find_pairs()[0][0]
    np.testing.assert_array_equal(
        given.read_pair(pair)["s2_10m"],
        np.moveaxis(s2_image(0)[[0, 1, 3, 2]], 0, -1),
    )


def test_colours_name_bands_as_catalogues_have_them(tmp_path):
    write_pair(tmp_path, "a", s2_image(0)[:4], ("nir", "red", "green", "blue"))
    np.testing.assert_array_equal(
        records(tmp_path)["a"]["s2_10m"], np.moveaxis(s2_image(0)[[3, 2, 1, 0]], 0, -1)
    )


def test_other_polarisations_keep_their_names(tmp_path):
    write_pair(tmp_path, "a", s2_image(0), s1_bands=("HV", "HH"), s1=s1_image(0)[::-1])
    contract = open_archive(tmp_path).description.sensors["s1"]
    assert contract.band_names == ("HH", "HV")
    np.testing.assert_array_equal(
        records(tmp_path)["a"]["s1_10m"],
        np.moveaxis(s1_image(0), 0, -1).astype(np.float16),
    )


@pytest.mark.parametrize(
    "text, known, names",
    [
        ("water; forest;", (), ["water", "forest"]),
        ("['water', 'old forest']", (), ["water", "old forest"]),
        ('["water", "forest"]', (), ["water", "forest"]),
        ("['water' 'forest']", (), ["water", "forest"]),  # NumPy's
        ("[3, 12]", (), ["3", "12"]),
        ("water, forest", ("forest", "water"), ["water", "forest"]),
        ("water, forest", ("water, forest", "city"), ["water, forest"]),
        ("", (), []),
        ("[]", (), []),
    ],
)
def test_labels_are_understood_however_lists_are_written(text, known, names):
    assert pair_lists.class_names(text, known) == names


@pytest.mark.parametrize("text", ["water,forest", "water|forest", "['water', forest]"])
def test_labels_that_may_be_one_class_or_several_are_refused(text):
    with pytest.raises(InputError, match="separate the names of classes by ';'"):
        pair_lists.class_names(text)


def test_classes_that_are_numbers_are_in_their_order():
    assert pair_lists.in_order({"10", "9", "1"}) == ("1", "9", "10")
    assert pair_lists.in_order({"b", "10", "a"}) == ("10", "a", "b")


@pytest.mark.parametrize(
    "word, split", [("val", "validation"), ("Val", "validation"), ("test", "test")]
)
def test_val_is_validation(tmp_path, word, split):
    write_pair(tmp_path, "a", s2_image(0))
    row = dict(s1="s1/a.tif", s2="s2/a.tif", split=word)
    archive = open_archive(write_csv(tmp_path / "pairs.csv", [row]))
    assert archive.find_pairs()[0][0].split == split


def test_only_pixels_and_the_cirrus_band_prove_an_offset():
    dark, high = s2_image(0), bright(0)
    assert offsets.proven(dict(zip(S2_BANDS, dark))) == 0
    assert offsets.proven(dict(zip(S2_BANDS, high))) is None
    cirrus = np.full((16, 16), 1010)
    assert offsets.proven({"B02": high[0], "B10": cirrus}) == 1000
    assert offsets.proven({"B02": high[0], "B10": cirrus + 2000}) is None


@pytest.mark.parametrize(
    "name, image, bands", [("s1", s1_image, S1_BANDS), ("s2", s2_image, S2_BANDS)]
)
def test_one_sensor_alone_makes_a_dataset_from_a_folder_or_a_list(
    tmp_path, name, image, bands
):
    write(tmp_path / name / "a.tif", image(0), bands)
    listed = write_csv(tmp_path / "pairs.csv", [{name: f"{name}/a.tif"}])
    for source in (tmp_path, listed):
        archive = open_archive(source)
        assert set(archive.description.sensors) == {name}
        record = archive.read_pair(archive.find_pairs()[0][0])
        assert {key for key in record if key.endswith("m")} == {f"{name}_10m"}
        want = np.moveaxis(image(0), 0, -1).astype(record[f"{name}_10m"].dtype)
        np.testing.assert_array_equal(record[f"{name}_10m"], want)
        assert record["id"] == "a" and record["place"].startswith("EPSG:32633")


def test_a_row_without_one_of_the_images_has_nothing_measured_of_it(tmp_path):
    write_pair(tmp_path, "a", s2_image(0))
    rows = [
        dict(s1="s1/a.tif", s2="s2/a.tif", id="both"),
        dict(s1="s1/a.tif", s2="", id="radar"),
        dict(s1="", s2="s2/a.tif", id="optics"),
    ]
    archive = open_archive(write_csv(tmp_path / "pairs.csv", rows))
    for pair in archive.find_pairs()[0]:
        record = shard_jobs.read_record(archive, pair, most_missing=0.5)
        for name, field in (("radar", "s1_10m"), ("optics", "s2_10m")):
            there = pair.name in ("both", name)
            assert sensors.is_missing(record[field]).all() == (not there)
