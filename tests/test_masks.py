"""Masking: how much is hidden, for whom, and that it can be undone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import InputError
from fusmae_jax import patches


def masks(key, mode, batch=8, num_patches=64, num_keep=16):
    noise = patches.draw_noise(key, batch, num_patches, mode)
    return {s: patches.mask_from_noise(noise[s], num_keep) for s in noise}


@pytest.mark.parametrize("num_keep", [1, 16, 63])
def test_keeps_exactly_num_keep_patches_of_every_sample(key, num_keep):
    mask = masks(key, "independent", num_keep=num_keep)["s1"]
    assert mask.visible.shape == (8, num_keep)
    assert mask.hidden.shape == (8, 64 - num_keep)
    np.testing.assert_array_equal(np.sort(mask.order, axis=1), [np.arange(64)] * 8)


def test_three_quarters_of_196_patches_leave_49():
    assert patches.num_visible(196, 0.75) == 49


def test_samples_are_masked_independently(key):
    mask = masks(key, "independent")["s1"]
    assert len({frozenset(row.tolist()) for row in np.asarray(mask.hidden)}) == 8


def test_independent_masks_differ_between_sensors(key):
    drawn = masks(key, "independent")
    places = {s: np.sort(drawn[s].hidden, axis=1) for s in drawn}
    assert (places["s1"] != places["s2"]).any(axis=1).all()


def test_consistent_masks_are_equal(key):
    drawn = masks(key, "consistent")
    jax.tree.map(np.testing.assert_array_equal, drawn["s1"], drawn["s2"])


def test_every_patch_is_hidden_as_often_as_any_other(key):
    drawn = masks(key, "independent", batch=4096, num_patches=16, num_keep=4)
    share = np.bincount(np.ravel(drawn["s2"].hidden)) / 4096
    np.testing.assert_allclose(share, 0.75, atol=0.03)  # over 4 standard errors


@pytest.mark.parametrize("shape", [(2, 9), (2, 9, 3)])
def test_put_back_brings_each_token_to_its_place(key, shape):
    tokens = jnp.arange(1.0 * np.prod(shape)).reshape(shape)
    mask = masks(key, "independent", batch=2, num_patches=9, num_keep=4)["s1"]
    shuffled = patches.take(tokens, mask.order)
    assert (shuffled != tokens).any()
    np.testing.assert_array_equal(patches.put_back(shuffled, mask), tokens)


def test_the_hidden_share_is_not_cut_short_by_rounding():
    assert patches.num_visible(100, 0.29) == 71  # 100 * 0.29 is 28.999...


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, -1.0])
def test_a_ratio_that_hides_all_or_nothing_is_refused(ratio):
    with pytest.raises(InputError, match=str(ratio)):
        patches.num_visible(16, ratio)


def test_an_unknown_mode_is_refused(key):
    with pytest.raises(InputError, match="'checkerboard'"):
        patches.draw_noise(key, 1, 4, "checkerboard")
