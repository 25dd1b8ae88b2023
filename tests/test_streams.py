"""Streams of random numbers never share a key."""

import pkgutil
import re

import jax
import numpy as np

import fusmae_jax
from fusmae_jax import streams

STEPS = np.arange(1000)


def test_no_two_streams_share_a_key():
    keys = [streams.key(0, name) for name in streams.STREAMS]
    # Of steps or parts, for splitting is folding too; and the keys themselves.
    used = [
        jax.random.key_data(jax.vmap(jax.random.fold_in, (None, 0))(key, STEPS))
        for key in keys
    ] + [jax.random.key_data(key)[None] for key in keys]
    used = np.concatenate(used)
    assert len(np.unique(used, axis=0)) == len(used)


def test_every_seed_becomes_a_key_in_one_place():
    bare = re.compile(r"random\.key\((?!0\))")
    for found in pkgutil.walk_packages(fusmae_jax.__path__, "fusmae_jax."):
        module = found.module_finder.find_spec(found.name).loader.get_source(found.name)
        assert found.name == "fusmae_jax.streams" or not bare.search(module), found.name
