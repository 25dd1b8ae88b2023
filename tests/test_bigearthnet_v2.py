"""Pairing and reading of BigEarthNet v2, as folders and as LMDB, real and false."""

import concurrent.futures
import multiprocessing
import os
import pathlib
import pickle
import shutil
import sys

import numpy as np
import pytest
import tifffile

from configs import prepare_bigearthnet, prepare_bigearthnet_v2
from data_pipeline import classes, sensors
from data_pipeline.archives import bigearthnet_v1, bigearthnet_v2
from data_pipeline.archives import bigearthnet_v2_metadata as metadata
from data_pipeline.errors import InputError
from tests import shared_data

WHY = "reading BigEarthNet v2 takes the extra 'archives'"
lmdb = pytest.importorskip("lmdb", reason=WHY)
pyarrow = pytest.importorskip("pyarrow", reason=WHY)
parquet = pytest.importorskip("pyarrow.parquet", reason=WHY)
rasterio = pytest.importorskip("rasterio", reason=WHY)
safetensors = pytest.importorskip("safetensors.numpy", reason=WHY)

S2_TILE = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
S1_SCENE = "S1A_IW_GRDH_1SDV_20170613T165043"
LABELS = ["Marine waters", "Agro-forestry areas", "Urban fabric"]


def real() -> pathlib.Path:
    """The shared archive of 32 real pairs; skips the test where there is none."""
    default = pathlib.Path(__file__).parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("FUSMAE_SHARED_DATA", default))
    folder /= "BigEarthNet-v2"
    if not folder.is_dir():
        pytest.skip(f"no real pairs in {folder}; set FUSMAE_SHARED_DATA")
    return folder


def write_patches(root: pathlib.Path, patch: int) -> dict:
    """Writes the bands of one false pair and returns its row of the metadata."""
    rng = np.random.default_rng(patch)
    s2_name, s1_name = f"{S2_TILE}_{patch:02d}_07", f"{S1_SCENE}_33UUP_{patch}_7"
    s2 = root / "BigEarthNet-S2" / S2_TILE / s2_name
    s1 = root / "BigEarthNet-S1" / S1_SCENE / s1_name
    for folder in (s2, s1):
        folder.mkdir(parents=True)
    for band in sensors.S2.bands:
        image = rng.integers(1, 9000, (1200 // band.gsd,) * 2, np.uint16)
        shared_data.write_band(s2, band.name, image)
    for band in sensors.S1.bands:
        image = rng.normal(-15, 4, (120, 120)).astype(np.float32)
        shared_data.write_band(s1, band.name, image)
    return {
        "patch_id": s2_name,
        "labels": LABELS,
        "split": "validation",
        "s1_name": s1_name,
        "s2v1_name": f"S2A_MSIL2A_20170613T101031_{patch}_7",
        "contains_seasonal_snow": False,
        "contains_cloud_or_shadow": False,
    }


def write_map(root: pathlib.Path, patch_id: str, codes: np.ndarray) -> None:
    folder = root / "Reference_Maps" / patch_id.rsplit("_", 2)[0] / patch_id
    folder.mkdir(parents=True)
    path = folder / f"{patch_id}_reference_map.tif"
    tifffile.imwrite(path, codes, compression="deflate")


def write_metadata(folder, rows: list[dict], name: str = metadata.METADATA) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), pathlib.Path(folder, name))


@pytest.fixture
def one(tmp_path) -> tuple[pathlib.Path, dict]:
    """An archive of one false pair, and its row."""
    row = write_patches(tmp_path / "archive", 1)
    write_metadata(tmp_path / "archive", [row])
    return tmp_path / "archive", row


def to_lmdb(archive: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Writes the GeoTIFFs of an archive as rico-hdl does."""
    values = {}
    for path in sorted(archive.rglob("*.tif")):
        key, _, band = path.stem.rpartition("_")
        if path.stem.endswith("_reference_map"):
            key, band = path.stem, "Data"
        values.setdefault(key, {})[band] = tifffile.imread(path)
    put(out, {key: safetensors.save(images) for key, images in values.items()})
    return out


def put(folder: pathlib.Path, values: dict[str, bytes]) -> None:
    with lmdb.open(str(folder), map_size=1 << 26) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key.encode(), value)


def open_archive(source, **read):
    config = prepare_bigearthnet_v2.get_config()
    config.source = str(source)
    config.read.update(read)
    return bigearthnet_v2.open_archive(config)


def read_one(source, **read) -> dict:
    archive = open_archive(source, **read)
    ((pair,), _) = archive.find_pairs()
    return archive.read_pair(pair)


def reasons(source, **read) -> list[str]:
    """Why each pair of the archive is skipped, given that none is left."""
    pairs, skipped = open_archive(source, **read).find_pairs()
    assert not pairs
    return [skip.reason for skip in skipped]


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for field, value in a.items():
        np.testing.assert_array_equal(b[field], value)
        assert getattr(b[field], "dtype", None) == getattr(value, "dtype", None)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_real_records_have_the_pixels_that_rasterio_reads():
    root = real()
    archive = open_archive(root, snow_and_clouds=True)
    pairs, skipped = archive.find_pairs()
    assert len(pairs) == 32 and not skipped
    files = {path.name: path for path in root.rglob("*.tif")}
    for pair in pairs:
        record = archive.read_pair(pair)
        for sensor, name in (("s1", pair.s1_name), ("s2", pair.s2_name)):
            for grid in archive.description.layout.of(sensor):
                for channel, band in enumerate(grid.bands):
                    with rasterio.open(files[f"{name}_{band}.tif"]) as file:
                        stored = file.read(1).astype(sensors.SENSORS[sensor].dtype)
                    got = record[grid.field][..., channel]
                    assert got.dtype == stored.dtype
                    np.testing.assert_array_equal(got, stored)


def test_real_records_have_labels_names_and_splits_of_the_metadata():
    root = real()
    archive = open_archive(root, snow_and_clouds=True)
    rows = {
        row["patch_id"]: row
        for row in parquet.read_table(root / "metadata.parquet").to_pylist()
    }
    pairs, _ = archive.find_pairs()
    assert [pair.s2_name for pair in pairs] == sorted(rows)
    for pair in pairs:
        record, row = archive.read_pair(pair), rows[pair.s2_name]
        labels = [classes.BIGEARTHNET_19[i] for i in record["labels"]]
        assert sorted(labels) == row["labels"] and pair.split == row["split"]
        assert record["labels"] == sorted(record["labels"])
        assert record["id_s1"] == pair.s1_name == row["s1_name"]
        assert record["place"] == row["s2v1_name"] and record["id"] == row["patch_id"]
        assert record["tile"] == pair.tile and f"_T{pair.tile}_" in pair.s2_name


def test_real_patches_with_snow_or_clouds_are_skipped_unless_wanted():
    pairs, skipped = open_archive(real()).find_pairs()
    assert len(pairs) == 26 and len(skipped) == 6
    ends = [skip.reason.split("_")[-1] for skip in skipped]
    assert ends == 3 * ["shadow"] + 3 * ["snow"]


def test_real_reference_map_is_that_of_tifffile_and_agrees_with_the_labels():
    root = real()
    (path,) = root.rglob("*_reference_map.tif")
    archive = open_archive(root)
    (pair,) = [p for p in archive.find_pairs()[0] if path.stem.startswith(p.s2_name)]
    record, codes = archive.read_pair(pair), tifffile.imread(path)
    assert sorted(np.unique(record["land_cover"])) == record["labels"]
    names = {211: "Non-irrigated arable land", 231: "Pastures"}
    names |= {311: "Broad-leaved forest", 313: "Mixed forest"}
    assert set(np.unique(codes)) == set(names)
    for code, name in names.items():
        index = archive.description.maps["land_cover_43"].index(name)
        np.testing.assert_array_equal(record["land_cover_43"] == index, codes == code)


def test_real_records_are_the_same_from_an_lmdb(tmp_path):
    root = real()
    out = to_lmdb(root, tmp_path / "BigEarthNet.lmdb")
    shutil.copy(root / "metadata.parquet", tmp_path)
    folders, database = open_archive(root), open_archive(tmp_path)
    assert database.store.root == str(out.resolve())
    pairs, skipped = folders.find_pairs()
    assert database.find_pairs() == (pairs, skipped)
    assert database.description == folders.description
    for pair in pairs:
        assert_same(folders.read_pair(pair), database.read_pair(pair))


def test_place_in_both_versions_has_one_identity_and_one_sentinel_1_image():
    config = prepare_bigearthnet.get_config()
    config.source = shared_data.bigearthnet_v1()
    archives = bigearthnet_v1.open_archive(config), open_archive(real())
    old, new = (
        {r["place"]: r for r in map(archive.read_pair, archive.find_pairs()[0])}
        for archive in archives
    )
    assert old.keys() & new.keys() == {"S2A_MSIL2A_20170613T101031_26_57"}
    for place in old.keys() & new.keys():
        a, b = old[place], new[place]
        assert a["id_s1"] == b["id_s1"] and a["tile"] == b["tile"]
        np.testing.assert_array_equal(a["s1_10m"], b["s1_10m"])
        for field in ("s2_10m", "s2_20m", "s2_60m"):  # was processed again
            assert (a[field] != b[field]).any()
            assert np.corrcoef(a[field].ravel(), b[field].ravel())[0, 1] > 0.99


def test_record_has_labels_by_name_and_what_the_names_tell(one):
    archive, row = one
    record = read_one(archive)
    assert record["labels"] == [0, 7, 18]  # the metadata sorts them by alphabet
    assert record["acquired_s1"] == "2017-06-13T16:50:43"
    assert record["acquired_s2"] == "2017-06-13T10:10:31"
    assert record["tile"] == "33UUP" and record["place"] == row["s2v1_name"]


def test_statistics_are_those_of_this_version(one):
    described = open_archive(one[0]).description.sensors
    assert described["s2"].bands[0].mean == 361.0767822
    assert described["s1"].bands[1].std == 5.5905056
    assert all("v2" in sensor.source for sensor in described.values())


def test_map_becomes_indices_and_what_has_no_class_is_marked(one):
    archive, row = one
    codes = np.zeros((120, 120), np.uint16)
    # A kept class, one that the 19 classes drop, one outside the table, no data.
    codes[0, :4] = (523, 124, 335, 0)
    codes[1, :43] = classes.CORINE_CODES
    write_map(archive, row["patch_id"], codes)
    record = read_one(archive)
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
    rows = [write_patches(tmp_path / "a", patch) for patch in (1, 2)]
    write_map(tmp_path / "a", rows[1]["patch_id"], np.full((120, 120), 211, np.uint16))
    write_metadata(tmp_path / "a", rows)
    source = tmp_path / "a"
    if as_lmdb:
        source = to_lmdb(source, tmp_path / "a" / "lmdb")
    archive = open_archive(source)
    without, with_map = map(archive.read_pair, archive.find_pairs()[0])
    assert (without["land_cover"] == classes.NO_CLASS).all()
    assert (without["land_cover_43"] == classes.NO_CLASS).all()
    assert (with_map["land_cover"] == 2).all()


@pytest.mark.parametrize("as_lmdb", [False, True])
def test_records_have_pixel_labels_only_where_there_are_maps(tmp_path, one, as_lmdb):
    archive, row = one
    source = to_lmdb(archive, archive / "without") if as_lmdb else archive
    assert not open_archive(source).description.maps
    assert "land_cover" not in read_one(source)
    write_map(archive, row["patch_id"], np.full((120, 120), 211, np.uint16))
    source = to_lmdb(archive, archive / "with") if as_lmdb else archive
    maps = open_archive(source).description.maps
    assert list(maps) == ["land_cover", "land_cover_43"]
    assert "land_cover" not in read_one(source, maps=False)


@pytest.mark.parametrize("as_lmdb", [False, True])
@pytest.mark.parametrize(
    "codes", [np.ones((120, 120), np.uint8), np.ones((60, 60), np.uint16)]
)
def test_map_of_other_type_or_shape_is_an_error(one, codes, as_lmdb):
    archive, row = one
    write_map(archive, row["patch_id"], codes)
    source = to_lmdb(archive, archive / "lmdb") if as_lmdb else archive
    message = rf"reference map of {row['patch_id']} is {codes.dtype} \({len(codes)}, "
    with pytest.raises(InputError, match=message):
        read_one(source)


def test_damaged_map_is_an_error(one):
    archive, row = one
    write_map(archive, row["patch_id"], np.full((120, 120), 211, np.uint16))
    (path,) = archive.rglob("*_reference_map.tif")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="_reference_map.tif is damaged"):
        read_one(archive)


def test_missing_band_is_an_error(one):
    archive, row = one
    (path,) = archive.rglob(f"{row['patch_id']}_B11.tif")
    path.unlink()
    with pytest.raises(InputError, match="_B11.tif cannot be read"):
        read_one(archive)
    with pytest.raises(InputError, match=r"has the bands \['B01'.* and not B11"):
        read_one(to_lmdb(archive, archive / "lmdb"))


@pytest.mark.parametrize("as_lmdb", [False, True])
@pytest.mark.parametrize("band, dtype", [("B02", np.float32), ("VV", np.uint16)])
def test_band_of_other_type_is_an_error(one, band, dtype, as_lmdb):
    archive, _ = one
    (path,) = archive.rglob(f"*_{band}.tif")
    shared_data.write_band(path.parent, band, np.ones((120, 120), dtype))
    source = to_lmdb(archive, archive / "lmdb") if as_lmdb else archive
    message = f"band {band}, is of type {np.dtype(dtype)}, where BigEarthNet has"
    with pytest.raises(InputError, match=message):
        read_one(source)


@pytest.mark.parametrize("as_lmdb", [False, True])
def test_band_of_other_shape_is_an_error(one, as_lmdb):
    archive, _ = one
    (path,) = archive.rglob("*_B01.tif")
    shared_data.write_band(path.parent, "B01", np.ones((30, 30), np.uint16))
    source = to_lmdb(archive, archive / "lmdb") if as_lmdb else archive
    with pytest.raises(InputError, match="B01, is 30 x 30 px, where .* 20 x 20"):
        read_one(source)


@pytest.mark.parametrize("labels", [["Lava"], ["Urban fabric", "Airports"], [], None])
def test_unknown_or_missing_labels_are_an_error(one, labels):
    archive, row = one
    path = archive / metadata.METADATA
    schema = parquet.read_schema(path)  # which an empty list alone would not tell
    rows = [row | {"labels": labels}]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
    with pytest.raises(InputError, match="at least one and all among the 19 classes"):
        read_one(archive)


@pytest.mark.parametrize(
    "column, reason",
    [
        ("contains_seasonal_snow", "flagged contains_seasonal_snow"),
        ("contains_cloud_or_shadow", "flagged contains_cloud_or_shadow"),
    ],
)
@pytest.mark.parametrize("file", [metadata.METADATA, metadata.FLAGGED])
def test_flagged_patch_is_skipped_from_either_file(tmp_path, column, reason, file):
    clean, flagged = (write_patches(tmp_path, patch) for patch in (1, 2))
    flagged = flagged | {column: True}
    if file == metadata.METADATA:
        write_metadata(tmp_path, [clean, flagged])
    else:
        write_metadata(tmp_path, [clean])
        write_metadata(tmp_path, [flagged], file)
    pairs, skipped = open_archive(tmp_path).find_pairs()
    assert [pair.s2_name for pair in pairs] == [clean["patch_id"]]
    wanted = False  # a choice, and no fault that stops a strict build
    assert skipped == [(flagged["patch_id"], flagged["s1_name"], reason, wanted)]
    pairs, skipped = open_archive(tmp_path, snow_and_clouds=True).find_pairs()
    assert len(pairs) == 2 and not skipped


@pytest.mark.parametrize("as_lmdb", [False, True])
def test_patches_without_row_and_rows_without_patch_are_skipped(tmp_path, as_lmdb):
    rows = [write_patches(tmp_path / "a", patch) for patch in range(5)]
    for folder in (rows[1]["patch_id"], rows[2]["s1_name"]):
        shutil.rmtree(next((tmp_path / "a").rglob(folder)))
    write_metadata(tmp_path / "a", rows[1:4])
    source = tmp_path / "a"
    if as_lmdb:
        source = to_lmdb(source, source / "lmdb")
    pairs, skipped = open_archive(source).find_pairs()
    assert [pair.s2_name for pair in pairs] == [rows[3]["patch_id"]]
    got = {(skip.s2_name, skip.s1_name): skip.reason for skip in skipped}
    listed = "listed in metadata.parquet, but "
    for row, absent in ((rows[1], "patch_id"), (rows[2], "s1_name")):
        reason = got.pop((row["patch_id"], row["s1_name"]))
        assert reason.startswith(f"{listed}{row[absent]} not in {source}")
    unknown = {(row["patch_id"], "") for row in (rows[0], rows[4])}
    unknown |= {("", row["s1_name"]) for row in (rows[0], rows[4])}
    assert set(got) == unknown and len(skipped) == 6
    assert all("not listed in" in reason for reason in got.values())


def test_row_that_comes_twice_makes_one_pair(one):
    archive, row = one
    write_metadata(archive, [row, row])
    pairs, (skip,) = open_archive(archive).find_pairs()
    assert len(pairs) == 1 and "not for the first time" in skip.reason


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"split": "val"}, "split 'val' is none of train, validation, test"),
        ({"split": None}, "split '' is none of"),
        ({"patch_id": "S2A_MSIL2A_20170613T101031_1_7"}, "not named like"),
        ({"patch_id": None}, "not named like"),
        ({"s1_name": None}, "listed in metadata.parquet, but "),
    ],
)
def test_row_that_cannot_be_true_is_skipped_with_its_reason(one, change, reason):
    archive, row = one
    write_metadata(archive, [row | change])
    assert reason in reasons(archive)[0]


def test_metadata_is_found_beside_around_or_where_it_is_said_to_be(one):
    archive, _ = one
    source = to_lmdb(archive, archive / "lmdb")
    record = read_one(source)  # around
    table = shutil.move(archive / metadata.METADATA, source)
    assert_same(read_one(source), record)  # beside
    table = shutil.move(table, archive.parent / "table.parquet")
    assert_same(read_one(source, metadata=str(table)), record)
    with pytest.raises(InputError, match=r"no metadata.parquet in .*config.read"):
        open_archive(source)


def test_metadata_that_is_damaged_or_another_table_is_an_error(one):
    archive, row = one
    write_metadata(archive, [{"patch_id": row["patch_id"], "labels": LABELS}])
    with pytest.raises(InputError, match=r"no columns \['contains_cloud_or_shadow', "):
        open_archive(archive).find_pairs()
    (archive / metadata.METADATA).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match="metadata.parquet cannot be read"):
        open_archive(archive).find_pairs()
    with pytest.raises(InputError, match="nowhere.parquet cannot be read"):
        open_archive(archive, metadata=str(archive / "nowhere.parquet")).find_pairs()


def test_source_without_archive_is_an_error_that_says_what_was_looked_for(one):
    archive, _ = one
    shutil.rmtree(archive / "BigEarthNet-S1")
    with pytest.raises(InputError, match="no folder BigEarthNet-S1; pass"):
        open_archive(archive).find_pairs()
    shutil.rmtree(archive / "BigEarthNet-S2")
    for source in (archive, archive / "nowhere"):
        with pytest.raises(InputError, match="BigEarthNet-S2 and 0 folders with data"):
            open_archive(source)
    for name in ("a", "b"):
        put(archive / name, {})
    with pytest.raises(InputError, match="2 folders with data.mdb"):
        open_archive(archive)


BF16 = b'{"VV":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff" * 64,
        safetensors.save({"VV": np.ones(9, np.float32)})[:-1],
        len(BF16).to_bytes(8, "little") + BF16 + b"\0\0",  # a type NumPy lacks
    ],
)
def test_damaged_value_of_an_lmdb_is_an_error_that_names_it(one, value):
    archive, row = one
    source = to_lmdb(archive, archive / "lmdb")
    put(source, {row["s1_name"]: value})
    with pytest.raises(InputError, match=f"{row['s1_name']} in .* is damaged"):
        read_one(source)


def test_map_in_an_lmdb_without_data_is_an_error(one):
    archive, row = one
    source = to_lmdb(archive, archive / "lmdb")
    value = safetensors.save({"data": np.ones((120, 120), np.uint16)})
    put(source, {row["patch_id"] + "_reference_map": value})
    with pytest.raises(InputError, match=r"holds \['data'\] and not 'Data'"):
        read_one(source)


def test_lmdb_that_is_cut_short_is_an_error_and_no_crash(one):
    archive, _ = one
    source = to_lmdb(archive, archive / "lmdb")
    path = source / "data.mdb"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="data.mdb is cut short, .* of at least"):
        open_archive(source)


def test_lmdb_with_damaged_pages_or_none_is_an_error(one):
    archive, _ = one
    source = to_lmdb(archive, archive / "lmdb")
    path = source / "data.mdb"
    content = bytearray(path.read_bytes())
    size = os.sysconf("SC_PAGESIZE")
    for page in range(2, len(content) // size):
        if content[page * size + 10] & 2:  # a leaf, where the keys are
            content[page * size : (page + 1) * size] = b"\xa5" * size
    path.write_bytes(content)
    with pytest.raises(InputError, match="data.mdb is damaged .*MDB_CORRUPTED"):
        open_archive(source)
    other = archive / "other"
    other.mkdir()
    (other / "data.mdb").write_bytes(b"junk" * 5000)
    with pytest.raises(InputError, match="no database that LMDB can open"):
        open_archive(other)


def test_patch_that_vanished_from_an_lmdb_is_an_error(one):
    archive, row = one
    pairs, _ = open_archive(archive).find_pairs()
    put(archive / "lmdb", {"other": b""})
    with pytest.raises(InputError, match=f"lmdb has no {row['s1_name']}; write"):
        open_archive(archive / "lmdb").read_pair(pairs[0])


def test_lmdb_is_opened_once_in_a_process_by_whatever_path(one, monkeypatch):
    source = to_lmdb(one[0], one[0] / "lmdb")
    link = one[0].parent / "link"
    link.symlink_to(one[0], target_is_directory=True)
    opened, lmdb_open = [], lmdb.open

    def count(path, **options):
        opened.append(path)
        return lmdb_open(path, **options)

    monkeypatch.setattr(lmdb, "open", count)
    assert_same(read_one(source), read_one(link / "lmdb"))
    assert len(opened) == 1


def test_lmdb_is_read_in_other_processes(one):
    archive = open_archive(to_lmdb(one[0], one[0] / "lmdb"))
    ((pair,), _) = archive.find_pairs()  # opened here, and pickled all the same
    assert len(pickle.dumps(archive)) < 500
    record = archive.read_pair(pair)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        assert_same(pool.submit(archive.read_pair, pair).result(), record)


@pytest.mark.parametrize("package", ["lmdb", "safetensors.numpy", "pyarrow"])
def test_missing_package_is_an_error_that_names_the_extra(one, monkeypatch, package):
    source = to_lmdb(one[0], one[0] / "lmdb")
    monkeypatch.setitem(sys.modules, package, None)
    name = package.partition(".")[0]
    with pytest.raises(InputError, match=rf"needs {name}; .*-e '\.\[archives\]'"):
        read_one(source)
