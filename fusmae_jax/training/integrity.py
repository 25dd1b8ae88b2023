"""Whether a checkpoint is what was saved, and what is done where it is not."""

import contextlib
import functools
import logging
import math
import os
import pathlib
import re
import textwrap
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipeline import atomic
from data_pipeline.errors import InputError
from fusmae_jax.training import cluster

log = logging.getLogger("fusmae_jax")

# What a run learns. Whatever else a state has may be lacking in an older checkpoint.
LEARNT = ("step", "params", "opt_state")


class Damaged(Exception):
    """A checkpoint cannot be taken; the message follows upon its name."""


class OtherModel(Damaged):
    """It holds arrays of other shapes."""


def check_state(path: pathlib.Path, stored: dict, wanted: dict) -> None:
    """Refuses what does not go on as this state."""
    unknown = sorted(stored.keys() - wanted.keys())
    unknown = [name for name in unknown if name.split("/")[0] not in LEARNT]
    if unknown:
        raise InputError(
            f"The checkpoint {path} is of a newer version, as it holds {unknown[0]}; "
            "update fusmae_jax to go on with it."
        )
    learnt = {k: x for k, x in wanted.items() if k.split("/")[0] in LEARNT}
    old = {k: x for k, x in wanted.items() if k in stored}
    _check_shapes(stored, learnt | old)


def check_params(path: pathlib.Path, stored: dict, wanted: dict, kept: str) -> None:
    """Refuses the parameters of another model; they are `kept` in the state."""
    del path
    stored = {k: x for k, x in stored.items() if k.startswith(f"{kept}/")}
    _check_shapes(stored, wanted)


def _check_shapes(stored: dict, wanted: dict) -> None:
    there, here = (
        {name: list(leaf.shape) for name, leaf in leaves.items()}
        for leaves in (stored, wanted)
    )
    differing = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
    if differing:
        name = differing[0]
        raise OtherModel(
            f"does not hold the model of its config.json: {len(differing)} arrays "
            f"differ, such as {name}, {there.get(name)} there and {here.get(name)} by "
            "the config"
        )


def everywhere(read: Callable):
    """What `read` returns here, if it succeeds on every host; else all hosts raise."""
    result = error = None
    try:
        result = read()
    except MemoryError:
        raise
    except Exception as caught:  # whatever the parsers inside Orbax raise
        if isinstance(caught, jax.errors.JaxRuntimeError):
            raise  # the devices' own trouble, such as their memory
        error = caught
    if not cluster.failures(error is not None).any():
        return result
    if isinstance(error, (InputError, Damaged)):
        raise error
    why = "by another host" if error is None else repr(error.__cause__ or error)
    why = textwrap.shorten(why, 120)
    raise Damaged(f"cannot be read, as if half-written ({why})") from error


def none_is_whole(directory: pathlib.Path, why: str) -> InputError:
    return InputError(
        f"No checkpoint in {directory} can be restored: the last {why}; copy them "
        "again, or move them away to begin anew."
    )


def move_aside(directory: pathlib.Path, step: int, why: str) -> None:
    """Renames a damaged checkpoint, so that its step can be saved again."""
    path, number = directory / f"damaged-{step}", 1
    while path.exists():
        number += 1
        path = directory / f"damaged-{step}-{number}"
    if jax.process_index() == 0:
        (directory / str(step)).rename(path)
        log.warning("The checkpoint %d, now %s, %s.", step, path, why)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"damaged-{step}")


@contextlib.contextmanager
def explain_unsaved(path: pathlib.Path):
    """Says in a sentence that a checkpoint could not be written."""
    try:
        yield
    except Exception as error:
        code = _system_error(error)
        if code is None:
            raise
        why = os.strerror(code)
        if code in atomic.ADVICE:
            raise OSError(code, why, str(path)) from error  # known to launch.py
        raise InputError(
            f"The checkpoint {path} could not be saved ({why}); see that it can be "
            "written, and launch again, which goes on from the one before."
        ) from error


def _system_error(error: BaseException | None) -> int | None:
    """The number of the operating system's error behind this one, if there is."""
    while error is not None:
        # TensorStore tells it in words.
        told = re.search(r"os_error_code='(\d+)'", str(error))
        if told or isinstance(error, OSError):
            return int(told[1]) if told else error.errno
        error = error.__cause__ or error.__context__
    return None


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
