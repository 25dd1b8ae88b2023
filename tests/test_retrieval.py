"""Retrieval scores are those of a plain loop over queries."""

import numpy as np
import pytest

from data_pipeline.errors import InputError
from fusmae_jax.evaluation import retrieval


@pytest.fixture
def rng():
    return np.random.default_rng(0)


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
    values = retrieval.per_query(s1, gallery, labels, ks=ks, same=same)
    scores = retrieval.score(s1, gallery, labels, ks=ks, same=same, resamples=20)
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
    found = retrieval.score(s1, gallery, labels, resamples=30, seed=4, **asked)
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
    assert retrieval._set_f1(a, b).mean() == pytest.approx(expected)


def test_with_one_label_each_f1_is_the_precision(rng):
    s1, s2, _ = pairs(rng)
    classes = rng.integers(3, size=len(s1))
    values = retrieval.per_query(s1, s2, np.eye(3)[classes], ks=(1,), same=False)
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
    values = retrieval.per_query(ones, ones, labels, ks=(1, 4), same=True)
    assert all((v == 0).all() for v in values.values())


def test_collapsed_features_find_partners_no_better_than_chance():
    ones, labels = np.ones((20, 3)), np.ones((20, 2))
    values = retrieval.per_query(ones, ones, labels, ks=(1, 5), same=False)
    assert values["recall@1"].mean() == 1 / 20
    assert values["recall@5"].mean() == 5 / 20


def test_centering_finds_partners_in_cones_apart(rng):
    s1, _, labels = pairs(rng, n=60, d=20)
    # The two sensors say the same, each around a large mean of its own.
    s1, s2 = s1 + 30 * rng.normal(size=(2, 1, 20)).astype(np.float32)
    kw = dict(ks=(1,), same=False, resamples=0)
    plain = retrieval.score(s1, s2, labels, **kw)["recall@1"].value
    centered = retrieval.score(s1, s2, labels, center=True, **kw)["recall@1"].value
    assert plain < 0.5 and centered == 1.0


def test_intervals_are_those_of_a_mean(rng):
    s1, s2, labels = pairs(rng, n=300)
    score = retrieval.score(s1, s2, labels, ks=(5,), same=False)
    for name, values in retrieval.per_query(
        s1, s2, labels, ks=(5,), same=False
    ).items():
        half = 1.96 * values.std() / np.sqrt(300)
        value, low, high = score[name]
        assert low == pytest.approx(value - half, abs=0.2 * half)
        assert high == pytest.approx(value + half, abs=0.2 * half)


@pytest.mark.parametrize("same", [False, True])
def test_there_must_be_more_pairs_than_are_retrieved(rng, same):
    s1, s2, labels = pairs(rng, n=10)
    retrieval.per_query(s1, s2, labels, ks=(9,), same=same)
    with pytest.raises(InputError, match="Retrieving 10 .* of 10 there may be no more"):
        retrieval.score(s1, s2, labels, ks=(1, 10), same=same)


def test_sides_of_different_pairs_are_refused(rng):
    s1, s2, labels = pairs(rng)
    with pytest.raises(InputError, match="41 queries, 40 .* 41 rows"):
        retrieval.score(s1, s2[1:], labels, same=False)
