r"""Times the way from records to host batches, next to what a model consumes.

    python benchmarks/input_pipeline.py --dir=DIR --split=train --batch=64 \
        --config=configs/pretrain_small.py

Prints, by threads and worker processes and each in a process of its own: pairs/s,
CPU-microseconds a pair (of all processes), MB/s and peak memory (the sum of all
processes, libraries that they share counted each time). With --config, or with the
number of pairs a second that --consumes states, it ends by saying whether training
would wait for input.

Run it twice: the first run may read from disk, the second reads from memory. With
--copies=N the dataset is rewritten into a temporary folder, N pairs with and without
compression, and both are timed; with --keep=DIR, a new folder, they stay there.
"""

import concurrent.futures
import itertools
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from data_pipeline import batches, dataset_card, record_format, sources  # noqa: E402

_DIR = flags.DEFINE_string("dir", str(sources.SAMPLE), "A prepared dataset.")
_SPLIT = flags.DEFINE_string("split", "train", "Which of its splits.")
_BATCH = flags.DEFINE_integer("batch", 64, "Pairs in a batch.")
_STEPS = flags.DEFINE_integer("steps", 100, "Batches timed, after 2 to warm up.")
_COPIES = flags.DEFINE_integer("copies", 0, "Pairs of the rewritten dataset, if any.")
_KEEP = flags.DEFINE_string("keep", None, "Where rewritten datasets stay.")
_CONSUMES = flags.DEFINE_float("consumes", 0.0, "Pairs/s that the model consumes.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "A pretraining config.")

WAYS = [dict(threads=n) for n in (1, 2, 4, 8)]
WAYS += [dict(threads=n, workers=n) for n in (1, 2)]
WIDTHS = {"pairs/s": 9, "CPU us": 8, "MB/s": 8, "peak MB": 9}


def measure(directory: str, split: str, batch: int, steps: int, **way) -> dict:
    """Times one way of reading; to be run in a fresh process."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own
    logging.set_verbosity(logging.WARNING)
    described = dataset_card.read_description(directory)
    source = record_format.Records(directory, split, tuple(described.layout.shapes))
    stream = batches.train_batches(source, batch_size=batch, seed=0, **way)
    first = next(stream)
    next(stream)
    size = sum(x.nbytes for x in first.values()) / batch
    cpu, start = cpu_seconds(), time.perf_counter()
    for _ in itertools.islice(stream, steps):
        pass
    elapsed, used = time.perf_counter() - start, cpu_seconds() - cpu
    pairs, peak = steps * batch, peak_memory()
    stream.close()  # or worker processes leave shared memory behind
    return {
        "pairs/s": pairs / elapsed,
        "CPU us": 1e6 * used / pairs,
        "MB/s": pairs * size / elapsed / 1e6,
        "peak MB": peak / 1e6,
    }


def processes() -> list[pathlib.Path]:
    """This process and those it has started, as folders of /proc."""
    tasks = pathlib.Path("/proc/self/task").glob("*/children")
    children = itertools.chain(*(task.read_text().split() for task in tasks))
    return [pathlib.Path("/proc", name) for name in ("self", *children)]


def cpu_seconds() -> float:
    """Time that all cores have spent on these processes."""
    ticks = 0
    for process in processes():
        # The name, in brackets, may hold spaces; user and system time come later.
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_memory() -> int:
    """Bytes that these processes have held at most, each at its own time."""
    total = 0
    for process in processes():
        for line in (process / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1]) * 1024
    return total


def table(directory: str, title: str) -> dict:
    """Prints a row for each way and returns the fastest."""
    print(f"\n{title}, batches of {_BATCH.value}")
    names = dict(threads=8, workers=8, **WIDTHS)
    print("".join(f"{name:>{width}}" for name, width in names.items()))
    rows = []
    for way in WAYS:
        # A process that was forked would start with the memory of this one.
        with concurrent.futures.ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn")
        ) as pool:
            job = (directory, _SPLIT.value, _BATCH.value, _STEPS.value)
            row = pool.submit(measure, *job, **way).result()
        cells = "".join(f"{row[name]:>{width}.0f}" for name, width in WIDTHS.items())
        print(f"{way['threads']:>8}{way.get('workers', 0):>8}{cells}", flush=True)
        rows.append(way | row)
    return max(rows, key=lambda row: row["pairs/s"])


def rewrite(directory: str, split: str, count: int, out: pathlib.Path, options: str):
    """Writes `count` pairs of a dataset, over and over if need be, as another one."""
    source = record_format.Records(directory, split)
    described = source.description
    out.mkdir(parents=True)

    def examples():
        for i in range(count):
            record = source[i % len(source)]
            labels = {k: np.flatnonzero(record[k]).tolist() for k in described.classes}
            yield record | labels

    path = out / record_format.shard_name(described.name, split, 0, 1)
    info = record_format.write_shard(
        path, examples(), record_format.features(described), options
    )
    record_format.write_metadata(out, described, {split: [info]})
    rows = np.arange(count) % len(source)
    index = {name: column[rows] for name, column in source.index.items()}
    np.savez(out / dataset_card.index_name(split), **index)
    card = {"description": described.describe(), "splits": {split: {}}}
    (out / dataset_card.CARD_FILE).write_text(json.dumps(card))


def consumption() -> float:
    """Pairs/s that the training step takes on this machine, timed in a process."""
    program = pathlib.Path(__file__).with_name("pretrain_step.py")
    chosen = [a for a in sys.argv[1:] if a.lstrip("-").startswith("config")]
    command = [sys.executable, str(program), *chosen]
    command += [f"--batch={_BATCH.value}", "--steps=5"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    header, row = done.stdout.splitlines()[-2:]
    end = header.index("images/s") + len("images/s")
    return float(row[:end].split()[-1])


def verdict(best: dict, consumes: float) -> str:
    """Whether a model that consumes so many pairs/s would wait for this input."""
    ratio = best["pairs/s"] / consumes
    bound = "input-bound" if ratio < 1.0 else "not input-bound"
    return (
        f"{bound}: the input gives up to {best['pairs/s']:.0f} pairs/s (threads="
        f"{best['threads']}, workers={best.get('workers', 0)}), {ratio:.2g} times the "
        f"{consumes:.0f} that the model consumes"
    )


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    # Batches that were on their way from workers when the time was up.
    quiet = "ignore::UserWarning:multiprocessing.resource_tracker"
    os.environ["PYTHONWARNINGS"] = quiet
    best = {}
    if _COPIES.value:
        with tempfile.TemporaryDirectory() as folder:
            outs = {
                name: pathlib.Path(_KEEP.value or folder, name.replace(":", "-"))
                for name in record_format.COMPRESSION
            }
            for name, out in outs.items():
                options = record_format.COMPRESSION[name]
                rewrite(_DIR.value, _SPLIT.value, _COPIES.value, out, options)
            for name, out in outs.items():
                title = f"{_COPIES.value} pairs of {_DIR.value}, compression {name}"
                best[name] = table(str(out), title)
    else:
        best["as stored"] = table(_DIR.value, f"{_SPLIT.value} of {_DIR.value}")
    consumes = _CONSUMES.value or (consumption() if _CONFIG.value else 0.0)
    if consumes:
        print(f"\nthe model consumes {consumes:.0f} pairs/s")
        for name, fastest in best.items():
            print(f"{name}: {verdict(fastest, consumes)}")


if __name__ == "__main__":
    app.run(main)
