"""Scores of a whole split, with bootstrap intervals.

A score that is 0 / 0 is nan and left out of the mean over classes: AP and recall
where no sample has the class; F1 and IoU where, moreover, none is predicted to have
it. This is `zero_division=nan` in scikit-learn, and holds within each resample too.
"""

from typing import NamedTuple

import numpy as np
import scipy

from data_pipeline.errors import InputError
from fusmae_jax.evaluation.average_precision import (
    Ranking,
    checked,
    pooled_precision,
    ratio,
)
from fusmae_jax.evaluation.bootstrap import Score, bootstrap


def headline(scores: np.ndarray, labels: np.ndarray, single: bool) -> float:
    """What settings are chosen by: accuracy of one class a sample, else micro mAP.

    Args:
        scores: [N, C].
        labels: 0 or 1, [N, C].
        single: whether every sample has one class.
    """
    if single:
        return float((scores.argmax(axis=1) == labels.argmax(axis=1)).mean())
    return average_precision(scores, labels)[0]


class Scores(NamedTuple):
    """All scores of one setting."""

    overall: dict[str, Score]
    per_class: dict[str, list[Score]]
    confusion: np.ndarray | None  # [C, C] counts, rows true, columns predicted


def multi_label(
    scores,
    labels,
    *,
    resamples: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
    per_batch: int = 0,
) -> Scores:
    """Average precision, and F1 of what is predicted above 0.5.

    Args:
        scores: probabilities, [N, C].
        labels: 0 or 1, [N, C].
        resamples: of the groups, for the intervals; 0 for none.
        seed: of the resamples.
        groups: which samples are alike, see `bootstrap.bootstrap`; [N].
        per_batch: where not 0, also scores consecutive batches of so many samples
            and averages, as many published tables do. A batch without any label counts
            0. Resamples change how often each sample of a batch counts.

    Returns:
        Overall `map_micro`, `map_macro`, `f1_micro`, `f1_macro` and, if asked for,
        `map_micro_per_batch`; per class `ap` and `f1`; no confusion matrix.

    Raises:
        InputError: the arrays do not fit each other, or hold other values.
    """
    scores, labels = checked(scores, labels)
    if scores.min() < -1e-3 or scores.max() > 1 + 1e-3:
        raise InputError(
            f"Multi-label scores range from {scores.min():g} to {scores.max():g}; they "
            "must be probabilities, as from a sigmoid."
        )
    count, classes = scores.shape
    pooled = Ranking(scores.ravel(), labels.ravel(), classes)
    ranked = [Ranking(scores[:, c], labels[:, c], 1) for c in range(classes)]
    predicted = scores > 0.5
    hits = scipy.sparse.csr_array((predicted & labels).T.astype(np.int32))
    sums = scipy.sparse.csr_array(predicted.T + labels.T.astype(np.int32))

    def statistic(weights):
        ap = np.stack([r.average_precision(weights) for r in ranked])
        hit, total = 2 * (hits @ weights), sums @ weights
        f1 = ratio(hit, total)
        return {
            "map_micro": pooled.average_precision(weights),
            "map_macro": _mean(ap),
            "f1_micro": ratio(hit.sum(axis=0), total.sum(axis=0)),
            "f1_macro": _mean(f1),
            "ap": ap,
            "f1": f1,
        }

    options = dict(resamples=resamples, seed=seed, groups=groups)
    found = bootstrap(statistic, count, **options)
    if per_batch:
        parts = [slice(i, i + per_batch) for i in range(0, count, per_batch)]
        entries = [(scores[part].ravel(), labels[part].ravel()) for part in parts]
        batches = [Ranking(*batch, classes) for batch in entries]

        def average(weights):
            ap = [r.average_precision(weights[p]) for r, p in zip(batches, parts)]
            return {"map_micro_per_batch": np.nan_to_num(ap).mean(axis=0)}

        # A positive that is drawn twice finds itself, which shows in small batches.
        found |= bootstrap(average, count, centred=True, **options)
    return _sorted_out(found, None)


def single_label(
    scores,
    labels,
    *,
    resamples: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Scores:
    """Accuracies of the class with the highest score, the first where several tie.

    Args:
        scores: of any scale, [N, C].
        labels: one-hot, [N, C].
        resamples: of the groups, for the intervals; 0 for none.
        seed: of the resamples.
        groups: which samples are alike, see `bootstrap.bootstrap`; [N].

    Returns:
        Overall `oa` (share of correct samples), `aa` (mean recall) and `f1_macro`;
        per class `recall`; the confusion matrix.

    Raises:
        InputError: the arrays do not fit each other, or hold other values.
    """
    scores, labels = checked(scores, labels)
    marked = labels.sum(axis=1)
    if (marked != 1).any():
        row = int(np.argmax(marked != 1))
        raise InputError(
            f"Sample {row} has {marked[row]} labels and {int((marked != 1).sum())} of "
            f"{len(marked)} samples do not have one; score them as multi-label."
        )
    count, classes = scores.shape
    pair = labels.argmax(axis=1) * classes + scores.argmax(axis=1)
    counts = scipy.sparse.csc_array(
        (np.ones(count, np.int64), pair, np.arange(count + 1)),
        shape=(classes**2, count),
    )
    names = ("oa", "aa", "f1_macro", "recall")
    options = dict(resamples=resamples, seed=seed, groups=groups)
    return _from_confusions(counts, names, **options)


def segmentation(
    confusions,
    *,
    resamples: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Scores:
    """Scores of pixels, resampled by scene or more, since pixels of a scene are alike.

    Args:
        confusions: pixel counts per scene, rows true and columns predicted, [N, C, C].
        resamples: of the groups, for the intervals; 0 for none.
        seed: of the resamples.
        groups: which scenes are alike, see `bootstrap.bootstrap`; [N].

    Returns:
        Overall `miou`, `oa` (share of correct pixels), `aa` (mean recall) and
        `f1_macro`, of all pixels together; per class `iou`; the summed confusion.

    Raises:
        InputError: these are no counts, or there is no pixel.
    """
    confusions = np.asarray(confusions)
    shape = confusions.shape
    if confusions.ndim != 3 or shape[1] != shape[2]:
        raise InputError(
            f"Confusion matrices of the shape {shape} must be [scenes, classes, "
            "classes]."
        )
    counts = confusions.reshape(shape[0], shape[1] * shape[2]).T
    wrong = ~np.isfinite(counts) | (counts < 0) | (counts != np.floor(counts))
    if wrong.any():
        raise InputError(
            f"Confusion matrices must hold counts, whole numbers from 0, not "
            f"{counts[wrong][0]}."
        )
    if not counts.any():
        raise InputError(
            f"None of {shape[0]} scenes has a labelled pixel, so there is nothing to "
            "score; check the label maps."
        )
    counts = scipy.sparse.csr_array(counts.astype(np.int64))
    names = ("miou", "oa", "aa", "f1_macro", "iou")
    options = dict(resamples=resamples, seed=seed, groups=groups)
    return _from_confusions(counts, names, **options)


def detection(
    confusions,
    *,
    resamples: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Scores:
    """Scores of pixels of one class, the second of two.

    Args:
        confusions: pixel counts per scene, see `segmentation`, [N, 2, 2].
        resamples, seed, groups: see there.

    Returns:
        Overall `f1`, `precision`, `recall` and `iou` of that class, of all pixels
        together; the summed confusion.
    """
    counts = np.asarray(confusions).reshape(-1, 4).T

    def statistic(weights):
        _, wrong, missed, right = counts @ weights
        return {
            "f1": ratio(2 * right, 2 * right + wrong + missed),
            "precision": ratio(right, right + wrong),
            "recall": ratio(right, right + missed),
            "iou": ratio(right, right + wrong + missed),
        }

    options = dict(resamples=resamples, seed=seed, groups=groups)
    found = bootstrap(statistic, counts.shape[1], **options)
    return _sorted_out(found, counts.sum(axis=1).reshape(2, 2))


def average_precision(scores, labels) -> tuple[float, np.ndarray]:
    """Average precision without intervals, to choose between many settings.

    The precision at each distinct score is weighted by the recall it adds, without
    interpolation; samples of equal score come together.

    Args:
        scores: of any scale, the same for all classes, [N, C].
        labels: 0 or 1, [N, C].

    Returns:
        Of all entries pooled (micro), and of each class, [C]; nan without positives.

    Raises:
        InputError: the arrays do not fit each other, or hold other values.
    """
    scores, labels = checked(scores, labels)
    per_class = [pooled_precision(s, t) for s, t in zip(scores.T, labels.T)]
    return pooled_precision(scores, labels), np.array(per_class)


def _from_confusions(counts, names, **options) -> Scores:
    """Scores of confusion matrices given as a sparse matrix, [C * C, N] int64."""
    classes = round(counts.shape[0] ** 0.5)

    def statistic(weights):
        confusion = (counts @ weights).reshape(classes, classes, -1)
        correct = np.einsum("ccr->cr", confusion)
        true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
        recall = ratio(correct, true)
        iou = ratio(correct, true + predicted - correct)
        found = {
            "oa": ratio(correct.sum(axis=0), true.sum(axis=0)),
            "aa": _mean(recall),
            "f1_macro": _mean(ratio(2 * correct, true + predicted)),
            "miou": _mean(iou),
            "recall": recall,
            "iou": iou,
        }
        return {name: found[name] for name in names}

    found = bootstrap(statistic, counts.shape[1], **options)
    return _sorted_out(found, counts.sum(axis=1).reshape(classes, classes))


def _sorted_out(found, confusion) -> Scores:
    overall = {k: v for k, v in found.items() if isinstance(v, Score)}
    per_class = {k: v for k, v in found.items() if k not in overall}
    return Scores(overall, per_class, confusion)


def _mean(values) -> np.ndarray:
    """Mean over the classes where a value is defined, [C, R] to [R]."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))
