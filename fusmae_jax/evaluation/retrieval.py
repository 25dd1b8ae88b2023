"""Retrieval: does an image find its partner of the other sensor, and its likes?"""

from collections.abc import Sequence

import numpy as np

from data_pipeline.errors import InputError
from fusmae_jax.evaluation import knn
from fusmae_jax.evaluation.bootstrap import Score, bootstrap


def score(
    queries: np.ndarray,
    gallery: np.ndarray,
    labels: np.ndarray,
    *,
    ks: Sequence[int] = (1, 5, 10),
    same: bool,
    groups: np.ndarray | None = None,
    center: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Score]:
    """Scores retrieval among N pairs, with 95 % bootstrap intervals over queries.

    What shows the ground of the query without being its pair is neither right nor
    wrong, and cannot be retrieved.

    Args:
        queries: one feature for each pair, [N, D].
        gallery: what is searched, of the same pairs in the same order, [N, D].
        labels: of the pairs, 0 or 1, [N, C].
        ks: how many are retrieved.
        same: the gallery is the queries themselves: the query is left out, and there
            is no partner to find. Otherwise it is the other sensor.
        groups: which pairs show the same ground, see `bootstrap.bootstrap`; [N]. By
            default every pair shows its own.
        center: subtract each side's mean feature first. The features of two sensors
            may lie in cones apart; what they share then shows only around the mean.
            It uses the mean of the whole split, which a single query does not have.
        resamples: of the groups of queries, for the intervals; 0 for none.
        seed: of the resamples.

    Returns:
        `f1@k` for each k, and `recall@k` unless `same`; see `per_query`.

    Raises:
        InputError: as `per_query`.
    """
    asked = dict(ks=ks, same=same, groups=groups, center=center)
    values = per_query(queries, gallery, labels, **asked)
    names, columns = list(values), np.stack(list(values.values()))  # [Q, N]

    def means(counts):
        return dict(zip(names, columns @ counts / counts.sum(axis=0)))

    options = dict(resamples=resamples, seed=seed, groups=groups)
    return bootstrap(means, len(queries), **options)


def per_query(
    queries: np.ndarray,
    gallery: np.ndarray,
    labels: np.ndarray,
    *,
    ks: Sequence[int],
    same: bool,
    groups: np.ndarray | None = None,
    center: bool = False,
) -> dict[str, np.ndarray]:
    """What each query contributes to each score, {name: [N]}.

    `recall@k` is 1 where the query's own pair is among the k most similar by cosine.
    `f1@k` is the mean, over the k retrieved, of 2 |q & r| / (|q| + |r|) for the label
    sets q of the query and r of the retrieved pair, 0 where both are empty; with one
    label per pair that is the precision. For arguments see `score`.

    Raises:
        InputError: there are not as many pairs of other ground as are retrieved, or
            the arrays do not belong together.
    """
    n, most = len(queries), max(ks)
    if not len(gallery) == len(labels) == n:
        raise InputError(
            f"{n} queries, {len(gallery)} features searched and {len(labels)} rows of "
            "labels are not of the same pairs; extract them from the same split."
        )
    groups = np.arange(n) if groups is None else groups
    check_enough(groups, ks)
    if center:
        queries, gallery = (_centered(x) for x in (queries, gallery))
    # However many of the nearest show the ground of the query, enough others are found.
    largest = int(np.bincount(groups).max())
    _, index = knn.neighbours(gallery, queries, most + largest)
    passed_over = groups[index] == groups[:, None]
    if not same:
        passed_over &= index != np.arange(n)[:, None]
    order = np.argsort(passed_over, axis=1, kind="stable")  # those that count first
    index = np.take_along_axis(index, order, axis=1)[:, :most]
    itself = index == np.arange(n)[:, None]
    f1 = np.stack([_set_f1(labels, labels[i]) for i in index.T], axis=1)  # [N, most]
    values = {f"f1@{k}": f1[:, :k].mean(axis=1) for k in ks}
    if same:
        return values
    found = {f"recall@{k}": itself[:, :k].any(axis=1).astype(float) for k in ks}
    return found | values


def check_enough(groups: np.ndarray, ks: Sequence[int]) -> None:
    """Refuses to retrieve more than there is for every query.

    Args:
        groups: which pairs show the same ground, [N] numbers from 0.
        ks: how many are retrieved.

    Raises:
        InputError: there are not as many pairs of other ground.
    """
    others, most = len(groups) - int(np.bincount(groups).max()), max(ks)
    if others < most:
        raise InputError(
            f"Retrieving {most} takes as many pairs that show other ground than the "
            f"query, and of {len(groups)} there may be no more than {others}; test on "
            "more pairs, or lower ks."
        )


def _centered(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=0, keepdims=True, dtype=np.float64).astype(x.dtype)


def _set_f1(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """F1 between sets given as rows of 0 and 1, [N, C] each; [N]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    both = (a * b).sum(axis=1)
    return 2 * both / np.maximum(a.sum(axis=1) + b.sum(axis=1), 1.0)
