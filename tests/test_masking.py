"""Masking: how much is hidden, for whom, and that it can be undone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import InputError
from fusmae_jax import masking


def masks(key, mode, batch=8, num_patches=64, num_keep=16):
    noise = masking.draw_noise(key, batch, num_patches, mode)
    return {s: masking.mask_from_noise(noise[s], num_keep) for s in noise}


@pytest.mark.parametrize("num_keep", [1, 16, 63])
def test_keeps_exactly_num_keep_patches_of_every_sample(key, num_keep):
    mask = masks(key, "independent", num_keep=num_keep)["s1"]
    np.testing.assert_array_equal(mask.hidden.sum(axis=1), 64 - num_keep)
    assert mask.keep.shape == (8, num_keep)


def test_three_quarters_of_196_patches_leave_49():
    assert masking.num_visible(196, 0.75) == 49


def test_samples_are_masked_independently(key):
    mask = masks(key, "independent")["s1"]
    assert len({tuple(row) for row in np.asarray(mask.hidden)}) == 8


def test_independent_masks_differ_between_sensors(key):
    drawn = masks(key, "independent")
    assert (drawn["s1"].hidden != drawn["s2"].hidden).any(axis=1).all()


def test_consistent_masks_are_equal(key):
    drawn = masks(key, "consistent")
    jax.tree.map(np.testing.assert_array_equal, drawn["s1"], drawn["s2"])


def test_every_patch_is_hidden_as_often_as_any_other(key):
    hidden = masks(key, "independent", batch=4096, num_patches=16, num_keep=4)
    share = np.asarray(hidden["s2"].hidden.mean(axis=0))
    np.testing.assert_allclose(share, 0.75, atol=0.03)  # over 4 standard errors


def test_restore_puts_each_visible_token_back_in_its_place(key):
    tokens = jnp.arange(2 * 9 * 1.0).reshape(2, 9, 1)
    mask = masks(key, "independent", batch=2, num_patches=9, num_keep=4)["s1"]
    seen = masking.take(tokens, mask.keep)
    back = masking.restore_tokens(seen, jnp.full((1,), -1.0), mask)
    want = jnp.where(mask.hidden[..., None] == 1, -1.0, tokens)
    np.testing.assert_array_equal(back, want)


def test_the_hidden_share_is_not_cut_short_by_rounding():
    assert masking.num_visible(100, 0.29) == 71  # 100 * 0.29 is 28.999...


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, -1.0])
def test_a_ratio_that_hides_all_or_nothing_is_refused(ratio):
    with pytest.raises(InputError, match=str(ratio)):
        masking.num_visible(16, ratio)


def test_an_unknown_mode_is_refused(key):
    with pytest.raises(InputError, match="'checkerboard'"):
        masking.draw_noise(key, 1, 4, "checkerboard")
