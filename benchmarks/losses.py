"""Takes a few training steps on synthetic pairs and prints their losses.

    python benchmarks/losses.py --config=configs/pretrain_base.py --steps=1 \\
        --config.batch_size=32

fails where a loss is not finite. With --against_cpu the same steps are taken on the CPU
in float32 too, by a process of its own and at the same time, and with --within=0.01 it
fails where a loss is further from the CPU's than that, relatively.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from absl import app, flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from fusmae_jax import dtypes  # noqa: E402
from fusmae_jax.training import runtime  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "A pretraining config.")
_STEPS = flags.DEFINE_integer("steps", 1, "Steps.", lower_bound=1)
_AGAINST = flags.DEFINE_bool("against_cpu", False, "Compare with the CPU's losses.")
_WITHIN = flags.DEFINE_float("within", 1e-3, "How far apart they may be, relatively.")


def losses(config, steps: int) -> list[float]:
    """The losses of the first steps."""
    from benchmarks import choices

    variant = choices.Variant(config)
    found = [variant.loss]
    while len(found) < steps:
        variant.state, metrics = variant.step(variant.state, variant.fields)
        found.append(float(metrics["loss"]))
    return found


def start_reference() -> subprocess.Popen:
    """This program again, on the CPU and in float32; its last line is the losses."""
    options = ["--noagainst_cpu", "--config.model.dtype=float32"]
    return subprocess.Popen(
        [sys.executable, *sys.argv, *options],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )


def compare(ours: list[float], reference: list[float]) -> float:
    """Prints both, and returns how far apart they are at most, relatively."""
    apart = [abs(x / y - 1) for x, y in zip(ours, reference, strict=True)]
    for i, row in enumerate(zip(ours, reference, apart), start=1):
        print("step {:>3}  here {:.6f}  CPU {:.6f}  apart {:.1e}".format(i, *row))
    print(f"{len(apart)} losses, at most {max(apart):.1e} apart")
    return max(apart)


def main(argv):
    del argv
    runtime.keep_host_memory()
    import jax

    reference = start_reference() if _AGAINST.value else None
    config, device = _CONFIG.value, jax.devices()[0]
    dtype = dtypes.resolve_dtype(config.model.dtype, device.platform)
    config.model.dtype = dtype
    kind = device.device_kind
    print(f"{jax.device_count()} x {kind}, jax {jax.__version__}, {dtype}")
    start = time.perf_counter()
    found = losses(config, _STEPS.value)
    seconds = time.perf_counter() - start
    last = f"loss {found[-1]:.4f} at step {len(found)}"
    print(f"{last}, after {seconds:.1f} s", flush=True)
    if not all(map(math.isfinite, found)):
        sys.exit(f"A loss is not finite: {found}")
    if reference is None:
        print(json.dumps(found))
        return
    said = reference.communicate()[0]
    if reference.returncode:
        sys.exit(f"The CPU's run failed with {reference.returncode}.")
    if compare(found, json.loads(said.splitlines()[-1])) > _WITHIN.value:
        sys.exit(f"That is more than {_WITHIN.value:g}.")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
