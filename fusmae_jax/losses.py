"""The reconstruction loss: squared error on hidden patches."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from data_pipeline.errors import InputError

NORMALIZATIONS = ("none", "patch", "group")


def normalize_patches(
    patches: jax.Array, how: str, families: Sequence[str]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Turns patches into what the decoder has to predict.

    Args:
        patches: [B, N, P*P*C] float32.
        how: "none" leaves them; "patch" subtracts each patch's mean and divides by
            its deviation over all pixels and bands (MAE); "group" does so for each
            family of bands apart (as MAESTRO), so that bright bands do not drown the
            others.
        families: the family of each of the C bands.

    Returns:
        The targets and the mean and deviation taken out, each broadcastable to
        [B, N, P*P, C] except the targets, which have the shape of `patches`.
        A constant patch becomes zeros.
    """
    if how not in NORMALIZATIONS:
        raise InputError(
            f"Target normalisation {how!r} is not one of {list(NORMALIZATIONS)}."
        )
    b, n, e = patches.shape
    x = patches.reshape(b, n, -1, len(families))  # [B, N, P*P, C]
    if how == "none":
        one = jnp.ones((1, 1, 1, 1))
        return patches, 0 * one, one
    if how == "patch":
        mean = x.mean(axis=(2, 3), keepdims=True)
        variance = jnp.square(x - mean).mean(axis=(2, 3), keepdims=True)
    else:
        average = _family_average(families)
        mean = average(x.mean(axis=2, keepdims=True))  # [B, N, 1, C]
        variance = average(jnp.square(x - mean).mean(axis=2, keepdims=True))
    std = jnp.sqrt(variance + 1e-6)
    return ((x - mean) / std).reshape(b, n, e), mean, std


def _family_average(families: Sequence[str]):
    """A function that replaces each of the C last values by its family's mean."""
    alike = jnp.array([[float(a == b) for b in families] for a in families])
    weights = alike / alike.sum(axis=0, keepdims=True)
    # Accelerators round float32 products to fewer bits unless asked not to.
    return lambda x: jnp.matmul(x, weights, precision="highest")


def restore_patches(patches: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Inverse of `normalize_patches`, given the mean and deviation it returned."""
    b, n, e = patches.shape
    x = patches.reshape(b, n, -1, mean.shape[-1])
    return (x * std + mean).reshape(b, n, e)


def hidden_error(
    predicted: jax.Array, target: jax.Array, hidden: jax.Array
) -> jax.Array:
    """Mean squared error over hidden patches only.

    Args:
        predicted: [B, M, E].
        target: [B, M, E].
        hidden: how much each patch counts, 0.0 where it was visible, [B, M].
    """
    error = jnp.square(predicted.astype(jnp.float32) - target).mean(axis=-1)
    return (error * hidden).sum() / hidden.sum()
