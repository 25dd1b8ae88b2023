"""Times the pretraining step alone, on pairs that are already on the devices.

    python benchmarks/pretrain_step.py --config=configs/pretrain_base.py --batch=256,512

Prints a table: compile time, milliseconds a step, images/s, TFLOP/s a device, the
share of the device's peak where that is known, and peak memory. With --profile=DIR it
leaves a trace for TensorBoard or Perfetto.
"""

import pathlib
import sys
import time

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from data_pipeline import layout, synthetic  # noqa: E402
from fusmae_jax import build, flops, optim, pretrain, sharding  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "A pretraining config.")
_BATCH = flags.DEFINE_list("batch", [], "Batch sizes; the config's by default.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps timed, after 3 to warm up.")
_PROFILE = flags.DEFINE_string("profile", None, "Where to leave a trace.")


def device_batch(contract, size: int, batch_size: int, mesh):
    """A batch of synthetic pairs on the devices."""
    fields = layout.native(size).fields(contract)
    scenes = synthetic.Scenes(16, size=size, fields=fields)
    pairs = [scenes[i] for i in range(16)]
    places = np.arange(batch_size) % 16
    return sharding.to_devices(
        {name: np.stack([pairs[i][name] for i in places]) for name in pairs[0]}, mesh
    )


def measure(config, batch_size: int) -> dict[str, float]:
    """Compiles and times the step at one batch size."""
    mesh, objective = sharding.make_mesh(config.fsdp), build.objective(config)
    rate = optim.schedule(config.optim.peak_lr, 10, 1_000)
    state, _, step = pretrain.compile_step(config, objective, mesh, rate)
    fields = device_batch(objective.contract, config.data.size, batch_size, mesh)
    start = time.perf_counter()
    state, metrics = step(state, fields)
    jax.block_until_ready(metrics)
    compiled = time.perf_counter() - start
    for _ in range(3):
        state, metrics = step(state, fields)
    jax.block_until_ready(metrics)
    if _PROFILE.value:
        jax.profiler.start_trace(_PROFILE.value)
    start = time.perf_counter()
    for _ in range(_STEPS.value):
        state, metrics = step(state, fields)
    jax.block_until_ready(metrics)
    seconds = (time.perf_counter() - start) / _STEPS.value
    if _PROFILE.value:
        jax.profiler.stop_trace()

    device = jax.devices()[0]
    bands = {s: len(names) for s, names in config.bands.items()}
    work = flops.train_step_flops(config.model.to_dict(), bands, config.mask.ratio)
    per_device = batch_size * work / seconds / jax.device_count()
    peak = flops.peak(device.device_kind)
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "compile s": compiled,
        "ms/step": 1e3 * seconds,
        "images/s": batch_size / seconds,
        "TFLOP/s": per_device / 1e12,
        "of peak": per_device / peak if peak else float("nan"),
        "GiB": memory / 2**30 if memory else float("nan"),
    }


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    kind = jax.devices()[0].device_kind
    print(f"{jax.device_count()} x {kind}, jax {jax.__version__}")
    for i, batch_size in enumerate(_BATCH.value or [config.batch_size]):
        row = measure(config, int(batch_size))
        if not i:
            print(f"{'batch':>6}" + "".join(f"{name:>11}" for name in row))
        cells = "".join(f"{value:>11.2f}" for value in row.values())
        print(f"{batch_size:>6}{cells}", flush=True)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
