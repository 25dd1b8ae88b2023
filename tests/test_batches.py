"""Batches: addressed by step, the same for any hosts, threads and workers."""

import itertools

import numpy as np
import pytest

from data_pipeline import batches
from data_pipeline.errors import InputError


class Numbers:
    """A source whose records say which they are."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        return {"x": np.array([i])}


def order(steps, count=10, batch_size=4, seed=0, **options):
    stream = batches.train_batches(
        Numbers(count), batch_size=batch_size, seed=seed, **options
    )
    return [batch["x"][:, 0].tolist() for batch in itertools.islice(stream, steps)]


def test_every_pair_comes_once_an_epoch_in_a_new_order():
    flat = list(itertools.chain(*order(5)))
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]


def test_starting_at_a_step_is_having_iterated_to_it():
    assert order(2, start_step=3) == order(5)[3:]


def test_hosts_together_read_the_rows_of_the_whole_batch_in_order():
    parts = [order(5, host=h, hosts=2) for h in range(2)]
    assert [a + b for a, b in zip(*parts)] == order(5)


@pytest.mark.parametrize("options", [dict(threads=1), dict(threads=5)])
def test_threads_do_not_change_the_order(options):
    assert order(6, **options) == order(6)


def test_worker_processes_do_not_change_the_order():
    assert order(3, workers=2) == order(3)


def test_neighbouring_seeds_do_not_share_orders():
    # Grain's own shuffle gives seed 1 the second epoch of seed 0.
    epochs = [list(itertools.chain(*order(10, seed=s, batch_size=5))) for s in (0, 1)]
    assert epochs[1][:10] != epochs[0][10:20]
    assert epochs[1][:10] != epochs[0][:10]


def test_a_batch_larger_than_the_data_spans_epochs():
    assert sorted(order(1, count=3, batch_size=6)[0]) == [0, 0, 1, 1, 2, 2]


def test_a_batch_that_does_not_divide_over_hosts_is_refused():
    with pytest.raises(InputError, match="batch of 4 .* 3 hosts"):
        order(1, hosts=3)


def test_held_out_pairs_come_once_and_padding_weighs_nothing():
    got = list(
        batches.eval_batches(Numbers(10), fields=["x"], batch_size=4, count=6)
    )
    assert [b["x"][:, 0].tolist() for b, _ in got] == [[0, 1, 2, 3], [4, 5, 5, 5]]
    assert [w.tolist() for _, w in got] == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_hosts_share_held_out_batches():
    parts = [
        list(
            batches.eval_batches(
                Numbers(6), fields=["x"], batch_size=4, count=6, host=h, hosts=2
            )
        )
        for h in range(2)
    ]
    rows = [np.concatenate([a["x"], b["x"]]) for (a, _), (b, _) in zip(*parts)]
    assert [x[:, 0].tolist() for x in rows] == [[0, 1, 2, 3], [4, 5, 5, 5]]
