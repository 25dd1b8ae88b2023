"""Which patches of BigEarthNet v2 make pairs, going by its metadata."""

import pathlib
import shutil

import pytest

from data_pipeline.archives import bigearthnet_v2
from data_pipeline.errors import InputError
from tests import reben, shared_data


@pytest.fixture
def one(tmp_path) -> tuple[pathlib.Path, dict]:
    return reben.one(tmp_path)


def test_real_patches_with_snow_or_clouds_are_skipped_unless_wanted():
    pairs, skipped = reben.open_archive(shared_data.bigearthnet_v2()).find_pairs()
    assert len(pairs) == 26 and len(skipped) == 6
    ends = [skip.reason.split("_")[-1] for skip in skipped]
    assert ends == 3 * ["shadow"] + 3 * ["snow"]


@pytest.mark.parametrize(
    "column, reason",
    [
        ("contains_seasonal_snow", "flagged contains_seasonal_snow"),
        ("contains_cloud_or_shadow", "flagged contains_cloud_or_shadow"),
    ],
)
@pytest.mark.parametrize("file", [bigearthnet_v2.METADATA, bigearthnet_v2.FLAGGED])
def test_flagged_patch_is_skipped_from_either_file(tmp_path, column, reason, file):
    clean, flagged = (reben.write_patches(tmp_path, patch) for patch in (1, 2))
    flagged = flagged | {column: True}
    if file == bigearthnet_v2.METADATA:
        reben.write_metadata(tmp_path, [clean, flagged])
    else:
        reben.write_metadata(tmp_path, [clean])
        reben.write_metadata(tmp_path, [flagged], file)
    pairs, skipped = reben.open_archive(tmp_path).find_pairs()
    assert [pair.name for pair in pairs] == [clean["patch_id"]]
    wanted = False  # a choice, and no fault that stops a strict build
    (skip,) = skipped
    assert skip.names == (flagged["patch_id"], flagged["s1_name"])
    assert (skip.reason, skip.wanted) == (reason, wanted)
    pairs, skipped = reben.open_archive(tmp_path, snow_and_clouds=True).find_pairs()
    assert len(pairs) == 2 and not skipped


@pytest.mark.parametrize("as_lmdb", [False, True])
def test_patches_without_row_and_rows_without_patch_are_skipped(tmp_path, as_lmdb):
    rows = [reben.write_patches(tmp_path / "a", patch) for patch in range(5)]
    for folder in (rows[1]["patch_id"], rows[2]["s1_name"]):
        shutil.rmtree(next((tmp_path / "a").rglob(folder)))
    reben.write_metadata(tmp_path / "a", rows[1:4])
    source = tmp_path / "a"
    if as_lmdb:
        source = reben.to_lmdb(source, source / "lmdb")
    pairs, skipped = reben.open_archive(source).find_pairs()
    assert [pair.name for pair in pairs] == [rows[3]["patch_id"]]
    got = {skip.names: skip.reason for skip in skipped}
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
    reben.write_metadata(archive, [row, row])
    pairs, (skip,) = reben.open_archive(archive).find_pairs()
    assert len(pairs) == 1 and "not for the first time" in skip.reason


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"split": "dev"}, "split 'dev' is none of train, validation, test"),
        ({"split": None}, "split '' is none of"),
        ({"patch_id": "S2A_MSIL2A_20170613T101031_1_7"}, "not named like"),
        ({"patch_id": None}, "not named like"),
        ({"s1_name": None}, "listed in metadata.parquet, but "),
    ],
)
def test_row_that_cannot_be_true_is_skipped_with_its_reason(one, change, reason):
    archive, row = one
    reben.write_metadata(archive, [row | change])
    assert reason in reben.reasons(archive)[0]


def test_metadata_is_found_beside_around_or_where_it_is_said_to_be(one):
    archive, _ = one
    source = reben.to_lmdb(archive, archive / "lmdb")
    record = reben.read_one(source)  # around
    table = shutil.move(archive / bigearthnet_v2.METADATA, source)
    reben.assert_same(reben.read_one(source), record)  # beside
    table = shutil.move(table, archive.parent / "table.parquet")
    reben.assert_same(reben.read_one(source, metadata=str(table)), record)
    with pytest.raises(InputError, match="no metadata.parquet in .*read.metadata="):
        reben.open_archive(source)


def test_metadata_lies_beside_a_link_to_a_database_on_another_disk(one, tmp_path):
    archive, _ = one
    source, disk = tmp_path / "links", tmp_path / "disk"
    disk.mkdir()
    record = reben.read_one(archive)
    reben.to_lmdb(archive, disk / "lmdb")
    source.mkdir()
    (source / "lmdb").symlink_to(tmp_path / "disk" / "lmdb")
    shutil.move(archive / bigearthnet_v2.METADATA, source)
    reben.assert_same(reben.read_one(source), record)


def test_metadata_that_is_damaged_or_another_table_is_an_error(one):
    archive, row = one
    short = {key: row[key] for key in ("patch_id", "labels")}
    reben.write_metadata(archive, [short])
    with pytest.raises(InputError, match=r"no columns \['contains_cloud_or_shadow', "):
        reben.open_archive(archive).find_pairs()
    (archive / bigearthnet_v2.METADATA).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match="metadata.parquet cannot be read"):
        reben.open_archive(archive).find_pairs()
    nowhere = reben.open_archive(archive, metadata=str(archive / "nowhere.parquet"))
    with pytest.raises(InputError, match="nowhere.parquet cannot be read"):
        nowhere.find_pairs()


def test_source_without_archive_is_an_error_that_says_what_was_looked_for(one):
    archive, _ = one
    shutil.rmtree(archive / "BigEarthNet-S1")
    with pytest.raises(InputError, match="no folder BigEarthNet-S1; pass"):
        reben.open_archive(archive).find_pairs()
    shutil.rmtree(archive / "BigEarthNet-S2")
    for source in (archive, archive / "nowhere"):
        with pytest.raises(InputError, match="BigEarthNet-S2 and 0 folders with data"):
            reben.open_archive(source)
    for name in ("a", "b"):
        reben.put(archive / name, {})
    with pytest.raises(InputError, match="2 folders with data.mdb"):
        reben.open_archive(archive)
