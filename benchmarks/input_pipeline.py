"""Times the way from records to host batches, without a model.

    python benchmarks/input_pipeline.py --dir=DIR --split=train --batch=64

Prints records/s, CPU-microseconds a pair, MB/s and peak memory for threads and for
worker processes. Run it twice: the first run may read from disk, the second reads
from memory.
"""

import itertools
import pathlib
import resource
import sys
import time

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from data_pipeline import batches, records, sensors, sources  # noqa: E402

_DIR = flags.DEFINE_string("dir", str(sources.SAMPLE), "A prepared dataset.")
_SPLIT = flags.DEFINE_string("split", "train", "Which of its splits.")
_BATCH = flags.DEFINE_integer("batch", 64, "Pairs in a batch.")
_STEPS = flags.DEFINE_integer("steps", 40, "Batches timed, after 2 to warm up.")


def cpu_seconds() -> float:
    """CPU time of this process and of workers that have ended."""
    used = (resource.getrusage(who) for who in (0, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def measure(source, threads: int, workers: int) -> list[float]:
    """One setting's records/s, CPU-microseconds a pair and MB/s."""
    stream = batches.train_batches(
        source, batch_size=_BATCH.value, seed=0, threads=threads, workers=workers
    )
    first = list(itertools.islice(stream, 2))[0]
    pair_bytes = sum(x.nbytes for x in first.values()) / _BATCH.value
    cpu, start = cpu_seconds(), time.perf_counter()
    for _ in itertools.islice(stream, _STEPS.value):
        pass
    elapsed, pairs = time.perf_counter() - start, _STEPS.value * _BATCH.value
    if workers:
        stream.close()  # or the workers' time would not be counted
    used = cpu_seconds() - cpu
    return [pairs / elapsed, 1e6 * used / pairs, pairs * pair_bytes / elapsed / 1e6]


def main(argv):
    del argv
    fields = sensors.fields(sensors.SENSORS)
    source = records.Records(_DIR.value, _SPLIT.value, fields)
    print(f"{len(source)} pairs of {_DIR.value}, batches of {_BATCH.value}")
    print(f"{'threads':>8}{'workers':>8}{'pairs/s':>10}{'CPU us':>8}{'MB/s':>8}")
    for threads, workers in ((1, 0), (2, 0), (4, 0), (8, 0), (1, 1), (1, 2)):
        rate, used, speed = measure(source, threads, workers)
        print(f"{threads:>8}{workers:>8}{rate:>10.0f}{used:>8.0f}{speed:>8.0f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"peak memory of this process: {peak:.0f} MB")


if __name__ == "__main__":
    app.run(main)
