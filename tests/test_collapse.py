"""Collapse is measured as NumPy measures it, and healthy features raise no alarm."""

import numpy as np
import pytest

from fusmae_jax.evaluation import monitor


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (64, 64)])
def test_the_rank_is_the_entropy_of_singular_values_around_the_mean(rng, shape):
    stats = pytest.importorskip("scipy.stats")
    x = rng.normal(size=shape) * np.exp(rng.normal(size=shape[1])) + 5
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    expected = np.exp(stats.entropy(values))
    assert monitor.effective_rank(x.astype(np.float32)) == pytest.approx(expected)


def test_as_many_equal_directions_have_that_rank():
    steps = np.eye(7, 30)
    x = np.concatenate([steps, -steps]).astype(np.float32)
    assert monitor.effective_rank(x + 100) == pytest.approx(7)


def test_a_large_common_mean_leaves_the_rank_as_it_is(rng):
    x = rng.normal(size=(200, 20))
    moved = monitor.effective_rank(x + 1000 * rng.normal(size=(1, 20)))
    assert moved == pytest.approx(monitor.effective_rank(x))


def test_the_deviation_is_near_one_for_noise_of_any_scale(rng):
    for scale in (1e-6, 1.0, 1e6):
        x = (scale * rng.normal(size=(2000, 64))).astype(np.float32)
        assert monitor.feature_std(x) == pytest.approx(1, abs=0.01)


def test_the_deviation_is_that_of_features_of_length_one(rng):
    x = rng.normal(size=(100, 8)) * np.exp(rng.normal(size=(100, 1))) + 2
    unit = np.stack([row / np.linalg.norm(row) for row in x])
    expected = np.mean([np.std(column) for column in unit.T]) * np.sqrt(8)
    assert monitor.feature_std(x) == pytest.approx(expected)


@pytest.mark.parametrize("n, value", [(50, 0.3), (50, 0.0), (1, 1.0)])
def test_constant_features_have_neither_deviation_nor_rank(n, value):
    x = np.full((n, 8), value, np.float32)
    assert monitor.feature_std(x) == pytest.approx(0, abs=1e-6)
    assert monitor.effective_rank(x) == 0


def test_many_features_are_thinned_out_evenly(monkeypatch, rng):
    x = rng.normal(size=(103, 5))
    monkeypatch.setattr(monitor, "MOST", 50)
    thinned = monitor.effective_rank(x), monitor.feature_std(x)
    monkeypatch.undo()
    assert thinned == (monitor.effective_rank(x[::3]), monitor.feature_std(x[::3]))


def clusters(rng, n, d, count, noise):
    centers = rng.normal(size=(count, d))
    return centers[np.arange(n) % count] + noise * rng.normal(size=(n, d))


def power_law(rng, n, d, exponent):
    return rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -float(exponent)


def cone(rng, n, d, mean):
    return rng.normal(size=(n, d)) / np.sqrt(d) + mean * np.eye(1, d)


@pytest.mark.parametrize("n, d", [(17, 96), (400, 96), (300, 768), (400, 1536)])
def test_healthy_features_raise_no_alarm(rng, n, d):
    healthy = {
        "noise": rng.normal(size=(n, d)),
        "a narrow cone": cone(rng, n, d, 30),
        "ten classes": clusters(rng, n, d, 10, 0.1),
        "ten classes without variation": clusters(rng, n, d, 10, 0),
        "a steep spectrum": power_law(rng, n, d, 1),
    }
    for name, x in healthy.items():
        assert monitor.alarm(x.astype(np.float32)) is None, name


def test_ten_points_raise_no_alarm_even_in_many_directions(rng):
    x = clusters(rng, 3000, 1536, 10, 0).astype(np.float32)
    assert monitor.alarm(x) is None


@pytest.mark.parametrize("n, d", [(20, 96), (400, 96), (300, 768)])
def test_one_point_is_a_collapse(rng, n, d):
    point = rng.normal(size=(1, d))
    for noise in (0, 1e-6, 1e-3):
        said = monitor.alarm((point + noise * rng.normal(size=(n, d))).astype("f"))
        assert f"{n} images have collapsed to nearly one point" in said
        assert "standard deviation is" in said
    assert "nearly one point" in monitor.alarm(np.zeros((n, d), np.float32))


@pytest.mark.parametrize("n, d", [(20, 96), (400, 96), (300, 768)])
def test_one_line_is_a_collapse(rng, n, d):
    line = 1000 * np.sqrt(d) * rng.normal(size=(n, 1)) * np.eye(1, d)
    said = monitor.alarm((line + rng.normal(size=(n, d))).astype(np.float32))
    assert "few directions" in said and "effective rank is 1." in said
    assert f" of {min(n - 1, d)}," in said


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_raise_the_alarm(rng, bad):
    x = rng.normal(size=(6, 5))
    x[2, 1], x[4, :2] = bad, (bad, -bad)
    said = monitor.alarm(x, "Features of S1")
    assert said.startswith("Features of S1 are not finite for 2 of 6 images")
    assert np.isnan(monitor.effective_rank(x)) and np.isnan(monitor.feature_std(x))


@pytest.mark.parametrize("n", [0, 1, 2, 15])
def test_too_few_features_raise_no_alarm(n):
    assert monitor.alarm(np.ones((n, 4), np.float32)) is None
