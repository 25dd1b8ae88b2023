"""Times the pretraining step against itself with one choice made otherwise.

    python benchmarks/levers.py --config=configs/pretrain_small.py --batch=16

Each row undoes one thing that the step does, or adds one that it does not, by patching
the modules while that variant is compiled. Both then take turns on the same pairs, and
the row says how many times our time the variant takes (median of the rounds, and their
range), what memory it needs, and how far its first loss is from ours. Above 1.00 our
way pays.
"""

import pathlib
import statistics
import sys

import jax
from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks.choices import CPU_ONLY, LEVERS, Variant  # noqa: E402
from fusmae_jax import dtypes  # noqa: E402
from fusmae_jax.training import runtime  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "A pretraining config.")
_BATCH = flags.DEFINE_integer("batch", 8, "Pairs in a batch.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.")
_STEPS = flags.DEFINE_integer("steps", 2, "Steps of a turn.")
_ONLY = flags.DEFINE_list("only", [""], "Rows whose name contains one of these.")


def race(name: str, ours: Variant, other: Variant, **options) -> None:
    """Prints a row of what `other` takes."""
    ours.turn(1), other.turn(1)
    ratios = [
        other.turn(_STEPS.value, **options) / ours.turn(_STEPS.value)
        for _ in range(_ROUNDS.value)
    ]
    memory = (other.memory - ours.memory) / ours.memory
    print(
        f"{name:<42}{statistics.median(ratios):>7.2f}   {min(ratios):.2f} to "
        f"{max(ratios):.2f}{memory:>+9.0%}{other.loss / ours.loss - 1:>+12.1e}",
        flush=True,
    )


def main(argv):
    del argv
    runtime.keep_host_memory()
    config = _CONFIG.value
    config.batch_size = _BATCH.value
    platform = jax.devices()[0].platform
    config.model.dtype = dtypes.resolve_dtype(config.model.dtype, platform)
    ours = Variant(config)
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, batch "
        f"{_BATCH.value}, {config.model.dtype}; ours: {ours.turn(3) * 1e3:.0f} ms, "
        f"{ours.memory / 2**30:.2f} GiB"
    )
    print(f"{'':<42}{'times':>7}   {'range':<12}{'memory':>9}{'loss':>12}")
    for name, change in LEVERS.items():
        beside = name in CPU_ONLY and jax.devices()[0].platform != "cpu"
        if wanted(name) and not beside:
            race(name, ours, Variant(config, change))
    if wanted("state not donated"):
        race("state not donated", ours, Variant(config, donate=False))
    if wanted("wait for every step"):
        race("wait for every step", ours, ours, wait=True)


def wanted(name: str) -> bool:
    return any(part in name for part in _ONLY.value)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
