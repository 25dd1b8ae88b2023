"""Batches: addressed by step, the same for any hosts, threads and workers."""

import collections
import contextlib
import itertools
import os
import threading
import time

import numpy as np
import pytest

from data_pipeline import batches, mixtures, record_format
from data_pipeline.errors import InputError
from tests import datasets


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


class Readers(Numbers):
    """A source whose records say who read them, slowly enough for all to have turns."""

    def __getitem__(self, i):
        time.sleep(0.01)
        return {"reader": np.array([os.getpid(), threading.get_ident()])}


def readers():
    """Threads that read, by process."""
    stream = batches.train_batches(Readers(40), batch_size=1, seed=0)
    with contextlib.closing(stream):
        read = [batch["reader"][0].tolist() for batch in itertools.islice(stream, 60)]
    found = collections.defaultdict(set)
    for process, thread in read:
        found[process].add(thread)
    return found


@pytest.mark.parametrize("granted, threads", [({3}, 1), (set(range(3)), 3)])
def test_a_thread_reads_for_every_core_that_the_process_may_use(
    monkeypatch, granted, threads
):
    # Slurm and containers grant a part of the machine, which is what counts.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: granted, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert len(readers()[os.getpid()]) == threads


def test_neighbouring_seeds_do_not_share_orders():
    # Grain's own shuffle gives seed 1 the second epoch of seed 0.
    epochs = [list(itertools.chain(*order(10, seed=s, batch_size=5))) for s in (0, 1)]
    assert epochs[1][:10] != epochs[0][10:20]
    assert epochs[1][:10] != epochs[0][:10]


def test_a_batch_larger_than_the_data_spans_epochs():
    assert sorted(order(1, count=3, batch_size=6)[0]) == [0, 0, 1, 1, 2, 2]


class Slow(Numbers):
    """Numbers that count how often they were read."""

    reads = 0

    def __getitem__(self, i):
        self.reads += 1
        return super().__getitem__(i)


def settled(source) -> int:
    """Reads of `source` once they have stopped."""
    reads = -1
    while reads != source.reads:
        reads = source.reads
        time.sleep(0.2)
    return reads


@pytest.mark.parametrize("threads, ahead", [(1, 2), (2, 2), (4, 4)])
def test_a_slow_consumer_makes_no_more_than_so_many_batches_be_read_ahead(
    threads, ahead
):
    source = Slow(1000)
    stream = batches.train_batches(source, batch_size=2, seed=0, threads=threads)
    for taken in (1, 2, 3):
        next(stream)
        assert settled(source) == 2 * (taken + ahead)


class Logged(Numbers):
    """Numbers that leave a file for each read, whichever process reads them."""

    def __init__(self, count, folder):
        super().__init__(count)
        self.folder = folder

    @property
    def reads(self):
        return len(list(self.folder.iterdir()))

    def __getitem__(self, i):
        (self.folder / str(i)).touch()
        return super().__getitem__(i)


def test_worker_processes_read_no_more_than_so_many_batches_ahead(tmp_path):
    source = Logged(1000, tmp_path)
    stream = batches.train_batches(source, batch_size=1, seed=0, threads=2, workers=2)
    for taken in (1, 2, 3):
        next(stream)
        assert settled(source) - taken <= 2 * (2 + 4)


def mixture_of_numbers(counts, weights=()) -> mixtures.Mixture:
    """Number sources of these counts, each with as much as `Mixture` asks for."""
    parts = []
    for part, count in enumerate(counts):
        source = Numbers(count)
        source.fields, source.description = ("x",), datasets.description()
        source.fingerprint = dict
        parts.append(source)
    return mixtures.Mixture(parts, weights)


@pytest.mark.parametrize(
    "counts, weights",
    [((1000,) * 9, ()), ((3, 5000), (1, 1)), ((2, 1, 9000), (3, 2, 1))],
)
@pytest.mark.parametrize("threads", [1, 4])
def test_large_datasets_are_shuffled_once_an_epoch_whatever_they_are_mixed_with(
    monkeypatch, counts, weights, threads
):
    shuffles = collections.Counter()

    class State(np.random.RandomState):
        def permutation(self, count):
            shuffles[count] += 1
            return super().permutation(count)

    monkeypatch.setattr(np.random, "RandomState", State)
    source = mixture_of_numbers(counts, weights)
    stream = batches.train_batches(source, batch_size=60, seed=7, threads=threads)
    assert len(list(itertools.islice(stream, 20))) == 20
    stream.close()
    # Threads that begin at the same time may each shuffle for themselves.
    assert shuffles[max(counts)] <= threads * counts.count(max(counts))


def mixed(counts, weights, **options) -> list[list[int]]:
    """Batches of a mixture of number sources, pairs of later sources on top."""
    mixture = mixture_of_numbers(counts, weights)
    order = batches.Order(mixture, options.pop("seed", 0))
    first, last = options.pop("span", (0, 100))
    return order.pairs(first, last)


@pytest.mark.parametrize("weights", [(3, 1), (0.5, 0.3, 0.2), (0.7, 1 / 3, 1e-3)])
@pytest.mark.parametrize("start", [0, 10**9])
def test_shares_are_kept_over_any_stretch(weights, start):
    count, shares = 20_000, np.array(weights) / np.sum(weights)
    part, turn = batches.take_turns(shares, start, start + count)
    got = np.bincount(part, minlength=len(weights))
    np.testing.assert_allclose(got, count * shares, atol=len(weights))
    for i in range(len(weights)):  # no pair of an epoch is left out
        assert (np.diff(turn[part == i]) == 1).all()


def test_turns_are_the_same_however_they_are_asked_for():
    shares = np.array([0.5, 0.3, 0.2])
    whole = np.stack(batches.take_turns(shares, 0, 300))
    parts = [np.stack(batches.take_turns(shares, i, i + 7)) for i in range(0, 294, 7)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole[:, :294])


def test_every_dataset_of_a_mixture_has_epochs_of_its_own():
    places = mixed((10, 40), (1, 1), span=(0, 80))
    count = collections.Counter(places)
    assert {count[i] for i in range(10)} == {4}
    assert {count[i] for i in range(10, 50)} == {1}
    small = [place for place in places if place < 10]
    assert small[:10] != small[10:20]


def test_without_weights_an_epoch_of_a_mixture_holds_every_pair_once():
    places = mixed((3, 17, 5), (), span=(0, 25))
    assert sorted(places) == list(range(25))


def test_parts_of_a_mixture_are_shuffled_each_in_its_own_order():
    places = mixed((50, 50), (1, 1))
    first = [place for place in places if place < 50]
    second = [place - 50 for place in places if place >= 50]
    assert sorted(first) == sorted(second) and first != second


def mixture_of(tmp_path):
    parts = [
        record_format.Records(
            datasets.write(tmp_path / name, counts, prefix=name), "train"
        )
        for name, counts in (("a", (3, 4)), ("b", (5,)))
    ]
    return mixtures.Mixture(parts, (2, 1))


@pytest.mark.parametrize(
    "options", [dict(threads=3), dict(workers=2), dict(start_step=2), dict(hosts=2)]
)
def test_batches_of_a_mixture_depend_on_seed_and_step_alone(tmp_path, options):
    source, steps = mixture_of(tmp_path), 4

    def read(**options):
        stream = batches.train_batches(source, batch_size=6, seed=1, **options)
        return [batch["place"].tolist() for batch in itertools.islice(stream, steps)]

    want = read(threads=1)
    if options == dict(hosts=2):
        halves = [read(host=h, **options) for h in range(2)]
        assert [a + b for a, b in zip(*halves)] == want
    else:
        start = options.get("start_step", 0)
        assert read(**options)[: steps - start] == want[start:]


def test_a_batch_holds_the_records_as_they_are_read_one_by_one(tmp_path):
    source = record_format.Records(datasets.write(tmp_path), "train")
    got = batches.stack(source, [4, 0, 4])
    assert got["id"].tolist() == ["é4", "é0", "é4"]
    for row, i in enumerate((4, 0, 4)):
        for field, value in source[i].items():
            np.testing.assert_array_equal(got[field][row], value)
            assert (
                got[field].dtype == np.asarray(value).dtype
                or field in record_format.TEXTS
            )
            assert got[field].flags.writeable


def test_a_damaged_record_stops_the_stream_with_its_name(tmp_path):
    path = datasets.write(tmp_path) / record_format.shard_name("tiny", "train", 1, 2)
    data = bytearray(path.read_bytes())
    data[data.index(b"\x28\xb5\x2f\xfd") + 20] ^= 0xFF  # in a zstd frame
    path.write_bytes(data)
    source = record_format.Records(tmp_path, "train")
    stream = batches.train_batches(source, batch_size=5, seed=0)
    with pytest.raises(InputError, match="Record 2 of split train .*00001-of-00002"):
        next(stream)


def test_a_batch_that_does_not_divide_over_hosts_is_refused():
    with pytest.raises(InputError, match="batch of 4 .* 3 hosts"):
        order(1, hosts=3)


def test_held_out_pairs_come_once_and_padding_weighs_nothing():
    got = list(batches.eval_batches(Numbers(10), fields=["x"], batch_size=4, count=6))
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
