"""Two hosts train as one: the same command on each, the same losses as alone."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

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


def test_two_hosts_have_the_losses_of_one(tmp_path):
    alone = start(tmp_path / "alone", devices=2)
    said = alone.communicate(timeout=300)[0]
    assert alone.returncode == 0, said
    cluster = ["--multihost", f"--coordinator=localhost:{free_port()}", "--hosts=2"]
    hosts = [
        start(tmp_path / "both", *cluster, f"--host={host}", devices=1)
        for host in range(2)
    ]
    said = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(said)
    assert len(losses(tmp_path / "both")) == 4
    np.testing.assert_allclose(
        losses(tmp_path / "both"), losses(tmp_path / "alone"), rtol=1e-4
    )
    assert "inverse distance" in said[0] and "inverse distance" not in said[1]
