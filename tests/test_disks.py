"""Disks that are full, read-only or another's: a sentence, and room lets a run go on.

The disks are real, small file systems in memory; each fault is the kernel's.
"""

import os
import pathlib
import re
import tempfile

import numpy as np
import pytest

from data_pipeline import atomic, locks
from data_pipeline.errors import InputError
from fusmae_jax import build, figures
from fusmae_jax.evaluation import features, results
from fusmae_jax.training import checkpoint, metrics, pretrain, run_directory
from tests import disks, tiny


@pytest.fixture
def disk(tmp_path):
    with disks.mounted(tmp_path / "disk") as disk:
        yield disk


def claim(workdir, config=None):
    config = config or tiny.config()
    run_directory.open_workdir(workdir, config, build.contract(config), {})
    run_directory.remember_places(workdir, np.arange(10, dtype=np.uint64).reshape(5, 2))


def content(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def one_sentence(call, *arguments):
    """What `launch.py` says of the failure of a call."""
    with pytest.raises((InputError, OSError)) as caught:
        call(*arguments)
    error = caught.value
    if isinstance(error, OSError):
        assert error.errno in atomic.ADVICE  # or there would be a traceback
        return atomic.explain(error)
    return str(error)


def test_a_directory_for_which_there_is_no_room_is_named(tmp_path):
    with disks.mounted(tmp_path / "disk", "size=16m,nr_inodes=1") as disk:
        said = one_sentence(claim, disk.path / "run")
        assert f"{disk.path}/run cannot be written (No space left" in said
        assert "make room, then give the same command again, or choose another" in said


@pytest.mark.parametrize(
    "pages, name",
    [(0, run_directory.LOCK), (1, "config.json"), (3, run_directory.PLACES)],
)
def test_a_disk_that_is_full_at_the_start_is_said_and_room_lets_it_start(
    disk, pages, name
):
    workdir = disk.path / "run"
    disk.fill(pages)
    said = one_sentence(claim, workdir)
    assert f"{workdir}/{name} cannot be written (No space left on device)" in said
    assert not list(workdir.glob("*.part"))
    disk.make_room()
    claim(workdir)
    assert {p.name for p in workdir.iterdir()} == {
        "config.json",
        run_directory.PLACES,
        run_directory.LOCK,
    }
    assert run_directory.load(workdir)[0].seed == 0
    assert (
        run_directory.trained_on(workdir, np.array([[3, 12], [0, 13]], np.uint64)) == 1
    )


@pytest.fixture
def trip(monkeypatch, disk):
    """Fills the disk when a method is about to be called."""

    def set_up(owner, name):
        original = getattr(owner, name)

        def tripping(*arguments, **keywords):
            disk.fill()
            return original(*arguments, **keywords)

        monkeypatch.setattr(owner, name, tripping)
        return lambda: monkeypatch.setattr(owner, name, original)

    return set_up


def numbers(workdir):
    """Losses by step, training's and held-out ones, in the order they stand."""
    rows = metrics.read_metrics(workdir)
    names = ("loss", "eval_loss")
    return [(r["step"], name, r[name]) for r in rows for name in names if name in r]


@pytest.mark.journey
def test_a_run_meets_a_full_disk_at_every_file_and_goes_on_to_the_same_numbers(
    disk, trip, tmp_path
):
    config, workdir = tiny.config(), disk.path / "run"
    pretrain.run(config, tmp_path / "whole")
    for owner, method, names in (
        (metrics.MetricWriter, "write_now", r"metrics\.jsonl"),
        # What is written beside each other may fail first.
        (checkpoint.Checkpoints, "save", "checkpoints/3|figures/.*3.png|metrics"),
        (pretrain.reconstruct, "report", r"figures/reconstruction\.png"),
    ):
        undo = trip(owner, method)
        said = one_sentence(pretrain.run, config, workdir)
        undo()
        assert re.search(f"{workdir}/({names})", said), (method, said)
        assert "No space left" in said
        disk.make_room()
    state = pretrain.run(config, workdir)
    assert int(state.step) == 6
    want = sorted(numbers(tmp_path / "whole"))
    assert sorted(numbers(workdir)) == want
    steps = [step for step, name, _ in numbers(workdir) if name == "loss"]
    assert steps == [1, 2, 3, 4, 5, 6]
    for name in ("config.json", "scores.json", run_directory.PLACES):
        assert (workdir / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_tensorboard_and_figures_are_named_when_the_disk_is_full(disk):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    metrics.TensorBoard(disk.path / "a").add_scalars(1, {"loss": 0.5})
    disk.fill()
    opened = one_sentence(metrics.TensorBoard, disk.path / "b")
    assert f"{disk.path}/b/events.out.tfevents" in opened
    disk.make_room()
    begun = metrics.TensorBoard(disk.path / "c")
    disk.fill()
    assert "c/events.out" in one_sentence(begun.add_image, 2, "scene", image)
    drawn = figures.loss_figure([{"step": 1, "loss_s1": 0.5}])
    said = one_sentence(figures.save, drawn, disk.path / "figures" / "loss.png")
    assert f"{disk.path}/figures/loss.png cannot be written (No space" in said
    assert not list((disk.path / "figures").iterdir())
    disk.make_room()
    begun.add_image(2, "scene", image)
    figures.save(drawn, disk.path / "figures" / "loss.png")


def test_a_full_disk_costs_an_evaluation_nothing_it_had(disk):
    workdir, meta = disk.path, dict(dataset="x", split="test", checkpoint="y", step=1)
    write = lambda classes: results.write(workdir, [], classes=classes, meta=meta)
    ids, labels = [str(i) for i in range(4000)], np.eye(4000, 19)
    write(["a"])
    before = content(workdir)
    disk.fill()
    said = one_sentence(write, ["b"])
    assert f"{workdir}/scores.csv cannot be written" in said
    said = one_sentence(
        results.write_predictions, workdir, ids, range(19), labels, {"k/s": labels}
    )
    assert f"{workdir}/predictions.npz cannot be written" in said
    said = one_sentence(features._write, disk.path / "features" / "a", b"x" * 9000)
    assert f"kept in {workdir}/features" in said and "another folder" in said
    disk.make_room()
    assert content(workdir) == before
    write(["b"])
    assert results.read_shared(workdir)[0] == ("b",)


def test_a_read_only_disk_is_said_of_a_new_run_and_of_an_old_one(disk):
    claim(disk.path / "old")
    locks.unlock(disk.path / "old" / run_directory.LOCK)  # as if its process had ended
    disk.close_for_writing()
    before = content(disk.path)
    for name in ("old", "new"):
        said = one_sentence(claim, disk.path / name)
        assert f"{disk.path / name}" in said and "(Read-only file system)" in said
        assert "mount it for writing" in said and "another --workdir" in said
    assert content(disk.path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_directory_of_somebody_else_is_said():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own let nobody in
        place = pathlib.Path(folder)
        place.chmod(0o755)
        claim(place / "old")
        locks.unlock(place / "old" / run_directory.LOCK)
        before = content(place)
        os.seteuid(65534)
        try:
            old, new = (one_sentence(claim, place / name) for name in ("old", "new"))
        finally:
            os.seteuid(0)
        assert (
            f"{place}/old/{run_directory.LOCK} cannot be written (Permission denied)"
            in old
        )
        assert f"{place}/new cannot be written (Permission denied)" in new
        assert "see to its permissions" in old and "see to its permissions" in new
        assert content(place) == before


def test_a_parent_that_is_not_there_is_made(tmp_path):
    claim(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c" / "config.json").exists()
