"""CROMA: its losses, its distances, and what its encoder says of an absent sensor."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import InputError
from fusmae_jax import build, patches
from fusmae_jax.models import attention, croma
from fusmae_jax.objectives.comparison import info_nce
from fusmae_jax.training.sharding import leaf_path
from tests import peers, tiny


def test_the_contrast_is_the_cross_entropy_of_each_sensor_s_choice():
    rng = np.random.default_rng(0)
    vectors = {s: rng.normal(size=(6, 4)) for s in tiny.BANDS}
    vectors = {s: x / np.linalg.norm(x, axis=1)[:, None] for s, x in vectors.items()}
    logits = 7.0 * vectors["s1"][:5] @ vectors["s2"][:5].T
    terms = []
    for i in range(5):
        for row in (logits[i], logits[:, i]):
            terms.append(-np.log(np.exp(row[i]) / np.exp(row).sum()))
    given = {s: jnp.float32(x) for s, x in vectors.items()}
    got = info_nce(given, jnp.full(1, 7.0), jnp.float32([1] * 5 + [0]))
    np.testing.assert_allclose(got, np.mean(terms), rtol=1e-5)
    nothing = jax.value_and_grad(info_nce)(given, jnp.full(1, 7.0), jnp.zeros(6))
    assert not nothing[0] and not any(x.any() for x in nothing[1].values())


def test_slopes_are_those_of_alibi():
    halves = 2.0 ** -np.arange(1, 9)
    np.testing.assert_allclose(croma.slopes(8), halves)
    np.testing.assert_allclose(croma.slopes(16)[1::2], halves)
    np.testing.assert_allclose(croma.slopes(12)[:8], halves)
    np.testing.assert_allclose(croma.slopes(12)[8:], croma.slopes(16)[:8:2])
    assert [len(croma.slopes(n)) for n in (1, 2, 3, 6, 7)] == [1, 2, 3, 6, 7]


def test_distances_are_those_of_places_in_the_grid():
    ids = np.array([[0, 5, 15]])
    got = croma.distances(jnp.asarray(ids), jnp.asarray(ids[:, :2]), 4)
    want = [[0, 2**0.5], [2**0.5, 0], [18**0.5, 8**0.5]]
    np.testing.assert_allclose(got[0], want, rtol=1e-6)


def test_attention_with_a_bias_and_its_gradient_are_those_of_a_plain_softmax(key):
    q, k, v = jax.random.normal(key, (3, 2, 2, 5, 4))
    bias = -croma.distances(jnp.arange(5)[None], jnp.arange(5)[None], 3)[:, None]
    mask = jnp.array([[True] * 5, [True] * 3 + [False] * 2])

    def plain(q, k, v):
        scores = jnp.einsum("bhnd,bhmd->bhnm", q, k) / 2 + bias
        scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
        return jnp.einsum("bhnm,bhmd->bhnd", jax.nn.softmax(scores), v)

    ours = lambda *x: attention.attend(*x, mask, bias=bias)
    total = lambda f: lambda *x: (jnp.sin(f(*x)) * v).sum()
    np.testing.assert_allclose(ours(q, k, v), plain(q, k, v), rtol=1e-4, atol=1e-5)
    for x, y in zip(*(jax.grad(total(f), (0, 1, 2))(q, k, v) for f in (ours, plain))):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def objective():
    return build.objective(peers.config("croma"))


@pytest.mark.journey
def test_it_is_scored_as_an_independent_computation_says(objective):
    """Everything behind the vectors and patches that the network gives, in NumPy."""
    rng = np.random.default_rng(0)
    vectors = {s: rng.normal(size=(4, 8)).astype(np.float32) for s in tiny.BANDS}
    said = {"s1": rng.normal(size=(4, 8, 72)), "s2": rng.normal(size=(4, 16, 432))}
    found = croma.Outcome(vectors, jnp.ones(1), said)
    seen = {}

    def stub(pixels, masks, present, parts):
        seen.update(pixels=pixels, masks=masks)
        return found

    weight = np.float32([1, 1, 0, 1])

    @jax.jit
    def run(fields, draw):
        loss, metrics, _ = objective.loss(stub, (), fields, draw, weight)
        return loss, metrics, seen

    fields, draw = peers.fields(4), objective.draw(jax.random.key(0), 4)
    loss, metrics, seen = jax.device_get(run(fields, draw))
    both = np.concatenate([seen["pixels"][s] for s in tiny.BANDS], axis=-1)
    mean, var = both.mean(-1, keepdims=True), both.var(-1, keepdims=True)
    want = info_nce(vectors, jnp.ones(1), weight)
    for s, x in seen["pixels"].items():
        target = (x - mean) / np.sqrt(var + 1e-6)
        hidden = seen["masks"][s].hidden
        assert hidden.shape == (4, 8)
        places = seen["masks"]["s1"].order[:, -said[s].shape[1] :]
        error = [
            ((said[s][i, list(places[i]).index(place)] - target[i, place]) ** 2).mean()
            for i in (0, 1, 3)
            for place in hidden[i]
        ]
        np.testing.assert_allclose(metrics[f"loss_{s}"], np.mean(error), rtol=1e-4)
        want += np.mean(error)
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    places = [seen["masks"][s].order for s in tiny.BANDS]
    assert (places[0] != places[1]).any()  # masks are independent


@pytest.mark.journey
def test_either_half_of_the_loss_can_be_trained_alone(objective):
    assert not objective.separable
    alone = dataclasses.replace(objective, contrast=0.0)
    assert alone.separable and alone.flops() < objective.flops()
    graphdef, params = objective.abstract
    params = jax.jit(lambda: nnx.split(objective.init(nnx.Rngs(0)))[1])()
    fields, draw = peers.fields(4), objective.draw(jax.random.key(0), 4)

    def untouched(**weights):
        part = dataclasses.replace(objective, **weights)
        loss = lambda p: part.loss(nnx.merge(graphdef, p), (), fields, draw)[0]
        grads = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params))
        return {leaf_path(path).split("/")[0] for path, x in grads if x.any()}

    assert untouched(contrast=0.0) == {"encoder", "decoder"}
    assert untouched(reconstruct=0.0) == {"encoder", "contrast"}


@pytest.fixture(scope="module")
def encoder(objective):
    made = objective.encoder()
    return made, jax.jit(lambda: made.init(nnx.Rngs(0)))(), jax.jit(made)


def draw_images():
    rng = np.random.default_rng(0)
    return {
        s: rng.normal(size=(3, 24, 24, c)).astype(np.float32)
        for s, c in tiny.BANDS.items()
    }


def test_both_sensors_have_the_joint_tokens_and_one_alone_its_own(encoder):
    made, params, call = encoder
    images = draw_images()
    both = call(params, images)
    np.testing.assert_array_equal(both.tokens["s1"], both.tokens["s2"])
    here = {"s1": np.array([True, True, False]), "s2": np.array([True, False, True])}
    lost = {
        s: np.where(here[s][:, None, None, None], x, np.nan) for s, x in images.items()
    }
    found = call(params, lost, here)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    close(found.tokens["s1"][0], both.tokens["s1"][0])
    close(found.summary[0], both.summary[0])
    network = nnx.merge(made._graphdef, params)
    own = jax.jit(lambda images: network.encode(images).own)(images)
    for s in tiny.BANDS:
        close(found.tokens[s][1], own["s1"][1])
        close(found.tokens[s][2], own["s2"][2])
    assert list(found.blocks) == ["block0", "block1", "joint0"] and made.depth == 3
    close(found.blocks["joint0"].tokens["s2"], found.tokens["s2"])
    close(found.blocks["block1"].tokens["s2"][2], own["s2"][2])
    paths = [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert {made.layer_of(path) for path in paths} == {0, 1, 2, 3, 4}


def test_what_was_not_measured_changes_nothing_elsewhere(encoder):
    _, params, call = encoder
    images = draw_images()
    for x in images.values():
        x[:, :6, :6] = np.nan
    images["s2"][1] = np.nan
    present = patches.present(images, 6, None)
    found = call(params, images, present)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    filled = {s: np.where(np.isnan(x), 7.0, x).astype("f") for s, x in images.items()}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        *(found, call(params, filled, present)),
    )


def test_a_depth_that_leaves_nothing_for_radar_is_refused():
    with pytest.raises(InputError, match="depth of at least 2, got 1"):
        nnx.eval_shape(lambda: croma.CROMA(bands=tiny.BANDS, depth=1, rngs=nnx.Rngs(0)))
