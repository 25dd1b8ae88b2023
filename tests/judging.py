"""A run directory and small evaluations of it, for tests."""

import dataclasses
import pathlib

import jax
import numpy as np

from configs import probe_bigearthnet
from fusmae_jax import build
from fusmae_jax.training import checkpoint, optim, pretrain, run_directory, sharding
from tests import peers, tiny

STEPS = (2, 6)  # of which there are checkpoints


def trained(factory, method: str = "fusmae") -> pathlib.Path:
    """A run directory as pretraining leaves it, with checkpoints of STEPS.

    Args:
        factory: pytest's `tmp_path_factory`, of a session that shares it.
        method: "teacher", within `teacher.known`, compiles sooner.
    """
    workdir = factory.getbasetemp() / f"judged_{method}"
    if workdir.exists():
        return workdir
    if method != "fusmae" and method in peers.METHODS:
        return write_run(workdir, peers.config(method))
    config = tiny.config("fusmae" if method == "teacher" else method)
    config.method = method
    return write_run(workdir, config)


def write_run(workdir: pathlib.Path, config) -> pathlib.Path:
    """Writes what pretraining with `config` would leave behind, without training.

    Parameters are random, those of absent sensors too: a trained model's say something.
    """
    run_directory.open_workdir(workdir, config, build.contract(config), {})
    run_directory.remember_places(workdir, np.empty((0, 2), np.uint64))
    mesh, rate = sharding.make_mesh(), optim.schedule(1e-3, 0, 10)
    objective = build.objective(config, **build.target(mesh))
    init, layout, _ = pretrain.compile_step(config, objective, mesh, rate)
    state = init()
    fresh = jax.device_get(state.params)
    with checkpoint.Checkpoints(
        workdir / "checkpoints", every=1, keep=len(STEPS)
    ) as saves:
        for step in STEPS:
            rng = np.random.default_rng(step)
            noise = lambda x: np.float32(x + rng.normal(0.0, 0.05, x.shape))
            params = jax.device_put(jax.tree.map(noise, fresh), layout.params)
            saves.save(step, dataclasses.replace(state, params=params))
    return workdir


def config(checkpoint, /, **changes):
    """A small evaluation on synthetic scenes: 40 pairs to learn from, 4 to test on.

    Args:
        checkpoint: the run directory.
        **changes: fields by name, with two underscores for a dot.
    """
    c = probe_bigearthnet.get_config()
    c.checkpoint = str(checkpoint)
    c.data.update(source="synthetic", count=160, size=24)
    c.methods, c.baselines = ("knn",), ()
    c.fractions, c.repeats = (1.0,), (1,)
    c.allow_empty_classes = True
    c.batch_size, c.bootstrap = 16, 20
    c.knn.k = 5
    c.probe.update(epochs=2, learning_rates=(0.1, 1.0), weight_decays=(1e-4,))
    c.retrieval.ks = (1, 3)
    fields = {name.replace("__", "."): value for name, value in changes.items()}
    c.update_from_flattened_dict(fields)
    return c
