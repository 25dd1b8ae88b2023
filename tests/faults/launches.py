"""Launches of a tiny run that can be killed at a given moment."""

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

ROOT = pathlib.Path(__file__).parents[2]
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


class Launch:
    """The processes of one launch."""

    def __init__(self, workdir: pathlib.Path, layout: Layout):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(layout.devices),
        }
        arguments = [
            f"--config={ROOT / 'tests' / 'faults' / 'killed_run.py'}",
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
            self._said.seek(0)
            said = self._said.read()
            self.kill()
            raise RuntimeError(f"A launch failed with {codes}:\n{said}")
        return None in codes

    def kill(self) -> None:
        """Kills all processes at once."""
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()
        self._said.close()


def finish(launch: Launch) -> None:
    """Waits for its end."""
    begun = time.monotonic()
    try:
        while launch.running():
            time.sleep(0.01)
            if time.monotonic() > begun + PATIENCE:
                raise RuntimeError(f"A launch has not ended in {PATIENCE:.0f} s.")
    finally:
        launch.kill()


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
    begun, first, old = time.monotonic(), last_step(workdir), begun_saves(workdir)

    def has_come() -> bool:
        if moment.kind == "step":
            return last_step(workdir) >= first + moment.count
        if moment.kind == "save":
            return bool(begun_saves(workdir) - old)
        return True

    while not has_come():
        if not launch.running():
            return False
        if time.monotonic() > begun + PATIENCE:
            raise RuntimeError(f"{moment} has not come in {PATIENCE:.0f} s.")
        time.sleep(0.005)
    time.sleep(moment.seconds)
    return launch.running()


def read_rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of the metrics, a last one that a kill has cut left out."""
    rows = []
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            rows.append(json.loads(line))
    return rows


def last_step(workdir: pathlib.Path) -> int:
    return max((row["step"] for row in read_rows(workdir)), default=0)


def begun_saves(workdir: pathlib.Path) -> set[tuple[str, int]]:
    """Checkpoints that are half written, or were when their run was killed."""
    found = set()
    for path in (workdir / "checkpoints").glob("*tmp*"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino))
    return found
