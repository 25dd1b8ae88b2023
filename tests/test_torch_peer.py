"""The peer in PyTorch, which nobody derived from ours, agrees with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from data_pipeline import layout, synthetic
from fusmae_jax import build, inputs, patches
from tests import tiny

torch = pytest.importorskip("torch", reason="the peer is written in PyTorch")

from benchmarks import torch_peer, torch_views  # noqa: E402
from fusmae_jax.export import torch_module  # noqa: E402

pytestmark = [pytest.mark.journey, pytest.mark.usefixtures("optimized")]

BATCH, STEPS, RATE = 3, 3, 1e-3


def to_torch(tree):
    """Arrays of nested dicts and named tuples as tensors."""
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x)), tree)


@pytest.fixture(scope="module")
def config():
    c = tiny.config()
    with c.unlocked():
        c.model.decoder_depth = 2  # so that one block is not the last
    return c


@pytest.fixture(scope="module")
def ours(config):
    return build.objective(config)


@pytest.fixture(scope="module")
def fields(ours):
    contract = ours.inputs.contract
    names = layout.native(24, contract).fields(contract)
    scenes = synthetic.Scenes(BATCH, size=24, fields=names)
    pairs = [scenes[i] for i in range(BATCH)]
    batch = {name: np.stack([pair[name] for pair in pairs]) for name in names}
    batch["s1_10m"][0, :3, :2, 0] = np.nan
    return batch


def peer(config, **changes):
    model = config.model.to_dict() | changes
    return torch_peer.Objective(config.bands, model, config.mask.ratio)


def peer_draw(draw):
    return torch_views.Draw(
        *to_torch((draw.view.box, draw.view.turn)), to_torch(draw.noise)
    )


def named(params, objective):
    return torch_peer.from_jax(nnx.to_pure_dict(params), objective.model)


@pytest.fixture(scope="module")
def history(config, ours, fields):
    """Three steps of both: (loss, gradients, parameters before, metrics) of each."""
    graphdef, params = nnx.split(build.objective(config).init(nnx.Rngs(0)))
    theirs = peer(config)
    theirs.model.load_state_dict(named(params, theirs))
    tx = build.optimizer(config, optax.constant_schedule(RATE))
    opt_state = tx.init(params)
    c = config.optim
    step = torch_peer.make_step(theirs, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay)

    @jax.jit
    def our_step(params, opt_state, draw):
        def loss_fn(params):
            return ours.loss(nnx.merge(graphdef, params), (), fields, draw)[0]

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return loss, grads, optax.apply_updates(params, updates), opt_state

    records = []
    for i in range(STEPS):
        draw = ours.draw(jax.random.key(i), BATCH)
        loss, grads, params, opt_state = our_step(params, opt_state, draw)
        metrics = step(to_torch(fields), peer_draw(draw), RATE)
        records.append(
            dict(
                loss=(float(loss), float(metrics["loss"])),
                norm=(float(optax.tree.norm(grads)), float(metrics["grad_norm"])),
                grads=(
                    named(grads, theirs),
                    {n: p.grad.clone() for n, p in theirs.model.named_parameters()},
                ),
                params=(
                    named(params, theirs),
                    {n: p.clone() for n, p in theirs.model.state_dict().items()},
                ),
                invalid=int(metrics["invalid_pixels"]),
            )
        )
    return records


def test_images_are_the_same(config, ours, fields):
    draw = ours.draw(jax.random.key(5), BATCH)
    theirs, drawn = peer(config), peer_draw(draw)
    for s in inputs.SENSORS:
        expected = ours.inputs.images(jax.tree.map(jnp.asarray, fields), draw.view)[s]
        found = theirs.views[s](to_torch(fields), drawn.box, drawn.turn)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_positions_are_the_same():
    expected = patches.sincos_2d(7, 32)
    np.testing.assert_allclose(torch_module.sincos_2d(7, 32), expected, atol=1e-6)


def test_loss_of_the_same_weights_and_draw_is_the_same(history):
    ours, theirs = history[0]["loss"]
    assert theirs == pytest.approx(ours, rel=1e-5)


def test_gradients_are_the_same(history):
    ours, theirs = history[0]["grads"]
    assert ours.keys() == theirs.keys()
    for name in ours:
        scale = float(ours[name].abs().max())
        np.testing.assert_allclose(
            theirs[name], ours[name], rtol=1e-4, atol=1e-4 * scale + 1e-8, err_msg=name
        )
    ours, theirs = history[0]["norm"]
    assert theirs == pytest.approx(ours, rel=1e-5)


def test_three_steps_of_the_optimiser_stay_the_same(history):
    for record in history:
        ours, theirs = record["loss"]
        assert theirs == pytest.approx(ours, rel=1e-5)
    ours, theirs = history[-1]["params"]
    for name in ours:
        error = (theirs[name] - ours[name]).abs()
        if name.endswith("kv.bias"):
            # Softmax overlooks what all keys share: their biases follow rounding alone.
            error[keys_of(name, len(error))] = 0.0
        # Adam blows up what rounding does to gradients near zero; 0.022 was seen.
        assert error.max() < 0.05 * RATE, name


def keys_of(name, size):
    """The rows of the keys in a fused bias."""
    third = size // 3 if name.endswith("qkv.bias") else 0
    return slice(third, third + size // (3 if third else 2))


def test_half_precision_is_of_the_products_alone(config, ours, fields):
    drawn = peer_draw(ours.draw(jax.random.key(0), BATCH))
    _, params = nnx.split(build.objective(config).init(nnx.Rngs(0)))
    losses = []
    for dtype in ("float32", "bfloat16"):
        theirs = peer(config, dtype=dtype)
        theirs.model.load_state_dict(named(params, theirs))
        losses.append(theirs(to_torch(fields), drawn).detach())
    assert losses[0].dtype == losses[1].dtype == torch.float32
    assert float(losses[0]) != float(losses[1])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=0.0)


def test_invalid_pixels_are_counted(history):
    assert history[0]["invalid"] == 6
