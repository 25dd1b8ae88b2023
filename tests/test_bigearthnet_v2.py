"""Records of BigEarthNet v2, from folders and from LMDB, real and false."""

import pathlib
import shutil

import numpy as np
import pyarrow
import pytest
import tifffile
from pyarrow import parquet

from configs import prepare_bigearthnet
from data_pipeline import classes, ground, sensors
from data_pipeline.archives import bigearthnet_v1, bigearthnet_v2
from data_pipeline.errors import InputError
from tests import reben, shared_data

rasterio = pytest.importorskip("rasterio", reason=reben.WHY)


@pytest.fixture
def one(tmp_path) -> tuple[pathlib.Path, dict]:
    return reben.one(tmp_path)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_real_records_have_the_pixels_that_rasterio_reads():
    root = shared_data.bigearthnet_v2()
    archive = reben.open_archive(root, snow_and_clouds=True)
    pairs, skipped = archive.find_pairs()
    assert len(pairs) == 32 and not skipped
    files = {path.name: path for path in root.rglob("*.tif")}
    for pair in pairs:
        record = archive.read_pair(pair)
        for sensor, name in (("s1", pair.images["s1"]), ("s2", pair.name)):
            for grid in archive.description.layout.of(sensor):
                for channel, band in enumerate(grid.bands):
                    with rasterio.open(files[f"{name}_{band}.tif"]) as file:
                        stored = file.read(1).astype(sensors.SENSORS[sensor].dtype)
                    got = record[grid.field][..., channel]
                    assert got.dtype == stored.dtype
                    np.testing.assert_array_equal(got, stored)


def test_real_records_have_labels_names_and_splits_of_the_metadata():
    root = shared_data.bigearthnet_v2()
    archive = reben.open_archive(root, snow_and_clouds=True)
    rows = {
        row["patch_id"]: row
        for row in parquet.read_table(root / "metadata.parquet").to_pylist()
    }
    pairs, _ = archive.find_pairs()
    assert [pair.name for pair in pairs] == sorted(rows)
    for pair in pairs:
        record, row = archive.read_pair(pair), rows[pair.name]
        labels = [classes.BIGEARTHNET_19[i] for i in record["labels"]]
        assert sorted(labels) == row["labels"] and pair.split == row["split"]
        assert record["labels"] == sorted(record["labels"])
        assert record["id_s1"] == pair.images["s1"] == row["s1_name"]
        assert record["id"] == row["patch_id"]
        assert ground.acquisition(record["place"]) == row["s2v1_name"]
        assert ground.of(record["place"]) == "_".join(row["s1_name"].split("_")[-3:])
        assert record["tile"] == pair.tile and f"_T{pair.tile}_" in pair.name


def test_real_reference_map_is_that_of_tifffile_and_agrees_with_the_labels():
    root = shared_data.bigearthnet_v2()
    (path,) = root.rglob("*_reference_map.tif")
    archive = reben.open_archive(root)
    (pair,) = [p for p in archive.find_pairs()[0] if path.stem.startswith(p.name)]
    record, codes = archive.read_pair(pair), tifffile.imread(path)
    assert sorted(np.unique(record["land_cover"])) == record["labels"]
    names = {211: "Non-irrigated arable land", 231: "Pastures"}
    names |= {311: "Broad-leaved forest", 313: "Mixed forest"}
    assert set(np.unique(codes)) == set(names)
    for code, name in names.items():
        index = archive.description.maps["land_cover_43"].index(name)
        np.testing.assert_array_equal(record["land_cover_43"] == index, codes == code)


def test_real_records_are_the_same_from_an_lmdb(tmp_path):
    root = shared_data.bigearthnet_v2()
    out = reben.to_lmdb(root, tmp_path / "BigEarthNet.lmdb")
    shutil.copy(root / "metadata.parquet", tmp_path)
    folders, database = reben.open_archive(root), reben.open_archive(tmp_path)
    assert database.store.root == str(out.resolve())
    pairs, skipped = folders.find_pairs()
    assert database.find_pairs() == (pairs, skipped)
    assert database.description == folders.description
    for pair in pairs:
        reben.assert_same(folders.read_pair(pair), database.read_pair(pair))


def test_place_in_both_versions_has_one_identity_and_one_sentinel_1_image():
    config = prepare_bigearthnet.get_config()
    config.source = shared_data.bigearthnet_v1()
    new = reben.open_archive(shared_data.bigearthnet_v2())
    archives = bigearthnet_v1.open_archive(config), new
    old, new = (
        {r["place"]: r for r in map(archive.read_pair, archive.find_pairs()[0])}
        for archive in archives
    )
    assert old.keys() & new.keys() == {"S2A_MSIL2A_20170613T101031_33UUP_26_57"}
    for place in old.keys() & new.keys():
        a, b = old[place], new[place]
        assert a["id_s1"] == b["id_s1"] and a["tile"] == b["tile"]
        np.testing.assert_array_equal(a["s1_10m"], b["s1_10m"])
        for field in ("s2_10m", "s2_20m", "s2_60m"):  # was processed again
            assert (a[field] != b[field]).any()
            assert np.corrcoef(a[field].ravel(), b[field].ravel())[0, 1] > 0.99


def test_record_has_labels_by_name_and_what_the_names_tell(one):
    archive, row = one
    record = reben.read_one(archive)
    assert record["labels"] == [0, 7, 18]  # the metadata sorts them by alphabet
    assert record["acquired_s1"] == "2017-06-13T16:50:43"
    assert record["acquired_s2"] == "2017-06-13T10:10:31"
    assert record["tile"] == "33UUP"
    assert record["place"] == "S2A_MSIL2A_20170613T101031_33UUP_1_7"


def test_statistics_are_those_of_this_version(one):
    described = reben.open_archive(one[0]).description.sensors
    assert described["s2"].bands[0].mean == 361.0767822
    assert described["s1"].bands[1].std == 5.5905056
    assert all("v2" in sensor.source for sensor in described.values())


def test_map_becomes_indices_and_what_has_no_class_is_marked(one):
    archive, row = one
    codes = np.zeros((120, 120), np.uint16)
    # A kept class, one that the 19 classes drop, one outside the table, no data.
    codes[0, :4] = (523, 124, 335, 0)
    codes[1, :43] = classes.CORINE_CODES
    reben.write_map(archive, row["patch_id"], codes)
    record = reben.read_one(archive)
    none = classes.NO_CLASS
    assert record["land_cover"].dtype == record["land_cover_43"].dtype == np.uint8
    assert record["land_cover"][0, :4].tolist() == [18, none, none, none]
    assert record["land_cover_43"][0, :4].tolist() == [42, 5, none, none]
    assert record["land_cover_43"][1, :43].tolist() == list(range(43))
    to_19 = [none if i is None else i for i in classes.BIGEARTHNET_43_TO_19.values()]
    assert record["land_cover"][1, :43].tolist() == to_19


def test_codes_of_the_maps_are_those_of_corine():
    names = dict(zip(classes.CORINE_CODES, classes.BIGEARTHNET_43, strict=True))
    assert list(names) == sorted(names) and 335 not in names
    some = {111: "Continuous urban fabric", 142: "Sport and leisure facilities"}
    some |= {244: "Agro-forestry areas", 324: "Transitional woodland/shrub"}
    some |= {333: "Sparsely vegetated areas", 423: "Intertidal flats"}
    assert {code: names[code] for code in some} == some


@pytest.mark.parametrize("as_lmdb", [False, True])
def test_pair_without_map_has_no_class_anywhere(tmp_path, as_lmdb):
    rows = [reben.write_patches(tmp_path / "a", patch) for patch in (1, 2)]
    codes = np.full((120, 120), 211, np.uint16)
    reben.write_map(tmp_path / "a", rows[1]["patch_id"], codes)
    reben.write_metadata(tmp_path / "a", rows)
    source = tmp_path / "a"
    if as_lmdb:
        source = reben.to_lmdb(source, tmp_path / "a" / "lmdb")
    archive = reben.open_archive(source)
    without, with_map = map(archive.read_pair, archive.find_pairs()[0])
    assert (without["land_cover"] == classes.NO_CLASS).all()
    assert (without["land_cover_43"] == classes.NO_CLASS).all()
    assert (with_map["land_cover"] == 2).all()


@pytest.mark.parametrize("as_lmdb", [False, True])
def test_records_have_pixel_labels_only_where_there_are_maps(tmp_path, one, as_lmdb):
    archive, row = one
    source = reben.to_lmdb(archive, archive / "without") if as_lmdb else archive
    assert not reben.open_archive(source).description.maps
    assert "land_cover" not in reben.read_one(source)
    reben.write_map(archive, row["patch_id"], np.full((120, 120), 211, np.uint16))
    source = reben.to_lmdb(archive, archive / "with") if as_lmdb else archive
    maps = reben.open_archive(source).description.maps
    assert list(maps) == ["land_cover", "land_cover_43"]
    assert "land_cover" not in reben.read_one(source, maps=False)


@pytest.mark.parametrize("as_lmdb", [False, True])
@pytest.mark.parametrize(
    "codes", [np.ones((120, 120), np.uint8), np.ones((60, 60), np.uint16)]
)
def test_map_of_other_type_or_shape_is_an_error(one, codes, as_lmdb):
    archive, row = one
    reben.write_map(archive, row["patch_id"], codes)
    source = reben.to_lmdb(archive, archive / "lmdb") if as_lmdb else archive
    message = rf"reference map of {row['patch_id']} is {codes.dtype} \({len(codes)}, "
    with pytest.raises(InputError, match=message):
        reben.read_one(source)


def test_damaged_map_is_an_error(one):
    archive, row = one
    reben.write_map(archive, row["patch_id"], np.full((120, 120), 211, np.uint16))
    (path,) = archive.rglob("*_reference_map.tif")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="_reference_map.tif is damaged"):
        reben.read_one(archive)


def test_missing_band_is_an_error(one):
    archive, row = one
    (path,) = archive.rglob(f"{row['patch_id']}_B11.tif")
    path.unlink()
    with pytest.raises(InputError, match="_B11.tif cannot be read"):
        reben.read_one(archive)
    with pytest.raises(InputError, match=r"has the bands \['B01'.* and not B11"):
        reben.read_one(reben.to_lmdb(archive, archive / "lmdb"))


@pytest.mark.parametrize("as_lmdb", [False, True])
@pytest.mark.parametrize("band, dtype", [("B02", np.float32), ("VV", np.uint16)])
def test_band_of_other_type_is_an_error(one, band, dtype, as_lmdb):
    archive, _ = one
    (path,) = archive.rglob(f"*_{band}.tif")
    shared_data.write_band(path.parent, band, np.ones((120, 120), dtype))
    source = reben.to_lmdb(archive, archive / "lmdb") if as_lmdb else archive
    message = f"band {band}, is of type {np.dtype(dtype)}, where BigEarthNet has"
    with pytest.raises(InputError, match=message):
        reben.read_one(source)


@pytest.mark.parametrize("as_lmdb", [False, True])
def test_band_of_other_shape_is_an_error(one, as_lmdb):
    archive, _ = one
    (path,) = archive.rglob("*_B01.tif")
    shared_data.write_band(path.parent, "B01", np.ones((30, 30), np.uint16))
    source = reben.to_lmdb(archive, archive / "lmdb") if as_lmdb else archive
    with pytest.raises(InputError, match="B01, is 30 x 30 px, where .* 20 x 20"):
        reben.read_one(source)


@pytest.mark.parametrize("labels", [["Lava"], ["Urban fabric", "Airports"], [], None])
def test_unknown_or_missing_labels_are_an_error(one, labels):
    archive, row = one
    path = archive / bigearthnet_v2.METADATA
    schema = parquet.read_schema(path)  # which an empty list alone would not tell
    rows = [row | {"labels": labels}]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
    with pytest.raises(InputError, match="at least one and all among the 19 classes"):
        reben.read_one(archive)
