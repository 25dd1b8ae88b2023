"""Work is dispatched ahead of what is waited for, and comes back in order."""

import numpy as np
import pytest

from data_pipeline import synthetic
from fusmae_jax.evaluation import loop
from fusmae_jax.training import sharding


@pytest.mark.parametrize("total, count", [(0, 2), (1, 2), (3, 2), (7, 2), (4, 1)])
def test_so_many_are_dispatched_before_the_first_is_waited_for(total, count):
    dispatched = []
    found = loop.ahead((dispatched.append(i) or i for i in range(total)), count)
    for place, one in enumerate(found):
        assert one == place
        assert len(dispatched) == min(total, place + count + 1)
    assert len(dispatched) == total


def test_all_pairs_are_computed_and_padding_is_told():
    scenes, mesh = synthetic.Scenes(20, size=24), sharding.make_mesh(1)
    options = dict(batch_size=5, mesh=mesh, start=2, stop=13)
    rows = -(-5 // mesh.size) * mesh.size
    found = []
    for count, pixels in loop.over_pairs(
        lambda fields: fields["s1_10m"], scenes, ("s1_10m",), **options
    ):
        assert isinstance(pixels, np.ndarray) and len(pixels) == rows
        found.append(pixels[:count])
    want = np.stack([scenes[i]["s1_10m"] for i in range(2, 13)])
    np.testing.assert_array_equal(np.concatenate(found), want)
