"""SIGTERM: what was begun is saved or left whole, and the same command goes on."""

import json
import os
import re
import signal
import socket
import time

import numpy as np
import pytest

from fusmae_jax.training import preemption
from tests import judging, processes
from tests.processes import ROOT

SMALL = [
    f"--config={ROOT}/configs/quickstart.py",
    "--config.epochs=38",  # 40 steps
    "--config.log_every=1",
    "--config.eval_every=1000",
    "--config.checkpoint_every=1000",
    "--config.eval_draws=1",
    *("--config.model.image_size=32", "--config.model.dim=32"),
    *("--config.model.num_heads=2", "--config.model.depth=1"),
]
STEPS = 40
DEADLINE = 60  # seconds, for a step, a save, and on a machine with other work to do


def train(workdir, *arguments, devices=2, **environment):
    arguments = (*SMALL, f"--workdir={workdir}", *arguments)
    return processes.launch(*arguments, devices=devices, **environment)


def rows(workdir):
    """Steps and losses logged so far, but for a line that is being written."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(row["step"], row["loss"]) for row in found if "loss" in row]


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def wait_until_it_compiles(run):
    """Reads what a run says up to the last that it says before."""
    for line in run.stdout:
        if "17 pairs, 5 held out" in line:
            return
    raise AssertionError("It ended.")


def stopped_after(said):
    """The step that a run says it stopped after."""
    pattern = rf"Stopped after step (\d+) of {STEPS}, .* the same command goes on"
    return int(re.search(pattern, said)[1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The rows of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("alone")
    processes.finish(train(workdir))
    found = rows(workdir)
    assert [step for step, _ in found] == [*range(1, STEPS + 1)]
    return found


@pytest.mark.journey
def test_a_signal_while_compiling_ends_the_run_at_once(tmp_path):
    run = train(tmp_path / "run", JAX_ENABLE_COMPILATION_CACHE="false")
    wait_until_it_compiles(run)
    begun = time.monotonic()
    run.send_signal(signal.SIGTERM)
    said = processes.finish(run, DEADLINE)
    assert "Stopped by SIGTERM; the same command goes on" in said
    assert time.monotonic() - begun < DEADLINE / 4
    assert "First step" not in said and "Traceback" not in said


@pytest.mark.journey
def test_signals_to_all_of_a_run_save_its_last_step_and_it_goes_on_to_the_same_losses(
    alone, tmp_path
):
    run = train(tmp_path, "--config.data.workers=1")
    processes.wait_for(run, lambda: len(rows(tmp_path)) >= 3)
    workers = processes.children(run)
    assert workers
    begun = time.monotonic()
    for _ in range(3):  # whoever sends one may be impatient
        os.killpg(run.pid, signal.SIGTERM)
        time.sleep(0.05)
    said = processes.finish(run, DEADLINE)
    assert time.monotonic() - begun < DEADLINE
    assert "SIGTERM: finishing" in said and "Traceback" not in said
    step = stopped_after(said)
    assert 3 <= step < STEPS and saved(tmp_path) == [step]
    assert rows(tmp_path) == alone[:step]
    assert processes.all_end(workers)
    said = processes.finish(train(tmp_path))
    assert f"Resuming from step {step}." in said
    assert rows(tmp_path) == alone


@pytest.mark.journey
def test_a_signal_to_one_host_stops_all_after_the_same_step(alone, tmp_path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    cluster = "--multihost", f"--coordinator=localhost:{port}", "--hosts=2"
    # JAX listens every second: the first steps, which come later, are the last ones.
    late = {"devices": 1, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    hosts = [train(tmp_path, *cluster, f"--host={i}", **late) for i in range(2)]
    wait_until_it_compiles(hosts[1])
    hosts[1].send_signal(signal.SIGTERM)
    said = [processes.finish(host) for host in hosts]
    steps = {stopped_after(text) for text in said}
    assert saved(tmp_path) == [*steps] and 1 <= max(steps) < STEPS
    assert f"Resuming from step {max(steps)}." in processes.finish(train(tmp_path))
    assert [step for step, _ in rows(tmp_path)] == [step for step, _ in alone]
    np.testing.assert_allclose(
        [loss for _, loss in rows(tmp_path)], [loss for _, loss in alone], rtol=1e-4
    )


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """An evaluation, as arguments, and where it keeps its features."""
    trained, kept = judging.trained(tmp_path_factory), tmp_path_factory.mktemp("kept")
    return kept, [
        f"--config={ROOT}/configs/probe_bigearthnet.py",
        *(f"--config.checkpoint={trained}", "--config.data.source=synthetic"),
        *("--config.data.count=160", "--config.data.size=24"),
        *("--config.methods=('knn','probe')", "--config.baselines=()"),
        *("--config.fractions=(1.0,)", "--config.repeats=(1,)"),
        *("--config.allow_empty_classes=True", "--config.knn.k=5"),
        *("--config.probe.epochs=20", "--config.bootstrap=20"),
        *("--config.batch_size=16", f"--config.cache={kept}"),
    ]


@pytest.mark.journey
def test_a_signal_ends_an_evaluation_and_what_was_judged_is_not_judged_again(
    evaluation, tmp_path
):
    cut, whole, (kept, evaluation) = tmp_path / "cut", tmp_path / "whole", evaluation
    first = processes.launch(*evaluation, f"--workdir={cut}")
    scores = cut / "scores.json"
    processes.wait_for(first, scores.exists)
    begun = time.monotonic()
    os.killpg(first.pid, signal.SIGTERM)
    said = processes.finish(first, DEADLINE)
    assert time.monotonic() - begun < DEADLINE / 4
    assert "Stopped by SIGTERM; the same command goes on" in said
    assert "Traceback" not in said
    judged = len(json.loads(scores.read_text())["rows"])
    assert 1 <= judged < 6
    parts = {p: p.stat().st_mtime_ns for p in kept.rglob("pairs-*.npz")}
    assert len(parts) == 3  # splits
    said = processes.finish(processes.launch(*evaluation, f"--workdir={cut}"))
    assert f"{judged} settings were judged before." in said
    processes.finish(processes.launch(*evaluation, f"--workdir={whole}"))
    assert (cut / "scores.csv").read_text() == (whole / "scores.csv").read_text()
    assert parts == {p: p.stat().st_mtime_ns for p in parts}


def test_a_run_that_is_asked_after_its_last_look_stops_before_it_reports(monkeypatch):
    monkeypatch.setattr(preemption, "_asked", preemption.threading.Event())
    with preemption.Notice() as notice:
        notice.hold()
        assert not notice.reached(1)
    with pytest.raises(preemption.Stopped, match="the same command goes on"):
        with preemption.Notice() as notice:
            notice.hold()
            preemption._asked.set()
            assert notice.reached(2)
    assert not preemption._holding
    with pytest.raises(ValueError, match="something else"):  # is not hidden by it
        with preemption.Notice():
            raise ValueError("something else")
