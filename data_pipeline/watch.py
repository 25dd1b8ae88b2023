"""Says in the log who waits for data, and for what, when they do not come."""

import itertools
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from data_pipeline.errors import InputError

log = logging.getLogger("fusmae_jax")

STALL_SECONDS = 60  # until a wait is worth a line, unless the config says otherwise
LOOK_SECONDS = 0.5  # between looks at the worker processes while waiting
CLOSE_SECONDS = 10.0  # given to worker processes to end by themselves
GRACE_SECONDS = 30  # that a worker process outlives SIGTERM

# What the threads of this process read: {thread: (source, index, since when)}.
_reading = {}


def reads(source, indices: Iterable[int]) -> Iterator[int]:
    """Yields `indices`, and lets it be known which of them this thread reads."""
    thread = threading.get_ident()
    try:
        for index in indices:
            _reading[thread] = source, index, time.monotonic()
            yield index
    finally:
        _reading.pop(thread, None)


def where(source, index: int) -> str:
    """Names a pair: its record and shard, where the source knows them."""
    return source.where(index) if hasattr(source, "where") else f"pair {index}"


def directories(source) -> str:
    """Where a source lies, in words."""
    return ", ".join(getattr(source, "directories", ())) or "its source"


def being_read(least: float = 0.0) -> str:
    """What threads of this process have been reading for `least` seconds, in words."""
    now = time.monotonic()
    return ", ".join(
        f"a thread has read {where(source, index)} for {now - since:.0f} s"
        for source, index, since in list(_reading.values())
        if now - since >= least
    )


def watched(
    stream,
    seconds: float,
    host: int,
    what: Callable[[int], str],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator:
    """Yields what `stream` yields; waiting for it is never silent, nor for nothing.

    Each element is asked for in another thread, so that this one can look about while
    it waits, and heed signals. An element that is an `InputError` is raised.

    Args:
        stream: an iterator of Grain.
        seconds: until a wait is logged, then as long again, and so on; 0 for never.
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
                workers.look(but=(None, 0))
                raise answer[0]
            if isinstance(answer[1], InputError):
                raise answer[1]
            if not number:
                workers.meet()
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
    """The next answer; looks at the workers and writes lines until it is there.

    Or, once `stop` says so, what an iterator answers at its end.
    """
    start, due, said = time.monotonic(), seconds or float("inf"), False
    while True:
        left = due - (time.monotonic() - start)
        try:
            answer = came.get(timeout=max(0.0, min(LOOK_SECONDS, left)))
            break
        except queue.Empty:
            workers.look()
        if stop():
            return [StopIteration()]
        waited = time.monotonic() - start
        if waited >= due:
            line = "Host %d has waited %.0f s for %s; %s."
            busy = workers.describe() or being_read() or "no thread reads"
            log.warning(line, host, waited, what(), busy)
            due, said = 2 * waited, True
    if said and answer[0] is None:
        log.warning("Host %d goes on after %.0f s.", host, time.monotonic() - start)
    return answer


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
    """The processes that were started between the making of this and `meet`."""

    def __init__(self):
        self._others = set(multiprocessing.active_children())
        self._known, self._met = set(), False

    def meet(self) -> None:
        """Notes that all have been started."""
        self._look_for_new()
        self._met = True

    def _look_for_new(self) -> None:
        if not self._met:
            self._known |= set(multiprocessing.active_children()) - self._others

    def look(self, but: tuple = (None,)) -> None:
        """Looks whether one has ended with an exit code other than these.

        Raises:
            InputError: one has ended.
        """
        self._look_for_new()
        ended = [p for p in self._known if p.exitcode not in but]
        if ended:
            codes = ", ".join(f"{p.pid} (exit code {p.exitcode})" for p in ended)
            raise InputError(
                f"Of the processes that read data, {codes} ended unexpectedly, perhaps "
                "for lack of memory; launch again to go on, with fewer data.workers if "
                "it happens again."
            )

    def describe(self) -> str:
        """Those alive, in words; nothing if there are none."""
        pids = ", ".join(str(pid) for pid in sorted(p.pid for p in self._known))
        return f"alive and reading are the worker processes {pids}" if pids else ""

    def kill(self) -> None:
        """Ends them at once."""
        for process in self._known:
            process.kill()


def begin_worker(seconds: float) -> None:
    """Makes this worker process end with its parent, and say what it waits for.

    A signal to the whole group of processes is the parent's to act upon: it may need
    some more batches before it ends in good order.
    """

    def give_grace(*_):
        end = threading.Timer(GRACE_SECONDS, os._exit, (1,))
        end.daemon = True
        end.start()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, give_grace)
    threading.Thread(target=_attend, args=(seconds,), daemon=True).start()


def _attend(seconds: float) -> None:
    """Waits for the parent's end, and says meanwhile what takes long to read."""
    parent = multiprocessing.parent_process()
    pause = seconds or STALL_SECONDS
    while parent.is_alive():
        parent.join(pause)
        slow = being_read(least=seconds) if seconds else ""
        if slow and parent.is_alive():
            log.warning("In the worker process %d, %s.", os.getpid(), slow)
            pause *= 2
        else:
            pause = seconds or STALL_SECONDS
    os._exit(1)
