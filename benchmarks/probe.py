r"""Times the linear probe's grid, at a tenth of the BigEarthNet training split.

    JAX_PLATFORMS=cpu python benchmarks/probe.py

Prints a table: seconds for all settings at once, GFLOP/s, and the share of what one
plain matrix product of that size reaches here; then what the full split would take on
this machine, as time grows linearly with pairs. In the same run, settings are trained
one after the other for a few epochs, which tells what training them at once is worth.
Features are noise: their values change nothing about the time.
"""

import pathlib
import sys
import time

import jax
import numpy as np
from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from fusmae_jax.evaluation import linear_probe  # noqa: E402
from fusmae_jax.training import sharding  # noqa: E402

_PAIRS = flags.DEFINE_integer("pairs", 27_000, "Pairs trained on.")
_FULL = flags.DEFINE_integer("full", 270_000, "Pairs to extrapolate to.")
_FEATURES = flags.DEFINE_integer("features", 1536, "Features of a pair.")
_CLASSES = flags.DEFINE_integer("classes", 19, "Classes.")
_SETTINGS = flags.DEFINE_integer("settings", 40, "Settings of the grid.")
_EPOCHS = flags.DEFINE_integer("epochs", 100, "Epochs over the pairs.")
_BATCH = flags.DEFINE_integer("batch", 256, "Pairs in a step.")
_ALONE = flags.DEFINE_integer("alone", 4, "Settings trained one after the other, too.")
_ALONE_EPOCHS = flags.DEFINE_integer("alone_epochs", 2, "Epochs of each of them.")


def seconds(data, settings, mesh, epochs: int) -> tuple[float, float]:
    """Time of the compiled epochs, and of what comes before and after them."""

    def timed(epochs):
        start = time.perf_counter()
        options = {"epochs": epochs, "batch_size": _BATCH.value}
        linear_probe.train(*data, settings, mesh, single=False, **options)
        return time.perf_counter() - start

    timed(1)  # compiles
    one = timed(1)
    trained = timed(epochs + 1) - one
    return trained, one - trained / epochs


def product_flops(repeats: int = 50) -> float:
    """FLOP/s of one device in a product as wide as a step's forward pass."""
    d, width = _FEATURES.value, _SETTINGS.value * _CLASSES.value
    x, kernel = np.ones((_BATCH.value, d), np.float32), np.ones((d, width), np.float32)
    x, kernel = jax.device_put((x, kernel))
    multiply = jax.jit(lambda x, w: jax.numpy.matmul(x, w, precision="high"))
    multiply(x, kernel).block_until_ready()
    start = time.perf_counter()
    for _ in range(repeats):
        product = multiply(x, kernel)
    product.block_until_ready()
    elapsed = time.perf_counter() - start
    return repeats * 2 * _BATCH.value * d * width / elapsed


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    n, d, c, epochs = _PAIRS.value, _FEATURES.value, _CLASSES.value, _EPOCHS.value
    rng = np.random.default_rng(0)
    data = rng.normal(size=(n, d)).astype(np.float32), rng.random((n, c)) < 0.15
    settings = (linear_probe.Grid().settings() * _SETTINGS.value)[: _SETTINGS.value]
    mesh, kind = sharding.make_mesh(), jax.devices()[0].device_kind
    print(f"{mesh.size} x {kind}, jax {jax.__version__}")
    print(
        f"{n} pairs x {d} features, {c} classes, {len(settings)} settings, {epochs} "
        f"epochs, batches of {_BATCH.value}"
    )
    work = 4 * n * d * c  # of a setting and epoch: forward, and the kernel's gradient
    plain = product_flops() * mesh.size
    together, once = seconds(data, settings, mesh, epochs)
    one_by_one = sum(
        seconds(data, [setting], mesh, _ALONE_EPOCHS.value)[0]
        for setting in settings[: _ALONE.value]
    )
    epochs_alone = _ALONE.value * _ALONE_EPOCHS.value
    alone = one_by_one / epochs_alone * len(settings) * epochs
    total = work * len(settings) * epochs
    print(f"\n{'':<24}{'s':>10}{'GFLOP/s':>10}{'of a product':>14}")
    for name, took in {"all at once": together, "one by one *": alone}.items():
        rate = total / took
        print(f"{name:<24}{took:>10.1f}{rate / 1e9:>10.1f}{rate / plain:>14.0%}")
    print(f"* {epochs_alone} of {len(settings) * epochs} epochs timed, and scaled up")
    print(f"all at once is {alone / together:.1f} times as fast as one by one;")
    print(f"{once:.1f} s more go into standardising and placing the features")

    scale = _FULL.value / n
    minutes = (together + once) * scale / 60
    print(f"\n{_FULL.value} pairs would take {minutes:.1f} minutes on this machine")
    steps = -(-_FULL.value // _BATCH.value) * epochs
    print(
        f"arithmetic, not measured: {total * scale / 1e12:.0f} TFLOP of products in "
        f"{steps} steps, on features of {4e-9 * _FULL.value * d:.2f} GB; a device that "
        f"sustains 10 TFLOP/s in them takes {total * scale / 1e13:.0f} s"
    )


if __name__ == "__main__":
    app.run(main)
