"""Sums that change with what they are of, and with nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fusmae_jax.training import sharding
from fusmae_jax.training.integrity import _sum_parts, checksums


def laid_out(x, spec=P(), fsdp=4):
    return jax.device_put(x, NamedSharding(sharding.make_mesh(fsdp), spec))


def checksum(x, *layout) -> int:
    return checksums({"x": laid_out(x, *layout)})["x"]


def test_a_sum_does_not_depend_on_the_layout():
    x = np.random.default_rng(0).normal(size=(8, 4, 12)).astype(np.float32)
    layouts = [
        *((P(), 1), (P(), 4), (P("fsdp"), 4), (P(None, None, "fsdp"), 2)),
        *((P("fsdp", "data"), 2), (P(("data", "fsdp")), 2), (P(None, "data"), 1)),
    ]
    assert len({checksum(x, *layout) for layout in layouts}) == 1


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32, np.uint8, bool])
def test_any_bit_of_any_number_changes_the_sum(dtype):
    x = np.random.default_rng(0).integers(0, 2, (4, 3)).astype(dtype)
    before, size = checksum(x), x.dtype.itemsize
    for bit in range(8 * size if x.dtype != bool else 1):
        changed = x.copy()
        changed.reshape(-1).view(f"u{size}")[bit % 12] ^= 1 << bit
        assert checksum(changed) != before


def test_numbers_that_change_places_change_the_sum():
    # Few significant bits, as weights begin and counters count.
    x = np.arange(1, 65, dtype=np.float32).reshape(16, 4)
    swapped = np.concatenate([x[8:], x[:8]])
    others = [swapped, x[::-1], x.T.reshape(16, 4), np.roll(x, 1), x[:, ::-1]]
    assert len({checksum(y) for y in (x, *others)}) == 6


def test_not_a_number_and_minus_zero_have_sums_of_their_own():
    values = (0.0, -0.0, np.nan, -np.nan, np.inf)
    assert len({checksum(np.full(3, v, np.float32)) for v in values}) == 5


def test_split_arrays_are_never_gathered():
    x = laid_out(np.zeros((64, 64), np.float32), P("fsdp"))
    compiled = _sum_parts.lower(x, x.sharding).compile()
    assert not {"all-gather", "all-to-all", "all-reduce"} & {
        word.split("(")[0] for word in compiled.as_text().split()
    }
    assert compiled.memory_analysis().argument_size_in_bytes == x.nbytes // 4
