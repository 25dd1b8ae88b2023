"""The same seed and layout give the same parameters, bit for bit on the CPU."""

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from data_pipeline import sources
from fusmae_jax import build
from fusmae_jax.training import optim, pretrain, sharding
from tests import tiny

pytestmark = [pytest.mark.journey, pytest.mark.usefixtures("optimized")]

STEPS = 3


@pytest.fixture
def cache(tmp_path):
    """An empty compile cache, in the place of everybody's."""
    everybodys = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs

    def use(folder, seconds):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
        compilation_cache.reset_cache()  # so that it looks where it is told

    use(tmp_path, 0.0)
    yield tmp_path
    use(everybodys, least)


def train(threads, workers):
    """Parameters after a few steps of a run whose config is `tiny`'s."""
    config, mesh = tiny.config(), sharding.make_mesh(2)
    config.data.update(threads=threads, workers=workers)
    objective = build.objective(config, **build.target(mesh))
    fields = sources.describe(config.data).layout.fields(objective.inputs.contract)
    source = sources.open_split(config.data, "train", fields)
    rate = optim.schedule(1e-3, 0, 10)
    init, _, step = pretrain.compile_step(config, objective, mesh, rate)
    state = init()
    stream = pretrain.load_batches(config, source, mesh, 0)
    for _ in range(STEPS):
        state, _ = step(state, next(stream))
    stream.close()
    return jax.device_get(state)


def test_threads_workers_and_the_compile_cache_change_no_bit(cache):
    first = train(threads=1, workers=0)
    kept = len(list(cache.iterdir()))
    assert kept > 0
    again = train(threads=2, workers=0)
    assert len(list(cache.iterdir())) == kept  # it was read, or nothing was tested
    workers = train(threads=0, workers=1)
    assert int(first.step) == STEPS
    for other in (again, workers):
        jax.tree.map(np.testing.assert_array_equal, first, other)
