"""Baselines: what can be said of a hidden patch without learning anything."""

import numpy as np
import pytest

from fusmae_jax import patches, reconstruct

# A 3 x 3 grid of patches of 2 x 2 pixels; the middle one and a corner are hidden.
HIDDEN = np.array([0, 0, 0, 0, 1, 0, 0, 0, 1], bool)


def image(seed=0, side=6, bands=2):
    return np.random.default_rng(seed).normal(size=(side, side, bands))


def split(image, size=2):
    return np.asarray(patches.patchify(image[None].astype(np.float32), size)[0])


def join(x, size=2):
    return np.asarray(patches.unpatchify(x[None], size)[0])


@pytest.mark.parametrize("predict", reconstruct.PREDICTORS.values())
def test_visible_patches_stay_and_hidden_ones_are_not_looked_at(predict):
    x = split(image())
    spoilt = np.where(HIDDEN[:, None], np.nan, x)
    got = predict(spoilt, HIDDEN, 2)
    np.testing.assert_array_equal(got[~HIDDEN], x[~HIDDEN])
    assert np.isfinite(got).all()
    assert got.shape == x.shape


def test_the_mean_is_each_bands_over_visible_pixels():
    x = split(image())
    got = reconstruct.visible_mean(x, HIDDEN, 2)
    want = x[~HIDDEN].reshape(-1, 2).mean(axis=0)
    np.testing.assert_allclose(got[HIDDEN], np.tile(want, (2, 4)), rtol=1e-5)


def test_the_nearest_visible_patch_is_copied_whole():
    x = split(image())
    hidden = np.ones(9, bool)
    hidden[[2, 6]] = False  # the upper right corner and the lower left one
    got = reconstruct.nearest_patch(x, hidden, 2)
    for place, source in {1: 2, 5: 2, 3: 6, 7: 6}.items():
        np.testing.assert_array_equal(got[place], x[source])


def test_inverse_distance_weighs_the_twelve_nearest_pixels_by_distance_squared():
    # Irregular holes, as ties between equally near pixels leave the twelfth open.
    x = split(image(side=8))
    hidden = np.random.default_rng(3).random(16) < 0.6
    got = join(reconstruct.inverse_distance(x, hidden, 2))
    seen = join(np.where(hidden[:, None], np.nan, x))
    visible = np.argwhere(np.isfinite(seen[..., 0]))
    checked = 0
    for place in np.argwhere(np.isnan(seen[..., 0])):
        distance = np.linalg.norm(visible - place, axis=1)
        nearest = np.argsort(distance)
        if distance[nearest[11]] == distance[nearest[12]]:
            continue
        near = visible[nearest[:12]]
        values = seen[near[:, 0], near[:, 1]]
        want = np.average(values, axis=0, weights=distance[nearest[:12]] ** -2.0)
        np.testing.assert_allclose(got[tuple(place)], want, rtol=1e-4, atol=1e-6)
        checked += 1
    assert checked > 3


def test_inverse_distance_makes_do_with_fewer_visible_pixels():
    x = split(image())
    hidden = np.ones(9, bool)
    hidden[4] = False
    got = join(reconstruct.inverse_distance(x, hidden, 2))
    middle = np.argwhere(np.ones((2, 2))) + 2
    distance = np.linalg.norm(middle - (0, 0), axis=1)
    values = join(x)[middle[:, 0], middle[:, 1]]
    want = np.average(values, axis=0, weights=distance**-2.0)
    np.testing.assert_allclose(got[0, 0], want, rtol=1e-4)


def test_a_ramp_is_filled_better_by_its_neighbours_than_by_its_mean():
    ramp = np.arange(16.0)[:, None, None] + np.zeros((16, 16, 1))
    x = split(ramp, 4)
    hidden = np.zeros(16, bool)
    hidden[[1, 6, 11, 12]] = True

    def error(predict):
        return np.square(predict(x, hidden, 4) - x)[hidden].mean()

    mean, nearest, inverse = (
        error(reconstruct.PREDICTORS[name])
        for name in (
            "mean of visible pixels",
            "nearest visible patch",
            "inverse distance",
        )
    )
    assert inverse < 0.2 * mean
    assert inverse < nearest
