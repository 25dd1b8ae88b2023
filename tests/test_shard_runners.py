"""What runs the jobs of a build: every shard is done once, wherever."""

import json
import os
import sys

import pytest

from data_pipeline.building import plan, shard_jobs
from data_pipeline.errors import InputError
from tests import fakes

pytestmark = pytest.mark.journey


@pytest.fixture
def work(tmp_path):
    """Three shards of two pairs, one of them bad."""
    made = fakes.Archive(count=6, bad=(3,))
    (tmp_path / plan.FOLDER).mkdir()
    config = fakes.config(tmp_path, pairs_per_shard=2)
    return plan.units(config, made, {"train": made.find_pairs()[0]})["train"]


@pytest.mark.parametrize("workers", [0, 2])
def test_all_shards_are_built_and_checked_in_order(work, workers):
    shard_jobs.run_local(shard_jobs.build, work, workers, "writing")
    checked = shard_jobs.run_local(shard_jobs.check, work, workers, "checking")
    ids = [part["index"]["id"].tolist() for part in checked]
    assert ids == [["fake-0", "fake-1"], ["fake-2"], ["fake-4", "fake-5"]]


def die(shard, count):
    os._exit(1)


def leave(shard, count):
    os._exit(0)


@pytest.mark.parametrize("end", [die, leave])
def test_killed_worker_is_said_in_a_sentence(work, end):
    with pytest.raises(InputError, match="process was killed.* workers=1"):
        shard_jobs.run_local(end, work, 1, "writing")


COPIED = False


def is_a_copy(shard, count):
    return COPIED


def test_workers_are_new_processes_and_no_copies_with_the_locks_of_threads(
    work, monkeypatch
):
    monkeypatch.setattr(sys.modules[__name__], "COPIED", True)
    assert shard_jobs.run_local(is_a_copy, work, 0, "writing") == [True] * 3
    assert shard_jobs.run_local(is_a_copy, work, 1, "writing") == [False] * 3


def test_progress_reaches_the_number_of_pairs(work, capsys):
    shard_jobs.run_local(shard_jobs.build, work, 2, "writing")
    assert "6/6" in capsys.readouterr().err


def files(work):
    return [(s.path.read_bytes(), json.loads(s.result.read_text())) for s in work]


def test_beam_writes_the_same_shards_as_this_machine(work):
    pytest.importorskip("apache_beam", reason="needs pip install -e '.[beam]'")
    shard_jobs.run_local(shard_jobs.build, work, 0, "writing")
    want = files(work)
    for shard in work:
        shard.path.unlink()
        shard.result.unlink()
    shard_jobs.run_beam(work, "DirectRunner", ())
    assert files(work) == want


def test_beam_runner_that_fails_is_said_in_a_sentence(work):
    pytest.importorskip("apache_beam", reason="needs pip install -e '.[beam]'")
    with pytest.raises(InputError, match="NoSuchRunner stopped.*same command again"):
        shard_jobs.run_beam(work, "NoSuchRunner", ())


def test_missing_beam_is_said_in_a_sentence(work, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[beam\]'"):
        shard_jobs.run_beam(work, "DirectRunner", ())
