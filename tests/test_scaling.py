"""The cost model does the arithmetic that it says, and says which bound is which."""

import pytest

from benchmarks import collectives, scaling
from fusmae_jax import flops

MACHINE = scaling.Machine("four", "H100", 4, link=1e9, memory=1e9)


def row(*found):
    return scaling.Row("pretrain_base", 4, 1, 31, list(found), {}, 0, None, None)


def test_without_communication_the_bounds_are_the_devices_rate():
    config = scaling.load("pretrain_base")
    alone = 0.5 * flops.peak("H100", "bfloat16") / flops.per_image(config)
    slow, fast, sends = scaling.predict(row(), MACHINE, mfu=0.5)
    assert slow == fast == pytest.approx(4 * alone) and sends == 0


def test_communication_adds_to_the_step_or_hides_behind_it():
    found = collectives.Collective("all-reduce", 10**7, 4, 1, "", "")
    _, free, _ = scaling.predict(row(), MACHINE, mfu=0.5)
    slow, fast, sends = scaling.predict(row(found), MACHINE, mfu=0.5)
    assert sends == pytest.approx(2 * 3 / 4 * 10**7 / 1e9)
    batch = scaling.load("pretrain_base").batch_size
    assert batch / slow == pytest.approx(batch / free + sends)
    assert fast == free
    much = found._replace(times=1_000)
    slow, fast, sends = scaling.predict(row(much), MACHINE, mfu=0.5)
    assert fast == pytest.approx(batch / sends) and slow < fast


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
    found = collectives.Collective(kind, 800, 8, 3, "", "")
    assert found.sent == pytest.approx(3 * share * 800)


def test_machines_are_known_to_the_table_of_peaks():
    assert all(flops.peak(m.kind, "bfloat16") for m in scaling.MACHINES)
