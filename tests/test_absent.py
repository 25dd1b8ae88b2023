"""Any sample may lack a sensor: nothing of it is read, and nothing breaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import InputError
from fusmae_jax import inputs, patches
from fusmae_jax.models import layers
from fusmae_jax.objectives.protocol import Encoded
from tests import tiny

SETS = {"s1": (True, False), "s2": (False, True), "both": (True, True)}


def images(batch=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        s: jnp.asarray(rng.normal(size=(batch, 24, 24, c)), jnp.float32)
        for s, c in tiny.BANDS.items()
    }


def present(*rows):
    """Which of the sensors each row has, by the names of SETS."""
    table = np.array([SETS[row] for row in rows])
    return {s: jnp.asarray(table[:, i]) for i, s in enumerate(inputs.SENSORS)}


def trained(**changes):
    """A model whose absent tokens say something."""
    graphdef, params = nnx.split(tiny.model(**changes))
    rng = np.random.default_rng(7)
    params = jax.tree.map(
        lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.05, x.dtype), params
    )
    return nnx.merge(graphdef, params)


def encode(model, x, who):
    """What the encoder gives, in one compiled graph."""
    graphdef, params = nnx.split(model.encoder)

    @jax.jit
    def run(params, x, who):
        tokens, summary, _ = nnx.merge(graphdef, params).encode(x, who)
        return Encoded(tokens, summary)

    return run(params, x, who)


@pytest.mark.parametrize("fuse_early", [True, False])
def test_one_graph_serves_every_mix_of_sensors_in_a_batch(fuse_early):
    model, x = trained(fuse_early=fuse_early), images()
    graphdef, params = nnx.split(model.encoder)
    traces = []

    @jax.jit
    def run(params, x, who):
        traces.append(1)
        tokens, summary, _ = nnx.merge(graphdef, params).encode(x, who)
        return tokens, summary

    mixed = run(params, x, present("s1", "s2", "both"))
    for row, name in enumerate(SETS):
        alone = run(params, x, present(*[name] * 3))
        for a, b in zip(jax.tree.leaves(mixed), jax.tree.leaves(alone)):
            np.testing.assert_allclose(a[row], b[row], rtol=1e-5, atol=1e-5)
    assert len(traces) == 1


def test_both_sensors_present_is_the_model_without_any_mask():
    model, x = trained(), images()
    masked = encode(model, x, present("both", "both", "both"))
    plain = encode(model, x, None)
    for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(plain)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.journey
@pytest.mark.parametrize("rubbish", [0.0, 1e6, np.nan, np.inf])
@pytest.mark.parametrize("absent", ["s1", "s2"])
def test_what_stands_in_an_absent_sensor_is_never_read(absent, rubbish):
    model, x = trained(), images()
    only = {"s1": "s2", "s2": "s1"}[absent]
    who = present(only, only, only)
    clean = encode(model, x, who)
    dirty = encode(model, x | {absent: jnp.full_like(x[absent], rubbish)}, who)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty)):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


def test_gradients_stay_finite_beside_rubbish_in_an_absent_sensor(key):
    graphdef, params = nnx.split(tiny.model())
    x = images(2)
    x["s2"] = x["s2"].at[0].set(jnp.nan)
    noise = patches.draw_noise(key, 2, 16, "independent")
    masks = {s: patches.mask_from_noise(noise[s], 4) for s in noise}

    def loss(params):
        out = nnx.merge(graphdef, params)(x, masks, present("s1", "both"))
        return sum(jnp.square(y).mean() for y in out.predicted.values())

    for grad in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(grad).all()


def test_an_absent_sensor_adds_nothing_to_the_tokens_of_the_other():
    """Its places may be many or few: the present one's tokens do not notice."""
    encoder = trained().encoder
    rng = np.random.default_rng(0)
    pixels = {
        s: jnp.asarray(rng.normal(size=(2, 16, 36 * c)), jnp.float32)
        for s, c in tiny.BANDS.items()
    }
    ids = {s: jnp.tile(jnp.arange(16), (2, 1)) for s in pixels}
    who = present("s1", "s1")
    many = tiny.call(encoder, pixels, ids, who)
    pixels["s2"], ids["s2"] = pixels["s2"][:, :5], ids["s2"][:, 3:8]
    few = tiny.call(encoder, pixels, ids, who)
    for a, b in ((many.tokens["s1"], few.tokens["s1"]), (many.summary, few.summary)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_sample_without_any_sensor_is_still_finite():
    nothing = {s: jnp.zeros(3, bool) for s in inputs.SENSORS}
    for x in jax.tree.leaves(encode(trained(), images(), nothing)):
        assert np.isfinite(x).all()


def test_the_last_blocks_are_given_one_behind_the_other():
    encoder, params = tiny.encoder(model=dict(depth=4))
    x = images()
    one = jax.jit(encoder)(params, x)
    three = one.last(3)
    assert list(one.blocks) == ["block0", "block1", "block2"]
    last = one.blocks["block2"]
    for a, b in zip(jax.tree.leaves(one.last(1)), jax.tree.leaves(last)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert three.summary.shape == (3, 96)
    assert three.tokens["s2"].shape == (3, 16, 96)
    np.testing.assert_allclose(three.summary[:, 64:], one.summary, rtol=1e-5, atol=1e-5)
    assert not np.allclose(three.summary[:, :32], one.summary, atol=1e-2)


def test_sensors_are_dropped_at_the_rate_asked_for_and_never_both(key):
    drawn = inputs.draw_present(key, 20_000, 0.5)
    assert (drawn["s1"] | drawn["s2"]).all()
    for s in inputs.SENSORS:
        assert float((~drawn[s]).mean()) == pytest.approx(0.25, abs=0.02)
    assert all(x.all() for x in inputs.draw_present(key, 100, 0.0).values())
    assert not (lambda p: p["s1"] & p["s2"])(inputs.draw_present(key, 99, 1.0)).any()
    with pytest.raises(InputError, match="drop_sensor is 1.5"):
        inputs.draw_present(key, 8, 1.5)


def test_a_dropped_sensor_is_asked_for_whole(key):
    objective = tiny.objective(drop_sensor=1.0)
    draw = objective.draw(key, 4)
    fields = {
        "s1_10m": np.zeros((4, 24, 24, 2), np.float16),
        "s2_10m": np.ones((4, 24, 24, 4), np.uint16),
        "s2_20m": np.ones((4, 12, 12, 6), np.uint16),
        "s2_60m": np.ones((4, 4, 4, 2), np.uint16),
    }
    model = tiny.model()
    args = fields, draw
    both = lambda: (objective.loss(model, (), *args)[0], objective.redraw(model, *args))
    loss, outcome = jax.jit(both)()
    assert np.isfinite(loss)
    for s in inputs.SENSORS:
        share = outcome.hidden[s].mean(axis=1)
        np.testing.assert_allclose(share, np.where(draw.present[s], 0.75, 1.0))


@pytest.mark.journey
@pytest.mark.parametrize("drop_sensor", [0.5, 1.0])
def test_every_sample_weighs_the_same_whatever_it_lacks(key, drop_sensor):
    """So a batch may go through in parts: their mean is the loss of the whole."""
    objective = tiny.objective(drop_sensor=drop_sensor)
    draw, model = objective.draw(key, 8), tiny.model()
    rng = np.random.default_rng(0)
    shapes = {"s1_10m": (24, 2), "s2_10m": (24, 4), "s2_20m": (12, 6), "s2_60m": (4, 2)}
    fields = {
        name: rng.integers(1, 3000, (8, side, side, bands)).astype(np.float16)
        for name, (side, bands) in shapes.items()
    }
    batch = fields, draw
    loss = jax.jit(lambda batch: objective.loss(model, (), *batch)[0])
    whole = loss(batch)
    parts = [loss(jax.tree.map(lambda x: x[i : i + 2], batch)) for i in range(0, 8, 2)]
    assert np.mean(parts) == pytest.approx(float(whole), rel=1e-5)


def test_stochastic_depth_drops_more_of_the_later_blocks(key):
    drawn = layers.drop_path(key, 0.4, 4, 5_000)
    assert drawn.shape == (4, 2, 5_000)
    np.testing.assert_allclose(drawn.mean(axis=2), 1.0, atol=0.06)
    dropped = (drawn == 0.0).mean(axis=(1, 2))
    np.testing.assert_allclose(dropped, [0.1, 0.2, 0.3, 0.4], atol=0.02)


def test_a_block_whose_branches_count_nothing_changes_nothing():
    model, x = trained(), images()
    none = jnp.zeros((1, 2, 3))
    run = jax.jit(model.encoder.encode)
    out, other = run(x, branches=none).tokens["s1"], run(x).tokens["s1"]
    assert not np.allclose(out, other, atol=1e-2)
    ones = run(x, branches=jnp.ones((1, 2, 3))).tokens["s1"]
    np.testing.assert_allclose(ones, other, rtol=1e-5, atol=1e-5)
