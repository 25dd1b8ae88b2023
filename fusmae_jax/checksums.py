"""Numbers that tell whether arrays are what they were, however they are laid out."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def checksums(leaves: dict[str, jax.Array]) -> dict[str, int]:
    """The sum of every leaf's bits, each number's mixed with its place, modulo 2^32.

    A change of one number always changes its leaf's sum; numbers that changed places,
    or several that changed, go unnoticed once in 2^32 times. Integers can be added in
    any order, so that the mesh does not matter: devices sum up what they hold, and
    only sums travel. Every host must call this, and gets the same.

    Args:
        leaves: arrays by name, all laid out on one mesh.
    """
    # One small program for each shape: a program of all leaves compiles much longer.
    parts = [_sum_parts(x, x.sharding) for x in leaves.values()]
    local = jax.device_get([[s.data for s in x.addressable_shards] for x in parts])
    sums = np.array(local, np.uint32).reshape(len(leaves), -1).sum(1, dtype=np.uint32)
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(sums).sum(0, dtype=np.uint32)
    return dict(zip(leaves, sums.tolist(), strict=True))


@functools.partial(jax.jit, static_argnames="layout")
def _sum_parts(x: jax.Array, layout: NamedSharding) -> jax.Array:
    """Every device's sum of its part of `x`, copies counted once: uint32[devices]."""
    mesh = layout.mesh
    split = [names if isinstance(names, tuple) else (names,) for names in layout.spec]
    split = [tuple(name for name in names if name) for names in split]
    split += [()] * (x.ndim - len(split))
    unused = tuple(set(mesh.axis_names).difference(*split))

    def part(x):
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, (names, length) in enumerate(zip(split, x.shape, strict=True)):
            first = jax.lax.axis_index(names).astype(jnp.uint32) * jnp.uint32(length)
            along = first + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            whole = length * math.prod(mesh.shape[name] for name in names)
            place = place * jnp.uint32(whole) + along
        mixed = _mix(_bits(x) ^ (place * jnp.uint32(0x9E3779B1)))
        first_copy = jax.lax.axis_index(unused) == 0
        return jnp.where(first_copy, mixed.sum(dtype=jnp.uint32), jnp.uint32(0))[None]

    every = P(mesh.axis_names)
    return jax.shard_map(part, mesh=mesh, in_specs=layout.spec, out_specs=every)(x)


def _bits(x: jax.Array) -> jax.Array:
    """The bits of numbers that have at most 32, as uint32."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """Scatters uint32 values over all their bits, never two onto one."""
    # Each step can be undone: a shifted copy, a product by an odd number.
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
