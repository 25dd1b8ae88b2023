"""A lower bound of the time of a program compiled for a GPU, read from its text.

Every kernel reads its operands and writes its results once, and computes its matrix
products at the peak; it takes the longer of the two, and kernels follow each other.

Counted is what is touched: of an operand that a kernel only slices or gathers from, the
parts taken; of one that it updates in place, the part written. Loops count as often as
they run. Left out: launches, waves that do not fill the device, scratch memory (cuDNN's
backward pass adds up float32 queries there), the arithmetic of everything but products,
collectives. So is what stays in the cache from one kernel to the next, which could
beat the bound where arrays are smaller than the cache.
"""

import collections
import math
import re
from typing import NamedTuple

from benchmarks import hlo
from benchmarks.hlo import Op

# They move nothing, or are counted where they end, or where they lead.
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "iota"}
FREE |= {"partition-id", "replica-id", "after-all", "opt-barrier", "copy-done"}
FREE |= {"while", "call", "conditional"}
ELSEWHERE = re.compile("all-|reduce-scatter|collective|async-|.*-(start|done)$")
TAKES = {"slice", "dynamic-slice", "gather"}
# Products of float32, in TensorFloat-32 and, with precision "highest", outside of the
# tensor cores: how much slower an H100 is than with 16 bits.
SLOWER = {"DEFAULT": 2, "HIGH": 2, "HIGHEST": 989 / 67}


class Kernel(NamedTuple):
    """A kernel and its part in a step.

    Attributes:
        op: the instruction.
        kind: "product", "attention" or "other".
        bytes: it moves, all times together.
        flops: of its products, likewise.
        seconds: the bound.
    """

    op: Op
    kind: str
    bytes: float
    flops: float
    seconds: float


def kernels(text: str, bandwidth: float, peak: float) -> list[Kernel]:
    """The kernels of a compiled program; the sum of their `seconds` is the bound.

    Args:
        text: of the compiled program.
        bandwidth: of the device's memory, bytes/s.
        peak: FLOP/s of its 16-bit matrix products.
    """
    program = hlo.Program(text)
    inside = {
        op.called().get("calls") for op in program.ops.values() if op.kind == "fusion"
    }
    found = []
    for home, body in program.bodies.items():
        times = program.times(home)
        # What reduces and compares is called too, by a kernel, and is none.
        scalar = program.callers(home) & {"reduce", "sort", "scatter", "all-reduce"}
        if home in inside or not times or scalar:
            continue
        for op in body:
            if op.kind in FREE or ELSEWHERE.match(op.kind):
                continue
            kind, flops, slower = _arithmetic(op, program)
            moved = _traffic(op, program)
            seconds = max(moved / bandwidth, flops * slower / peak)
            sizes = (times * x for x in (moved, flops, seconds))
            found.append(Kernel(op, kind, *sizes))
    return found


def _arithmetic(op: Op, program: hlo.Program) -> tuple[str, int, float]:
    """What a kernel is, its FLOPs, and how much slower than the peak they run."""
    target = re.search(r'custom_call_target="([^"]*)"', op.rest)
    target = target[1] if target else ""
    shapes = [hlo.arrays(program.ops[x].shape)[0] for x in op.operands[:2] if target]
    if "cublas" in target:
        batch = re.search(r'"lhs_batch_dimensions":\[([^\]]*)\]', op.rest)
        dims = [int(i) for i in hlo.DIGITS.findall(batch[1])] if batch else []
        batch = math.prod(shapes[0][1][i] for i in dims)
        # Of m, k and n each is a factor of two of the three arrays.
        arrays = (*shapes, hlo.arrays(op.shape)[0])
        sizes = math.prod(math.prod(shape) // batch for _, shape in arrays)
        precision = re.search(r'"operand_precision":\["(\w+)"', op.rest)
        named = precision[1] if precision else "DEFAULT"
        slower = SLOWER[named] if shapes[0][0] == "f32" else 1
        return "product", 2 * batch * math.isqrt(sizes), slower
    if "fmha" in target:
        q, k = (shape for _, shape in shapes)  # [B, N, h, d]
        return "attention", 2 * math.prod(q) * k[1] * (5 if "Back" in target else 2), 1
    return "other", 0, 1


def _traffic(op: Op, program: hlo.Program) -> float:
    """Bytes that a kernel reads and writes.

    Which share of each array inside is needed follows from its users, from the
    results backwards.
    """
    if op.kind == "fusion":
        body = program.bodies[op.called()["calls"]]
    else:  # a kernel of one operation
        given = dict.fromkeys(op.operands)
        body = [program.ops[x]._replace(kind="parameter", operands=[]) for x in given]
        body = [x._replace(root=False) for x in body] + [op._replace(root=True)]
    inside, needed, moved = {x.name: x for x in body}, collections.Counter(), 0
    for x in reversed(body):
        if x.root:
            needed[x.name] = 1.0
            results = [inside[y] for y in x.operands] if x.kind == "tuple" else [x]
            moved += sum(_written(y, inside) for y in results)
        share = min(needed[x.name], 1.0)
        if x.kind == "parameter":
            moved += share * hlo.size(x.shape)
        for i, operand in enumerate(dict.fromkeys(x.operands)):
            part = share
            if (x.kind in TAKES and i == 0) or x.kind == "broadcast":
                part *= hlo.size(x.shape) / max(hlo.size(inside[operand].shape), 1)
            elif x.kind == "dynamic-update-slice" and i == 0:
                part = 0.0  # it is written in place
            needed[operand] += part
    return moved


def _written(x: Op, inside: dict[str, Op]) -> int:
    while x.kind == "bitcast":
        x = inside[x.operands[0]]
    if x.kind == "dynamic-update-slice":
        return hlo.size(inside[x.operands[1]].shape)
    if x.kind == "parameter":  # handed on
        return 0
    # Bytes beside the results of a library's kernel are its scratch memory.
    shape = re.sub(r"\b[su]8\[", "[", x.shape) if x.kind == "custom-call" else x.shape
    return hlo.size(shape)
