"""Builds that are killed, or whose disk is full: nothing is lost, and all goes on."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline import dataset_card
from data_pipeline.building import plan
from fusmae_jax.training import preemption
from tests import processes, shared_data

pytestmark = pytest.mark.journey

ROOT = pathlib.Path(__file__).parents[1]
PAIRS = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A false archive of BigEarthNet v1."""
    root = tmp_path_factory.mktemp("archive")
    for column in range(PAIRS):
        shared_data.write_pair(root, column)
    return root


# No file may grow beyond 300 kB: what a full disk looks like to a process.
FULL_DISK = ("bash", "-c", 'ulimit -f 300; exec "$@"', "-")


def launch(source, out, workers=0, under=()):
    """Starts a build of shards of two pairs in a process of its own."""
    return subprocess.Popen(
        [
            *(*under, sys.executable, "launch.py"),
            "--config=configs/prepare_bigearthnet.py",
            *(f"--config.source={source}", f"--config.out={out}"),
            *("--config.pairs_per_shard=2", f"--config.workers={workers}"),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(build):
    """Waits for a build; what it said, and whether it succeeded."""
    out, err = build.communicate(timeout=300)
    return out + err, build.returncode == 0


def finished(out):
    """The shards that have their result, and which files they are."""
    found = {}
    for result in (out / plan.FOLDER).glob("*-result.json"):
        split, number, _ = result.name.split("-")
        (path,) = out.glob(f"*-{split}.array_record-{number}-of-*")
        found[path] = path.stat().st_ino
    return found


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """What a build leaves behind that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "out"
    said, fine = finish(launch(source, out))
    assert fine, said
    return content(out)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_build_goes_on_to_the_same_bytes(source, whole, tmp_path, workers):
    out = tmp_path / "out"
    # Killed twice, each time with this many shards finished.
    for shards, kill in ((1, signal.SIGKILL), (6, signal.SIGTERM)):
        build = launch(source, out, workers)
        while len(list((out / plan.FOLDER).glob("*-result.json"))) < shards:
            assert build.poll() is None, finish(build)
            time.sleep(0.002)
        started = processes.children(build)
        assert len(started) >= workers
        build.send_signal(kill)
        said, fine = finish(build)
        assert fine == (kill == signal.SIGTERM), said
        assert processes.all_end(started)
        assert not (out / dataset_card.CARD_FILE).exists()
    assert said.endswith("Stopped by SIGTERM; " + preemption.GOES_ON + "\n")
    assert "Traceback" not in said
    before = finished(out)
    assert len(before) >= 6
    said, fine = finish(launch(source, out, workers))
    assert fine, said
    assert content(out) == whole
    assert before == {path: path.stat().st_ino for path in before}  # not written anew


def test_full_disk_ends_the_build_in_a_sentence_and_room_lets_it_go_on(
    source, whole, tmp_path
):
    out = tmp_path / "out"
    said, fine = finish(launch(source, out, under=FULL_DISK))
    assert not fine and "Traceback" not in said
    assert "cannot be written" in said and "make room, then give the same" in said
    assert not (out / dataset_card.CARD_FILE).exists()
    said, fine = finish(launch(source, out))
    assert fine, said
    assert content(out) == whole
