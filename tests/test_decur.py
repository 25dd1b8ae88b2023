"""DeCUR: its loss, its projector, and what it says of an absent sensor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax import build
from fusmae_jax.models import decur
from fusmae_jax.models.products import Arithmetic
from fusmae_jax.objectives.decur import correlation_errors
from fusmae_jax.training.sharding import leaf_path
from tests import peers, tiny


def independent(one, other, redundancy, common):
    """Sums of squares over pairs of dimensions, one by one, by `np.corrcoef`."""
    k, alike, apart = one.shape[1], 0.0, 0.0
    for i in range(k):
        for j in range(k):
            c = np.corrcoef(one[:, i], other[:, j])[0, 1]
            weight = 1.0 if i == j else redundancy
            if i < common and j < common:
                alike += weight * (c - (i == j)) ** 2
            if i >= common and j >= common:
                apart += weight * c**2
    return alike, apart


@pytest.mark.parametrize("common", [0, 3, 5])
def test_the_loss_is_that_of_correlations_dimension_by_dimension(common):
    rng = np.random.default_rng(0)
    one = rng.normal(2.0, 3.0, (9, 5))
    other = one + rng.normal(-1.0, 1.0, (9, 5))
    want = independent(one[:7], other[:7], 0.1, common)
    weight = jnp.float32([1] * 7 + [0] * 2)
    got = correlation_errors(*map(jnp.float32, (one, other)), weight, 0.1, common)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_where_nothing_counts_no_gradient_is_wrong():
    x, weight = jnp.ones((3, 4)), jnp.zeros(3)
    loss = lambda x: sum(correlation_errors(x, x, weight, 0.1, 2))
    value, grad = jax.value_and_grad(loss)(x)
    assert float(value) == 2.0 and not grad.any()


def test_it_is_scored_as_an_independent_computation_says():
    """The terms and their weights, of the projections that the network gives."""
    objective = build.objective(peers.config("decur"))
    rng = np.random.default_rng(1)
    said = {s: rng.normal(size=(2, 6, 24)).astype(np.float32) for s in tiny.BANDS}
    stub = lambda s, images, present, weight: list(map(jnp.asarray, said[s]))
    draw = objective.draw(jax.random.key(0), 6)
    run = jax.jit(lambda *seen: objective.loss(stub, (), *seen))
    loss, metrics, _ = run(peers.fields(6), draw)
    own = {s: independent(*said[s], 0.0051, 24)[0] for s in said}
    alike, apart = independent(said["s1"][0], said["s2"][0], 0.0051, 16)
    want = (own["s1"] + own["s2"] + (alike + apart) / 2) / 3
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_unique"], apart, rtol=1e-4)


def test_the_sensors_crops_are_drawn_apart_and_radar_keeps_its_light():
    draw = build.objective(peers.config("decur")).draw(jax.random.key(0), 32)
    boxes = np.concatenate([draw[s].view.box for s in draw], axis=1)
    assert boxes.shape == (32, 4, 4)
    assert len(np.unique(boxes.reshape(-1, 4), axis=0)) == 128
    assert (draw["s1"].light == 1.0).all() and (draw["s2"].light != 1.0).any()


def test_the_projector_normalises_over_the_samples_that_count():
    projector = decur.Projector(4, 6, arithmetic=Arithmetic(), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 4)).astype(np.float32)
    projector.norms[0].scale[...] = jnp.linspace(0.5, 2.0, 6)
    want = x[:5]
    for i, layer in enumerate(projector.layers):
        if i:
            norm = projector.norms[i - 1]
            want = (want - want.mean(0)) / np.sqrt(want.var(0) + 1e-5)
            scale, shift = (np.asarray(x[...]) for x in (norm.scale, norm.bias))
            want = np.maximum(want * scale + shift, 0.0)
        want = want @ np.asarray(layer.kernel[...])
    got = projector(x, jnp.float32([1] * 5 + [0] * 2))
    np.testing.assert_allclose(got[:5], want, rtol=1e-4, atol=1e-4)
    assert len(jax.tree.leaves(nnx.split(projector)[1])) == 3 + 2 * 2  # no biases


def test_a_crop_without_a_measured_pixel_does_not_count():
    config = peers.config("decur")
    seen = build.inputs(config, missing=True)
    objective = build.objective(config, seen)
    counts = {}

    def stub(s, images, present, weight):
        counts[s] = weight
        return [jnp.zeros((4, 24))] * 2

    fields = {name: np.array(x, np.float32) for name, x in peers.fields(4).items()}
    fields["s1_10m"][1] = np.nan

    @jax.jit
    def counted(fields, draw):
        objective.loss(stub, (), fields, draw, jnp.float32([1, 1, 0, 1]))
        return counts

    found = counted(fields, objective.draw(jax.random.key(0), 4))
    np.testing.assert_array_equal(found["s1"], [[1, 1], [0, 0], [0, 0], [1, 1]])
    np.testing.assert_array_equal(found["s2"], [[1, 1], [1, 1], [0, 0], [1, 1]])


def test_each_sensor_s_tokens_are_its_own_and_the_summary_is_of_what_is_there():
    encoder = build.objective(peers.config("decur")).encoder()
    params = jax.jit(lambda: encoder.init(nnx.Rngs(0)))()
    rng = np.random.default_rng(0)
    images = {
        s: rng.normal(size=(2, 24, 24, c)).astype(np.float32)
        for s, c in tiny.BANDS.items()
    }
    call = jax.jit(encoder)
    both = call(params, images)
    present = {"s1": np.array([True, False]), "s2": np.array([True, True])}
    lost = images | {"s1": images["s1"].copy()}
    lost["s1"][1] = np.nan
    found = call(params, lost, present)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    close(found.tokens["s2"], both.tokens["s2"])
    close(found.tokens["s1"][0], both.tokens["s1"][0])
    assert not found.tokens["s1"][1].any()
    close(found.summary[0], both.summary[0])
    alone = call(params, images, {s: np.full(2, s == "s2") for s in images})
    close(found.summary[1], alone.summary[1])
    close(both.blocks["block1"].tokens["s1"], both.tokens["s1"])
    paths = [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert {encoder.layer_of(path) for path in paths} == {0, 1, 2, 3}
