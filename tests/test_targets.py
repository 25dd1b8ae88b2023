"""The loss: hidden patches only, in the space that normalisation chose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import InputError
from fusmae_jax import patches

FAMILIES = ("dark", "bright", "dark")
HIDDEN = np.array([[1, 0, 1, 0], [0, 1, 1, 0]], np.float32)


def samples(seed=0):
    """Patches [2, 4, 9 * 3] whose middle band is far brighter than the others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.3, 0.1, (2, 4, 9, 3))
    x[..., 1] = 5.0 + 20.0 * x[..., 1]
    return x.reshape(2, 4, 27).astype(np.float32)


def test_visible_patches_do_not_count():
    predicted, target = samples(0), samples(1)
    before = patches.hidden_error(predicted, target, HIDDEN)
    visible = (1 - HIDDEN)[..., None]
    after = patches.hidden_error(predicted + 7 * visible, target - 9 * visible, HIDDEN)
    assert before == after
    assert patches.hidden_error(predicted + 7, target, HIDDEN) > before + 1


def test_the_error_is_the_mean_over_hidden_pixels():
    predicted, target = samples(0), samples(1)
    squares = []
    for sample in range(2):
        for n in range(4):
            if HIDDEN[sample, n]:
                squares.extend((predicted[sample, n] - target[sample, n]) ** 2)
    got = patches.hidden_error(predicted, target, HIDDEN)
    np.testing.assert_allclose(got, np.mean(squares), rtol=1e-5)


def test_low_precision_predictions_are_compared_in_float32():
    predicted, target = jnp.zeros((1, 1, 4), jnp.bfloat16), np.full((1, 1, 4), 1.003)
    got = patches.hidden_error(predicted, target.astype(np.float32), np.ones((1, 1)))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 1.003**2, rtol=1e-6)


def test_no_normalisation_leaves_the_patches():
    target, _, _ = patches.normalize_patches(samples(), "none", FAMILIES)
    np.testing.assert_array_equal(target, samples())


def test_patch_normalisation_takes_out_each_patchs_mean_and_deviation():
    target, _, _ = patches.normalize_patches(samples(), "patch", FAMILIES)
    x = samples()
    want = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    np.testing.assert_allclose(target, want, rtol=1e-4, atol=1e-5)


def test_group_normalisation_treats_each_family_as_a_patch_of_its_own():
    target, _, _ = patches.normalize_patches(samples(), "group", FAMILIES)
    got = np.asarray(target).reshape(2, 4, 9, 3)
    x = samples().reshape(2, 4, 9, 3)
    for bands in ([0, 2], [1]):
        part = x[..., bands]
        mean = part.mean((2, 3), keepdims=True)
        want = (part - mean) / part.std((2, 3), keepdims=True)
        # Deviations of 0.1 feel the 1e-6 that is added to their square.
        np.testing.assert_allclose(got[..., bands], want, rtol=1e-3, atol=1e-4)


def test_only_group_normalisation_keeps_bright_bands_from_drowning_dark_ones():
    def dark_share(how):
        target, _, _ = patches.normalize_patches(samples(), how, FAMILIES)
        variance = np.asarray(target).reshape(2, 4, 9, 3).var(axis=2).mean((0, 1))
        return variance[0] / variance[1]

    assert dark_share("patch") < 0.01
    assert dark_share("group") > 0.5


@pytest.mark.parametrize("how", patches.NORMALIZATIONS)
def test_restoring_undoes_the_normalisation(how):
    target, mean, std = patches.normalize_patches(samples(), how, FAMILIES)
    back = patches.restore_patches(target, mean, std)
    np.testing.assert_allclose(back, samples(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["patch", "group"])
def test_constant_patches_become_zeros_with_finite_gradients(how):
    # Calm sea: every pixel of a band alike, and not a round number.
    sea = np.tile(np.float32(-0.7310586), (2, 4, 27))

    def error(predicted, pixels):
        target, _, _ = patches.normalize_patches(pixels, how, FAMILIES)
        return patches.hidden_error(predicted, target, HIDDEN)

    target, _, _ = patches.normalize_patches(sea, how, FAMILIES)
    # A mean that is one float off becomes 1e-4 over the deviation's floor of 1e-3.
    np.testing.assert_allclose(target, 0.0, atol=5e-4)
    loss, grads = jax.value_and_grad(error, argnums=(0, 1))(samples(), sea)
    assert np.isfinite(loss)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(InputError, match="'band'.*none.*patch.*group"):
        patches.normalize_patches(samples(), "band", FAMILIES)
