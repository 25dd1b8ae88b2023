"""What a lowered program multiplies, sums and calls, read from its text.

Lowered text is what JAX asks any compiler for, before one has seen it: types, kernels
by name, calls of the host. It is made in seconds on any machine, without the hardware
or its compiler. What devices send each other is not in it: see `collectives.py`.
"""

import collections
import re
from typing import NamedTuple

TENSOR = re.compile(r"tensor<(?:[\dx]+x)?([a-z]\w*)>")
PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution|dot)\b.* : (.*)$")
SUM = re.compile(r"stablehlo\.reduce\(.*\) applies stablehlo\.add .* : (.*)$")
CALL = re.compile(r"stablehlo\.custom_call @([\w.$]+)")
# What asks the host for something, or waits for it.
HOST = re.compile(r"callback|stablehlo\.(?:infeed|outfeed|send|recv)\b")


class Contents(NamedTuple):
    """What is in a program.

    Attributes:
        products: number of matrix products by the types of their factors, as
            ("bf16", "bf16").
        sums: number of sums over an axis by type.
        calls: number of calls of kernels that others wrote, by name.
        host: lines that involve the host.
    """

    products: collections.Counter
    sums: collections.Counter
    calls: collections.Counter
    host: list[str]

    def __str__(self) -> str:
        factors = [f"{n} {' x '.join(pair)}" for pair, n in self.products.items()]
        sums = [f"{n} {kind}" for kind, n in self.sums.items()]
        return f"{', '.join(factors)}; {', '.join(sums)}; {self.fused_attention}"

    @property
    def fused_attention(self) -> int:
        """Number of calls of cuDNN's attention, forward and backward."""
        # For several devices they are still to be split, which nothing else is so.
        names = re.compile("fmha|CustomSPMDPartitioning")
        return sum(n for name, n in self.calls.items() if names.search(name))


def read(text: str) -> Contents:
    """Counts what is in a lowered program's text."""
    found = Contents(*(collections.Counter() for _ in range(3)), [])
    for line in text.splitlines():
        if product := PRODUCT.search(line):
            found.products[tuple(TENSOR.findall(product[1])[:2])] += 1
        elif total := SUM.search(line):
            found.sums[TENSOR.findall(total[1])[-1]] += 1
        elif call := CALL.search(line):
            found.calls[call[1]] += 1
        if HOST.search(line):
            found.host.append(line.strip())
    return found


def faults(found: Contents, program, platform: str) -> list[str]:
    """In sentences, what should not be in a program; empty where all is well.

    Args:
        found: from `read`.
        program: a `programs.Program`.
        platform: that it is for, "gpu" or "tpu".
    """
    wrong = [f"It involves the host: {line}" for line in found.host]
    if low := found.sums["bf16"] + found.sums["f16"]:
        wrong.append(f"{low} sums are in 16 bits, where they must be in 32.")
    kinds = {kind for pair in found.products for kind in pair}
    if mixed := sum(n for pair, n in found.products.items() if len(set(pair)) > 1):
        wrong.append(f"{mixed} products have factors of two types.")
    if kinds - {"bf16", "f32"}:
        wrong.append(f"There are products of {sorted(kinds - {'bf16', 'f32'})}.")
    if program.dtype == "float32" and "bf16" in kinds:
        wrong.append("Products are in bfloat16, where float32 is asked for.")
    if program.dtype == "bfloat16":
        full, wanted = found.products["f32", "f32"], program.float32_products
        if wanted is not None and full != wanted:
            wrong.append(f"{full} products are in float32, and {wanted} should be.")
        if not found.products["bf16", "bf16"]:
            wrong.append("No product is in bfloat16.")
    # A network in 16 bits attends by cuDNN on a GPU if it can, and nothing else does.
    fused, low = found.fused_attention, program.dtype == "bfloat16"
    if bool(fused) != (platform == "gpu" and low and program.fuses):
        wrong.append(f"cuDNN's attention is called {fused} times.")
    return wrong
