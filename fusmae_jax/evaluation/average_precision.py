"""Average precision, of one split or of many resamples of it."""

import numpy as np
import scipy

from data_pipeline.errors import InputError

BLOCK = 4096  # thresholds at once, so that what is computed from them stays in cache


def pooled_precision(scores, labels) -> float:
    """Average precision of all entries together; nan without positives.

    Args:
        scores: finite, of any shape.
        labels: bool, of the same shape.
    """
    thresholds, new = np.unique(scores[labels], return_counts=True)
    if not len(new):
        return float("nan")
    reached = scores.size - np.searchsorted(np.sort(scores, axis=None), thresholds)
    hits = np.cumsum(new[::-1])[::-1]  # the thresholds rise
    return float(new @ (hits / reached) / hits[0])


def _thresholds(scores, labels):
    """The distinct scores that positives have, from high to low.

    Args:
        scores: [M].
        labels: [M] bool.

    Returns:
        The order of the M entries by falling score; for each of the T thresholds how
        many entries, and how many positives, reach it: [T] each.
    """
    order = np.argsort(-scores)
    ranked, positive = scores[order], labels[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(positive, dtype=np.int32)[ends]
    adds = np.diff(hits, prepend=0) > 0
    return order, ends[adds] + 1, hits[adds]


class Ranking:
    """Entries in the order of their scores, to score many resamples of the samples.

    Sorted once: a resample only changes how often each sample counts. Two sparse
    matrices turn the weights of the samples into the weights of the entries, and of
    the positives, between one threshold and the next, [T, N] @ [N, R].
    """

    def __init__(self, scores, labels, per_sample: int):
        """Sorts.

        Args:
            scores: `per_sample` entries of each sample in turn, [M].
            labels: [M] bool.
            per_sample: consecutive entries that belong to one sample.
        """
        order, ends, hits = _thresholds(scores, labels)
        order = order[: ends[-1] if len(ends) else 0]
        samples = (order // per_sample).astype(np.int32)
        entries = _selection(samples, ends, len(scores) // per_sample)
        positives = _selection(samples[labels[order]], hits, len(scores) // per_sample)
        self._blocks = [
            (entries[i : i + BLOCK], positives[i : i + BLOCK])
            for i in range(0, len(ends), BLOCK)
        ]

    def average_precision(self, weights) -> np.ndarray:
        """Of R resamples with the weights [N, R] int32; [R], nan without positives."""
        area = np.zeros(weights.shape[1])
        reached = found = np.zeros(weights.shape[1], np.int32)
        for entries, positives in self._blocks:
            new = positives @ weights
            total = reached + np.cumsum(entries @ weights, axis=0, dtype=np.int32)
            hits = found + np.cumsum(new, axis=0, dtype=np.int32)
            # Where nothing is reached yet nothing new is found either.
            area += (new * (hits / np.maximum(total, 1))).sum(axis=0)
            reached, found = total[-1], hits[-1]
        return ratio(area, found)


def _selection(samples, ends, count: int):
    """Rows that pick `samples` up to each of `ends`; [T, count] int32."""
    pointers = np.append(0, ends).astype(np.int32)
    ones = np.ones(len(samples), np.int32)
    return scipy.sparse.csr_array((ones, samples, pointers), shape=(len(ends), count))


def ratio(part, whole) -> np.ndarray:
    """part / whole, nan where whole is 0."""
    out = np.full(whole.shape, np.nan)
    return np.divide(part, whole, out=out, where=whole > 0)


def checked(scores, labels) -> tuple[np.ndarray, np.ndarray]:
    """Scores as float32 or float64 and labels as bool, both [N, C]."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise InputError(
            f"Scores have the shape {scores.shape} and labels {labels.shape}; both "
            "must be [samples, classes]."
        )
    if scores.size == 0:
        raise InputError(
            f"{scores.shape[0]} samples of {scores.shape[1]} classes have no score; "
            "give at least one of each."
        )
    if scores.dtype != np.float32:
        scores = scores.astype(np.float64)
    wrong = int((~np.isfinite(scores)).sum())
    if wrong:
        raise InputError(
            f"{wrong} of {scores.size} scores are not finite; the model or its "
            "training has diverged."
        )
    wrong = (labels != 0) & (labels != 1)
    if wrong.any():
        raise InputError(
            f"Labels must be 0 or 1, not {labels[wrong][0]}, as in "
            f"{int(wrong.sum())} of {labels.size} places."
        )
    return scores, labels == 1
