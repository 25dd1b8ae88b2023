"""What runs the units of work: processes of this machine, or an Apache Beam cluster."""

import concurrent.futures
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import tqdm

from data_pipeline.building import units_of_work
from data_pipeline.errors import InputError
from data_pipeline.building.units_of_work import Shard

log = logging.getLogger("fusmae_jax")

POLL = 0.5  # seconds between looks at the workers
QUIET = 30.0  # seconds between lines of progress where nobody watches a terminal

_done = None  # in a worker process: the pairs that all of them have done


def run_local(
    function: Callable[..., Any], work: Sequence[Shard], workers: int, label: str
) -> list:
    """Calls `function(shard, count)` for each unit of work, with a progress bar.

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
                f"command again, with fewer than --config.workers={workers}."
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
            f"--config.runner={runner} needs Apache Beam ({error}); install it with "
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
            | "build" >> beam.Map(units_of_work.build)
        )
        pipeline.run().wait_until_finish()
    except Exception as error:  # runners raise whatever they like
        last = str(error).strip().splitlines()[-1] if str(error).strip() else ""
        raise InputError(
            f"{runner} stopped ({type(error).__name__}: {last}); shards that were "
            "finished stay, so mend it and give the same command again."
        ) from error
