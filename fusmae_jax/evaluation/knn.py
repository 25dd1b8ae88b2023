"""Nearest neighbours by cosine similarity, and labels predicted from them."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh

from data_pipeline.errors import InputError
from fusmae_jax.training import sharding

BLOCK = 2**26  # similarities held at once by one device, 256 MiB; sorting takes as much
CHUNKS_WORTH_A_BAR = 8


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
    similarity, index = neighbours(bank, queries, k)
    # In float64, so that neighbours which all agree give 1 exactly: rounding would
    # rank scores that are equal.
    nearer = (similarity - similarity[:, :1]).astype(np.float64)
    weights = np.exp(nearer / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    scores = np.zeros((len(queries), labels.shape[1]))
    for weight, i in zip(weights.T, index.T):  # [M, k, C] at once would be large
        scores += weight[:, None] * labels[i]
    return scores.astype(np.float32)


def neighbours(
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
    chunks = range(0, len(queries), rows or 1)
    quiet = len(chunks) < CHUNKS_WORTH_A_BAR or jax.process_index() != 0
    quiet = quiet or not sys.stderr.isatty()
    for i in tqdm.tqdm(chunks, desc="neighbours", leave=False, disable=quiet):
        chunk = queries[i : i + rows]
        count = len(chunk)
        # The last one is filled up, or it would be compiled for itself.
        chunk = np.pad(chunk, ((0, rows - count), (0, 0)))
        found = nearest(bank, _put(chunk, sharding.rows(mesh)))
        similarity[i : i + count], index[i : i + count] = (
            np.asarray(x)[:count] for x in found
        )
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
