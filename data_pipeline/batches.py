"""Batches of stored pixels, addressed by step; never imports jax.

Batch `s` is a function of (seed, s): the same for any number of hosts, threads or
worker processes, so resuming is starting at a step and needs no saved iterator.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import grain
import numpy as np

from data_pipeline import prefetch
from data_pipeline.errors import InputError

MOST_THREADS = 8


def train_batches(
    source,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    host: int = 0,
    hosts: int = 1,
    threads: int = 0,
    workers: int = 0,
    stall_seconds: float = prefetch.STALL_SECONDS,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this host's rows of every global batch from `start_step` on, for ever.

    A batch is one thread's work, so max(2, threads) batches are in the making or
    waiting while the caller holds another. Worker processes share the threads among
    them; of each, max(2, its threads) + 4 batches are in the making or waiting.

    Args:
        source: random-access pairs, dicts of arrays; or a `mixtures.Mixture`.
        batch_size: pairs of a global batch, over all hosts.
        seed: of the order; each epoch is shuffled anew.
        start_step: the first batch.
        host: which of the `hosts` this is; host h owns the h-th run of rows.
        hosts: how many there are.
        threads: that read and stack records; 0 for one a core, at most 8. More than
            there are cores help only where reading waits for a network.
        workers: processes that the threads are spread over, if any.
        stall_seconds: after which the log says what is waited for; 0 for never.
        stop: whether to end rather than to wait for a batch any longer.

    Raises:
        InputError: the batch does not divide over the hosts; later, a record is damaged
            or a worker process ended.
    """
    if batch_size < 1 or batch_size % hosts:
        raise InputError(
            f"A batch of {batch_size} does not divide over {hosts} hosts; change "
            "batch_size."
        )
    order, local = Order(source, seed), batch_size // hosts

    @told
    def read(step: int) -> dict[str, np.ndarray]:
        first = step * batch_size + host * local
        return stack(source, order.pairs(first, first + local))

    steps = grain.MapDataset.range(start_step, sys.maxsize).map(read)
    stream = _stream(steps, threads, workers)

    def what(number: int) -> str:
        step = start_step + number + 1
        return f"the batch of step {step} from {_directories(source)}"

    return prefetch.prefetch(iter(stream), stall_seconds, host, what, stop)


def cores() -> int:
    """Cores that this process may use, of which Slurm and containers grant a part."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _stream(steps, threads: int = 0, workers: int = 0):
    """Has threads, or those of worker processes, read what `steps` maps to."""
    threads = threads or min(cores(), MOST_THREADS)
    threads = max(1, threads // max(1, workers))
    # The buffer counts batches; Grain's default of 500 would hold gigabytes.
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(2, threads)
    )
    stream = steps.to_iter_dataset(options)
    if workers:
        stream = stream.mp_prefetch(
            grain.multiprocessing.MultiprocessingOptions(num_workers=workers),
            lambda *_: prefetch.begin_worker(),
        )
    return stream


def _directories(source) -> str:
    """Where a source lies, in words."""
    return ", ".join(getattr(source, "directories", ())) or "its source"


def eval_batches(
    source,
    *,
    fields: Iterable[str],
    batch_size: int,
    count: int,
    start: int = 0,
    host: int = 0,
    hosts: int = 1,
    stall_seconds: float = prefetch.STALL_SECONDS,
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields pairs `start` to `count` - 1 once, in order, as equal weighted batches.

    A batch is one thread's work; some are read ahead.

    Args:
        source: random-access pairs, dicts.
        fields: which of their arrays to batch.
        batch_size: pairs of a global batch, over all hosts.
        count: where to stop; at the source's end, where it has fewer pairs.
        start: the first pair.
        host: which of the `hosts` this is.
        hosts: how many there are.
        stall_seconds: after which the log says what is waited for; 0 for never.

    Returns:
        An iterator over pairs of this host's rows of a batch and their weights [B],
        1.0 for pairs and 0.0 for the copies that fill up the last batch.
    """
    count, local = min(count, len(source)), batch_size // hosts
    fields = tuple(fields)

    @told
    def read(batch: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        first = start + batch * batch_size + host * local
        places = np.arange(first, first + local)
        pairs = stack(source, np.minimum(places, count - 1), fields)
        return pairs, (places < count).astype(np.float32)

    number = -(-(count - start) // batch_size)
    stream = _stream(grain.MapDataset.range(number).map(read))

    def what(batch: int) -> str:
        place = _directories(source)
        return f"batch {batch + 1} of {number} to judge by, from {place}"

    return prefetch.prefetch(iter(stream), stall_seconds, host, what)


class Order:
    """The endless order in which pairs are seen: a function of seed and position.

    Every dataset of a mixture goes through epochs and shuffles of its own.
    """

    def __init__(self, source, seed: int):
        """Orders the pairs of `source`, or of each of its `parts` by its `shares`."""
        parts = getattr(source, "parts", (source,))
        self._shares = np.array(getattr(source, "shares", (1.0,)))
        self._sizes = np.array([len(part) for part in parts])
        self._starts = np.cumsum([0, *self._sizes[:-1]])
        self._seed = seed
        self._shuffles = [{} for _ in parts]  # of each part, by epoch

    def pairs(self, first: int, last: int) -> list[int]:
        """Indices into the source of the pairs at positions `first` to `last` - 1."""
        part, turn = take_turns(self._shares, first, last)
        epoch, place = np.divmod(turn, self._sizes[part])
        index = np.empty(len(part), np.int64)
        for p, e in {*zip(part.tolist(), epoch.tolist())}:
            mine = (part == p) & (epoch == e)
            index[mine] = self._starts[p] + self._shuffle(p, e)[place[mine]]
        return index.tolist()

    def _shuffle(self, part: int, epoch: int) -> np.ndarray:
        """The order of a part in an epoch; its last two are kept, 16 bytes a pair.

        Each part keeps its own, so that the many epochs of a small one do not drive out
        the shuffle of a large one.
        """
        kept = self._shuffles[part]
        if epoch not in kept:
            order = shuffled(int(self._sizes[part]), self._seed, part, epoch)
            # Another dict, as other threads may be at this one.
            kept = dict([*kept.items()][-1:]) | {epoch: order}
            self._shuffles[part] = kept
        return kept[epoch]


def shuffled(count: int, seed: int, part: int, epoch: int) -> np.ndarray:
    """The numbers up to `count` in an order that the other arguments decide."""
    bits = np.random.MT19937(np.random.SeedSequence([seed, part, epoch]))
    # Unlike `Generator`, `RandomState` promises the same order in any later NumPy.
    return np.random.RandomState(bits).permutation(count)


def take_turns(
    shares: np.ndarray, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """Interleaves endless sequences as evenly as possible.

    Element j of a sequence with share w is due at time (j + 1/2) / w, so that up to
    any position each sequence is within a few elements of its share, for ever.

    Args:
        shares: of each sequence; they sum to 1.
        first: position in the interleaved sequence.
        last: position to stop before.

    Returns:
        Which sequence, and which element of it, stands at each position.
    """
    # About as many elements are due by a time as that time says, give or take half
    # of one a sequence: this window holds all that can stand at these positions.
    slack = len(shares)
    start = np.maximum(np.floor((first - slack) * shares + 0.5), 0).astype(int)
    stop = np.floor((last + slack) * shares + 0.5).astype(int) + 1
    which = np.repeat(np.arange(len(shares)), stop - start)
    turn = np.concatenate([np.arange(a, b) for a, b in zip(start, stop)])
    due = np.lexsort((which, (turn + 0.5) / shares[which]))
    chosen = due[first - start.sum() : last - start.sum()]
    return which[chosen], turn[chosen]


def told(read: Callable) -> Callable:
    """A `read` that returns errors of the input, to which Grain would add words."""

    @functools.wraps(read)
    def read_or_tell(number: int):
        try:
            return read(number)
        except InputError as error:
            return error

    return read_or_tell


def stack(
    source, indices: Sequence[int], fields: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Reads pairs into one array [B, ...] for each of `fields`, by default all.

    A record is copied and let go before the next is read, so the memory that holds it
    stays in the processor's cache and is not asked for anew.
    """
    batch = {}
    for row, index in enumerate(indices):
        pair = source[int(index)]
        for field in pair if fields is None else fields:
            value = np.asarray(pair[field])
            if not row:
                text = value.dtype.kind == "U"  # lengths differ
                shape = (len(indices), *value.shape)
                batch[field] = np.empty(shape, object if text else value.dtype)
            batch[field][row] = value
    return {k: v.astype(str) if v.dtype == object else v for k, v in batch.items()}
