"""Kills runs at random moments, resumes them on other devices, compares every number.

    python benchmarks/kills.py --kills=50
    python benchmarks/kills.py --kills=20 --layouts=one

A tiny run is launched again and again on layouts taken at random, and each launch is
killed with SIGKILL, as the machine that is taken away would do it: while it starts,
some steps after it has resumed, or while a checkpoint is being written. When a run has
come to its end all the same, the next one begins. Whatever was ever written is compared
with a run of the same config that nothing happened to, on the first of the layouts: the
losses of every step, held-out losses, final parameters, and the final scores. Prints a
table of the kills and a line that sums up; exits with an error if anything differs by
more than 1e-5, or at all where there is one layout, or if a row of the metrics is
missing or there twice.

The config of the run is `get_config` below.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

STEPS, EVAL_EVERY = 36, 12
NUMBERS = ("loss", "loss_s1", "loss_s2", "lr", "grad_norm")
NUMBERS += ("eval_loss", "eval_loss_s1", "eval_loss_s2")
LIMIT = 1e-5  # between layouts
PATIENCE = 900.0  # seconds that a launch may take


class Layout(NamedTuple):
    """How a run is carried out.

    Attributes:
        processes: joined by `jax.distributed`.
        devices: of each process.
        fsdp: devices that share one copy of the parameters.
        threads: that read.
        workers: processes that read instead.
    """

    processes: int = 1
    devices: int = 1
    fsdp: int = 1
    threads: int = 1
    workers: int = 0


LAYOUTS = {
    "one": Layout(),
    "two": Layout(devices=2, fsdp=2),
    "four": Layout(devices=4, threads=2),
    "split": Layout(devices=4, fsdp=4),
    "eight": Layout(devices=8, fsdp=2),
    "workers": Layout(devices=2, threads=0, workers=2),
    "hosts": Layout(processes=2, devices=1),
    "wide": Layout(processes=2, devices=2, fsdp=4, threads=2),
}


def get_config():
    """The run: a tiny model on procedural scenes, saved every third step."""
    from configs import pretrain_base

    c = pretrain_base.get_config()
    c.batch_size, c.epochs = 16, STEPS // 3
    c.data.update(source="synthetic", count=48, size=24, threads=1)
    c.model.update(image_size=24, patch_size=6, dim=32, depth=2, num_heads=2)
    c.model.update(decoder_dim=16, decoder_depth=1, decoder_heads=2, dtype="float32")
    c.fsdp_min_size = 0
    c.log_every, c.eval_every, c.checkpoint_every = 1, EVAL_EVERY, 3
    c.keep_checkpoints, c.keep_every = 2, 0
    c.eval_pairs, c.eval_draws, c.figure_pairs = 8, 1, 1
    return c


class Launch:
    """The processes of one launch."""

    def __init__(self, workdir: pathlib.Path, layout: Layout):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(layout.devices),
        }
        arguments = [
            f"--config={pathlib.Path(__file__).resolve()}",
            f"--workdir={workdir}",
            f"--config.fsdp={layout.fsdp}",
            f"--config.data.threads={layout.threads}",
            f"--config.data.workers={layout.workers}",
        ]
        self._said = tempfile.TemporaryFile("w+")
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        self._processes = []
        for i in range(layout.processes):
            cluster = ["--multihost", f"--coordinator={address}", f"--host={i}"]
            cluster.append(f"--hosts={layout.processes}")
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, str(ROOT / "launch.py"), *arguments]
                    + (cluster if layout.processes > 1 else []),
                    cwd=ROOT,
                    env=environment,
                    stdout=self._said,
                    stderr=subprocess.STDOUT,
                )
            )

    def running(self) -> bool:
        """Whether it has not ended.

        Raises:
            RuntimeError: it has failed.
        """
        codes = [process.poll() for process in self._processes]
        if any(codes):
            self.kill()
            self._said.seek(0)
            raise RuntimeError(f"A launch failed with {codes}:\n{self._said.read()}")
        return None in codes

    def kill(self) -> None:
        """Kills all processes at once."""
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()


class Moment(NamedTuple):
    """When to kill: so many seconds after something has happened.

    Attributes:
        kind: "start", "step" or "save".
        count: steps logged since the launch, where the kind is "step".
        seconds: after that.
    """

    kind: str
    count: int
    seconds: float

    def __str__(self) -> str:
        what = {
            "start": "the launch",
            "step": f"{self.count} steps",
            "save": "a save began",
        }
        return f"{self.seconds:.2f} s after {what[self.kind]}"


def draw_moment(chance: random.Random) -> Moment:
    kind = chance.choices(("start", "step", "save"), (1, 2, 1))[0]
    most = {"start": 6.0, "step": 0.2, "save": 0.03}[kind]
    return Moment(kind, chance.randint(1, 8), chance.uniform(0.0, most))


def wait_for(moment: Moment, launch: Launch, workdir: pathlib.Path) -> bool:
    """Waits for the moment; False if the run has ended before."""
    log, begun = workdir / "metrics.jsonl", time.monotonic()
    first = last_step(workdir)

    def has_come() -> bool:
        if moment.kind == "step":
            # A resumed run forgets rows first: they count when they come back.
            return log.exists() and last_step(workdir) >= first + moment.count
        if moment.kind == "save":
            return any((workdir / "checkpoints").glob("*tmp*"))
        return True

    while not has_come():
        if not launch.running():
            return False
        if time.monotonic() > begun + PATIENCE:
            launch.kill()
            raise RuntimeError(f"{moment} has not come in {PATIENCE:.0f} s.")
        time.sleep(0.005)
    time.sleep(moment.seconds)
    return launch.running()


def finish(launch: Launch) -> None:
    begun = time.monotonic()
    while launch.running():
        time.sleep(0.01)
        if time.monotonic() > begun + PATIENCE:
            launch.kill()
            raise RuntimeError(f"A launch has not ended in {PATIENCE:.0f} s.")


def read_rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of the metrics, a last one that a kill has cut left out."""
    rows = []
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            rows.append(json.loads(line))
    return rows


def last_step(workdir: pathlib.Path) -> int:
    return max((row["step"] for row in read_rows(workdir)), default=0)


def compare(rows: list[dict], wanted: list[dict]) -> float:
    """The largest relative difference of any number from that of the same step."""
    want = {(row["step"], name): row[name] for row in wanted for name in row}
    pairs = [
        (row[name], want[row["step"], name])
        for row in rows
        for name in NUMBERS
        if name in row
    ]
    return max((abs(a - b) / (abs(b) or 1.0) for a, b in pairs), default=0.0)


def check_whole(rows: list[dict]) -> None:
    """Refuses metrics with gaps, duplicates, or out of order."""
    steps = [row["step"] for row in rows if "loss" in row]
    judged = [row["step"] for row in rows if "eval_loss" in row]
    if steps != list(range(1, STEPS + 1)):
        raise RuntimeError(f"The metrics hold the steps {steps}.")
    if judged != list(range(EVAL_EVERY, STEPS + 1, EVAL_EVERY)):
        raise RuntimeError(f"Held-out losses are there of the steps {judged}.")


def read_end(workdir: pathlib.Path) -> tuple[dict, dict]:
    """The final parameters by name, and the final scores."""
    import jax

    from fusmae_jax import build, checkpoint, run, sharding

    config, _ = run.load(workdir)
    _, wanted = build.abstract_params(config, sharding.make_mesh())
    step, params = checkpoint.restore_params(workdir / "checkpoints", wanted)
    if step != STEPS:
        raise RuntimeError(f"The last checkpoint is of step {step}.")
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    scores = json.loads((workdir / "scores.json").read_text())
    return {jax.tree_util.keystr(k): x for k, x in leaves}, scores


def compare_ends(workdir: pathlib.Path, whole: pathlib.Path) -> float:
    """The largest difference of final parameters and scores.

    Of a parameter relative to the largest of its array.
    """
    import numpy as np

    (got, scores), (want, wanted) = read_end(workdir), read_end(whole)
    apart = [
        np.abs(got[name] - want[name]).max() / max(np.abs(want[name]).max(), 1e-30)
        for name in want
    ]
    for name, errors in wanted["mean_squared_error"].items():
        for s, error in errors.items():
            apart.append(abs(scores["mean_squared_error"][name][s] / error - 1.0))
    return float(max(apart))


class Campaign(NamedTuple):
    """What came of it: one row a kill, the ends of the runs, largest differences."""

    kills: list[tuple]
    runs: int
    rows: float
    ends: float


def run_campaign(
    folder: pathlib.Path, kills: int, layouts: list[Layout], seed: int, show=print
) -> Campaign:
    """Kills runs in `folder` until there were so many kills and the last has ended.

    Args:
        folder: where the run directories go; an uninterrupted one may be there as
            `whole`.
        kills: how many.
        layouts: to choose from; the first is that of the uninterrupted run.
        seed: of moments and layouts.
        show: is called with lines of the table.

    Raises:
        RuntimeError: a launch fails, or the metrics have gaps or duplicates.
    """
    chance, whole = random.Random(seed), folder / "whole"
    if not (whole / "scores.json").exists():
        finish(Launch(whole, layouts[0]))
    wanted = read_rows(whole)
    check_whole(wanted)
    done, runs, ends = [], 0, 0.0
    show("| kill | when | steps logged | launched on | largest difference |")
    show("|---|---|---|---|---|")
    while len(done) < kills:
        workdir = folder / f"killed-{runs}"
        while True:
            layout, moment = chance.choice(layouts), draw_moment(chance)
            launch = Launch(workdir, layout)
            try:
                killed = len(done) < kills and wait_for(moment, launch, workdir)
                if not killed:
                    finish(launch)
            finally:
                launch.kill()
            rows = read_rows(workdir)
            apart = compare(rows, wanted)
            if not killed:
                break
            done.append((str(moment), last_step(workdir), layout, apart))
            on = ", ".join(f"{k} {v}" for k, v in layout._asdict().items())
            show(f"| {len(done)} | {moment} | {done[-1][1]} | {on} | {apart:.1e} |")
        check_whole(rows)
        ends, runs = max(ends, compare_ends(workdir, whole)), runs + 1
        show(f"| - | the end of run {runs} | {STEPS} | | {apart:.1e} |")
    return Campaign(done, runs, max(row[-1] for row in done), ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="how many")
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="of them, A,B")
    parser.add_argument("--seed", type=int, default=0, help="of moments and layouts")
    parser.add_argument("--folder", help="to keep the runs in; deleted otherwise")
    args = parser.parse_args()
    layouts = [LAYOUTS[name] for name in args.layouts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(args.folder or folder)
        found = run_campaign(folder, args.kills, layouts, args.seed)
    print(
        f"{len(found.kills)} kills in {found.runs} runs of {STEPS} steps, seed "
        f"{args.seed}: losses differ by {found.rows:.1e} at most, final parameters and "
        f"scores by {found.ends:.1e}; no row is missing or there twice."
    )
    if max(found.rows, found.ends) > (LIMIT if len(layouts) > 1 else 0.0):
        sys.exit("That is too much.")


if __name__ == "__main__":
    main()
