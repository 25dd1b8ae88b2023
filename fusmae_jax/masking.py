"""Random masks: which patches the encoder sees, and how to put patches back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from data_pipeline.errors import InputError

SENSORS = ("s1", "s2")
MODES = ("independent", "consistent")


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
    order = jnp.argsort(noise, axis=1)
    return Mask(order[:, :num_keep], order[:, num_keep:])


def take(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Gathers tokens [B, N, ...] at ids [B, K] into [B, K, ...]."""
    ids = ids.reshape(*ids.shape, *(1,) * (tokens.ndim - 2))
    # The ids are argsorts, so always in bounds; saying so saves the clamping.
    return jnp.take_along_axis(tokens, ids, axis=1, mode="promise_in_bounds")


def put_back(tokens: jax.Array, mask: Mask) -> jax.Array:
    """Brings tokens [B, N, ...] from `mask.order` to the order of the image."""
    return take(tokens, jnp.argsort(mask.order, axis=1))
