"""Nearest neighbours by cosine similarity: labels predicted from them, and retrieval.

Does an image find its partner of the other sensor, and images of the same classes?
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data_pipeline.errors import InputError
from fusmae_jax.evaluation.bootstrap import Score, bootstrap
from fusmae_jax.training import progress, sharding

BLOCK = 2**26  # similarities held at once by one device, 256 MiB; sorting takes as much


def predict(
    bank: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Predicts labels as the weighted mean of those of the k nearest neighbours.

    A neighbour weighs exp(similarity / temperature). The mean is a score between 0
    and 1, for multi-hot and one-hot labels alike; nothing is trained.

    Args:
        bank: features whose labels are known, [N, D].
        labels: theirs, 0 or 1, [N, C].
        queries: features whose labels are asked for, [M, D].
        k: neighbours.
        temperature: of the weights; the lower, the more the nearest count.

    Returns:
        [M, C] float32.

    Raises:
        InputError: as `neighbours`, or the labels are not the bank's.
    """
    if len(labels) != len(bank):
        raise InputError(
            f"{len(labels)} rows of labels do not belong to {len(bank)} features; "
            "extract both from the same split."
        )
    similarity, index = find(bank, queries, k)
    # In float64, so that neighbours which all agree give 1 exactly: rounding would
    # rank scores that are equal.
    nearer = (similarity - similarity[:, :1]).astype(np.float64)
    weights = np.exp(nearer / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    scores = np.zeros((len(queries), labels.shape[1]))
    for weight, i in zip(weights.T, index.T):  # [M, k, C] at once would be large
        scores += weight[:, None] * labels[i]
    return scores.astype(np.float32)


def find(
    bank: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k rows of the bank most similar to each query, by brute force.

    Queries are split over all devices, each of which holds the whole bank. On several
    hosts every one passes the same arrays, and has the whole result.

    Args:
        bank: [N, D].
        queries: [M, D].
        k: neighbours of each query.

    Returns:
        Cosine similarities, [M, k] float32, falling; and rows of the bank, [M, k]
        int32. A feature of zeros is similar to nothing: 0. Of rows that are equally
        similar, the first come first.

    Raises:
        InputError: the bank is smaller than k, or a feature is not finite.
    """
    if not 1 <= k <= len(bank):
        raise InputError(
            f"k={k} neighbours cannot be found among {len(bank)} features; "
            f"choose k between 1 and {len(bank)}."
        )
    for name, x in (("bank", bank), ("queries", queries)):
        _check_finite(name, x)
    mesh = sharding.make_mesh()
    unit, nearest = compiled(mesh, k)
    bank = unit(_put(bank, sharding.whole(mesh)))
    devices = mesh.size
    rows = devices * min(max(1, BLOCK // len(bank)), -(-len(queries) // devices))
    similarity = np.empty((len(queries), k), np.float32)
    index = np.empty((len(queries), k), np.int32)
    title, total = "Nearest neighbours", len(queries)
    with progress.Progress(title, total, "query", brief=True) as bar:
        for i in range(0, total, rows or 1):
            chunk = queries[i : i + rows]
            count = len(chunk)
            # The last one is filled up, or it would be compiled for itself.
            chunk = np.pad(chunk, ((0, rows - count), (0, 0)))
            found = nearest(bank, _put(chunk, sharding.rows(mesh)))
            similarity[i : i + count], index[i : i + count] = (
                np.asarray(x)[:count] for x in found
            )
            bar.update(count)
    return similarity, index


def _check_finite(name: str, features: np.ndarray) -> None:
    # A sum tells as much as its terms, and needs no mask as large as the features.
    with np.errstate(invalid="ignore"):
        bad = int((~np.isfinite(features.sum(axis=1))).sum())
    if bad:
        raise InputError(
            f"{bad} of {len(features)} features of the {name} are not finite; the "
            "encoder has diverged, use an earlier checkpoint."
        )


def _put(x: np.ndarray, layout) -> jax.Array:
    """Puts an array that every host holds in full on the devices."""
    x = np.asarray(x, np.float32)
    return jax.make_array_from_callback(x.shape, layout, lambda part: x[part])


@functools.cache  # or every call would compile anew
def compiled(mesh: Mesh, k: int):
    """The compiled `unit(x)` and `nearest(bank, queries)`, both of rows of length 1."""

    def unit(x):
        norm = jnp.sqrt(jnp.square(x).sum(axis=1, keepdims=True))
        return x / jnp.maximum(norm, jnp.finfo(x.dtype).tiny)

    def nearest(bank, queries):
        # Accelerators round float32 products to fewer bits unless asked not to, which
        # would change the order of neighbours.
        similarity = jnp.matmul(unit(queries), bank.T, precision="highest")
        return jax.lax.top_k(similarity, k)

    # Every device sorts the rows it has; left to the compiler it may gather them all.
    split, whole = sharding.BATCH, sharding.whole(mesh)
    nearest = jax.shard_map(
        nearest, mesh=mesh, in_specs=(whole.spec, split), out_specs=split
    )
    return jax.jit(unit, out_shardings=whole), jax.jit(nearest, out_shardings=whole)


def score_retrieval(
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
        `f1@k` for each k if there are classes, and `recall@k` unless `same`; see
        `per_query`.

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
    _, index = find(gallery, queries, most + largest)
    passed_over = groups[index] == groups[:, None]
    if not same:
        passed_over &= index != np.arange(n)[:, None]
    order = np.argsort(passed_over, axis=1, kind="stable")  # those that count first
    index = np.take_along_axis(index, order, axis=1)[:, :most]
    itself = index == np.arange(n)[:, None]
    f1 = np.stack([_set_f1(labels, labels[i]) for i in index.T], axis=1)  # [N, most]
    values = {f"f1@{k}": f1[:, :k].mean(axis=1) for k in ks if labels.shape[1]}
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
