"""DINO-MM: its loss, its crops, and what moves its teacher."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax import build, patches
from fusmae_jax.models import vit
from fusmae_jax.models.products import Arithmetic
from fusmae_jax.objectives import comparison, dinomm
from fusmae_jax.training.sharding import leaf_path
from tests import peers, tiny


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def test_the_loss_is_the_cross_entropy_of_all_pairs_of_different_crops():
    rng = np.random.default_rng(0)
    wanted = softmax(rng.normal(size=(3, 2, 7)))
    logits = 5 * rng.normal(size=(3, 5, 7))
    terms = [
        -(wanted[:, i] * np.log(softmax(logits[:, j]))).sum(axis=-1)
        for i in range(2)
        for j in range(5)
        if i != j
    ]
    got = dinomm.cross_entropy(jnp.asarray(wanted), jnp.asarray(logits))
    np.testing.assert_allclose(got, np.mean(terms, axis=0), rtol=1e-5)


@pytest.fixture(scope="module")
def objective():
    return build.objective(peers.config("dinomm")).lasting(100)


@pytest.fixture(scope="module")
def fields():
    return peers.fields(4)


def test_it_is_scored_as_an_independent_computation_says(objective, fields):
    """Everything behind the cosines that the networks give, in NumPy."""
    rng = np.random.default_rng(1)
    cosines = {2: rng.uniform(-1, 1, (2, 4, 2, 32)), 12: rng.uniform(-1, 1, (4, 2, 32))}
    taught, student = cosines[2]

    class Stub(nnx.Module):
        def __init__(self, cosines):
            self.cosines = cosines

        def __call__(self, images, present):
            size = images["s1"].shape[2]
            return jnp.float32(self.cosines if size == 24 else cosines[12])

    graphdef, state = nnx.split(Stub(nnx.Param(jnp.float32(taught))))
    other = dataclasses.replace(objective, first_temperature=0.02)
    other = dataclasses.replace(other, teacher_warmup=0.5)
    other.__dict__["abstract"] = graphdef, None
    center = rng.normal(size=32).astype(np.float32)
    extra = {"teacher": state, "center": jnp.asarray(center), "step": jnp.int32(25)}
    weight = np.float32([1, 1, 0, 1])
    draw = other.draw(jax.random.key(0), 4)
    run = jax.jit(
        lambda fields, draw: other.loss(Stub(student), extra, fields, draw, weight)
    )
    loss, metrics, aux = run(fields, draw)
    wanted = softmax((taught - center) / 0.03)  # half of the way from 0.02 to 0.04
    logits = np.concatenate([student, cosines[12]], axis=1) / 0.1
    want = dinomm.cross_entropy(jnp.asarray(wanted), jnp.asarray(logits))
    np.testing.assert_allclose(loss, np.mean(want[weight > 0]), rtol=1e-4)
    np.testing.assert_allclose(
        aux, taught[weight > 0].mean(axis=(0, 1)), rtol=1e-4, atol=1e-6
    )
    entropy = -(wanted * np.log(wanted)).sum(axis=-1)[weight > 0].mean()
    np.testing.assert_allclose(metrics["teacher_entropy"], entropy, rtol=1e-4)


@pytest.mark.parametrize("step, momentum", [(0, 0.95), (50, 0.975), (100, 1.0)])
def test_the_teacher_follows_ever_more_slowly_and_the_centre_what_it_says(
    objective, step, momentum
):
    extra = {"teacher": {"w": jnp.ones(3)}, "center": jnp.zeros(2), "step": step}
    after = objective.after(extra, {"w": jnp.zeros(3)}, jnp.ones(2), step)
    np.testing.assert_allclose(after["teacher"]["w"], momentum, rtol=1e-6)
    np.testing.assert_allclose(after["center"], 0.1, rtol=1e-6)
    assert after["step"] == step + 1


def test_the_schedules_depend_on_step_and_steps_alone(objective):
    warm = dataclasses.replace(objective, first_temperature=0.02, teacher_warmup=0.1)
    got = [float(warm.temperature(step)) for step in (0, 5, 10, 99)]
    np.testing.assert_allclose(got, [0.02, 0.03, 0.04, 0.04], rtol=1e-5)
    assert float(objective.temperature(0)) == pytest.approx(0.04)
    twice = objective.lasting(200)
    assert float(twice.momentum(100)) == pytest.approx(float(objective.momentum(50)))


def test_brightness_and_contrast_are_those_of_pictures():
    """Of what is black 2 deviations below the mean and white 2 above."""
    rng = np.random.default_rng(0)
    picture = rng.uniform(0, 255, (2, 5, 5, 3))
    light = np.float32([[0.7, 1.3], [1.2, 0.8]])
    want = []
    for x, (brightness, contrast) in zip(picture, light):
        x = x * brightness
        mean = x.mean(axis=(0, 1))
        want.append((x - mean) * contrast + mean)
    normal = lambda x: np.float32(x) / 255 * 4 - 2
    got = comparison.shine(normal(picture), light)
    np.testing.assert_allclose(got, normal(want), rtol=1e-4, atol=1e-4)
    holed = normal(picture)
    holed[0, 0] = holed[1] = np.nan
    got = comparison.shine(holed, light, missing=True)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(holed))


def test_crops_are_drawn_apart_and_lack_a_sensor_half_of_the_time(key):
    how = dict(scale=(0.05, 0.4), ratio=(3 / 4, 4 / 3), turn=True)
    crops = comparison.draw_crops(key, 400, 3, jitter=0.4, drop_sensor=0.5, **how)
    lacks = {s: 1 - x.mean() for s, x in crops.present.items()}
    assert lacks == pytest.approx({"s1": 0.25, "s2": 0.25}, abs=0.04)
    assert not (~crops.present["s1"] & ~crops.present["s2"]).any()
    same = crops.present["s1"][:, 0] == crops.present["s1"][:, 1]
    assert 0.5 < same.mean() < 0.75  # 0.625 if crops know nothing of each other
    assert len(np.unique(crops.view.box[:, :, 0])) > 1000
    area = crops.view.box[..., 2] * crops.view.box[..., 3]
    assert 0.05 <= area.min() and area.max() <= 0.4 + 1e-6
    changed = (crops.light != 1.0).all(axis=-1)
    assert changed.mean() == pytest.approx(0.8, abs=0.04)
    assert 0.6 <= crops.light.min() and crops.light.max() <= 1.4


def test_a_crop_is_the_image_of_its_view(objective, fields, key):
    draw = objective.draw(key, 4).small
    plain = draw._replace(light=jnp.ones_like(draw.light))
    seen = objective.inputs
    got = jax.jit(lambda *x: comparison.crop_images(seen, *x, 12))(fields, plain)
    plainly = jax.jit(lambda fields, view: seen.images(fields, view, 12))
    for i in range(2):
        want = plainly(fields, jax.tree.map(lambda x: x[:, i], draw.view))
        for s in want:
            np.testing.assert_allclose(got[s][:, i], want[s], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def network():
    sizes = dict(image_size=24, patch_size=6, dim=16, depth=1, num_heads=2)
    return vit.ViT(bands=tiny.BANDS, arithmetic=Arithmetic(), rngs=nnx.Rngs(0), **sizes)


def draw_images(size=24):
    rng = np.random.default_rng(0)
    return {
        s: rng.normal(size=(2, size, size, c)).astype(np.float32)
        for s, c in tiny.BANDS.items()
    }


def test_an_absent_sensor_is_its_mean_and_never_read(network):
    images, here = draw_images(), np.array([True, False])
    present = {"s1": here, "s2": np.array([True, True])}
    zero = {"s1": images["s1"] * here[:, None, None, None], "s2": images["s2"]}
    nan = {"s1": np.where(zero["s1"] == 0, np.nan, images["s1"]), "s2": images["s2"]}
    want = tiny.call(network, zero)
    got = tiny.call(network, nan, present)
    np.testing.assert_allclose(got.tokens, want.tokens, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.summary, want.summary, rtol=1e-5, atol=1e-6)


def test_a_patch_that_no_sensor_shows_changes_no_other(network):
    images = draw_images()
    for x in images.values():
        x[:, :6, :6] = np.nan
        x[:, 7, 7] = np.nan
    present = patches.present(images, 6, None)
    got = tiny.call(network, images, present)
    assert np.isfinite(got.tokens).all() and np.isfinite(got.summary).all()
    # Where it stands does not matter either: no other token attends to it.
    moved = vit.patches.sincos_2d(4, 16).copy()
    moved[0] *= -1.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vit.patches, "sincos_2d", lambda *_: moved)
        other = tiny.call(network, images, present)
    np.testing.assert_allclose(got.tokens[:, 1:], other.tokens[:, 1:], rtol=1e-5)
    assert np.abs(got.tokens[:, 0] - other.tokens[:, 0]).max() > 1e-2


def test_small_images_stand_where_large_ones_do():
    code, large = patches.sincos_2d(2, 16, 4), patches.sincos_2d(4, 16)
    np.testing.assert_array_equal(patches.sincos_2d(4, 16, 4), large)
    omega = 10_000.0 ** -(np.arange(4) / 4)
    np.testing.assert_allclose(code[1, :4], np.sin(2.5 * omega), rtol=1e-6)  # column
    np.testing.assert_allclose(code[1, 8:12], np.sin(0.5 * omega), rtol=1e-6)  # row


def test_its_encoder_is_the_teacher_s_and_says_the_same_of_both_sensors(objective):
    encoder = objective.encoder()
    params = jax.jit(lambda: encoder.init(nnx.Rngs(0)))()
    found = jax.jit(encoder)(params, draw_images())
    assert encoder.name == "DINO-MM" and objective.kept == "extra/teacher"
    np.testing.assert_array_equal(found.tokens["s1"], found.tokens["s2"])
    last = found.blocks["block1"]
    np.testing.assert_array_equal(last.summary, found.summary)
    wanted = jax.tree.map(jnp.shape, objective.encoder_params(objective.abstract[1]))
    assert jax.tree.map(jnp.shape, params) == wanted
    paths = [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert {encoder.layer_of(path) for path in paths} == {0, 1, 2, 3}
