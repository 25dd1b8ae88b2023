"""Random numbers: the streams of a seed, draws for single pairs, and many keys."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# What draws from each. New ones go to the end: a stream is known by its place.
STREAMS = (
    "params",  # initial parameters, of a pretraining or an untrained encoder
    "steps",  # views, masks and dropped sensors of pretraining steps
    "held_out",  # masks of held-out pairs
    "probe",  # the order of pairs in a linear probe
    "head",  # initial parameters of heads behind an encoder
    "tuning",  # views, mixing and depth in fine-tuning and dense probing
    "targets",  # the fixed projection that makes latent targets of patches
)


def key(seed: int, name: str) -> jax.Array:
    """The key of one of `STREAMS`; no two of them share a number, whatever the seed."""
    return jax.random.fold_in(jax.random.key(seed), STREAMS.index(name))


def each(draw: Callable[[jax.Array, int], Any], key: jax.Array, pairs: jax.Array):
    """What `draw(key, batch)` draws for each pair apart, by its number alone."""

    def one(pair):
        drawn = draw(jax.random.fold_in(key, pair), 1)
        return jax.tree.map(lambda x: x[0], drawn)

    return jax.vmap(one)(pairs)


class Keys:
    """The keys of `nnx.Rngs(key)`, many drawn at a time: traced and compiled sooner."""

    AHEAD = 256

    def __init__(self, key: jax.Array):
        self._key, self._count = key, 0

    def params(self) -> jax.Array:
        """The next key."""
        place = self._count % self.AHEAD
        if not place:
            counts = self._count + jnp.arange(self.AHEAD)
            self._drawn = jax.vmap(jax.random.fold_in, (None, 0))(self._key, counts)
        self._count += 1
        return self._drawn[place]
