"""Hosts train as one: the same command on each, the same losses as alone."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMALL = [
    f"--config={ROOT}/configs/quickstart.py",
    "--config.epochs=4",
    "--config.log_every=1",
    "--config.eval_every=2",
    "--config.checkpoint_every=2",
    "--config.model.depth=2",
    "--config.model.decoder_depth=1",
]


def start(workdir, *arguments, devices):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, "launch.py", *SMALL, f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def losses(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run directory of one host."""
    workdir = tmp_path_factory.mktemp("alone")
    host = start(workdir, devices=2)
    said = host.communicate(timeout=300)[0]
    assert host.returncode == 0, said
    return workdir


@pytest.mark.parametrize("number", [2, 4])
def test_hosts_have_the_losses_of_one(number, alone, tmp_path):
    cluster = f"--coordinator=localhost:{free_port()}", f"--hosts={number}"
    hosts = [
        start(tmp_path, "--multihost", *cluster, f"--host={i}", devices=1)
        for i in range(number)
    ]
    said = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == number * [0], "\n".join(said)
    assert len(losses(tmp_path)) == 4
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=1e-4)
    assert "inverse distance" in said[0]
    assert not any("inverse distance" in text for text in said[1:])
