"""Fake devices, strict numerics, and a compile cache for every test."""

import gc
import logging
import os
import pathlib
import sys

import jax
import pytest
from absl import flags
from jax._src import array, compiler
from jax._src.lib import guard_lib
from orbax.checkpoint import v1 as ocp

import launch
from tests import processes

# Set before the first use of a device.
os.environ["PJRT_NPROC"] = "16"  # see runtime.have_threads_enough
jax.config.update("jax_platforms", "cpu")  # on hosts with an accelerator too
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
CACHE = pathlib.Path(__file__).parents[1] / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_disable_most_optimizations", True)  # they take longer than tests
flags.FLAGS.mark_as_parsed()  # Grain reads absl flags; under pytest nobody parses them
compile_options = compiler.get_compile_options


def quick_options(*args, **kwargs):
    """How XLA compiles, if not `optimized`: see `processes.FORMER_EMITTERS`."""
    options = compile_options(*args, **kwargs)
    quick = jax.config.read("jax_disable_most_optimizations")
    if quick and processes.FORMER_EMITTERS:
        options.env_option_overrides += [("xla_cpu_use_fusion_emitters", False)]
    return options


compiler.get_compile_options = quick_options


# What takes longest begins first, or one core does it alone at the end.
LONG = (
    *("walkthroughs", "peers", "hosts", "choices", "kills", "protocol", "missing"),
    *("dense", "finetune", "preemption", "ahead_of_time", "resume", "train"),
)


def pytest_configure(config):
    config.option.loadscopereorder = False  # by xdist, to files of many tests first


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True)
def guarded_reads(monkeypatch):
    """Refuses reads that a transfer guard refuses on accelerators.

    A CPU device's memory is the host's, and JAX lets its reads pass.
    """
    value, disallow = array.ArrayImpl._value, guard_lib.TransferGuardLevel.DISALLOW

    def read(x):
        state = guard_lib.thread_local_state()
        if x._npy_value is None and not state.explicit_device_get:
            assert state.device_to_host != disallow, "a device is read unasked"
        return value.fget(x)

    monkeypatch.setattr(array.ArrayImpl, "_value", property(read))


@pytest.fixture(scope="module")
def optimized():
    """Compiles as users do: for a file that asks for FLOPs, collectives, or bits."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def lines():
    """What the project logs; its logger need not propagate to pytest's."""
    log, caught = logging.getLogger("fusmae_jax"), []
    handler = logging.Handler()
    handler.emit = lambda record: caught.append(record.getMessage())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield caught
    log.removeHandler(handler)
    log.setLevel(level)


@pytest.fixture
def while_loading(monkeypatch):
    """Bytes that JAX's arrays have come to hold when a checkpoint has been read."""
    load, found = ocp.load, []
    gc.collect()
    before = {id(x): x for x in jax.live_arrays()}

    def loading(*args, **kwargs):
        loaded = load(*args, **kwargs)
        new = [x for x in jax.live_arrays() if id(x) not in before]
        found.append(sum(s.data.nbytes for x in new for s in x.addressable_shards))
        return loaded

    monkeypatch.setattr(ocp, "load", loading)
    return found


@pytest.fixture
def parse(monkeypatch):
    """Parses a command line as the first of its process."""

    def call(*arguments):
        forget()
        argv = ["launch.py", *arguments]
        monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for fields
        return launch.parse(argv)

    def forget():
        sys.modules.pop("config_config", None)  # the config file that was loaded
        for name in list(flags.FLAGS):
            if name.startswith("config."):
                delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()

    yield call
    forget()
    flags.FLAGS.mark_as_parsed()
