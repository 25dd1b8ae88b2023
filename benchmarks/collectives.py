"""What the devices of a training step send each other, read from XLA's program.

Two texts of one program are worth reading. The partitioned one is what every backend
starts from: the program of one device, with the types that the model asked for. The
compiled one is what the CPU makes of it: it knows neither bfloat16 nor reduce-scatter,
so it sends float32 and reduces whole arrays of which it then takes a slice.
"""

import collections
import math
import pathlib
import re
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from benchmarks import hlo
from fusmae_jax.training import train

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: one of KINDS.
        bytes: of the arrays before they are split, or after they are whole.
        group: devices that take part together.
        times: how often a step runs it.
        line: lines of this package that asked for it, the innermost first.
        shape: of its result, as XLA writes it.
        asynchronous: whether other work may go on meanwhile.
    """

    kind: str
    bytes: int
    group: int
    times: int
    line: str
    shape: str
    asynchronous: bool

    @property
    def total(self) -> int:
        """Bytes in a step."""
        return self.bytes * self.times

    @property
    def sent(self) -> float:
        """Bytes a device sends in a step, if the group forms a ring."""
        rounds = {"all-reduce": 2, "collective-permute": 1 / (1 - 1 / self.group)}
        return self.total * rounds.get(self.kind, 1) * (1 - 1 / self.group)


def compile_both(lowered) -> tuple[jax.stages.Compiled, str]:
    """Compiles, and returns the text of the partitioned program too."""
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # it keeps no such text
    compilation_cache.reset_cache()  # or what was decided before would stand
    try:
        with tempfile.TemporaryDirectory() as folder:
            compiled = lowered.compile(
                {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partition.*"}
            )
            # One device's program is not partitioned.
            texts = pathlib.Path(folder).glob("*.after_spmd-partitioning*.txt")
            return compiled, next((path.read_text() for path in texts), "")
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
        compilation_cache.reset_cache()


def read(text: str) -> list[Collective]:
    """The collectives of a program's text."""
    program = hlo.Program(text)
    found = []
    for op in program.ops.values():
        kind, times = op.kind.removesuffix("-start"), program.times(op.home)
        if kind not in KINDS or not times:
            continue
        group, started = _group(op.rest, program.devices), kind != op.kind
        size = hlo.size(op.shape)
        if started and kind != "all-reduce":  # what goes in stands before what comes
            size -= sum(hlo.size(program.ops[x].shape) for x in op.operands)
        # Or in a computation of its own, of whose start nothing waits for the end.
        started |= "async-start" in program.callers(op.home)
        if kind == "reduce-scatter":
            size *= group
        elif kind == "all-reduce" and program.users[op.name] == {"dynamic-slice"}:
            # Backends that have one turn this into a reduce-scatter.
            kind = "reduce-scatter"
        line = program.line(op)
        found.append(Collective(kind, size, group, times, line, op.shape, started))
    return found


def holds_rows(shape: str, rows: int) -> bool:
    """Whether a dimension of a shape is a multiple of `rows`."""
    dims = (d for _, dims in hlo.arrays(shape) for d in dims)
    return any(d and d % rows == 0 for d in dims)


def whole_batches(text: str, batch_size: int) -> set[str]:
    """Arrays of one device's program that hold rows of the whole batch.

    They have a dimension that is a multiple of `batch_size`. For that to say so, the
    rows of one device must be a prime that divides nothing in the model, and the
    number of devices must divide no number of tokens.
    """
    return {
        op.shape
        for op in hlo.Program(text).ops.values()
        # A broadcast repeats numbers, and holds nothing of the batch.
        if op.kind != "broadcast" and holds_rows(op.shape, batch_size)
    }


def needed(state: train.TrainState, mesh: Mesh, dtype: str) -> dict[str, int]:
    """The bytes that a step cannot but move, by kind of collective.

    Where moments are split, gradients are reduced to the same parts, and what a device
    has updated is gathered by those that hold more of the parameter. Other gradients
    are summed over all devices. Parameters that are split are gathered in `dtype` for
    the forward pass; a backward pass that does not keep them gathers them again.
    Gradients and parameters are float32.

    Args:
        state: abstract, its leaves knowing their layout.
        mesh: the devices.
        dtype: of matrix products.
    """
    counts = collections.Counter()
    if mesh.size == 1:
        return dict(counts)
    moments = optax.tree.get(state.opt_state, "mu")
    for leaf, moment in zip(jax.tree.leaves(state.params), jax.tree.leaves(moments)):
        held = [x.sharding.shard_shape(x.shape) for x in (leaf, moment)]
        parts = [leaf.size // math.prod(shape) for shape in held]
        if parts[0] > 1:
            counts["all-gather"] += leaf.size * jnp.dtype(dtype).itemsize
        if parts[1] > parts[0]:
            counts["all-gather"] += 4 * leaf.size // parts[0]
        counts["reduce-scatter" if parts[1] > 1 else "all-reduce"] += 4 * leaf.size
    return dict(counts)


def _group(rest: str, devices: int) -> int:
    """Devices of one replica group, in any of XLA's three ways to write them."""
    if named := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    if tiled := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(tiled[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    return devices
