"""Times attention alone, forward and backward: who computes it, and of how many tokens.

    python benchmarks/attention.py

The model's own sizes, and the same filled up to what a GPU may like better: a sequence
of 99 tokens costs as much as one of 104 or 128 only if the kernel fills it up anyway.
Prints a table in microseconds; what a device cannot do is a "-", and why goes to
stderr. With --nofillings only the model's own sizes are timed.
"""

import functools
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from fusmae_jax.models import attention  # noqa: E402
from fusmae_jax.models.products import Arithmetic  # noqa: E402
from fusmae_jax.training import runtime  # noqa: E402

_BATCH = flags.DEFINE_integer("batch", 8, "Pairs in a batch.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Of q, k, v.")
_REPEATS = flags.DEFINE_integer("repeats", 20, "Calls timed.")
_FILLINGS = flags.DEFINE_bool("fillings", True, "Or the model's own sizes alone.")

# Tokens, heads, width of a head: what the base model does, with fillings.
SIZES = {
    "encoder, masked": [(n, 12, 64) for n in (99, 100, 104, 112, 128)],
    "encoder, whole": [(n, 12, 64) for n in (393, 394, 400, 448)],
    "decoder": [(n, 8, 32) for n in (196, 200, 208, 256)],
}


def seconds(implementation: str, n: int, heads: int, width: int) -> float:
    """The median time of one forward and backward pass."""
    shape = (_BATCH.value, heads, n, width)
    platform = jax.devices()[0].platform
    arithmetic = Arithmetic(_DTYPE.value, platform, attention=implementation)
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = [jax.random.normal(key, shape, _DTYPE.value) for key in keys]

    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def gradient(*qkv):
        y = attention.attend(*qkv, None, arithmetic)
        return y.astype(jnp.float32).sum()

    step, times = jax.jit(gradient), []
    for _ in range(3 + _REPEATS.value):
        start = time.perf_counter()
        jax.block_until_ready(step(*qkv))
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def main(argv):
    del argv
    runtime.keep_host_memory()
    kind = jax.devices()[0].device_kind
    print(f"{kind}, jax {jax.__version__}, batch {_BATCH.value}, {_DTYPE.value}")
    print(f"{'':<17}{'tokens':>8}{'xla':>10}{'cudnn':>10}")
    for name, sizes in SIZES.items():
        for size in sizes if _FILLINGS.value else sizes[:1]:
            cells = []
            for implementation in ("xla", "cudnn"):
                try:
                    cells.append(f"{1e6 * seconds(implementation, *size):>10.0f}")
                except (RuntimeError, ValueError, NotImplementedError) as error:
                    cells.append(f"{'-':>10}")
                    print(f"{implementation}, {size}: {error}", file=sys.stderr)
            print(f"{name:<17}{size[0]:>8}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    app.run(main)
