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
    center: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Score]:
    """Scores retrieval among N pairs, with 95 % bootstrap intervals over queries.

    Args:
        queries: one feature for each pair, [N, D].
        gallery: what is searched, of the same pairs in the same order, [N, D].
        labels: of the pairs, 0 or 1, [N, C].
        ks: how many are retrieved.
        same: the gallery is the queries themselves: the query is left out, and there
            is no partner to find. Otherwise it is the other sensor.
        center: subtract each side's mean feature first. The features of two sensors
            may lie in cones apart; what they share then shows only around the mean.
            It uses the mean of the whole split, which a single query does not have.
        resamples: of the queries, for the intervals; 0 for none.
        seed: of the resamples.

    Returns:
        `f1@k` for each k, and `recall@k` unless `same`; see `per_query`.

    Raises:
        InputError: as `per_query`.
    """
    values = per_query(queries, gallery, labels, ks=ks, same=same, center=center)
    names, columns = list(values), np.stack(list(values.values()))  # [Q, N]

    def means(counts):
        return dict(zip(names, columns @ counts / len(queries)))

    return bootstrap(means, len(queries), resamples=resamples, seed=seed)


def per_query(
    queries: np.ndarray,
    gallery: np.ndarray,
    labels: np.ndarray,
    *,
    ks: Sequence[int],
    same: bool,
    center: bool = False,
) -> dict[str, np.ndarray]:
    """What each query contributes to each score, {name: [N]}.

    `recall@k` is 1 where the query's own pair is among the k most similar by cosine.
    `f1@k` is the mean, over the k retrieved, of 2 |q & r| / (|q| + |r|) for the label
    sets q of the query and r of the retrieved pair, 0 where both are empty; with one
    label per pair that is the precision. For arguments see `score`.

    Raises:
        InputError: there are not more pairs than are retrieved, or the arrays do not
            belong together.
    """
    n, most = len(queries), max(ks)
    if not len(gallery) == len(labels) == n:
        raise InputError(
            f"{n} queries, {len(gallery)} features searched and {len(labels)} rows of "
            "labels are not of the same pairs; extract them from the same split."
        )
    if n <= most:
        raise InputError(
            f"Retrieving {most} takes more than {most} pairs, and there are {n}; use "
            "more pairs, or a smaller k."
        )
    if center:
        queries, gallery = (_centered(x) for x in (queries, gallery))
    _, index = knn.neighbours(gallery, queries, most + int(same))
    itself = index == np.arange(n)[:, None]
    if same:
        # Not always the first, where others are the same; with enough of them it is
        # not even found, and the last is one too many.
        itself[:, -1] |= ~itself.any(axis=1)
        index = index[~itself].reshape(n, most)
    f1 = np.stack([_set_f1(labels, labels[i]) for i in index.T], axis=1)  # [N, most]
    values = {f"f1@{k}": f1[:, :k].mean(axis=1) for k in ks}
    if same:
        return values
    found = {f"recall@{k}": itself[:, :k].any(axis=1).astype(float) for k in ks}
    return found | values


def _centered(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=0, keepdims=True, dtype=np.float64).astype(x.dtype)


def _set_f1(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """F1 between sets given as rows of 0 and 1, [N, C] each; [N]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    both = (a * b).sum(axis=1)
    return 2 * both / np.maximum(a.sum(axis=1) + b.sum(axis=1), 1.0)
