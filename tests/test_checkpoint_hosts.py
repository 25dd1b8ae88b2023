"""Hosts agree which checkpoint they restore, though one alone meets the damage."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from fusmae_jax.training import checkpoint, sharding

pytestmark = pytest.mark.journey

ROOT = pathlib.Path(__file__).parents[1]


def make_state(step: int, mesh):
    """Half of the kernel on each host."""
    kernel = np.random.default_rng(step).random((64, 64), np.float32)
    values = {"step": np.int32(step), "params": {"kernel": kernel}}
    layout = sharding.layout(values, mesh, 0)

    def put(x, where):
        return jax.make_array_from_callback(x.shape, where, np.asarray(x).__getitem__)

    return jax.tree.map(put, values, layout), layout


def host(port: str, index: str, directory: str) -> None:
    """Saves 1 and 2; restores after host 1 finds its part of 2 damaged; saves again."""
    jax.config.update("jax_platforms", "cpu")
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    mesh = sharding.make_mesh(2)
    with checkpoint.Checkpoints(directory, every=1, keep=3) as saves:
        for step in (1, 2):
            saves.save(step, make_state(step, mesh)[0])
    if index == "1":
        parts = pathlib.Path(directory, "2", "state", "ocdbt.process_1", "d").iterdir()
        for path in parts:
            path.write_bytes(bytes(path.stat().st_size))
    for expected in (1, 2):
        multihost_utils.sync_global_devices(f"before {expected}")
        with checkpoint.Checkpoints(directory, every=1, keep=3) as saves:
            fresh, layout = make_state(0, mesh)
            found = saves.restore(lambda: fresh, layout)
            saves.save(expected + 1, make_state(expected + 1, mesh)[0])
        here = [
            [x.addressable_shards[0].data for x in jax.tree.leaves(tree)]
            for tree in (found, make_state(expected, mesh)[0])
        ]
        same = all(map(np.array_equal, *here))
        print("restored", int(found["step"]), same, flush=True)


def test_hosts_fall_back_together(tmp_path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    hosts = [
        subprocess.Popen(
            [sys.executable, __file__, str(port), str(i), str(tmp_path / "saves")],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=240) for process in hosts]
    assert [process.returncode for process in hosts] == [0, 0], said
    for out, _ in said:
        lines = [x for x in out.splitlines() if x.startswith("restored")]
        assert lines == ["restored 1 True", "restored 2 True"], said
    assert (tmp_path / "saves" / "damaged-2").is_dir()


if __name__ == "__main__":
    host(*sys.argv[1:])
