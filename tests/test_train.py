"""The step: it learns, compiles once, and does not care how it is carried out."""

import jax
import numpy as np
import optax
import pytest

from data_pipeline import batches, sources, synthetic
from fusmae_jax import build
from fusmae_jax.training import sharding, train
from tests import tiny


def run(steps, *, fsdp=1, accumulate=1, rate=1e-3, repeat=False, **fields):
    """Losses of a few steps, and how often the step was compiled."""
    config = tiny.config()
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    mesh, objective = sharding.make_mesh(fsdp), build.objective(config)
    schedule = optax.constant_schedule(rate)
    tx = build.optimizer(config, schedule)
    init, layout = train.plan_state(objective, tx, mesh, seed=0, min_size=0)
    step = train.make_train_step(
        objective, tx, schedule, layout, mesh, seed=0, accumulate=accumulate
    )
    fields = synthetic.Scenes(1).description.layout.fields(objective.inputs.contract)
    source = sources.open_split(config.data, "train", fields)
    stream = batches.train_batches(source, batch_size=8, seed=0, threads=1)
    first = next(stream)
    state, losses = init(), []
    for _ in range(steps):
        batch = first if repeat or not losses else next(stream)
        state, metrics = step(state, sharding.to_devices(batch, mesh))
        losses.append(float(metrics["loss"]))
    return losses, step._cache_size()


@pytest.fixture(scope="module")
def replicated():
    return run(3)


@pytest.mark.journey
@pytest.mark.parametrize("fsdp", [2, 4])
def test_loss_does_not_depend_on_the_layout(replicated, fsdp):
    losses, _ = run(3, fsdp=fsdp)
    np.testing.assert_allclose(losses, replicated[0], rtol=1e-4)


@pytest.mark.journey
@pytest.mark.parametrize("devices", [1, 2])
def test_loss_does_not_depend_on_the_number_of_devices(
    replicated, devices, monkeypatch
):
    some = jax.devices()[:devices]
    monkeypatch.setattr(jax, "devices", lambda: some)
    losses, _ = run(3)
    np.testing.assert_allclose(losses, replicated[0], rtol=1e-4)


@pytest.mark.journey
def test_loss_does_not_depend_on_gradient_accumulation(replicated):
    losses, _ = run(3, accumulate=2)
    np.testing.assert_allclose(losses, replicated[0], rtol=1e-4)


@pytest.mark.journey
def test_it_learns_and_compiles_once():
    losses, compilations = run(60, rate=3e-3, repeat=True)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert compilations == 1


def test_another_seed_draws_other_masks_for_the_same_weights():
    config = tiny.config()
    objective = build.objective(config)
    draws = [objective.draw(jax.random.key(seed), 4) for seed in (0, 1)]
    assert (draws[0].noise["s1"] != draws[1].noise["s1"]).all()
    assert (draws[0].view.box != draws[1].view.box).all()


def test_masks_and_views_do_not_depend_on_the_layout(key):
    objective = build.objective(tiny.config())
    want = objective.draw(key, 8)
    for fsdp in (1, 4):
        mesh = sharding.make_mesh(fsdp)
        split = jax.jit(
            lambda k: objective.draw(k, 8), out_shardings=sharding.rows(mesh)
        )
        got = split(key)
        jax.tree.map(np.testing.assert_array_equal, got.noise, want.noise)
        np.testing.assert_array_equal(got.view.turn, want.view.turn)
        # Compiled arithmetic rounds the last bit its own way.
        np.testing.assert_allclose(got.view.box, want.view.box, rtol=1e-6)


@pytest.mark.journey
def test_bfloat16_products_leave_the_state_in_float32(replicated):
    config = tiny.config()
    config.model.dtype = "bfloat16"
    objective, tx = build.objective(config), optax.adamw(1e-3)
    init, _ = train.plan_state(objective, tx, sharding.make_mesh(), seed=0)
    state = init()
    kinds = {x.dtype for x in jax.tree.leaves((state.params, state.opt_state))}
    assert kinds == {np.dtype("float32"), np.dtype("int32")}  # and a step counter
    losses, _ = run(3, **{"model.dtype": "bfloat16"})
    np.testing.assert_allclose(losses, replicated[0], rtol=2e-2)
