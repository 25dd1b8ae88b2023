"""The optimiser: its schedule, what it decays, and how it scales with the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import pretrain_base
from data_pipeline.errors import InputError
from fusmae_jax.training import optim
from fusmae_jax.training.sharding import leaf_path
from tests import tiny


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    rate = optim.schedule(2e-3, 10, 110)
    got = [float(rate(step)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(got, [0.0, 1e-3, 2e-3, 1e-3, 0.0], atol=1e-9)


def test_without_a_warm_up_the_rate_starts_at_its_peak():
    np.testing.assert_allclose(optim.schedule(2e-3, 0, 10)(0), 2e-3, rtol=1e-6)


@pytest.mark.parametrize("warmup, steps", [(10, 10), (11, 10), (0, 0), (-1, 10)])
def test_a_warm_up_that_does_not_fit_is_refused(warmup, steps):
    with pytest.raises(InputError, match=f"{warmup} steps .* {steps} steps"):
        optim.schedule(1e-3, warmup, steps)


def test_decay_shrinks_kernels_and_nothing_else():
    _, params = nnx.split(tiny.model())
    params = jax.tree.map(jnp.ones_like, params)
    tx = optim.adamw(optax.constant_schedule(0.1), weight_decay=0.5)

    @jax.jit
    def after(params):
        grads = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates)

    for path, x in jax.tree_util.tree_leaves_with_path(after(params)):
        decayed = leaf_path(path).endswith("/kernel")
        np.testing.assert_allclose(x, 0.95 if decayed else 1.0, err_msg=str(path))


def test_updates_are_adamws():
    rate, b1, b2, decay = 0.1, 0.9, 0.95, 0.05
    tx = optim.adamw(optax.constant_schedule(rate))
    w = want = np.array([[1.0, -2.0], [3.0, 0.5]], np.float32)
    state, mu, nu = tx.init(w), 0.0, 0.0
    rng = np.random.default_rng(0)
    for step in (1, 2, 3):
        grad = rng.normal(size=(2, 2)).astype(np.float32)
        updates, state = tx.update(grad, state, w)
        w = optax.apply_updates(w, updates)
        mu, nu = b1 * mu + (1 - b1) * grad, b2 * nu + (1 - b2) * grad**2
        adam = (mu / (1 - b1**step)) / (np.sqrt(nu / (1 - b2**step)) + 1e-8)
        want = want - rate * (adam + decay * want)
    np.testing.assert_allclose(w, want, rtol=1e-5)


@pytest.mark.parametrize(
    "clip_norm, length, kept", [(1.0, 50.0, 1.0), (1.0, 0.5, 0.5), (0.0, 50.0, 50.0)]
)
def test_gradients_are_clipped_to_the_norm_asked_for(clip_norm, length, kept):
    tx = optim.adamw(optax.constant_schedule(0.1), clip_norm=clip_norm)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    grads = {"a": jnp.array([0.6, 0.0]) * length, "b": jnp.array([0.0, 0.8]) * length}
    _, state = tx.update(grads, tx.init(params), params)
    moment = optax.tree.norm(optax.tree.get(state, "mu"))
    np.testing.assert_allclose(moment, 0.1 * kept, rtol=1e-5)


def test_the_peak_rate_follows_base_rate_and_batch():
    config = pretrain_base.get_config()
    np.testing.assert_allclose(config.optim.peak_lr, 1.5e-4 * 1024 / 256)
    config.batch_size = 512
    np.testing.assert_allclose(config.optim.peak_lr, 1.5e-4 * 512 / 256)
    config.optim.base_lr = 1e-3
    np.testing.assert_allclose(config.optim.peak_lr, 1e-3 * 512 / 256)


def test_the_warm_up_is_a_tenth_of_the_epochs():
    config = pretrain_base.get_config()
    config.epochs = 40
    assert config.optim.warmup_epochs == 4
