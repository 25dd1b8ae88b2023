"""Patches: cut, put back, and coded by place."""

import jax
import numpy as np
import pytest

from data_pipeline.errors import InputError
from fusmae_jax import patches


def test_unpatchify_is_the_inverse_of_patchify(key):
    images = jax.random.normal(key, (2, 12, 12, 3))
    cut = patches.patchify(images, 4)
    assert cut.shape == (2, 9, 48)
    np.testing.assert_array_equal(patches.unpatchify(cut, 4), images)


def test_patches_are_row_major_and_keep_their_pixels():
    image = np.arange(36.0).reshape(1, 6, 6, 1)
    cut = np.asarray(patches.patchify(image, 3))
    np.testing.assert_array_equal(cut[0, 1], image[0, :3, 3:, 0].ravel())
    np.testing.assert_array_equal(cut[0, 2], image[0, 3:, :3, 0].ravel())


def test_an_image_that_is_not_whole_patches_is_refused_with_the_numbers():
    with pytest.raises(InputError, match="112 .* patches of 15"):
        patches.grid_side(112, 15)


def test_positions_are_distinct_and_near_ones_are_alike():
    code = patches.sincos_2d(8, 64)
    assert len({tuple(row) for row in code}) == 64
    likeness = code @ code[0]
    assert likeness[0] > likeness[1] > likeness[3]
    np.testing.assert_allclose(likeness[1], likeness[8], rtol=1e-5)  # down as across


def test_a_width_that_cannot_carry_positions_is_refused():
    with pytest.raises(InputError, match="Width 30"):
        patches.sincos_2d(4, 30)
