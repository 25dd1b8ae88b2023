"""Devices send each other gradients and split parameters, and nothing that grows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks import collectives, programs
from fusmae_jax.training import sharding
from tests import tiny

pytestmark = pytest.mark.usefixtures("optimized")

# Eleven rows a device, and 25 patches of which 7 are seen: nothing else in the program
# is a multiple of 44. With less of a batch, XLA may rather move activations, which are
# then smaller than the kernels.
BATCH = 44


@functools.cache
def step(fsdp, batch=BATCH):
    """The mesh, the abstract state, the compiled step, and its partitioned text."""
    config, mesh = tiny.config(), sharding.make_mesh(fsdp)
    config.model.image_size = config.data.size = 30
    config.model.dtype = "bfloat16"
    program, state = programs.Maker(config, mesh).pretrain(batch)
    return mesh, state, *collectives.compile_both(program.lower("cpu"))


def totals(text):
    found = collectives.read(text)
    return {
        kind: sum(c.total for c in found if c.kind == kind)
        for kind in {c.kind for c in found}
    }


@pytest.mark.journey
@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_a_step_moves_what_it_must_and_no_more(fsdp):
    mesh, state, _, text = step(fsdp)
    want = collectives.needed(state, mesh, "bfloat16")
    got = totals(text)
    assert got.keys() == want.keys()
    # The backward pass may gather parameters again rather than keep them.
    gathered = got.pop("all-gather", 0), want.pop("all-gather", 0)
    assert gathered[1] <= gathered[0] <= 2 * gathered[1]
    for kind, size in want.items():
        assert got[kind] == pytest.approx(size, rel=0.05), kind


@pytest.mark.journey
def test_what_is_sent_does_not_grow_with_the_batch():
    some, twice = (
        sorted((c.kind, c.shape) for c in collectives.read(text))
        for text in (step(4)[-1], step(4, 2 * BATCH)[-1])
    )
    assert some and some == twice


@pytest.mark.journey  # by default test_sharding looks at what is laid out how
@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_no_device_holds_rows_of_the_whole_batch(fsdp):
    assert not collectives.whole_batches(step(fsdp)[-1], BATCH)


@pytest.mark.journey
def test_split_parameters_take_a_quarter_of_the_memory():
    sizes = [step(fsdp)[2].memory_analysis().argument_size_in_bytes for fsdp in (1, 4)]
    state = step(1)[1]
    kernels = 4 * sum(x.size for x in jax.tree.leaves(state.params) if x.ndim > 1)
    assert sizes[0] - sizes[1] == pytest.approx(3 / 4 * kernels, rel=0.01)


def test_an_activation_that_is_gathered_is_found_with_its_line():
    mesh = sharding.make_mesh()

    def f(x, w):
        x = jax.lax.with_sharding_constraint(x, sharding.whole(mesh))
        return sharding_sum(x @ w)

    def sharding_sum(x):
        return jax.lax.with_sharding_constraint(x, sharding.rows(mesh)).sum()

    x = jax.ShapeDtypeStruct((BATCH, 8), jnp.float32, sharding=sharding.rows(mesh))
    w = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding.whole(mesh))
    _, text = collectives.compile_both(jax.jit(f).lower(x, w))
    gathered = [c for c in collectives.read(text) if c.kind == "all-gather"]
    assert [(c.bytes, c.group, c.times) for c in gathered] == [(BATCH * 8 * 4, 4, 1)]
    shapes = collectives.whole_batches(text, BATCH)
    assert any(shape.startswith(f"f32[{BATCH},8]") for shape in shapes)


def test_a_collective_names_the_line_of_the_model_that_asked_for_it():
    lines = {c.line for c in collectives.read(step(4)[-1]) if c.kind == "all-gather"}
    # A backward pass of our own has lines of its own.
    named = ("layers.py:", "fusmae.py:", "products.py:")
    assert lines and all(any(name in line for name in named) for line in lines)


def test_loops_count():
    mesh = sharding.make_mesh()

    def f(x):
        def body(total, _):
            return jax.lax.psum(total * x, ("data", "fsdp")), None

        return jax.lax.scan(body, jnp.zeros_like(x), length=5)[0]

    split = jax.shard_map(f, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    x = jax.ShapeDtypeStruct((6,), jnp.float32, sharding=sharding.whole(mesh))
    _, text = collectives.compile_both(jax.jit(split).lower(x))
    [found] = collectives.read(text)
    assert (found.kind, found.bytes, found.times, found.total) == (
        *("all-reduce", 24, 5, 120),
    )
    assert found.sent == 2 * 3 / 4 * 120


@pytest.mark.parametrize(
    "groups, size",
    [
        ("{{0,1},{2,3}}", 2),
        ("[2,4]<=[8]", 4),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("mesh['a'=4,'b'=2] {'a'}", 4),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a','b'}", 8),
        ("{}", 8),
    ],
)
def test_replica_groups_are_understood_however_they_are_written(groups, size):
    text = (
        "HloModule jit_f, num_partitions=8\n\n"
        "ENTRY %main (x: bf16[8,3]) -> bf16[8,3] {\n"
        "  %x = bf16[8,3]{1,0} parameter(0)\n"
        f"  ROOT %y = bf16[8,3]{{1,0}} all-reduce(%x), replica_groups={groups}, "
        "to_apply=%add\n}\n"
    )
    [found] = collectives.read(text)
    assert (found.group, found.bytes) == (size, 48)
    assert np.isclose(found.sent, 2 * 48 * (size - 1) / size)


@pytest.mark.parametrize(
    "kind, share",
    [
        ("all-reduce", 2 * 7 / 8),
        ("all-gather", 7 / 8),
        ("reduce-scatter", 7 / 8),
        ("all-to-all", 7 / 8),
        ("collective-permute", 1),
    ],
)
def test_rings_send_their_share_of_the_array(kind, share):
    found = collectives.Collective(kind, 800, 8, 3, "", "", False)
    assert found.sent == pytest.approx(3 * share * 800)


def test_what_is_started_before_it_is_waited_for_is_asynchronous():
    text = (
        "HloModule jit_f, num_partitions=8\n\n"
        "ENTRY %main (x: f32[1,3]) -> f32[8,3] {\n"
        "  %x = f32[1,3]{1,0} parameter(0)\n"
        "  %s = (f32[1,3]{1,0}, f32[8,3]{1,0}) all-gather-start(%x), "
        "replica_groups=[1,8]<=[8], dimensions={0}\n"
        "  ROOT %y = f32[8,3]{1,0} all-gather-done(%s)\n}\n"
    )
    [found] = collectives.read(text)
    assert found.asynchronous and (found.kind, found.bytes) == ("all-gather", 96)
