"""Processes that tests start and signal, and what becomes of their children."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from jax import version

ROOT = pathlib.Path(__file__).parents[1]

# XLA's emitters of before compile in less than half of the time. Later ones have none,
# and refuse the flag.
FORMER_EMITTERS = version.__version_info__ < (0, 11)
# Compiled sooner, and once for all tests.
ENVIRONMENT = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PLATFORMS": "cpu",
    "PYTHONUNBUFFERED": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false" if FORMER_EMITTERS else "",
}


def launch(*arguments, devices: int = 1, **environment) -> subprocess.Popen:
    """Starts launch.py; what it says comes from `stdout`, in lines as they are said."""
    fixed = ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [sys.executable, "launch.py", *arguments],
        cwd=ROOT,
        env=os.environ | fixed | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own, to be signalled whole
    )


def finish(process: subprocess.Popen, timeout: float = 600) -> str:
    """Waits for the end of a launch that succeeds; returns what it said."""
    try:
        said = process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = "Too late: " + process.communicate()[0]
    assert process.returncode == 0, said
    return said


def wait_for(process: subprocess.Popen, there, timeout: float = 600) -> None:
    """Waits until `there()`, while `process` runs."""
    end = time.monotonic() + timeout
    while not there():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.005)


def children(process: subprocess.Popen) -> list[int]:
    """The process ids of the children of `process`."""
    names = [path.name for path in pathlib.Path("/proc").iterdir()]
    everyone = map(int, filter(str.isdigit, names))
    return [pid for pid in everyone if _stat(pid)[1:] == [str(process.pid)]]


def all_end(pids: list[int], timeout: float = 20) -> bool:
    """Whether processes are gone after a while."""
    end = time.monotonic() + timeout
    while any(map(_alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(_alive, pids))


def _alive(pid: int) -> bool:
    return _stat(pid)[:1] not in ([], ["Z"])  # nobody may have asked for a zombie


def _stat(pid: int) -> list[str]:
    """State and parent of a process; nothing of one that is gone."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return stat.rpartition(")")[2].split()[:2]
