"""Neighbours and predictions are scikit-learn's, retrieval a plain loop's."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from data_pipeline.errors import InputError
from fusmae_jax.evaluation import neighbours
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
    monkeypatch.setattr(neighbours, "BLOCK", block)
    bank, queries = features(rng, 101), features(rng, count)
    similarity, index = neighbours.find(bank, queries, 7)
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
    scores = neighbours.predict(bank, labels, queries)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.dtype == np.float32


def test_a_low_temperature_gives_the_nearest_ones_labels(rng):
    bank, labels = features(rng, 30), rng.random((30, 3)) < 0.5
    scores = neighbours.predict(bank, labels, 5 * bank[:9], k=6, temperature=1e-3)
    np.testing.assert_allclose(scores, labels[:9], atol=1e-3)


def test_neighbours_that_agree_give_exactly_one(rng):
    labels = np.ones((50, 2), np.int8)
    scores = neighbours.predict(features(rng, 50), labels, features(rng, 200), k=20)
    assert (scores == 1).all()


def test_features_of_zeros_are_similar_to_nothing(rng):
    bank, queries = features(rng, 20), features(rng, 5)
    bank[3], queries[2] = 0, 0
    similarity, index = neighbours.find(bank, queries, 20)
    assert np.isfinite(similarity).all()
    assert (similarity[index == 3] == 0).all() and (similarity[2] == 0).all()
    np.testing.assert_array_equal(index[2], np.arange(20))  # ties: the first first
    assert np.isfinite(neighbours.predict(bank, np.ones((20, 1)), queries, k=20)).all()


def test_no_queries_have_no_neighbours(rng):
    similarity, index = neighbours.find(features(rng, 9), features(rng, 0), 3)
    assert similarity.shape == index.shape == (0, 3)


def test_all_chunks_share_one_program(monkeypatch, rng):
    monkeypatch.setattr(neighbours, "BLOCK", 23 * 2)
    neighbours.compiled.cache_clear()
    for _ in range(2):
        neighbours.find(features(rng, 23), features(rng, 19), 4)
    _, nearest = neighbours.compiled(sharding.make_mesh(), 4)
    assert nearest._cache_size() == 1


def test_queries_are_split_over_devices_in_full_float32_and_come_back_whole(rng):
    mesh = sharding.make_mesh()
    unit, nearest = neighbours.compiled(mesh, 3)
    bank = unit(neighbours._put(features(rng, 17), sharding.whole(mesh)))
    queries = neighbours._put(features(rng, 8), sharding.rows(mesh))
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
        neighbours.find(features(rng, 10), features(rng, 2), k)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(rng, bad):
    bank, queries = features(rng, 10), features(rng, 4)
    queries[1, :2] = bad, -bad
    with pytest.raises(InputError, match="1 of 4 features of the queries"):
        neighbours.find(bank, queries, 3)
    with pytest.raises(InputError, match="1 of 4 features of the bank"):
        neighbours.find(queries, bank, 3)


def test_labels_of_another_split_are_refused(rng):
    with pytest.raises(InputError, match="12 rows of labels .* 10 features"):
        neighbours.predict(features(rng, 10), np.ones((12, 3)), features(rng, 2), k=2)


def pairs(rng, n=41, d=6, noise=0.8):
    """Features of two sensors that share something, and label sets; one is empty."""
    s1 = rng.normal(size=(n, d)).astype(np.float32)
    s2 = (s1 + noise * rng.normal(size=(n, d))).astype(np.float32)
    labels = (rng.random((n, 5)) < 0.4).astype(np.int8)
    labels[0] = 0
    return s1, s2, labels


def loop(queries, gallery, labels, k, same, groups=None):
    """Recall and F1 at k, one query after the other."""
    groups = range(len(queries)) if groups is None else groups
    sets = [set(np.flatnonzero(row)) for row in labels]
    length = np.linalg.norm
    recall, f1 = [], []
    for i, q in enumerate(queries):
        similarity = [q @ g / length(q) / length(g) for g in gallery]
        order = [
            j
            for j in np.argsort(similarity)[::-1]
            if (j == i and not same) or groups[j] != groups[i]
        ]
        recall.append(i in order[:k])
        scores = []
        for j in order[:k]:
            total = len(sets[i]) + len(sets[j])
            scores.append(2 * len(sets[i] & sets[j]) / total if total else 0.0)
        f1.append(np.mean(scores))
    return np.array(recall), np.array(f1)


@pytest.mark.parametrize("same", [False, True])
def test_scores_are_those_of_a_plain_loop(rng, same):
    s1, s2, labels = pairs(rng)
    gallery = s1 if same else s2
    ks = (1, 3, 40)
    values = neighbours.per_query(s1, gallery, labels, ks=ks, same=same)
    scores = neighbours.score_retrieval(
        s1, gallery, labels, ks=ks, same=same, resamples=20
    )
    assert set(values) == set(scores)
    assert ("recall@1" in scores) != same
    for k in ks:
        recall, f1 = loop(s1, gallery, labels, k, same)
        np.testing.assert_allclose(values[f"f1@{k}"], f1)
        assert scores[f"f1@{k}"].value == pytest.approx(f1.mean())
        if not same:
            np.testing.assert_array_equal(values[f"recall@{k}"], recall)
            assert scores[f"recall@{k}"].value == pytest.approx(recall.mean())


@pytest.mark.parametrize("same", [False, True])
def test_the_ground_of_the_query_is_neither_right_nor_wrong_at_another_date(rng, same):
    s1, s2, labels = pairs(rng)
    groups = rng.integers(12, size=len(s1))
    groups = np.unique(groups, return_inverse=True)[1]
    gallery = s1 if same else s2
    ks = (1, 3, len(s1) - np.bincount(groups).max())
    asked = dict(ks=ks, same=same, groups=groups)
    found = neighbours.score_retrieval(
        s1, gallery, labels, resamples=30, seed=4, **asked
    )
    members = [np.flatnonzero(groups == g) for g in range(max(groups) + 1)]
    for k in ks:
        recall, f1 = loop(s1, gallery, labels, k, same, groups)
        assert found[f"f1@{k}"].value == pytest.approx(f1.mean())
        for name, values in [("f1", f1)] + [("recall", recall)] * (not same):
            means = []
            for i in range(30):
                draw = np.random.default_rng((4, i)).integers(
                    len(members), size=len(members)
                )
                means.append(np.mean([values[j] for g in draw for j in members[g]]))
            ends = tuple(np.quantile(means, (0.025, 0.975)))
            assert found[f"{name}@{k}"][1:] == pytest.approx(ends)


def test_f1_of_label_sets_is_that_of_scikit_learn(rng):
    metrics = pytest.importorskip("sklearn.metrics", reason="install the test extra")
    a, b = (rng.random((2, 50, 4)) < 0.4).astype(np.int8)
    expected = metrics.f1_score(a, b, average="samples", zero_division=0)
    assert neighbours._set_f1(a, b).mean() == pytest.approx(expected)


def test_with_one_label_each_f1_is_the_precision(rng):
    s1, s2, _ = pairs(rng)
    classes = rng.integers(3, size=len(s1))
    values = neighbours.per_query(s1, s2, np.eye(3)[classes], ks=(1,), same=False)
    nearest = np.argmax(
        s1
        / np.linalg.norm(s1, axis=1, keepdims=True)
        @ (s2 / np.linalg.norm(s2, axis=1, keepdims=True)).T,
        axis=1,
    )
    np.testing.assert_array_equal(values["f1@1"], classes[nearest] == classes)


def test_the_query_is_left_out_where_many_images_are_alike():
    # All are equally similar, so that the first four others are found, which share
    # no label with the query; the fifth shares the label of those behind it.
    ones, labels = np.ones((12, 3)), np.eye(12)
    labels[5:] = labels[4]
    values = neighbours.per_query(ones, ones, labels, ks=(1, 4), same=True)
    assert all((v == 0).all() for v in values.values())


def test_collapsed_features_find_partners_no_better_than_chance():
    ones, labels = np.ones((20, 3)), np.ones((20, 2))
    values = neighbours.per_query(ones, ones, labels, ks=(1, 5), same=False)
    assert values["recall@1"].mean() == 1 / 20
    assert values["recall@5"].mean() == 5 / 20


def test_centering_finds_partners_in_cones_apart(rng):
    s1, _, labels = pairs(rng, n=60, d=20)
    # The two sensors say the same, each around a large mean of its own.
    s1, s2 = s1 + 30 * rng.normal(size=(2, 1, 20)).astype(np.float32)
    kw = dict(ks=(1,), same=False, resamples=0)
    plain = neighbours.score_retrieval(s1, s2, labels, **kw)["recall@1"].value
    centered = neighbours.score_retrieval(s1, s2, labels, center=True, **kw)[
        "recall@1"
    ].value
    assert plain < 0.5 and centered == 1.0


def test_intervals_are_those_of_a_mean(rng):
    s1, s2, labels = pairs(rng, n=300)
    score = neighbours.score_retrieval(s1, s2, labels, ks=(5,), same=False)
    for name, values in neighbours.per_query(
        s1, s2, labels, ks=(5,), same=False
    ).items():
        half = 1.96 * values.std() / np.sqrt(300)
        value, low, high = score[name]
        assert low == pytest.approx(value - half, abs=0.2 * half)
        assert high == pytest.approx(value + half, abs=0.2 * half)


@pytest.mark.parametrize("same", [False, True])
def test_there_must_be_more_pairs_than_are_retrieved(rng, same):
    s1, s2, labels = pairs(rng, n=10)
    neighbours.per_query(s1, s2, labels, ks=(9,), same=same)
    with pytest.raises(InputError, match="Retrieving 10 .* of 10 there may be no more"):
        neighbours.score_retrieval(s1, s2, labels, ks=(1, 10), same=same)


def test_sides_of_different_pairs_are_refused(rng):
    s1, s2, labels = pairs(rng)
    with pytest.raises(InputError, match="41 queries, 40 .* 41 rows"):
        neighbours.score_retrieval(s1, s2[1:], labels, same=False)


def test_without_classes_partners_alone_are_looked_for(rng):
    s1, s2 = rng.normal(size=(2, 20, 4)).astype(np.float32)
    asked = dict(ks=(1, 3), same=False, resamples=0)
    labelled = neighbours.score_retrieval(s1, s2, np.ones((20, 2)), **asked)
    found = neighbours.score_retrieval(s1, s2, np.zeros((20, 0)), **asked)
    assert set(found) == {"recall@1", "recall@3"}
    assert all(found[name].value == labelled[name].value for name in found)
