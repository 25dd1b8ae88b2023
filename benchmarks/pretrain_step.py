"""Times the pretraining step alone, on pairs that are already on the devices.

    python benchmarks/pretrain_step.py --config=configs/pretrain_base.py \\
        --batch=256,512 --dtype=bfloat16 --remat=none,dots,full --attention=xla,cudnn

Every combination of the lists is a row of the table: GFLOP an image needs, seconds to
compile, milliseconds a step (the median of several groups of steps, and half their
range), images/s, TFLOP/s a device, share of the device's peak where that is known, the
memory that the step takes of a device, and the most that this process has had in use of
it until then, where the device tells. What does not fit, or does not work here, says so
in its row, the latter at length on stderr; it fails if no row has numbers.

With --parts a row is followed by where its step goes: each line is a program that does
all that the lines above do and one thing more. With --profile=DIR a trace of the
timed steps is left for TensorBoard or Perfetto.
"""

import contextlib
import importlib
import itertools
import pathlib
import statistics
import sys
import time
import traceback

import jax
from absl import app, flags, logging
from flax import nnx
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import pairs  # noqa: E402
from data_pipeline.errors import InputError  # noqa: E402
from fusmae_jax import build, dtypes, patches  # noqa: E402
from fusmae_jax.training import loop, optim, pretrain, runtime, sharding  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "A pretraining config.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of a timed group.", lower_bound=1)
_GROUPS = flags.DEFINE_integer("groups", 5, "Groups, after one to warm up.", 1)
_PARTS = flags.DEFINE_bool("parts", False, "Show where a step goes.")
_PROFILE = flags.DEFINE_string("profile", None, "Where to leave a trace.")

# What can be swept, as flags that take lists: field of the config, type of its values.
FIELDS = {
    "batch": ("batch_size", int),
    "dtype": ("model.dtype", str),
    "attention": ("model.attention", str),
    "remat": ("model.remat", str),
    "accumulate": ("accumulate", int),
    "fsdp": ("fsdp", int),
}
_LISTS = {
    "size": flags.DEFINE_list("size", [], "Models of configs/pretrain_SIZE.py."),
    **{
        name: flags.DEFINE_list(name, [], f"Values of config.{field}.")
        for name, (field, _) in FIELDS.items()
    },
}
FORMATS = {
    "GFLOP": ".3g",
    "compile s": ".1f",
    "ms/step": ".1f",
    "+-": ".1%",
    "images/s": ".1f",
    "TFLOP/s": ".2f",
    "of peak": ".1%",
    "GiB": ".2f",
    "in use": ".2f",
}


def combinations(config):
    """Yields the chosen values of every row by name, and the row's config."""
    lists = {name: flag.value for name, flag in _LISTS.items() if flag.value}
    lists.setdefault("batch", [str(config.batch_size)])
    for values in itertools.product(*lists.values()):
        chosen, mine = dict(zip(lists, values)), config.copy_and_resolve_references()
        if "size" in chosen:
            module = importlib.import_module(f"configs.pretrain_{chosen['size']}")
            mine.model.update(module.get_config().model)
        for name in chosen.keys() & FIELDS.keys():
            field, kind = FIELDS[name]
            mine.update_from_flattened_dict({field: kind(chosen[name])})
        platform = jax.devices()[0].platform
        mine.model.dtype = dtypes.resolve_dtype(mine.model.dtype, platform)
        yield chosen, mine


def time_calls(call, trace: str | None = None) -> tuple[float, float]:
    """Seconds of one call, and half the range of its groups as a share of them."""

    def group() -> float:
        start = time.perf_counter()
        for _ in range(_STEPS.value):
            result = call()
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / _STEPS.value

    group()
    with jax.profiler.trace(trace) if trace else contextlib.nullcontext():
        seconds = [group() for _ in range(_GROUPS.value)]
    median = statistics.median(seconds)
    return median, (max(seconds) - min(seconds)) / 2 / median


class Run:
    """The step of a config, ready to be timed."""

    def __init__(self, config):
        self.config, self.mesh = config, sharding.make_mesh(config.fsdp)
        self.objective = build.objective(config, **build.target(self.mesh))
        self.rate = optim.schedule(config.optim.peak_lr, 10, 1_000)
        init, _, step = pretrain.compile_step(
            config, self.objective, self.mesh, self.rate
        )
        self.state = init()
        self.fields = sharding.to_devices(
            pairs.host_batch(config, config.batch_size), self.mesh
        )
        start = time.perf_counter()
        self.compiled = step.lower(self.state, self.fields).compile()
        self.compile_seconds = time.perf_counter() - start

    def step(self):
        """Takes a step; what it returns ends with it."""
        self.state, metrics = self.compiled(self.state, self.fields)
        return metrics

    def row(self) -> dict[str, float | None]:
        """Times the step; cells of the table by name."""
        seconds, spread = time_calls(self.step, _PROFILE.value)
        work, batch = self.objective.flops(), self.config.batch_size
        rate = batch * work / seconds / jax.device_count()
        peak = loop.device_peak(self.config)
        used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return {
            "GFLOP": work / 1e9,
            "compile s": self.compile_seconds,
            "ms/step": 1e3 * seconds,
            "+-": spread,
            "images/s": batch / seconds,
            "TFLOP/s": rate / 1e12,
            "of peak": peak and rate / peak,
            "GiB": pretrain.step_memory(self.compiled) / 2**30,
            "in use": used and used / 2**30,
        }

    def parts(self) -> dict[str, float]:
        """Seconds of programs that do more and more of a step, by what comes last."""
        if self.config.accumulate > 1:
            raise InputError("--parts needs batches that go through in one piece.")
        graphdef, _ = self.objective.abstract
        objective, params, fields = self.objective, self.state.params, self.fields
        keep = patches.num_visible(objective.num_patches, self.config.mask.ratio)
        key = jax.random.key(0)

        def images(draw, fields):
            return objective.inputs.images(fields, draw.view)

        def loss(params, fields, draw):
            return objective.loss(nnx.merge(graphdef, params), (), fields, draw)[0]

        @jax.jit
        def views(fields):
            return images(objective.draw(key, self.config.batch_size), fields)

        @jax.jit
        def choose(fields):
            draw = objective.draw(key, self.config.batch_size)
            masks = [patches.mask_from_noise(x, keep) for x in draw.noise.values()]
            return images(draw, fields), masks

        @jax.jit
        def forward(params, fields):
            return loss(params, fields, objective.draw(key, self.config.batch_size))

        @jax.jit
        def backward(params, fields):
            draw = objective.draw(key, self.config.batch_size)
            return jax.value_and_grad(loss)(params, fields, draw)

        calls = {
            "resample, normalise": lambda: views(fields),
            "draw masks": lambda: choose(fields),
            "forward": lambda: forward(params, fields),
            "backward": lambda: backward(params, fields),
            "update": self.step,  # comes last: it gives the parameters away
        }
        return {name: time_calls(call)[0] for name, call in calls.items()}


def print_parts(seconds: dict[str, float]) -> None:
    """Prints what each part adds to those before."""
    whole, before = seconds["update"], 0.0
    for name, total in seconds.items():
        added = total - before
        print(f"{name:>28} {1e3 * added:>10.1f} ms {added / whole:>7.1%}", flush=True)
        before = total


def measure(config) -> tuple[str, bool, dict[str, float]]:
    """A row's cells or what went wrong, whether it went well, and seconds by part."""
    try:
        run = Run(config)
        cells = [
            "-" if value is None else format(value, FORMATS[name])
            for name, value in run.row().items()
        ]
        parts = run.parts() if _PARTS.value else {}
        return "".join(f"{x:>11}" for x in cells), True, parts
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return "  out of memory", False, {}
        traceback.print_exc()
        return f"  {type(error).__name__}: {error}".splitlines()[0][:76], False, {}


def main(argv):
    del argv
    runtime.keep_host_memory()
    logging.set_verbosity(logging.WARNING)
    kind = jax.devices()[0].device_kind
    print(f"{jax.device_count()} x {kind}, jax {jax.__version__}")
    worked = False
    for i, (chosen, config) in enumerate(combinations(_CONFIG.value)):
        if not i:
            names = "".join(f"{name:>11}" for name in FORMATS)
            print("".join(f"{name:>10}" for name in chosen) + names)
        cells, well, parts = measure(config)
        print("".join(f"{x:>10}" for x in chosen.values()) + cells, flush=True)
        worked = worked or well
        if parts:
            print_parts(parts)
    if not worked:
        sys.exit("No row has numbers.")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
