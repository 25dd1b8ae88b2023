"""What Fus-MAE may have beside the paper's: latent targets, and a contrast."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from data_pipeline.errors import InputError
from fusmae_jax import build, patches
from fusmae_jax.inputs import SENSORS
from fusmae_jax.models import decoders
from tests import peers, plain, tiny

BATCH, TAU = 4, 0.2


def objective(**changes):
    config = tiny.config()
    changes = {name.replace("__", "."): x for name, x in changes.items()}
    config.update_from_flattened_dict({"loss.temperature": TAU} | changes)
    return build.objective(config)


@pytest.fixture(scope="module")
def fields():
    return peers.fields(BATCH)


def cosines(a, b):
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit(a) @ unit(b).T


def test_latent_targets_are_told_apart_as_an_independent_computation_says(fields, key):
    goal = objective(loss__targets="latent", loss__normalize="none")
    rng, draw = np.random.default_rng(0), goal.draw(key, BATCH)
    said = {s: rng.normal(size=(BATCH, 12, 32)).astype(np.float32) for s in SENSORS}
    seen = {}

    def stub(images, masks, present, whole):
        assert not whole
        for s, image in images.items():
            seen[s] = patches.take(patches.patchify(image, 6), masks[s].hidden)
        return decoders.Redrawn(said, dict(seen))

    weight = np.float32([1, 1, 0, 1])

    @jax.jit
    def run(fields, draw):
        _, metrics, _ = goal.loss(stub, (), fields, draw, weight)
        matrices = {s: goal._projection(s, x.shape[-1]) for s, x in seen.items()}
        return metrics, dict(seen), matrices

    metrics, pixels, matrices = jax.device_get(run(fields, draw))
    for s in SENSORS:
        assert matrices[s].shape == (pixels[s].shape[-1], 32)
        terms = []
        for i in (0, 1, 3):
            logits = cosines(said[s][i], pixels[s][i] @ matrices[s]) / TAU
            chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            terms.append(-np.log(np.diagonal(chances)))
        np.testing.assert_allclose(metrics[f"loss_{s}"], np.mean(terms), rtol=1e-4)
    assert np.std(matrices["s1"]) == pytest.approx(72**-0.5, rel=0.1)


def test_the_contrast_is_of_each_sensor_encoded_alone(fields, key):
    goal, plain = objective(loss__contrast=0.5), objective()
    draw, weight = goal.draw(key, BATCH), np.float32([1, 0, 1, 1])
    model = tiny.model()
    graphdef, params = nnx.split(model)

    @jax.jit
    def run(params, fields):
        model = nnx.merge(graphdef, params)
        loss, metrics, _ = goal.loss(model, (), fields, draw, weight)
        images = goal.inputs.images(fields, draw.view)
        kept = patches.num_visible(16, 0.75)
        masks = {s: patches.mask_from_noise(draw.noise[s], kept) for s in SENSORS}
        ids = {s: m.visible for s, m in masks.items()}
        pixels = {s: patches.take(patches.patchify(images[s], 6), ids[s]) for s in ids}
        alone = {
            s: model.encoder(
                pixels, ids, {o: jnp.full(BATCH, o == s) for o in SENSORS}
            ).tokens[s]
            for s in SENSORS
        }
        return loss, metrics, alone, plain.loss(model, (), fields, draw, weight)[0]

    loss, metrics, alone, without = jax.device_get(run(params, fields))
    vectors = {s: x[[0, 2, 3]].mean(axis=1) for s, x in alone.items()}
    logits = cosines(vectors["s1"], vectors["s2"]) / TAU
    both = [
        np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (logits, logits.T)
    ]
    want = -np.log([np.diagonal(x) for x in both]).mean()
    np.testing.assert_allclose(metrics["loss_contrast"], want, rtol=1e-4)
    np.testing.assert_allclose(loss, without + 0.5 * want, rtol=1e-4)


def test_a_sample_that_lacks_a_sensor_is_compared_with_none(fields, key):
    goal = objective(loss__contrast=0.5)
    graphdef, params = nnx.split(tiny.model())

    @jax.jit
    def contrast(fields, draw, weight):
        model = nnx.merge(graphdef, params)
        return goal.loss(model, (), fields, draw, weight)[1]["loss_contrast"]

    everything, lacks = np.ones(BATCH, bool), np.arange(BATCH) != 1
    draw = goal.draw(key, BATCH)._replace(present={"s1": everything, "s2": lacks})
    got = contrast(fields, draw, np.ones(BATCH, np.float32))
    want = contrast(fields, draw, lacks.astype(np.float32))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    full = contrast(
        fields,
        draw._replace(present=dict.fromkeys(SENSORS, everything)),
        np.ones(BATCH, np.float32),
    )
    assert abs(got - full) > 1e-3


def test_what_was_not_measured_is_neither_asked_for_nor_read(fields, key):
    config = tiny.config()
    config.update_from_flattened_dict(
        {"loss.targets": "latent", "loss.contrast": 1.0, "loss.temperature": TAU}
    )
    goal = build.objective(config, build.inputs(config, missing=True))
    draw, model = goal.draw_fixed(key, np.arange(BATCH)), tiny.model(target_dim=32)
    graphdef, params = nnx.split(model)

    @jax.jit
    def run(fields):
        def loss(params):
            return goal.loss(nnx.merge(graphdef, params), (), fields, draw)[:2]

        return jax.value_and_grad(loss, has_aux=True)(params)

    holes = {name: np.array(x) for name, x in fields.items()}
    holes["s1_10m"][0, :, :12] = np.nan  # half of a pair's radar
    holes["s1_10m"][1] = np.nan  # all of another's
    (loss, metrics), grads = jax.device_get(run(holes))
    assert np.isfinite(loss) and all(np.isfinite(x) for x in metrics.values())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    # A patch less to be told from is a loss less, and no patch is told from nothing.
    predicted = np.zeros((1, 3, 8), np.float32)
    target = np.eye(3, 8, dtype=np.float32)[None]
    target[0, 2] = np.nan
    got = goal._error(jnp.asarray(predicted), jnp.asarray(target), jnp.ones((1, 3)))
    np.testing.assert_allclose(got, np.log(2), rtol=1e-5)


def test_one_batch_is_learnt_without_collapse(fields, key):
    goal = objective(loss__targets="latent", loss__contrast=1.0)
    params, draw = nnx.split(goal.init(nnx.Rngs(0)))[1], goal.draw(key, BATCH)
    tx = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        def loss(params):
            model = nnx.merge(goal.abstract[0], params)
            return goal.loss(model, (), fields, draw)[:2]

        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics, grads

    state, found = tx.init(params), []
    for _ in range(80):
        params, state, metrics, grads = step(params, state)
        found.append(metrics)
    for name, first in found[0].items():
        assert found[-1][name] < 0.6 * first, name
    for path, grad in plain.named(grads).items():
        assert np.abs(grad).max() > 0.0 or "absent" in path, path
    images = goal.inputs.images(fields, draw.view)
    encode = jax.jit(goal.encoder())
    summary = encode(goal.encoder_params(params), images).summary
    assert np.std(summary, axis=0).mean() > 1e-2


def test_what_they_change_is_known_to_whoever_asks():
    plain = objective()
    assert plain.separable and plain.redraws and not plain.encoder().knows_one_sensor
    contrast = objective(loss__contrast=0.1)
    assert not contrast.separable and contrast.encoder().knows_one_sensor
    latent = objective(loss__targets="latent")
    assert latent.separable and not latent.redraws
    assert latent.floor({}, np.ones(2)) == {}
    path = "decoders/s1/predict/kernel"
    assert plain.pixels_of(path) == ("s1", 1) and latent.pixels_of(path) is None
    with pytest.raises(InputError, match="loss.targets is 'words'; choose one of"):
        objective(loss__targets="words")
