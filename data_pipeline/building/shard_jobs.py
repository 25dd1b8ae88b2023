"""The jobs of a build: one shard each, written and later checked by itself.

A shard depends on nothing but its pairs. Once its result is written beside it, a
restarted build passes it over, whichever runner it is and wherever: processes of this
machine, or an Apache Beam cluster.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tqdm
from tensorflow_datasets.proto import tf_example_pb2

from data_pipeline import atomic, record_format, safe_io
from data_pipeline.archives.base import (
    PRESENT,
    REMARKS,
    Archive,
    Pair,
    Unmeasured,
    check_missing,
)
from data_pipeline.building.statistics import Tally
from data_pipeline.errors import InputError
from data_pipeline.sensors import NAMED

log = logging.getLogger("fusmae_jax")

POLL = 0.5  # seconds between looks at the workers
QUIET = 30.0  # seconds between lines of progress where nobody watches a terminal

_done = None  # in a worker process: the pairs that all of them have done


@dataclasses.dataclass(frozen=True)
class Shard:
    """One job.

    Attributes:
        path: file to write.
        result: file that says what was written, once it was.
        plan: file that lists the pairs that go in, in order.
        size: how many they are.
        archive: what to read from.
        strict: whether the first bad pair stops the build.
        most_missing: share of a sensor's pixels above which a pair is bad.
        options: of ArrayRecord.
    """

    path: pathlib.Path
    result: pathlib.Path
    plan: pathlib.Path
    size: int
    archive: Archive
    strict: bool
    most_missing: float
    options: str = record_format.OPTIONS

    @property
    def pairs(self) -> list[Pair]:
        """What goes in; kept in a file, as a cluster passes jobs around."""
        return [Pair(*map(_tuples, row)) for row in json.loads(self.plan.read_text())]


RESULT = {
    *record_format.ShardInfo._fields,
    "skipped",
    "remarks",
    "tally",
}  # what is said of a shard


class Stopped(InputError):
    """What no pair is to blame for: it ends the build, and a restart tries again."""


def _tuples(value):
    """JSON's lists as the tuples they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def build(shard: Shard, count: Callable[[int], None] = lambda pairs: None) -> None:
    """Writes one shard and its result, unless an earlier run did.

    Args:
        shard: the job.
        count: is told of pairs as they are done.

    Raises:
        InputError: a pair is bad and the build is strict, or the disk is full.
    """
    if shard.result.exists() and shard.path.exists():
        if not (shard.strict and any(row[-1] for row in read_result(shard)["skipped"])):
            return count(shard.size)
    skipped, tally = [], Tally(shard.archive.description)
    remarks = collections.Counter()

    def examples():
        for pair in shard.pairs:
            try:
                record = read_record(shard.archive, pair, shard.most_missing)
            except InputError as error:
                expected = shard.archive.expects_missing
                wanted = not (expected and isinstance(error, Unmeasured))
                if isinstance(error, Stopped) or shard.strict and wanted:
                    raise
                skipped.append((*pair.names, str(error), wanted))
            else:
                remarks.update(set(record.pop(REMARKS, ())))
                record.pop(PRESENT, None)
                tally.add(record)
                yield record
            count(1)

    features = record_format.features(shard.archive.description)
    try:
        info = record_format.write_shard(
            shard.path, examples(), features, shard.options
        )
        result = info._asdict() | {
            "skipped": skipped,
            "remarks": dict(sorted(remarks.items())),
            "tally": tally.to_json(),
        }
        atomic.write_whole(shard.result, json.dumps(result))
    except OSError as error:
        raise Stopped(
            f"{shard.path} cannot be written ({error}); {atomic.advice(error)}."
        ) from error


def read_record(archive: Archive, pair: Pair, most_missing: float) -> dict:
    """The record of a pair, see `Archive.read_pair`.

    Raises:
        InputError: the pair is bad, or too much of it is missing.
        Stopped: the disk or the network fails.
    """
    try:
        record = archive.read_pair(pair)
        for field in record_format.TEXTS:
            record[field].encode()  # names of files may be no text
        check_missing(archive.description, record, most_missing)
        return record
    except OSError as error:
        raise Stopped(
            f"{pair.name} cannot be read ({error}); see to the disk or the network, "
            "then give the same command again."
        ) from error
    except InputError:
        raise
    except Exception as error:  # a file so strange that no reader foresaw it
        raise InputError(
            f"{pair.name} makes its reader fail ({type(error).__name__}: {error}); "
            "unpack it again or leave it out."
        ) from error


def read_result(shard: Shard) -> dict:
    """What became of a shard: `count`, `bytes`, `digest`, and the rest of `RESULT`.

    Raises:
        InputError: it was never written, as when a cluster loses a job; or it
            is damaged and was deleted, so that the same command writes it again.
    """
    try:
        result = safe_io.read_json(shard.result)
        if not isinstance(result, dict) or not result.keys() >= RESULT:
            raise ValueError(f"it lacks some of {sorted(RESULT)}")
        if any(len(row) != len(NAMED) + 2 for row in result["skipped"]):
            raise ValueError("an earlier version wrote it")
        return result
    except FileNotFoundError:
        raise InputError(
            f"{shard.path.name} was lost on the way; give the same command again, "
            "which writes only what is missing."
        ) from None
    except ValueError as error:
        shard.result.unlink()
        raise InputError(
            f"{shard.result} cannot be read ({error}) and was deleted; give the same "
            "command again to write it anew."
        ) from error


def check(shard: Shard, count: Callable[[int], None] = lambda pairs: None) -> dict:
    """Reads a finished shard back and compares it with its result.

    Returns:
        The file's `sha256`, and the `index` of its records, see
        `record_format.Records.index`.

    Raises:
        InputError: something was lost or changed; the shard is deleted, so that the
            same command writes it again.
    """
    result, digest = read_result(shard), hashlib.sha256()
    label_fields = tuple(shard.archive.description.classes)
    index = {field: [] for field in ("id", "place", *label_fields)}
    try:
        for record in record_format.read_records(shard.path):
            digest.update(record)
            stored = tf_example_pb2.Example.FromString(record).features.feature
            for field in ("id", "place"):
                index[field].append(stored[field].bytes_list.value[0].decode())
            for field in label_fields:
                index[field].append(list(stored[field].int64_list.value))
            count(1)
        done = len(index["id"]) + len(result["skipped"])
        if digest.hexdigest() != result["digest"] or done != shard.size:
            raise RuntimeError(
                f"{len(index['id'])} records and {len(result['skipped'])} skipped "
                f"pairs of {shard.size}, or their content is another"
            )
        with shard.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (RuntimeError, OSError, ValueError) as error:
        shard.path.unlink(missing_ok=True)
        shard.result.unlink()
        raise InputError(
            f"{shard.path.name} is not what was written ({error}) and was deleted; "
            "give the same command again to write it anew."
        ) from error
    count(len(result["skipped"]))
    for field, names in shard.archive.description.classes.items():
        index[field] = multi_hot(index[field], len(names))
    return {"sha256": sha256, "index": {k: np.asarray(v) for k, v in index.items()}}


def multi_hot(labels: list[list[int]], classes: int) -> np.ndarray:
    """Label indices as uint8 [N, classes], 1 where the class is present."""
    hot = np.zeros((len(labels), classes), np.uint8)
    for row, present in zip(hot, labels):
        row[present] = 1
    return hot


def run_local(
    function: Callable[..., Any], work: Sequence[Shard], workers: int, label: str
) -> list:
    """Calls `function(shard, count)` for each shard, with a progress bar.

    Args:
        function: of a module, so that worker processes can import it.
        work: the shards.
        workers: processes; 0 runs everything in this one.
        label: what the progress bar says is going on.

    Returns:
        Results in the order of `work`.
    """
    total = sum(shard.size for shard in work)
    interval = 0.1 if sys.stderr.isatty() else QUIET
    with tqdm.tqdm(
        total=total, unit="pair", desc=label, mininterval=interval, smoothing=0.05
    ) as progress:
        if not workers:
            return [function(shard, progress.update) for shard in work]
        return _run_pool(function, work, min(workers, len(work)), progress)


def _run_pool(function, work, workers: int, progress) -> list:
    # Forking would copy the locks of threads that TFDS and Grain have started.
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(done,)
    )
    with pool:
        futures = [pool.submit(_in_worker, function, shard) for shard in work]
        try:
            waiting = set(futures)
            while waiting:
                finished, waiting = concurrent.futures.wait(
                    waiting, POLL, concurrent.futures.FIRST_EXCEPTION
                )
                progress.update(done.value - progress.n)
                for future in finished:
                    future.result()  # raises what the worker raised
        except concurrent.futures.process.BrokenProcessPool as error:
            raise InputError(
                "A worker process was killed, perhaps for memory; give the same "
                f"command again, with fewer than workers={workers}."
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _start_worker(done) -> None:
    global _done
    _done = done
    # A killed parent would leave its workers waiting for work, for ever.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _in_worker(function, shard: Shard):
    def count(pairs: int) -> None:
        with _done.get_lock():
            _done.value += pairs

    return function(shard, count)


def run_beam(work: Sequence[Shard], runner: str, options: Sequence[str]) -> None:
    """Builds the shards on a Beam runner, each as one element.

    What comes out of the pipeline is not relied upon: the files beside the shards say
    what was written, and the build checks them afterwards.

    Args:
        work: the shards; archive and output on a file system that all workers see.
        runner: e.g. "FlinkRunner", "SparkRunner" or "DataflowRunner".
        options: of the runner, e.g. "--flink_master=HOST:8081".

    Raises:
        InputError: Beam is not installed, or the runner fails.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError(
            f"runner={runner} needs Apache Beam ({error}); install it with "
            "pip install -e '.[beam]'."
        ) from error
    log.info("Building %d shards on %s.", len(work), runner)
    try:
        flags = PipelineOptions([f"--runner={runner}", *options])
        pipeline = beam.Pipeline(options=flags)
        (
            pipeline
            | "shards" >> beam.Create(list(work))
            | "spread" >> beam.Reshuffle()
            | "build" >> beam.Map(build)
        )
        pipeline.run().wait_until_finish()
    except Exception as error:  # runners raise whatever they like
        last = str(error).strip().splitlines()[-1] if str(error).strip() else ""
        raise InputError(
            f"{runner} stopped ({type(error).__name__}: {last}); shards that were "
            "finished stay, so mend it and give the same command again."
        ) from error
