"""The compile cache works, is private, and bounded; time counts from the launch."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from fusmae_jax.training import runtime

ROOT = pathlib.Path(__file__).parents[1]

RUN = """
import logging, sys
import jax, jax.numpy as jnp
from fusmae_jax.training import runtime

logging.basicConfig()
events = []
jax.monitoring.register_event_listener(lambda name, **kw: events.append(name))
runtime.enable_compile_cache()
x = jax.jit(lambda x: jnp.sin(x @ x.T).sum(0))(jnp.eye(16) + 0.1)
hits = sum(name.endswith("compilation_cache/cache_hits") for name in events)
print(hits, jax.config.jax_compilation_cache_dir, bytes(x.tobytes()).hex())
"""


def run(home, script=RUN, **variables):
    """What a process with this cache folder prints, and what it complains about."""
    kept = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    environment = kept | {"XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | variables,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split(), result.stderr


def test_a_second_process_loads_what_the_first_compiled_and_computes_the_same(tmp_path):
    (hits, folder, result), said = run(tmp_path)
    assert hits == "0" and not said
    assert folder == str(tmp_path / "fusmae_jax" / "jax")
    assert pathlib.Path(folder).stat().st_mode & 0o777 == 0o700
    written = sorted(os.listdir(folder))
    (again, _, same), said = run(tmp_path)
    assert int(again) == len(written) > 0 and not said  # the smallest, too
    assert sorted(os.listdir(folder)) == written
    assert same == result


@pytest.mark.parametrize(
    "variables, folder",
    [
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None"),
        ({"JAX_COMPILATION_CACHE_DIR": "elsewhere"}, "elsewhere"),
    ],
)
def test_what_jax_has_been_told_goes_before(tmp_path, variables, folder):
    if folder != "None":
        variables = {name: str(tmp_path / x) for name, x in variables.items()}
        folder = str(tmp_path / folder)
    (_, used, _), said = run(tmp_path / "home", **variables)
    assert used == folder and not said
    assert not (tmp_path / "home").exists()


def test_a_home_that_cannot_be_written_costs_one_line_and_no_more(tmp_path):
    (tmp_path / "file").touch()
    (_, used, result), said = run(tmp_path / "file")
    assert used == "None" and result
    assert "JAX_COMPILATION_CACHE_DIR" in said and len(said.splitlines()) == 1


def test_what_was_used_longest_ago_goes_first(tmp_path):
    (tmp_path / "below").mkdir()
    for age, name in enumerate(("new", "below/middle", "old", "oldest")):
        (tmp_path / name).write_bytes(bytes(10))
        used = time.time() - 1000 * age
        os.utime(tmp_path / name, (used, used - 10_000))  # read after it was written
    runtime.prune(tmp_path, 25)
    assert {p.name for p in tmp_path.rglob("*")} == {"new", "below", "middle"}


@pytest.mark.parametrize(
    "variables, threads",
    [
        ({}, None),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, None),
        ({"XLA_FLAGS": "--x=y --xla_force_host_platform_device_count=8 --z"}, "32"),
        ({"JAX_NUM_CPU_DEVICES": "4"}, "16"),
        ({"JAX_NUM_CPU_DEVICES": "4", "PJRT_NPROC": "9"}, "9"),
    ],
)
def test_devices_that_a_cpu_plays_have_threads_enough(monkeypatch, variables, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "PJRT_NPROC"):
        monkeypatch.setenv(name, "")  # to be as it was when the test is over
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    runtime.have_threads_enough()
    assert os.environ.get("PJRT_NPROC") == threads


def test_a_launch_has_threads_enough_before_jax_uses_a_device():
    script = (
        "import os, launch\nfrom absl import app\n"
        "from fusmae_jax.training import pretrain, runtime\n"
        "from jax._src.xla_bridge import backends_are_initialized as used\n"
        "give = runtime.have_threads_enough\n"
        "runtime.have_threads_enough = lambda: print(used(), give())\n"
        "pretrain.run = lambda *_: print(os.environ['PJRT_NPROC'])\n"
        "app.run(launch.main, flags_parser=launch.parse)\n"
    )
    flags = "--xla_force_host_platform_device_count=64"
    kept = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"}
    result = subprocess.run(
        [sys.executable, "-c", script, f"--config={ROOT}/configs/quickstart.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=kept | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    assert result.stdout.split() == ["False", "None", "256"], result.stderr


def test_the_clock_starts_with_the_process(tmp_path):
    begun = time.monotonic()
    (seconds, imported), _ = run(
        tmp_path,
        "import sys, time; time.sleep(0.3)\n"
        "from fusmae_jax.training import runtime\n"
        "print(runtime.seconds_since_launch(), 'jax' in sys.modules)",
    )
    # Linux counts in hundredths of a second.
    assert 0.3 <= float(seconds) < time.monotonic() - begun + 0.02
    assert imported == "False"


def test_elsewhere_the_clock_starts_with_the_import(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(pathlib.Path, "read_text", missing)
    monkeypatch.setattr(runtime, "_IMPORTED", time.monotonic() - 100)
    assert 100 <= runtime.seconds_since_launch() < 110
