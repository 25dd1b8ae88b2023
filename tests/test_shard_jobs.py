"""A shard as a job: built once, checked, and mended when it was damaged."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipeline import record_format
from data_pipeline.building import shard_jobs
from data_pipeline.errors import InputError
from tests import fakes


@pytest.fixture
def shard(tmp_path):
    """Six synthetic pairs, the fourth of them bad."""
    made = fakes.Archive(count=6, bad=(3,))
    pairs, _ = made.find_pairs()
    rows = json.dumps([dataclasses.astuple(pair) for pair in pairs])
    (tmp_path / "pairs.json").write_text(rows)
    return shard_jobs.Shard(
        path=tmp_path / record_format.shard_name("fake", "train", 0, 1),
        result=tmp_path / "result.json",
        plan=tmp_path / "pairs.json",
        size=len(pairs),
        archive=made,
        strict=False,
        most_missing=0.5,
    )


def test_pairs_come_back_from_the_plan_as_they_were(shard):
    pairs, _ = shard.archive.find_pairs()
    assert shard.pairs == pairs
    assert isinstance(shard.pairs[0].where[0], tuple)


def test_bad_pair_is_left_out_and_said(shard):
    shard_jobs.build(shard)
    result = shard_jobs.read_result(shard)
    assert result["count"] == 5
    assert result["skipped"] == [
        ["fake-3", "radar-3", "pair 3 is bad on purpose", True]
    ]


def test_every_pair_is_counted_as_it_is_done(shard):
    done = []
    shard_jobs.build(shard, done.append)
    assert sum(done) == 6
    done.clear()
    shard_jobs.build(shard, done.append)  # passed over
    assert done == [6]
    done.clear()
    shard_jobs.check(shard, done.append)
    assert sum(done) == 6


class Broken(fakes.Archive):
    """An archive on a disk that fails."""

    def read_pair(self, pair):
        raise OSError(5, "Input/output error")


def test_disk_that_fails_stops_the_build_and_no_pair_is_called_bad(shard):
    broken = dataclasses.replace(shard, archive=Broken())
    with pytest.raises(InputError, match="fake-0 cannot be read .*same command again"):
        shard_jobs.build(broken)
    assert not shard.result.exists() and not shard.path.exists()


class Strange(fakes.Archive):
    """An archive with a file that no reader foresaw."""

    def read_pair(self, pair):
        if pair.name == "fake-2":
            raise KeyError("B02")
        return super().read_pair(pair)


def test_file_that_no_reader_foresaw_is_skipped_and_said(shard):
    shard_jobs.build(dataclasses.replace(shard, archive=Strange()))
    (name, _, reason, _), _ = shard_jobs.read_result(shard)["skipped"]
    assert name == "fake-2" and "makes its reader fail (KeyError: 'B02')" in reason


def test_strict_build_writes_anew_what_a_lenient_one_finished_with_a_bad_pair(shard):
    shard_jobs.build(shard)
    with pytest.raises(InputError, match="pair 3 is bad on purpose"):
        shard_jobs.build(dataclasses.replace(shard, strict=True))


def test_finished_shard_is_not_written_again(shard):
    shard_jobs.build(shard)
    before = shard.path.stat()
    shard_jobs.build(shard)
    assert shard.path.stat().st_ino == before.st_ino


def test_check_returns_what_the_index_needs(shard):
    shard_jobs.build(shard)
    index = shard_jobs.check(shard)["index"]
    good = [shard.archive.read_pair(p) for p in shard.pairs if p.where[0][1]]
    for field in ("id", "place"):
        assert index[field].tolist() == [record[field] for record in good]
    labels = [np.flatnonzero(row).tolist() for row in index["labels"]]
    assert labels == [record["labels"] for record in good]


def test_labels_become_multi_hot():
    got = shard_jobs.multi_hot([[0, 2], [], [1]], 3)
    np.testing.assert_array_equal(got, [[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    assert got.dtype == np.uint8


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[10_000] ^= 1
    path.write_bytes(content)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-70_000])


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short])
def test_damaged_shard_is_noticed_deleted_and_written_anew(shard, damage):
    shard_jobs.build(shard)
    good = shard.path.read_bytes()
    damage(shard.path)
    with pytest.raises(InputError, match="is not what was written .* and was deleted"):
        shard_jobs.check(shard)
    assert not shard.path.exists() and not shard.result.exists()
    shard_jobs.build(shard)
    shard_jobs.check(shard)
    assert shard.path.read_bytes() == good


def test_shard_with_fewer_records_than_its_result_says_is_noticed(shard):
    shard_jobs.build(shard)
    features = record_format.features(shard.archive.description)
    records = [shard.archive.read_pair(pair) for pair in shard.pairs[:2]]
    record_format.write_shard(shard.path, records, features)
    with pytest.raises(InputError, match="2 records and 1 skipped pairs of 6"):
        shard_jobs.check(shard)


def test_shard_of_as_many_other_records_is_noticed(shard):
    shard_jobs.build(shard)
    features = record_format.features(shard.archive.description)
    good = [pair for pair in shard.pairs if pair.where[0][1]]
    records = [shard.archive.read_pair(pair) for pair in good[::-1]]
    info = record_format.write_shard(shard.path, records, features)
    result = shard_jobs.read_result(shard)
    assert (info.count, info.bytes) == (result["count"], result["bytes"])
    with pytest.raises(InputError, match="is not what was written .*their content is"):
        shard_jobs.check(shard)


def test_shard_that_a_cluster_lost_is_noticed(shard):
    with pytest.raises(InputError, match="was lost on the way; give the same command"):
        shard_jobs.check(shard)


def test_uncompressed_shard_holds_the_same_records(shard, tmp_path):
    shard_jobs.build(shard)
    plain = dataclasses.replace(
        shard,
        path=tmp_path / "plain",
        result=tmp_path / "plain.json",
        options=record_format.COMPRESSION["none"],
    )
    shard_jobs.build(plain)
    same = ("count", "bytes", "digest", "tally")
    got, want = shard_jobs.read_result(plain), shard_jobs.read_result(shard)
    assert {k: got[k] for k in same} == {k: want[k] for k in same}
    assert plain.path.read_bytes() != shard.path.read_bytes()
