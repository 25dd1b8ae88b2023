"""Hosts train as one: the same command on each, the same losses as alone."""

import json
import shutil
import socket

import numpy as np
import pytest

from tests import processes

pytestmark = pytest.mark.journey

SMALL = [
    "--config=configs/quickstart.py",
    "--config.epochs=4",
    "--config.log_every=1",
    "--config.eval_every=2",
    "--config.checkpoint_every=2",
    "--config.model.depth=2",
    "--config.model.decoder_depth=1",
]


def start(workdir, *arguments, devices):
    arguments = (*SMALL, f"--workdir={workdir}", *arguments)
    return processes.launch(*arguments, devices=devices)


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
    processes.finish(start(workdir, devices=2))
    return workdir


@pytest.mark.parametrize("number", [2, 4])
def test_hosts_have_the_losses_of_one(number, alone, tmp_path):
    cluster = f"--coordinator=localhost:{free_port()}", f"--hosts={number}"
    hosts = [
        start(tmp_path, "--multihost", *cluster, f"--host={i}", devices=1)
        for i in range(number)
    ]
    said = [processes.finish(host) for host in hosts]
    assert len(losses(tmp_path)) == 4
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=1e-4)
    assert "inverse distance" in said[0]
    assert not any("inverse distance" in text for text in said[1:])


def test_hosts_go_on_in_the_type_in_which_a_run_began(alone, tmp_path):
    workdir = shutil.copytree(alone, tmp_path / "cut")
    shutil.rmtree(workdir / "checkpoints" / "4")
    cluster = f"--coordinator=localhost:{free_port()}", "--hosts=2", "--multihost"
    hosts = [
        start(workdir, *cluster, f"--host={i}", "--config.model.dtype=auto", devices=1)
        for i in range(2)
    ]
    said = [processes.finish(host) for host in hosts]
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-4)
    assert all("Computing in float32, as this run began." in text for text in said)
