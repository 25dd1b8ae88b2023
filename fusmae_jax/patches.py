"""Patches: images cut up and put together, their positions, masks, and targets."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import InputError
from fusmae_jax.inputs import SENSORS, Present

MASK_MODES = ("independent", "consistent")
NORMALIZATIONS = ("none", "patch", "group")  # of targets


def grid_side(image_size: int, patch_size: int) -> int:
    """Patches along one side of a square image.

    Raises:
        InputError: the image is not a whole number of patches.
    """
    if image_size <= 0 or patch_size <= 0 or image_size % patch_size:
        raise InputError(
            f"Image size {image_size} is not a whole number of patches of "
            f"{patch_size} px; change one of them."
        )
    return image_size // patch_size


def patchify(images: jax.Array, p: int) -> jax.Array:
    """Splits images [B, H, W, C] into row-major patches [B, N, P*P*C]."""
    b, h, w, c = images.shape
    rows, cols = grid_side(h, p), grid_side(w, p)
    x = images.reshape(b, rows, p, cols, p, c)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, h/p, w/p, P, P, C]
    return x.reshape(b, rows * cols, p * p * c)


def unpatchify(patches: jax.Array, p: int) -> jax.Array:
    """Inverse of `patchify` for square images: [B, N, P*P*C] to [B, H, W, C]."""
    b, n, e = patches.shape
    side, c = round(n**0.5), e // (p * p)
    x = patches.reshape(b, side, side, p, p, c)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, rows, P, cols, P, C]
    return x.reshape(b, side * p, side * p, c)


def present(images: dict[str, jax.Array], p: int, here: Present | None) -> Present:
    """Which patches of images [B, H, W, C] show something, {sensor: [B, N] bool}.

    They have a pixel that is not NaN, and their sensor is `here`, [B].
    """
    known = {s: ~jnp.isnan(x).all(axis=-1, keepdims=True) for s, x in images.items()}
    shown = {s: patchify(x, p).any(axis=-1) for s, x in known.items()}
    return {s: x if here is None else x & here[s][:, None] for s, x in shown.items()}


def check_width(dim: int) -> None:
    """Refuses a width that cannot carry the code of positions.

    Raises:
        InputError: it does not divide into sines and cosines of rows and columns.
    """
    if dim % 4:
        raise InputError(
            f"Width {dim} cannot carry 2-D sine-cosine positions; choose a multiple "
            "of 4."
        )


@functools.lru_cache
def sincos_2d(side: int, dim: int, span: int = 0) -> np.ndarray:
    """Fixed 2-D sine-cosine position code, [side * side, dim], as in MAE.

    Half of the channels code the column, half the row. Built in NumPy: under `jit`
    it is a constant, never a parameter.

    Args:
        side: patches along one side of the image.
        dim: channels.
        span: patches along the side of another image, over which the places of this one
            are spread evenly; 0 for those of its own.
    """
    check_width(dim)
    omega = 10_000.0 ** -(np.arange(dim // 4) / (dim // 4))
    middles = (np.arange(side) + 0.5) * ((span or side) / side) - 0.5
    y, x = np.meshgrid(middles, middles, indexing="ij")
    angles = [np.outer(pos.ravel(), omega) for pos in (x, y)]
    parts = [f(a) for a in angles for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def positions(side: int, dim: int, ids: jax.Array) -> jax.Array:
    """The code of places ids [B, K] in a grid, [B, K, dim], see `sincos_2d`."""
    code = jnp.asarray(sincos_2d(side, dim))
    return code.at[ids].get(mode="promise_in_bounds")


class Mask(NamedTuple):
    """A per-sample choice of visible patches.

    Attributes:
        visible: places of the visible patches, [B, K] int32, in shuffled order.
        hidden: places of the others, [B, N - K] int32, likewise.
    """

    visible: jax.Array
    hidden: jax.Array

    @property
    def order(self) -> jax.Array:
        """Places of all patches, the visible ones first, [B, N]."""
        return jnp.concatenate([self.visible, self.hidden], axis=1)


def num_visible(num_patches: int, ratio: float) -> int:
    """How many of `num_patches` stay visible when `ratio` of them is hidden.

    Raises:
        InputError: the ratio leaves nothing visible or nothing hidden.
    """
    # Rounded first: 100 * 0.29 is a little under 29.
    kept = num_patches - int(round(num_patches * ratio, 6))
    if not 0.0 < ratio < 1.0 or not 0 < kept < num_patches:
        raise InputError(
            f"Mask ratio {ratio} leaves {kept} of {num_patches} patches visible; "
            "at least one must be visible and one hidden."
        )
    return kept


def draw_noise(key: jax.Array, batch: int, num_patches: int, mode: str):
    """Draws the uniform noise that decides the masks, {sensor: [B, N]}.

    `independent` masks differ between the sensors, `consistent` ones are equal
    (Fus-MAE compares the two). The draw depends on the key and the place in the
    global batch only, not on devices.
    """
    if mode not in MASK_MODES:
        raise InputError(f"Masking {mode!r} is not one of {list(MASK_MODES)}.")
    if mode == "consistent":
        noise = jax.random.uniform(key, (batch, num_patches))
        return {sensor: noise for sensor in SENSORS}
    keys = jax.random.split(key, len(SENSORS))
    return {
        sensor: jax.random.uniform(k, (batch, num_patches))
        for sensor, k in zip(SENSORS, keys)
    }


def mask_from_noise(noise: jax.Array, num_keep: int) -> Mask:
    """Keeps the `num_keep` patches with the least noise [B, N] of each sample."""
    order = jnp.argsort(noise, axis=1)
    return Mask(order[:, :num_keep], order[:, num_keep:])


def take(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Gathers tokens [B, N, ...] at ids [B, K] into [B, K, ...]."""
    ids = ids.reshape(*ids.shape, *(1,) * (tokens.ndim - 2))
    # The ids are argsorts, so always in bounds; saying so saves the clamping.
    return jnp.take_along_axis(tokens, ids, axis=1, mode="promise_in_bounds")


def spread(here: jax.Array, count: int) -> jax.Array:
    """Which of `count` patches are present, [B, K], of samples [B] or of these."""
    rows = here.shape[0]  # which may be a symbol, see `export`
    return jnp.broadcast_to(here.reshape(rows, -1), (rows, count))


def take_present(here: jax.Array, ids: jax.Array) -> jax.Array:
    """Which patches at ids [B, K] are present; of samples, [B], it is the same."""
    return here if here.ndim == 1 else take(here, ids)


def put_back(tokens: jax.Array, mask: Mask) -> jax.Array:
    """Brings tokens [B, N, ...] from `mask.order` to the order of the image."""
    return take(tokens, jnp.argsort(mask.order, axis=1))


def normalize_patches(
    patches: jax.Array, how: str, families: Sequence[str], missing: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Turns patches into what the decoder has to predict.

    Args:
        patches: [B, N, P*P*C] float32.
        how: "none" leaves them; "patch" subtracts each patch's mean and divides by
            its deviation over all pixels and bands (MAE); "group" does so for each
            family of bands apart (as MAESTRO), so that bright bands do not drown the
            others.
        families: the family of each of the C bands.
        missing: whether there are pixels that were not measured; they are NaN in all
            bands, stay so, and do not count.

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
    average = jnp.nanmean if missing else jnp.mean
    x = patches.reshape(b, n, -1, len(families))  # [B, N, P*P, C]
    if how == "none":
        one = jnp.ones((1, 1, 1, 1))
        return patches, 0 * one, one
    if how == "patch":
        mean = average(x, axis=(2, 3), keepdims=True)
        variance = average(jnp.square(x - mean), axis=(2, 3), keepdims=True)
    else:
        of_family = _family_average(families)
        mean = of_family(average(x, axis=2, keepdims=True))  # [B, N, 1, C]
        variance = of_family(average(jnp.square(x - mean), axis=2, keepdims=True))
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
    predicted: jax.Array, target: jax.Array, hidden: jax.Array, missing: bool = False
) -> jax.Array:
    """Mean squared error over hidden patches only.

    Args:
        predicted: [B, M, E].
        target: [B, M, E].
        hidden: how much each patch counts, 0.0 where it was visible, [B, M].
        missing: whether the target may be NaN, where nothing was measured. A patch then
            counts by the share of it that was.

    Returns:
        The error; 0 where nothing counts.
    """
    predicted = predicted.astype(jnp.float32)
    if not missing:
        error = jnp.square(predicted - target).mean(axis=-1)
        return (error * hidden).sum() / _or_one(hidden.sum())
    known = ~jnp.isnan(target)
    target = jnp.where(known, target, predicted)  # no error, and no gradient
    error = jnp.square(predicted - target).mean(axis=-1)
    total = (hidden * known.mean(axis=-1)).sum()
    return (error * hidden).sum() / _or_one(total)


def _or_one(total: jax.Array) -> jax.Array:
    """What to divide by, where 0 is divided by 0."""
    return jnp.where(total > 0.0, total, 1.0)
