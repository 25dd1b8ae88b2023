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
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from data_pipeline import layout as layouts
from data_pipeline import synthetic
from fusmae_jax import build, checkpoint, optim, sharding, train

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
BITS = re.compile(r"\d+")
ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")
HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?(?:-> .*)?\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?[\])}]) ([a-z][\w\-]*)\((.*)$")


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: one of KINDS.
        bytes: of the arrays before they are split, or after they are whole.
        group: devices that take part together.
        times: how often a step runs it.
        line: lines of this package that asked for it, the innermost first.
        shape: of its result, as XLA writes it.
    """

    kind: str
    bytes: int
    group: int
    times: int
    line: str
    shape: str

    @property
    def total(self) -> int:
        """Bytes in a step."""
        return self.bytes * self.times

    @property
    def sent(self) -> float:
        """Bytes a device sends in a step, if the group forms a ring."""
        rounds = {"all-reduce": 2, "collective-permute": 1 / (1 - 1 / self.group)}
        return self.total * rounds.get(self.kind, 1) * (1 - 1 / self.group)


def lower(config, mesh: Mesh, batch_size: int):
    """Lowers the training step of a config; no array is ever allocated.

    Args:
        config: see `configs/pretrain_base.py`.
        mesh: the devices.
        batch_size: pairs of a global batch of synthetic scenes.

    Returns:
        The lowered step, and the abstract state, whose leaves know their sharding.
    """
    objective = build.objective(config)
    rate = optim.schedule(config.optim.peak_lr, 10, 1_000)
    tx = build.optimizer(config, rate)
    graphdef, params = build.abstract_model(config)
    state = jax.eval_shape(lambda p: train.fresh_state(p, tx), params)
    layout = sharding.layout(state, mesh, config.fsdp_min_size)
    step = build.train_step(config, graphdef, objective, tx, rate, layout, mesh)
    size = config.data.size
    names = layouts.native(size).fields(objective.contract)
    pair = synthetic.Scenes(1, size=size, fields=names)[0]
    fields = sharding.abstract_rows(pair, batch_size, mesh)
    state = checkpoint.abstract(state, layout)
    return step.lower(state, fields), state


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
    program = _Program(text)
    found = []
    for name, (home, shape, kind, rest) in program.lines.items():
        times = program.times(home)
        if kind not in KINDS or not times:
            continue
        group, size = _group(rest, program.devices), _size(shape)
        if kind == "reduce-scatter":
            size *= group
        elif kind == "all-reduce" and program.users[name] == {"dynamic-slice"}:
            # Backends that have one turn this into a reduce-scatter.
            kind = "reduce-scatter"
        line = program.line(rest)
        found.append(Collective(kind, size, group, times, line, shape))
    return found


def holds_rows(shape: str, rows: int) -> bool:
    """Whether a dimension of a shape is a multiple of `rows`."""
    dims = (int(d) for _, dims in ARRAY.findall(shape) for d in BITS.findall(dims))
    return any(d and d % rows == 0 for d in dims)


def whole_batches(text: str, batch_size: int) -> set[str]:
    """Arrays of one device's program that hold rows of the whole batch.

    They have a dimension that is a multiple of `batch_size`. For that to say so, the
    rows of one device must be a prime that divides nothing in the model, and the
    number of devices must divide no number of tokens.
    """
    return {
        shape
        for _, shape, kind, _ in _Program(text).lines.values()
        # A broadcast repeats numbers, and holds nothing of the batch.
        if kind != "broadcast" and holds_rows(shape, batch_size)
    }


def needed(state: train.TrainState, mesh: Mesh, dtype: str) -> dict[str, int]:
    """The bytes that a step cannot but move, by kind of collective.

    Whole parameters: their gradients are summed over all devices. Split ones are
    gathered, and their gradients reduced to the same parts, which replicas then sum
    among each other. Kernels are gathered in `dtype`, once: a backward pass that does
    not keep them gathers them again. Gradients are float32.

    Args:
        state: from `lower`.
        mesh: the devices.
        dtype: of matrix products.
    """
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    counts = collections.Counter()
    for leaf in jax.tree.leaves(state.params):
        size = 4 * leaf.size
        if fsdp > 1 and "fsdp" in leaf.sharding.spec:
            counts["all-gather"] += leaf.size * jnp.dtype(dtype).itemsize
            counts["reduce-scatter"] += size
            counts["all-reduce"] += size // fsdp if data > 1 else 0
        elif data * fsdp > 1:
            counts["all-reduce"] += size
    return dict(counts)


def _size(shape: str) -> int:
    """Bytes of all arrays of a shape."""

    def one(kind, dims):
        bits = 8 if kind == "pred" else int(BITS.findall(kind)[-1])
        return math.prod(map(int, BITS.findall(dims))) * bits // 8

    return sum(one(*array) for array in ARRAY.findall(shape))


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


class _Program:
    """The lines of a program, who uses them, and how often they run."""

    def __init__(self, text: str):
        self.lines, self.users = {}, collections.defaultdict(set)
        self._callers, self._limits = collections.defaultdict(list), {}
        self._entry = home = None
        devices = re.search(r"num_partitions=(\d+)", text)
        self.devices = int(devices[1]) if devices else 1
        for line in text.splitlines():
            if head := HEAD.match(line):
                home = head[1]
                self._entry = home if line.startswith("ENTRY") else self._entry
            elif match := LINE.match(line):
                self._add(home, *match.groups())
        self._frames = _Frames(text)

    def _add(self, home, name, shape, kind, rest):
        self.lines[name] = (home, shape, kind, rest)
        operands, _, attributes = rest.partition(")")
        for operand in re.findall(r"%([\w.\-]+)", operands):
            self.users[operand].add(kind)
        if kind == "constant" and shape.startswith("s32[]"):
            self._limits.setdefault(home, int(BITS.findall(operands)[0]))
        loop = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", attributes)
        if loop:
            self._callers[loop[2]].append((home, loop[1]))
            return
        called = re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", attributes)
        branches = re.findall(r"branch_computations=\{(.*?)\}", attributes)
        called += re.findall(r"%([\w.\-]+)", " ".join(branches))
        for callee in called:
            self._callers[callee].append((home, None))

    def times(self, computation: str) -> int:
        """How often a step runs a computation; a loop counts up to a constant."""
        if computation == self._entry:
            return 1
        return sum(
            self.times(caller) * (self._limits[condition] if condition else 1)
            for caller, condition in self._callers[computation]
        )

    def line(self, rest: str) -> str:
        """Where in `fusmae_jax` an instruction comes from."""
        frame = re.search(r"stack_frame_id=(\d+)", rest)
        named = re.search(r'op_name="(.*?)"', rest)
        return (frame and self._frames.describe(frame[1])) or (named and named[1]) or ""


class _Frames:
    """The table of stack frames at the head of a program's text."""

    def __init__(self, text: str):
        def table(title):
            rows = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.M)
            return (row.split(" ", 1) for row in (rows[1] if rows else "").splitlines())

        def numbers(title):
            return {i: dict(re.findall(r"(\w+)=(\d+)", row)) for i, row in table(title)}

        self._files = {i: pathlib.Path(row.strip('"')) for i, row in table("FileNames")}
        self._places, self._frames = numbers("FileLocations"), numbers("StackFrames")
        # The outermost frame has no parent; some versions count parents from one.
        self._shift = int(self._frames.get("1", {}).get("parent_frame_id", 0))

    def describe(self, frame: str, depth: int = 3) -> str:
        """The innermost `depth` lines of `fusmae_jax`, `layers.py:89 < ...`."""
        here, lines = pathlib.Path(sharding.__file__).parent, []
        while frame in self._frames and len(lines) < depth:
            place = self._places[self._frames[frame]["file_location_id"]]
            file = self._files[place["file_name_id"]]
            if file.parent == here:
                lines.append(f"{file.name}:{place['line']}")
            parent = self._frames[frame].get("parent_frame_id", 0)
            frame = str(int(parent) - self._shift)
        return " < ".join(lines)
