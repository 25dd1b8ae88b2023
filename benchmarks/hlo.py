"""XLA's programs, read from their text: what runs, how often, and on what line."""

import collections
import math
import pathlib
import re
from typing import NamedTuple

import fusmae_jax

DIGITS = re.compile(r"\d+")
ARRAY = re.compile(r"\b(pred|bf16|f8\w+|[fsu]\d+)\[([\d,]*)\]")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?(?:-> .*)?\{$")
LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?[\])}]) ([a-z][\w\-]*)\((.*)$")


def arrays(shape: str) -> list[tuple[str, list[int]]]:
    """The arrays of a shape as XLA writes it: type and dimensions of each."""
    return [
        (kind, [int(d) for d in DIGITS.findall(dims)])
        for kind, dims in ARRAY.findall(shape)
    ]


def size(shape: str) -> int:
    """Bytes of all arrays of a shape."""

    def one(kind, dims):
        bits = 8 if kind == "pred" else int(DIGITS.findall(kind)[0])
        return math.prod(dims) * bits // 8

    return sum(one(*array) for array in arrays(shape))


class Op(NamedTuple):
    """An instruction.

    Attributes:
        name: unique in a program.
        home: the computation that it is in.
        shape: of its result, as XLA writes it.
        kind: `dot`, `fusion`, `all-reduce`, ...
        operands: names of the instructions it reads.
        rest: what stands behind them.
        root: whether it is the result of its computation.
    """

    name: str
    home: str
    shape: str
    kind: str
    operands: list[str]
    rest: str
    root: bool

    def called(self) -> dict[str, str]:
        """The computations it calls, by `to_apply`, `calls`, `body`, `condition`."""
        pattern = r"\b(to_apply|calls|body|condition)=%?([\w.\-]+)"
        return dict(re.findall(pattern, self.rest))


class Program:
    """The instructions of a program, who uses them, and how often they run.

    Attributes:
        ops: by name.
        bodies: by computation, in order.
        entry: the computation that a step runs.
        users: kinds of the instructions that read one, by its name.
        devices: that share the program.
    """

    def __init__(self, text: str):
        self.ops, self.bodies = {}, collections.defaultdict(list)
        self.users = collections.defaultdict(set)
        self.entry = home = ""
        self._callers, self._limits = collections.defaultdict(list), {}
        devices = re.search(r"num_partitions=(\d+)", text)
        self.devices = int(devices[1]) if devices else 1
        for line in text.splitlines():
            if head := HEAD.match(line):
                home = head[2]
                self.entry = home if head[1] else self.entry
            elif match := LINE.match(line):
                self._add(home, *match.groups())
        self._frames = _Frames(text)

    def _add(self, home, root, name, shape, kind, rest):
        inside, _, _ = rest.partition(")")
        operands = re.findall(r"%([\w.\-]+)", inside)
        op = Op(name, home, shape, kind, operands, rest, bool(root))
        self.ops[name] = op
        self.bodies[home].append(op)
        for operand in operands:
            self.users[operand].add(kind)
        if kind == "constant" and re.match(r"[su]\d+\[\]", shape):
            self._limits.setdefault(home, int(DIGITS.findall(inside)[0]))
        called = op.called()
        if kind == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
            limit = int(trips[1]) if trips else called["condition"]
            self._callers[called["body"]].append((home, limit, kind))
            return
        branches = re.findall(r"branch_computations=\{(.*?)\}", rest)
        others = re.findall(r"%([\w.\-]+)", " ".join(branches))
        for callee in (*called.values(), *others):
            self._callers[callee].append((home, 1, kind))

    def callers(self, computation: str) -> set[str]:
        """Kinds of the instructions that call a computation."""
        return {kind for _, _, kind in self._callers[computation]}

    def times(self, computation: str) -> int:
        """How often a step runs a computation; a loop counts up to a constant."""
        if computation == self.entry:
            return 1
        return sum(
            self.times(caller)
            * (limit if isinstance(limit, int) else self._limits[limit])
            for caller, limit, _ in self._callers[computation]
        )

    def line(self, op: Op) -> str:
        """Where in `fusmae_jax` an instruction comes from."""
        frame = re.search(r"stack_frame_id=(\d+)", op.rest)
        named = re.search(r'op_name="(.*?)"', op.rest)
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
        here, lines = pathlib.Path(fusmae_jax.__file__).parent, []
        while frame in self._frames and len(lines) < depth:
            place = self._places[self._frames[frame]["file_location_id"]]
            file = self._files[place["file_name_id"]]
            if file.is_relative_to(here):
                lines.append(f"{file.name}:{place['line']}")
            parent = self._frames[frame].get("parent_frame_id", 0)
            frame = str(int(parent) - self._shift)
        return " < ".join(lines)
