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


def test_hosts_that_split_parameters_take_those_of_another_run(alone, tmp_path):
    cluster = f"--coordinator=localhost:{free_port()}", "--hosts=2", "--multihost"
    fields = f"--config.init_from={alone}", "--config.data.allow_overlap=True"
    split = "--config.fsdp=2", "--config.fsdp_min_size=0"
    hosts = [
        start(tmp_path / "two", *cluster, *fields, *split, f"--host={i}", devices=1)
        for i in range(2)
    ]
    for process in (*hosts, start(tmp_path / "one", *fields, devices=2)):
        processes.finish(process)
    said = [
        json.loads((tmp_path / x / "config.json").read_text()) for x in ("one", "two")
    ]
    assert said[0]["init_from"] == said[1]["init_from"]
    np.testing.assert_allclose(
        losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4
    )
    assert losses(tmp_path / "two")[0] < losses(alone)[0]


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
