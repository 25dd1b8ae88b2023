"""The device mesh, and the rules that lay arrays out on it."""

import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipeline.errors import InputError

# Batch rows, and the optimiser's moments, are split over every device; parameters over
# the "fsdp" axis alone. (Replicas need the same parameters, but only one of them has to
# update a part: Rajbhandari et al. 2019, ZeRO's first stage.)
BATCH = P(("data", "fsdp"))

# The first pattern found in a leaf's path decides: a PartitionSpec is taken as it is,
# "split" splits the largest dimension which the devices divide. Moments carry their
# parameter's path, and so its rule.
RULES: tuple[tuple[str, str | P], ...] = (
    (r"/kernel$", "split"),
    (r"/(scale|bias|mask_token|global_token|(absent|sensors)/s[12])$", P()),
    (r"(^|/)(step|count|skipped|skipped_in_a_row|center)$", P()),
)


def make_mesh(fsdp: int = 1, devices=None) -> Mesh:
    """Builds a (data, fsdp) mesh over all devices, `fsdp` of them per replica.

    Args:
        fsdp: devices that share one copy of the parameters.
        devices: those to take instead, which need not be there; see
            `jax.experimental.topologies`.

    Raises:
        InputError: the devices do not divide into such groups.
    """
    # Hosts one after the other: each owns consecutive rows of the batch, which is
    # what makes a batch the same on any number of hosts; and a replica stays on one
    # host, where links are fastest, if its devices fit there.
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda d: (d.process_index, d.id))
    if fsdp < 1 or len(devices) % fsdp:
        raise InputError(
            f"{len(devices)} devices do not divide into groups of fsdp={fsdp}; choose "
            "a divisor."
        )
    # Auto lets XLA place activations; JAX defaults to Explicit, which asks for an
    # out_sharding at every reshape of a sharded image.
    shape = (len(devices) // fsdp, fsdp)
    return Mesh(
        np.array(devices).reshape(shape),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def platform(mesh: Mesh) -> str:
    """What the mesh is made of, "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def rows(mesh: Mesh) -> NamedSharding:
    """The layout of arrays whose first axis is the batch."""
    return NamedSharding(mesh, BATCH)


def whole(mesh: Mesh) -> NamedSharding:
    """The layout of arrays that every device holds in full."""
    return NamedSharding(mesh, P())


def to_devices(batch, mesh: Mesh):
    """Puts this host's rows of a batch (any tree of arrays) on its devices."""
    return _put(batch, rows(mesh))


def to_all(tree, mesh: Mesh):
    """Puts what every host has (any tree of arrays) on each device, whole."""
    return _put(tree, whole(mesh))


def _put(tree, layout: NamedSharding):
    # Between hosts JAX does not count this as asked for, as it does on one.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(layout, np.asarray(x)),
            tree,
        )


def abstract_rows(pair, batch_size: int, mesh: Mesh):
    """Shapes, dtypes and layout of a global batch of pairs like this one."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (batch_size, *x.shape), x.dtype, sharding=rows(mesh)
        ),
        pair,
    )


def leaf_path(path) -> str:
    """A key path as `params/encoder/blocks/0/attn/query/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh, min_size: int) -> P:
    """The PartitionSpec that RULES gives one leaf.

    Args:
        path: as `leaf_path` writes it.
        shape: of the leaf.
        mesh: with axes "data" and "fsdp".
        min_size: leaves with fewer elements stay whole.

    Raises:
        ValueError: no rule knows the path; a silent default would replicate it.
    """
    rule = next((r for pattern, r in RULES if re.search(pattern, path)), None)
    if rule is None:
        raise ValueError(f"No sharding rule matches {path} {shape}; add one to RULES.")
    if isinstance(rule, P):
        return rule
    if math.prod(shape) < min_size:
        return P()
    # Of moments a device has a part of its part of the parameter: so "fsdp" is first.
    moment = path.startswith("opt_state/")
    for axes in ("fsdp", "data") if moment else (), ("fsdp",):
        size = math.prod(mesh.shape[axis] for axis in axes)
        for dim in sorted(range(len(shape)), key=lambda i: -shape[i]):
            if size > 1 and shape[dim] % size == 0:
                split = axes if len(axes) > 1 else axes[0]
                return P(*(split if i == dim else None for i in range(len(shape))))
    return P()


def layout(tree, mesh: Mesh, min_size: int = 2**18):
    """A tree of NamedShardings for `tree`, whose leaves need only a shape."""

    def one(path, leaf):
        spec = spec_for(leaf_path(path), leaf.shape, mesh, min_size)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, tree)
