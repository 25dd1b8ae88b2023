"""Streams of random numbers: what a seed is split into, once."""

import jax

# What draws from each. New ones go to the end: a stream is known by its place.
STREAMS = (
    "params",  # initial parameters, of a pretraining or an untrained encoder
    "steps",  # views, masks and dropped sensors of pretraining steps
    "held_out",  # masks of held-out pairs
    "probe",  # the order of pairs in a linear probe
    "head",  # initial parameters of heads behind an encoder
    "tuning",  # views, mixing and depth in fine-tuning and dense probing
)


def key(seed: int, name: str) -> jax.Array:
    """The key of one of `STREAMS`; no two of them share a number, whatever the seed."""
    return jax.random.fold_in(jax.random.key(seed), STREAMS.index(name))
