"""Times the way from records to host batches, without a model.

    python benchmarks/input_pipeline.py --dir=DIR --split=train --batch=64

Prints pairs/s, CPU-microseconds a pair, MB/s and peak memory by number of threads. Run
it twice: the first run may read from disk, the second reads from memory.
"""

import itertools
import pathlib
import resource
import sys
import time

from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from data_pipeline import batches, records, sensors, sources  # noqa: E402

_DIR = flags.DEFINE_string("dir", str(sources.SAMPLE), "A prepared dataset.")
_SPLIT = flags.DEFINE_string("split", "train", "Which of its splits.")
_BATCH = flags.DEFINE_integer("batch", 64, "Pairs in a batch.")
_STEPS = flags.DEFINE_integer("steps", 100, "Batches timed, after 2 to warm up.")


class Repeated:
    """A dataset over and over: shuffling few pairs costs Grain more than many."""

    def __init__(self, source, count: int):
        self._source, self._count = source, max(count, len(source))

    def __len__(self):
        return self._count

    def __getitem__(self, i):
        return self._source[i % len(self._source)]


def measure(source, threads: int) -> tuple[float, float, float]:
    """Pairs/s, CPU-microseconds a pair and MB/s with so many threads."""
    stream = batches.train_batches(
        source, batch_size=_BATCH.value, seed=0, threads=threads
    )
    first = next(stream)
    pair_bytes = sum(x.nbytes for x in first.values()) / _BATCH.value
    next(stream)
    cpu, start = time.process_time(), time.perf_counter()
    for _ in itertools.islice(stream, _STEPS.value):
        pass
    elapsed, used = time.perf_counter() - start, time.process_time() - cpu
    pairs = _STEPS.value * _BATCH.value
    return pairs / elapsed, 1e6 * used / pairs, pairs * pair_bytes / elapsed / 1e6


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    source = records.Records(
        _DIR.value, _SPLIT.value, sensors.fields(sensors.SENSORS)
    )
    print(f"{len(source)} pairs of {_DIR.value}, batches of {_BATCH.value}")
    print(f"{'threads':>8}{'pairs/s':>10}{'CPU us':>8}{'MB/s':>8}")
    for threads in (1, 2, 4, 8):
        rate, used, speed = measure(Repeated(source, 100_000), threads)
        print(f"{threads:>8}{rate:>10.0f}{used:>8.0f}{speed:>8.0f}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"peak memory: {peak:.0f} MB")


if __name__ == "__main__":
    app.run(main)
