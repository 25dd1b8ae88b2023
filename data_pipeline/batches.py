"""Batches of stored pixels, addressed by step. NumPy only.

Batch `s` is a function of (seed, s): the same for any number of hosts, threads or
worker processes, so resuming is starting at a step and needs no saved iterator.
"""

from collections.abc import Iterable, Iterator

import grain
import numpy as np

from data_pipeline.errors import InputError


def train_batches(
    source,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    host: int = 0,
    hosts: int = 1,
    threads: int = 8,
    workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this host's rows of every global batch from `start_step` on, for ever.

    Args:
        source: random-access pairs, dicts of arrays.
        batch_size: pairs of a global batch, over all hosts.
        seed: of the order; each epoch is shuffled anew.
        start_step: the first batch.
        host: which of the `hosts` this is; host h owns the h-th run of rows.
        hosts: how many there are.
        threads: that read and stack records.
        workers: processes that do so instead, when decoding outweighs copying.

    Raises:
        InputError: the batch does not divide over the hosts.
    """
    if batch_size < 1 or batch_size % hosts:
        raise InputError(
            f"A batch of {batch_size} does not divide over {hosts} hosts; change "
            "batch_size."
        )
    # Grain shuffles epoch e with seed + e: hashing keeps runs with neighbouring seeds
    # from sharing orders.
    order = int(np.random.SeedSequence(seed).generate_state(1)[0])
    rows = grain.MapDataset.source(source).shuffle(seed=order).repeat()
    local = rows.batch(batch_size // hosts, drop_remainder=True)
    local = local[host::hosts][start_step:]
    # The buffer counts batches; Grain's default of 500 would hold gigabytes.
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(2, min(threads, 8))
    )
    stream = local.to_iter_dataset(options)
    if workers:
        stream = stream.mp_prefetch(
            grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
        )
    return iter(stream)


def eval_batches(
    source,
    *,
    fields: Iterable[str],
    batch_size: int,
    count: int,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields the first `count` pairs once, in order, as equal batches with weights.

    Args:
        source: random-access pairs, dicts.
        fields: which of their arrays to batch.
        batch_size: pairs of a global batch, over all hosts.
        count: pairs in all; the source's where it has fewer.
        host: which of the `hosts` this is.
        hosts: how many there are.

    Yields:
        Pairs of this host's rows of a batch and their weights [B], 1.0 for pairs
        and 0.0 for the copies that fill up the last batch.
    """
    count, local = min(count, len(source)), batch_size // hosts
    for start in range(0, count, batch_size):
        first = start + host * local
        places = np.arange(first, first + local)
        pairs = [source[int(min(i, count - 1))] for i in places]
        batch = {key: np.stack([pair[key] for pair in pairs]) for key in fields}
        yield batch, (places < count).astype(np.float32)
