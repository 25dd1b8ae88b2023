"""Runs that are killed, launched twice, or out of disk go on to the same numbers.

Every launch is a process of its own, or two; the kills are SIGKILL, the disk is full.
"""

import json
import time

import pytest

from fusmae_jax.training import run_directory
from tests import disks
from tests.conftest import CACHE
from tests.faults import killed_run, kills, launches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where runs go; holds `whole`, the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(CACHE))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        launches.finish(launches.Launch(folder / "whole", launches.LAYOUTS["one"]))
        yield folder


def campaign(folder, seed, layouts):
    lines = [f"seed {seed}"]
    try:
        return kills.run_campaign(folder, 2, layouts, seed, show=lines.append)
    finally:
        print(*lines, sep="\n")  # pytest shows it if the test fails


@pytest.mark.journey
def test_killed_on_one_layout_a_run_equals_the_whole_one_bit_for_bit(folder):
    threads = launches.LAYOUTS["one"]
    worker = threads._replace(threads=0, workers=1)
    found = campaign(folder, 21, [threads, worker])
    assert {layout for _, _, layout, _ in found.kills} == {threads, worker}
    assert found.rows == 0.0 and found.ends == 0.0


@pytest.mark.journey
def test_killed_on_one_layout_and_resumed_on_others_a_run_has_the_same_losses(folder):
    layouts = [launches.LAYOUTS[name] for name in ("one", "split", "hosts")]
    found = campaign(folder, 297, layouts)
    assert {layout for _, _, layout, _ in found.kills} == set(layouts[1:])
    assert found.rows <= kills.LIMIT and found.ends <= kills.ENDS


def await_one_end(launches):
    """The launch that goes on and what the other one said when it failed."""
    while True:
        for launch in launches:
            try:
                assert launch.running(), "a run has ended before its rival"
            except RuntimeError as failed:
                (other,) = [x for x in launches if x is not launch]
                return other, str(failed)
        time.sleep(0.01)


@pytest.mark.journey
def test_of_two_launches_one_runs_until_the_disk_is_full_and_goes_on_with_room(
    folder, tmp_path
):
    with disks.mounted(tmp_path / "disk") as disk:
        workdir, layout = disk.path / "run", launches.LAYOUTS["one"]
        rivals = [launches.Launch(workdir, layout) for _ in range(2)]
        try:
            live, said = await_one_end(rivals)
            assert "failed with [1]" in said and "Traceback" not in said, said
            assert f"{workdir} is in use by process " in said
            while not launches.last_step(workdir):
                assert live.running()
                time.sleep(0.01)
            disk.fill()
            with pytest.raises(RuntimeError, match=r"failed with \[1\]") as failed:
                launches.finish(live)
        finally:
            for launch in rivals:
                launch.kill()
        said = str(failed.value)
        # Writes that were under way when Orbax gave up may complain in other threads.
        assert 'launch.py", line' not in said, said
        assert f"{workdir}/" in said and "(No space left on device); make room" in said
        disk.make_room()
        launches.finish(launches.Launch(workdir, layout))
        rows, wanted = (launches.read_rows(x) for x in (workdir, folder / "whole"))
        kills.check_whole(rows)
        assert kills.compare(rows, wanted) == 0.0
        assert kills.compare_ends(workdir, folder / "whole", exact=True) == 0.0
        assert json.loads((workdir / "config.json").read_text())["devices"] == 1
        assert run_directory.LOCK in {path.name for path in workdir.iterdir()}


def test_what_differs_is_seen():
    whole = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "grad_norm": 0.0}]
    assert kills.compare(whole, whole) == 0.0
    off = [{"step": 2, "loss": 1.001, "images_per_sec": 7.0}]
    assert kills.compare(off, whole) == pytest.approx(1e-3)


@pytest.mark.parametrize("spoil", [lambda x: x[1:], lambda x: [x[0], *x], reversed])
def test_gaps_and_duplicates_are_seen(spoil):
    every, last = killed_run.EVAL_EVERY, killed_run.STEPS
    rows = [{"step": step, "loss": 1.0} for step in range(1, last + 1)]
    judged = [{"step": s, "eval_loss": 1.0} for s in range(every, last + 1, every)]
    kills.check_whole(rows + judged)
    with pytest.raises(RuntimeError, match="hold the steps"):
        kills.check_whole([*spoil(rows), *judged])
    with pytest.raises(RuntimeError, match="Held-out losses are there of"):
        kills.check_whole([*rows, *spoil(judged)])
