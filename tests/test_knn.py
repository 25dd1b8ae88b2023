"""Neighbours and predictions are scikit-learn's, on any number of rows."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from data_pipeline.errors import InputError
from fusmae_jax.evaluation import knn
from fusmae_jax.training import sharding


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def features(rng, n, d=12):
    # Lengths differ, so that a missing normalisation shows.
    x = rng.normal(size=(n, d)) * np.exp(rng.normal(size=(n, 1)))
    return x.astype(np.float32)


def reference(bank, queries, k):
    reason = "the reference; install the test extra"
    learn = pytest.importorskip("sklearn.neighbors", reason=reason)
    found = learn.NearestNeighbors(n_neighbors=k, metric="cosine").fit(bank)
    distance, index = found.kneighbors(queries)
    return 1 - distance, index


@pytest.mark.parametrize("count", [1, 4, 37])
@pytest.mark.parametrize("block", [2**26, 101 * 3])  # 303: three rows on each device
def test_neighbours_are_those_of_scikit_learn(monkeypatch, rng, count, block):
    monkeypatch.setattr(knn, "BLOCK", block)
    bank, queries = features(rng, 101), features(rng, count)
    similarity, index = knn.neighbours(bank, queries, 7)
    expected, places = reference(bank, queries, 7)
    np.testing.assert_array_equal(index, places)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    assert (similarity.dtype, index.dtype) == (np.float32, np.int32)


def test_predictions_are_those_of_scikit_learn(rng):
    learn = pytest.importorskip("sklearn.neighbors", reason="install the test extra")
    bank, queries = features(rng, 90), features(rng, 33)
    labels = (rng.random((90, 5)) < 0.4).astype(np.int8)
    weights = lambda distance: np.exp((1 - distance) / 0.07)
    model = learn.KNeighborsRegressor(20, metric="cosine", weights=weights)
    expected = model.fit(bank, labels).predict(queries)
    scores = knn.predict(bank, labels, queries)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.dtype == np.float32


def test_a_low_temperature_gives_the_nearest_ones_labels(rng):
    bank, labels = features(rng, 30), rng.random((30, 3)) < 0.5
    scores = knn.predict(bank, labels, 5 * bank[:9], k=6, temperature=1e-3)
    np.testing.assert_allclose(scores, labels[:9], atol=1e-3)


def test_neighbours_that_agree_give_exactly_one(rng):
    labels = np.ones((50, 2), np.int8)
    scores = knn.predict(features(rng, 50), labels, features(rng, 200), k=20)
    assert (scores == 1).all()


def test_features_of_zeros_are_similar_to_nothing(rng):
    bank, queries = features(rng, 20), features(rng, 5)
    bank[3], queries[2] = 0, 0
    similarity, index = knn.neighbours(bank, queries, 20)
    assert np.isfinite(similarity).all()
    assert (similarity[index == 3] == 0).all() and (similarity[2] == 0).all()
    np.testing.assert_array_equal(index[2], np.arange(20))  # ties: the first first
    assert np.isfinite(knn.predict(bank, np.ones((20, 1)), queries, k=20)).all()


def test_no_queries_have_no_neighbours(rng):
    similarity, index = knn.neighbours(features(rng, 9), features(rng, 0), 3)
    assert similarity.shape == index.shape == (0, 3)


def test_all_chunks_share_one_program(monkeypatch, rng):
    monkeypatch.setattr(knn, "BLOCK", 23 * 2)
    knn.compiled.cache_clear()
    for _ in range(2):
        knn.neighbours(features(rng, 23), features(rng, 19), 4)
    _, nearest = knn.compiled(sharding.make_mesh(), 4)
    assert nearest._cache_size() == 1


def test_queries_are_split_over_devices_in_full_float32_and_come_back_whole(rng):
    mesh = sharding.make_mesh()
    unit, nearest = knn.compiled(mesh, 3)
    bank = unit(knn._put(features(rng, 17), sharding.whole(mesh)))
    queries = knn._put(features(rng, 8), sharding.rows(mesh))
    lowered = nearest.lower(bank, queries)
    assert "precision = [HIGHEST, HIGHEST]" in lowered.as_text()
    program = lowered.compile()
    assert len(jax.devices()) == 4 and program.input_shardings[0][1].spec[0]
    # 8 rows: two on each device, and nowhere similarities of all of them.
    text = program.as_text()
    assert "f32[2,17]" in text and "f32[8,17]" not in text
    assert all(x.sharding.spec == P() for x in nearest(bank, queries))


@pytest.mark.parametrize("k", [0, 11])
def test_more_neighbours_than_the_bank_holds_are_refused(rng, k):
    with pytest.raises(InputError, match=f"k={k} .* 10 features"):
        knn.neighbours(features(rng, 10), features(rng, 2), k)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(rng, bad):
    bank, queries = features(rng, 10), features(rng, 4)
    queries[1, :2] = bad, -bad
    with pytest.raises(InputError, match="1 of 4 features of the queries"):
        knn.neighbours(bank, queries, 3)
    with pytest.raises(InputError, match="1 of 4 features of the bank"):
        knn.neighbours(queries, bank, 3)


def test_labels_of_another_split_are_refused(rng):
    with pytest.raises(InputError, match="12 rows of labels .* 10 features"):
        knn.predict(features(rng, 10), np.ones((12, 3)), features(rng, 2), k=2)
