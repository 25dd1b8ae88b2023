"""Scores of a split and their bootstrap intervals, against scikit-learn."""

import math
import os
import threading
import time
import warnings

import numpy as np
import pytest

from data_pipeline.errors import InputError
from fusmae_jax.evaluation import average_precision as ranking
from fusmae_jax.evaluation import bootstrap, scores

NAN = float("nan")


@pytest.fixture
def sk():
    return pytest.importorskip("sklearn.metrics", reason="pip install scikit-learn")


def split(count=60, classes=4, *, seed=0, digits=None, dtype=np.float64):
    """Labels of rising frequency and probabilities that follow them, [N, C]."""
    rng = np.random.default_rng(seed)
    labels = rng.random((count, classes)) < np.linspace(0.1, 0.7, classes)[None]
    logits = rng.normal(size=labels.shape) + 1.5 * labels - 0.75
    p = 1 / (1 + np.exp(-logits))
    return (p if digits is None else p.round(digits)).astype(dtype), labels.astype(int)


def one_hot(classes, count=5):
    return np.eye(count, dtype=int)[np.asarray(classes)]


def values(found):
    return {name: score.value for name, score in found.overall.items()}


def adversarial():
    p, t = split()
    yield "random", p, t
    yield "float32", *split(seed=1, dtype=np.float32)
    yield "many ties", *split(seed=2, digits=1)
    yield "two values", *split(seed=3, digits=0)
    yield "constant", np.full(p.shape, 0.5), t
    yield "perfect", t * 0.8 + 0.1, t
    yield "inverted", 0.9 - t * 0.8, t
    yield "signed zeros", np.where(p < 0.3, -0.0, np.where(p < 0.6, 0.0, p)), t
    yield "absent class", p, t * [1, 0, 1, 1]
    yield "only the absent are predicted", p * [0, 1, 0, 0], t * [1, 0, 1, 1]
    yield "class always present", p, np.maximum(t, [0, 0, 1, 0])
    yield "all positive", p, np.ones_like(t)
    yield "one sample", p[:1], np.array([[1, 0, 0, 1]])
    yield "one class", p[:, :1], t[:, :1]
    yield "one entry", p[:1, :1], np.array([[1]])
    yield "one positive", p, np.eye(*t.shape, dtype=int) * [1, 0, 0, 0]


CASES = [pytest.param(p, t, id=name) for name, p, t in adversarial()]


@pytest.mark.parametrize("p, t", CASES)
def test_multi_label_scores_are_those_of_scikit_learn(sk, p, t):
    found = scores.multi_label(p, t, resamples=0)
    occurs = t.any(axis=0)
    ap = np.full(t.shape[1], NAN)
    ap[occurs] = [
        sk.average_precision_score(t[:, c], p[:, c]) for c in np.flatnonzero(occurs)
    ]
    # Several classes of scikit-learn are columns; a single one is a plain vector.
    f1 = [sk.f1_score(a, b, zero_division=NAN) for a, b in zip(t.T, p.T > 0.5)]
    expected = {
        "map_micro": sk.average_precision_score(t.ravel(), p.ravel()),
        "map_macro": ap[occurs].mean(),
        "f1_micro": sk.f1_score(t.ravel(), p.ravel() > 0.5, zero_division=NAN),
        "f1_macro": np.nanmean(f1),
    }
    assert values(found) == pytest.approx(expected, abs=1e-12)
    if t.shape[1] > 1:
        assert values(found)["f1_macro"] == pytest.approx(
            sk.f1_score(t, p > 0.5, average="macro", zero_division=NAN)
        )
        assert expected["map_macro"] == pytest.approx(
            sk.average_precision_score(t[:, occurs], p[:, occurs], average="macro")
        )
    assert [s.value for s in found.per_class["ap"]] == pytest.approx(ap, nan_ok=True)
    assert [s.value for s in found.per_class["f1"]] == pytest.approx(f1, nan_ok=True)
    assert found.confusion is None


@pytest.mark.parametrize("p, t", CASES)
def test_average_precision_is_the_same_with_and_without_intervals(p, t):
    micro, per_class = scores.average_precision(p, t)
    found = scores.multi_label(p, t, resamples=0)
    assert micro == pytest.approx(found.overall["map_micro"].value)
    of_class = [s.value for s in found.per_class["ap"]]
    assert per_class == pytest.approx(of_class, nan_ok=True)


def test_average_precision_takes_scores_of_any_scale():
    p, t = split()
    logits = np.log(p / (1 - p))
    micro, per_class = scores.average_precision(50 * logits, t)
    assert micro == pytest.approx(scores.average_precision(p, t)[0])
    assert per_class.shape == (4,)


def test_without_any_positive_everything_is_nan_and_silent():
    p, t = split()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores.multi_label(p * 0.5, 0 * t, resamples=20)
        micro, per_class = scores.average_precision(p, 0 * t)
    assert all(math.isnan(x) for s in found.overall.values() for x in s)
    assert math.isnan(micro) and np.isnan(per_class).all()


def test_a_class_that_is_only_predicted_costs_f1_but_not_average_precision():
    p, t = split()
    t[:, 0] = 0
    wrong, silent = p.copy(), p.copy()
    wrong[:, 0], silent[:, 0] = 0.9, 0.1
    wrong, silent = (scores.multi_label(x, t, resamples=0) for x in (wrong, silent))
    assert wrong.per_class["f1"][0].value == 0
    assert math.isnan(silent.per_class["f1"][0].value)
    assert values(wrong)["f1_macro"] == pytest.approx(
        values(silent)["f1_macro"] * 3 / 4
    )
    assert values(wrong)["map_macro"] == values(silent)["map_macro"]


def test_per_batch_scores_average_the_batches_and_the_last_one_too(sk):
    p, t = split(150)
    found = scores.multi_label(p, t, resamples=50, per_batch=64)
    expected = np.mean(
        [
            sk.average_precision_score(t[part], p[part], average="micro")
            for part in (slice(0, 64), slice(64, 128), slice(128, 150))
        ]
    )
    score = found.overall["map_micro_per_batch"]
    assert score.value == pytest.approx(expected)
    assert score.low < score.value < score.high
    t[128:] = 0  # scikit-learn warns and says 0
    found = scores.multi_label(p, t, resamples=0, per_batch=64)
    with pytest.warns(UserWarning, match="No positive class"):
        expected = np.mean(
            [
                sk.average_precision_score(t[part], p[part], average="micro")
                for part in (slice(0, 64), slice(64, 128), slice(128, 150))
            ]
        )
    assert values(found)["map_micro_per_batch"] == pytest.approx(expected)


def single_label_cases():
    rng = np.random.default_rng(0)
    p, t = rng.normal(size=(80, 5)), rng.integers(5, size=80)
    p[np.arange(80), t] += 1
    yield "random", p, t
    yield "many ties", p.round(), t
    yield "constant", 0 * p, t
    yield "perfect", one_hot(t), t
    yield "absent class", p, np.where(t == 2, 1, t)
    yield "neither there nor predicted", p - [0, 0, 99, 0, 0], np.where(t == 2, 1, t)
    yield "one class in the labels", p, 0 * t + 3
    yield "one sample, right", one_hot([1]), np.array([1])
    yield "one sample, wrong", one_hot([1]), np.array([2])


@pytest.mark.parametrize(
    "p, t", [pytest.param(p, t, id=name) for name, p, t in single_label_cases()]
)
def test_single_label_scores_are_those_of_scikit_learn(sk, p, t):
    found = scores.single_label(p, one_hot(t), resamples=0)
    predicted = p.argmax(axis=1)
    present = np.unique(t)
    recall = np.full(5, NAN)
    recall[present] = sk.recall_score(
        t, predicted, labels=present, average=None, zero_division=NAN
    )
    expected = {
        "oa": sk.accuracy_score(t, predicted),
        "aa": recall[present].mean(),
        "f1_macro": sk.f1_score(t, predicted, average="macro"),
    }
    assert values(found) == pytest.approx(expected)
    if set(predicted) <= set(t):  # or scikit-learn warns
        if len(present) > 1:
            balanced = sk.balanced_accuracy_score(t, predicted)
            assert values(found)["aa"] == pytest.approx(balanced)
    of_class = [s.value for s in found.per_class["recall"]]
    assert of_class == pytest.approx(recall, nan_ok=True)
    confusion = sk.confusion_matrix(t, predicted, labels=range(5))
    assert found.confusion.dtype == np.int64
    assert np.array_equal(found.confusion, confusion)


def maps(scenes=6, classes=4, *, seed=0):
    """True and predicted pixels [N, P] and their confusion matrices [N, C, C]."""
    rng = np.random.default_rng(seed)
    true = rng.integers(classes, size=(scenes, 50))
    other = rng.integers(classes, size=true.shape)
    predicted = np.where(rng.random(true.shape) < 0.6, true, other)
    return true, predicted, confusions(true, predicted, classes)


def confusions(true, predicted, classes):
    found = np.zeros((len(true), classes, classes), int)
    scene = np.broadcast_to(np.arange(len(true))[:, None], true.shape)
    np.add.at(found, (scene, true, predicted), 1)
    return found


@pytest.mark.parametrize("absent", ["none", "in labels", "in both"])
def test_segmentation_scores_are_those_of_scikit_learn(sk, absent):
    true, predicted, _ = maps()
    if absent != "none":
        true = np.where(true == 1, 0, true)
    if absent == "in both":
        predicted = np.where(predicted == 1, 0, predicted)
    counts = confusions(true, predicted, 4)
    found = scores.segmentation(counts, resamples=0)
    a, b = true.ravel(), predicted.ravel()
    present = np.unique(a)
    expected = {
        "miou": sk.jaccard_score(a, b, average="macro"),
        "oa": sk.accuracy_score(a, b),
        "aa": sk.recall_score(a, b, labels=present, average="macro", zero_division=NAN),
        "f1_macro": sk.f1_score(a, b, average="macro"),
    }
    assert values(found) == pytest.approx(expected)
    iou = [s.value for s in found.per_class["iou"]]
    of_class = sk.jaccard_score(a, b, average=None)
    if absent == "in both":
        of_class = np.insert(of_class, 1, NAN)
    assert iou == pytest.approx(of_class, nan_ok=True)
    assert np.array_equal(found.confusion, counts.sum(axis=0))


def test_pixel_counts_beyond_32_bits_are_summed_exactly():
    found = scores.segmentation(np.full((3, 2, 2), 2**31), resamples=20)
    assert found.confusion.tolist() == [[3 * 2**31] * 2] * 2
    assert found.overall["oa"] == pytest.approx((0.5, 0.5, 0.5))


def agree(found, statistic, count, *, resamples, seed, groups=None):
    """Whether intervals are percentiles of `statistic` over rows really repeated."""
    groups = np.arange(count) if groups is None else groups
    members = [np.flatnonzero(groups == g) for g in range(max(groups) + 1)]
    rows = []
    for i in range(resamples):
        rng = np.random.default_rng((seed, i))
        drawn = rng.integers(len(members), size=len(members))
        rows.append(statistic(np.concatenate([members[g] for g in drawn])))
    for name in rows[0]:
        ends = np.nanquantile([row[name] for row in rows], (0.025, 0.975))
        assert found[name][1:] == pytest.approx(tuple(ends)), name


@pytest.mark.parametrize("block", [3, 4096])
@pytest.mark.parametrize("digits", [None, 1])
def test_multi_label_intervals_are_those_of_repeated_rows(
    sk, monkeypatch, block, digits
):
    monkeypatch.setattr(ranking, "BLOCK", block)
    p, t = split(30, 3, digits=digits)
    t[:, 0] = 0
    t[4, 0] = t[9, 0] = 1  # absent from about one resample in seven
    found = scores.multi_label(p, t, resamples=40, seed=7)

    def statistic(rows):
        a, b = t[rows], p[rows]
        present = a.any(axis=0)
        return {
            "map_micro": sk.average_precision_score(a, b, average="micro"),
            "map_macro": sk.average_precision_score(a[:, present], b[:, present]),
            "f1_micro": sk.f1_score(a, b > 0.5, average="micro"),
            "f1_macro": sk.f1_score(a, b > 0.5, average="macro", zero_division=NAN),
            "class 0": (
                sk.average_precision_score(a[:, 0], b[:, 0]) if present[0] else NAN
            ),
        }

    found = found.overall | {"class 0": found.per_class["ap"][0]}
    agree(found, statistic, 30, resamples=40, seed=7)


def test_single_label_intervals_are_those_of_repeated_rows(sk):
    rng = np.random.default_rng(1)
    p, t = rng.normal(size=(40, 5)), rng.integers(5, size=40)
    p[np.arange(40), t] += 1
    found = scores.single_label(p, one_hot(t), resamples=40, seed=3)

    def statistic(rows):
        a, b = t[rows], p[rows].argmax(axis=1)
        return {
            "oa": sk.accuracy_score(a, b),
            "aa": sk.recall_score(
                a, b, labels=np.unique(a), average="macro", zero_division=NAN
            ),
            "f1_macro": sk.f1_score(a, b, average="macro"),
        }

    agree(found.overall, statistic, 40, resamples=40, seed=3)


def test_segmentation_intervals_resample_scenes(sk):
    true, predicted, counts = maps()
    found = scores.segmentation(counts, resamples=40, seed=5)

    def statistic(rows):
        a, b = true[rows].ravel(), predicted[rows].ravel()
        return {
            "miou": sk.jaccard_score(a, b, average="macro"),
            "oa": sk.accuracy_score(a, b),
        }

    agree(found.overall, statistic, 6, resamples=40, seed=5)


def grouped(count, groups, seed=0):
    """Which of `groups` groups each of `count` samples is in, none of them empty."""
    rng = np.random.default_rng(seed)
    return rng.permutation(
        np.concatenate([np.arange(groups), rng.integers(groups, size=count - groups)])
    )


def test_groups_of_samples_are_drawn_whole():
    p, t = split(90, 3)
    groups = grouped(90, 25)
    options = dict(resamples=40, seed=7, groups=groups)
    found = scores.multi_label(p, t, per_batch=32, **options)
    average = scores.average_precision

    def multi_label(rows):
        micro, ap = average(p[rows], t[rows])
        hit = (p[rows] > 0.5) & (t[rows] == 1)
        total = (p[rows] > 0.5).sum() + t[rows].sum()
        return {
            "map_micro": micro,
            "map_macro": np.nanmean(ap),
            "f1_micro": 2 * hit.sum() / total,
            "class 1": ap[1],
        }

    both = found.overall | {"class 1": found.per_class["ap"][1]}
    agree(both, multi_label, 90, **options)

    def by_batch(rows):
        parts = [rows[(rows >= i) & (rows < i + 32)] for i in (0, 32, 64)]
        return np.mean([np.nan_to_num(average(p[r], t[r])[0]) for r in parts])

    # Of batches the resamples score more than the split; their interval lies around it.
    members = [np.flatnonzero(groups == g) for g in range(25)]
    drawn = [np.random.default_rng((7, i)).integers(25, size=25) for i in range(40)]
    means = [by_batch(np.concatenate([members[g] for g in d])) for d in drawn]
    score = found.overall["map_micro_per_batch"]
    ends = np.quantile(means, (0.025, 0.975)) - np.mean(means) + score.value
    assert score.value == pytest.approx(by_batch(np.arange(90)))
    assert score[1:] == pytest.approx(tuple(ends))

    classes = t.argmax(axis=1)
    found = scores.single_label(p, one_hot(classes, 3), **options)
    right = p.argmax(axis=1) == classes
    agree(found.overall, lambda rows: {"oa": right[rows].mean()}, 90, **options)

    _, _, counts = maps(90)
    found = scores.segmentation(counts, **options)
    correct = np.einsum("ncc->n", counts)
    pixels = counts.sum(axis=(1, 2))
    share = lambda rows: {"oa": correct[rows].sum() / pixels[rows].sum()}
    agree(found.overall, share, 90, **options)


def test_samples_of_one_group_have_no_interval():
    p, t = split(20)
    found = scores.multi_label(
        p, t, resamples=20, groups=np.zeros(20, int), per_batch=8
    )
    assert all(math.isnan(s.low) and math.isnan(s.high) for s in found.overall.values())


def test_intervals_of_samples_that_come_in_groups_hold_the_truth():
    """Three images of the same ground tell hardly more than one."""
    groups = np.repeat(np.arange(120), 3)

    def oa(seed, **options):
        rng = np.random.default_rng(seed)
        p = np.repeat(rng.normal(size=(120, 2)), 3, axis=0)
        p = p + 0.1 * rng.normal(size=(360, 2)) + [0.4, 0]
        labels = np.eye(2, dtype=int)[np.zeros(360, int)]
        return scores.single_label(p, labels, **options).overall["oa"]

    truth = np.mean([oa(i, resamples=0).value for i in range(1000, 1400)])
    for of, least, most in ((groups, 0.9, 1.0), (None, 0.5, 0.85)):
        found = [oa(i, resamples=200, groups=of) for i in range(100)]
        held = np.mean([score.low <= truth <= score.high for score in found])
        assert least <= held <= most


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth = values(scores.multi_label(*split(200_000, 3), resamples=0))
    found = [
        scores.multi_label(*split(200, 3, seed=i), resamples=200).overall
        for i in range(1, 101)
    ]
    for name, true in truth.items():
        held = np.mean([row[name].low <= true <= row[name].high for row in found])
        assert 0.87 <= held <= 1, name
        # As wide as what really differs between experiments, and not wider.
        spread = np.std([row[name].value for row in found])
        width = np.mean([row[name].high - row[name].low for row in found])
        assert 0.75 < width / (2 * 1.96 * spread) < 1.3, name


def test_resamples_draw_every_sample_alike():
    drawn = np.stack([bootstrap.draw(50, seed=0, index=i) for i in range(2000)])
    assert (drawn.sum(axis=1) == 50).all()
    assert np.abs(drawn.mean(axis=0) - 1).max() < 0.12  # five deviations
    assert np.abs(drawn.var(axis=0) - 49 / 50).max() < 0.25
    assert len(np.unique(drawn, axis=0)) == 2000


def test_intervals_depend_on_the_seed_alone(monkeypatch):
    p, t = split(digits=2)

    def found(threads, seed=0):
        granted = set(range(threads))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: granted, raising=False)
        return scores.multi_label(p, t, resamples=100, seed=seed)

    assert found(1) == found(8)
    assert found(1) != found(1, seed=1)


def test_resamples_are_scored_on_the_cores_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    threads = set()

    def statistic(counts):
        time.sleep(0.01)
        threads.add(threading.get_ident())
        return {"mean": counts.mean(axis=0)}

    bootstrap.bootstrap(statistic, 5, resamples=640, seed=0)
    assert len(threads - {threading.get_ident()}) == 2


def test_the_order_of_the_samples_does_not_change_the_scores():
    p, t = split(digits=1)
    turned = scores.multi_label(p[::-1], t[::-1], resamples=0)
    assert values(turned) == pytest.approx(
        values(scores.multi_label(p, t, resamples=0))
    )


@pytest.mark.parametrize("p, t", CASES)
def test_intervals_are_defined_wherever_the_score_is(p, t):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores.multi_label(p, t, resamples=30)
    every = [*found.overall.values(), *sum(found.per_class.values(), [])]
    for score in every:
        assert all(type(x) is float for x in score)
        if len(t) == 1 or math.isnan(score.value):  # nothing to draw from
            assert math.isnan(score.low) and math.isnan(score.high)
        else:
            assert 0 <= score.low <= score.high <= 1


def test_scores_are_taken_from_arrays_on_devices():
    import jax.numpy as jnp

    p, t = split(dtype=np.float32)
    p = p.astype(jnp.bfloat16)
    on_device = scores.multi_label(jnp.asarray(p), jnp.asarray(t), resamples=0)
    on_host = scores.multi_label(p.astype(np.float64), t == 1, resamples=0)
    assert values(on_device) == values(on_host)


P, T = split(6, 3)


@pytest.mark.parametrize(
    "score, p, t, words",
    [
        ("multi_label", P, T[:5], r"shape \(6, 3\) and labels \(5, 3\)"),
        ("multi_label", P[:, 0], T[:, 0], r"shape \(6,\).*\[samples, classes\]"),
        ("multi_label", P[:0], T[:0], "0 samples of 3 classes"),
        ("multi_label", np.where(T, np.inf, P), T, "of 18 scores are not finite"),
        ("multi_label", P * 9, T, "must be probabilities"),
        ("multi_label", P, T - 1, "0 or 1, not -1"),
        ("multi_label", P, np.full(P.shape, 0.5), "0 or 1, not 0.5, as in 18 of 18"),
        ("average_precision", P, T[:5], "shape"),
        ("average_precision", P * NAN, T, "18 of 18 scores are not finite"),
        ("single_label", P, one_hot([0, 1, 2, 1, 0], 3), "shape"),
        ("single_label", P, np.ones((6, 3)), "Sample 0 has 3 labels and 6 of 6"),
        ("single_label", P, np.eye(6, 3), "Sample 3 has 0 labels and 3 of 6"),
    ],
)
def test_arrays_that_cannot_be_scored_are_refused(score, p, t, words):
    with pytest.raises(InputError, match=words):
        getattr(scores, score)(p, t)


@pytest.mark.parametrize(
    "counts, words",
    [
        (np.ones((3, 2)), r"shape \(3, 2\)"),
        (np.ones((3, 2, 4)), r"shape \(3, 2, 4\)"),
        (np.zeros((0, 2, 2), int), "None of 0 scenes"),
        (np.zeros((3, 2, 2), int), "None of 3 scenes has a labelled pixel"),
        (-np.ones((3, 2, 2), int), "not -1"),
        (np.full((3, 2, 2), 0.5), "not 0.5"),
        (np.full((3, 2, 2), NAN), "not nan"),
    ],
)
def test_confusion_matrices_that_hold_no_counts_are_refused(counts, words):
    with pytest.raises(InputError, match=words):
        scores.segmentation(counts)
