"""Elements fetched in another thread; a dead worker and a long wait are said."""

import itertools
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from data_pipeline.errors import InputError

log = logging.getLogger("fusmae_jax")

STALL_SECONDS = 60  # until a wait is worth a line, unless the config says otherwise
POLL_SECONDS = 0.5  # between looks at the worker processes while waiting
CLOSE_SECONDS = 10.0  # given to worker processes to end by themselves
GRACE_SECONDS = 30  # that a worker process outlives SIGTERM


def prefetch(
    stream,
    seconds: float,
    host: int,
    what: Callable[[int], str],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator:
    """Yields what `stream` yields; waiting for it is not silent, nor for nothing.

    Each element is asked for in another thread, so that this one can look about while
    it waits, and heed signals. An element that is an `InputError` is raised.

    Args:
        stream: an iterator of Grain.
        seconds: of waiting for an element, until the log says so once; 0 for never.
        host: which one waits.
        what: names the element that comes after so many.
        stop: whether to end rather than to wait on, asked while waiting.

    Raises:
        InputError: an element is one, or a worker process ended.
    """
    workers, asked, came = Workers(), queue.SimpleQueue(), queue.SimpleQueue()
    threading.Thread(target=_fetch, args=(stream, asked, came), daemon=True).start()
    try:
        for number in itertools.count():
            asked.put(None)
            answer = _wait(came, workers, seconds, host, lambda: what(number), stop)
            if isinstance(answer[0], StopIteration):
                return
            if answer[0] is not None:
                # Grain ends them after an error, but not with another code.
                workers.check(but=(None, 0))
                raise answer[0]
            if isinstance(answer[1], InputError):
                raise answer[1]
            workers.all_started = True
            yield answer.pop()  # keeping none of it in memory
    finally:
        asked.put(StopIteration)
        _close(stream, workers)


def _fetch(stream, asked: queue.SimpleQueue, came: queue.SimpleQueue) -> None:
    """Answers each request with [None, the next element], or [an error]."""
    while asked.get() is None:
        try:
            came.put([None, next(stream)])
        except BaseException as error:  # StopIteration too; the caller raises it
            came.put([error])


def _wait(
    came: queue.SimpleQueue,
    workers: "Workers",
    seconds: float,
    host: int,
    what: Callable[[], str],
    stop: Callable[[], bool],
) -> list:
    """The next answer or, once `stop` says so, what an iterator answers at its end."""
    start, due = time.monotonic(), seconds or float("inf")
    while True:
        try:
            answer = came.get(timeout=POLL_SECONDS)
            workers.find()
            return answer
        except queue.Empty:
            workers.find()
            workers.check()
        if stop():
            return [StopIteration()]
        waited = time.monotonic() - start
        if waited >= due:
            log.warning("Host %d has waited %.0f s for %s.", host, waited, what())
            due = float("inf")


def _close(stream, workers: "Workers") -> None:
    """Closes a stream; worker processes that do not end by themselves are killed."""
    if sys.is_finalizing():
        return
    # Grain would wait for a worker that waits for its disk.
    closing = threading.Thread(target=stream.close, daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)
    if closing.is_alive():
        workers.kill()
        closing.join(CLOSE_SECONDS)


class Workers:
    """The processes that were started since the making of this, until all were."""

    def __init__(self):
        self._others = set(multiprocessing.active_children())
        self._known, self.all_started = set(), False

    def find(self) -> None:
        if not self.all_started:
            self._known |= set(multiprocessing.active_children()) - self._others

    def check(self, but: tuple = (None,)) -> None:
        """Looks whether one has ended with an exit code other than these.

        Raises:
            InputError: one has ended.
        """
        ended = [p for p in self._known if p.exitcode not in but]
        if ended:
            codes = ", ".join(f"{p.pid} (exit code {p.exitcode})" for p in ended)
            raise InputError(
                f"Of the processes that read data, {codes} ended unexpectedly, perhaps "
                "for lack of memory; launch again to go on, with fewer data.workers if "
                "it happens again."
            )

    def kill(self) -> None:
        """Ends them at once."""
        for process in self._known:
            process.kill()


def begin_worker() -> None:
    """Makes this worker process end with its parent.

    A signal to the whole group of processes is the parent's to act upon: it may need
    some more batches before it ends in good order.
    """

    def give_grace(*_):
        end = threading.Timer(GRACE_SECONDS, os._exit, (1,))
        end.daemon = True
        end.start()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, give_grace)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
