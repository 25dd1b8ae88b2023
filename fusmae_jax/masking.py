"""Random masks: which patches the encoder sees, and how to put tokens back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from data_pipeline.errors import InputError

SENSORS = ("s1", "s2")
MODES = ("independent", "consistent")


class Mask(NamedTuple):
    """A per-sample choice of visible patches.

    Attributes:
        keep: indices of the visible patches, [B, K] int32, in shuffled order.
        restore: position of every patch in `visible ++ hidden` order, [B, N] int32.
        hidden: 1.0 where a patch is hidden, 0.0 where it is visible, [B, N].
    """

    keep: jax.Array
    restore: jax.Array
    hidden: jax.Array


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
    if mode not in MODES:
        raise InputError(f"Masking {mode!r} is not one of {list(MODES)}.")
    if mode == "consistent":
        noise = jax.random.uniform(key, (batch, num_patches))
        return {sensor: noise for sensor in SENSORS}
    keys = jax.random.split(key, len(SENSORS))
    return {
        sensor: jax.random.uniform(k, (batch, num_patches))
        for sensor, k in zip(SENSORS, keys)
    }


def draw_present(key: jax.Array, batch: int, rate: float) -> dict[str, jax.Array]:
    """Draws which samples have which sensor, {sensor: [B] bool}.

    With a chance of `rate` a sample lacks one of the sensors, either as likely as the
    other (DINO-MM drops sensors so, half of the time); it never lacks both.
    """
    if not 0.0 <= rate <= 1.0:
        raise InputError(f"mask.drop_sensor is {rate}; choose a chance from 0 to 1.")
    chance, which = jax.random.uniform(key, (2, batch))
    lacks = jnp.where(chance < rate, (which * len(SENSORS)).astype(jnp.int32), -1)
    return {s: lacks != i for i, s in enumerate(SENSORS)}


def mask_from_noise(noise: jax.Array, num_keep: int) -> Mask:
    """Keeps the `num_keep` patches with the least noise [B, N] of each sample."""
    shuffle = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(shuffle, axis=1)
    hidden = (restore >= num_keep).astype(jnp.float32)
    return Mask(shuffle[:, :num_keep], restore, hidden)


def take(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Gathers tokens [B, N, D] at ids [B, K] into [B, K, D]."""
    # The ids are argsorts, so always in bounds; saying so saves the clamping.
    return jnp.take_along_axis(
        tokens, ids[..., None], axis=1, mode="promise_in_bounds"
    )


def restore_tokens(visible: jax.Array, mask_token: jax.Array, mask: Mask) -> jax.Array:
    """Fills hidden places with `mask_token` and returns tokens in image order.

    Args:
        visible: encoded visible tokens, [B, K, D].
        mask_token: learned placeholder, [D].
        mask: the mask that selected `visible`.

    Returns:
        Tokens in image order, [B, N, D].
    """
    b, k, d = visible.shape
    n = mask.restore.shape[1]
    blanks = jnp.broadcast_to(mask_token.astype(visible.dtype), (b, n - k, d))
    return take(jnp.concatenate([visible, blanks], axis=1), mask.restore)
