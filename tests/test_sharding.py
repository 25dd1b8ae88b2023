"""The rules cover every leaf, split what they say, and refuse what they don't know."""

import jax
import optax
import pytest
from jax.sharding import PartitionSpec as P

from data_pipeline.errors import InputError
from fusmae_jax.training import sharding, train
from tests import tiny


def specs(fsdp):
    mesh = sharding.make_mesh(fsdp=fsdp)
    _, layout = train.plan_state(
        tiny.objective(), optax.adamw(1e-3), mesh, seed=0, min_size=0
    )
    return {
        sharding.leaf_path(path): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(layout)
    }


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_kernels_are_split_over_fsdp_and_their_moments_over_all_devices(fsdp):
    by_path = specs(fsdp)
    for path in ("encoder/blocks/0/mlp/up/kernel", "encoder/fuse/attn/s1/query/kernel"):
        assert ("fsdp" in by_path[f"params/{path}"]) == (fsdp > 1)
        for moment in ("mu", "nu"):
            assert ("fsdp", "data") in by_path[f"opt_state/0/{moment}/{path}"]
    for path, spec in by_path.items():
        split = path.endswith("/kernel") and (fsdp > 1 or path.startswith("opt_state"))
        assert (spec != P()) == split, path


def test_moments_that_not_all_devices_divide_are_split_like_their_parameter():
    mesh = sharding.make_mesh(fsdp=2)
    assert sharding.spec_for("opt_state/mu/kernel", (4, 2), mesh, 0) == P(
        ("fsdp", "data"), None
    )
    assert sharding.spec_for("opt_state/mu/kernel", (6, 2), mesh, 0) == P("fsdp", None)
    assert sharding.spec_for("params/kernel", (6, 2), mesh, 0) == P("fsdp", None)


def test_small_kernels_stay_whole():
    mesh = sharding.make_mesh(fsdp=4)
    assert sharding.spec_for("params/x/kernel", (8, 8), mesh, min_size=65) == P()
    assert sharding.spec_for("params/x/kernel", (8, 16), mesh, 0) == P(None, "fsdp")


def test_the_largest_dimension_that_divides_is_split():
    mesh = sharding.make_mesh(fsdp=4)
    assert sharding.spec_for("a/kernel", (8, 18), mesh, 0) == P("fsdp", None)
    assert sharding.spec_for("a/kernel", (7, 9), mesh, 0) == P()


def test_a_path_that_no_rule_knows_is_an_error():
    mesh = sharding.make_mesh()
    with pytest.raises(ValueError, match="params/oops/weight"):
        sharding.spec_for("params/oops/weight", (8, 8), mesh, min_size=0)


@pytest.mark.parametrize("fsdp", [0, 3])
def test_groups_that_do_not_divide_the_devices_are_refused(fsdp):
    with pytest.raises(InputError, match=f"4 devices .* fsdp={fsdp}"):
        sharding.make_mesh(fsdp)


def test_rows_of_a_batch_are_dealt_to_devices_in_order():
    mesh = sharding.make_mesh(fsdp=2)
    x = sharding.to_devices({"x": jax.numpy.arange(8)}, mesh)["x"]
    shards = sorted(x.addressable_shards, key=lambda s: s.device.id)
    assert [int(s.data[0]) for s in shards] == [0, 2, 4, 6]
