"""Waiting for data: a stall is said once, and a wait always ends."""

import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from data_pipeline import batches, mixtures, prefetch, record_format
from data_pipeline.errors import InputError
from tests import datasets

ROOT = pathlib.Path(__file__).parents[1]


class Numbers:
    """A source whose records say which they are."""

    def __len__(self):
        return 100

    def __getitem__(self, i):
        return {"x": np.full(5000, i)}


class Piped(Numbers):
    """Numbers of which each waits for a line in a named pipe."""

    def __init__(self, path, free: int):
        """All wait but the first `free` ones of an epoch with seed 0."""
        self.path, self.order = path, batches.Order(self, 0).pairs(0, free)

    def __getitem__(self, i):
        if i not in self.order:
            with open(self.path) as file:
                file.readline()
        return super().__getitem__(i)


def stream(source, **options):
    return batches.train_batches(source, batch_size=1, seed=0, **options)


def until(true, seconds=60.0) -> None:
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited for long enough"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return b"\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return False


@pytest.fixture
def blocked(tmp_path, monkeypatch):
    """A mixture of two datasets, whose record that comes fourth waits for an event."""
    folders = [datasets.write(tmp_path / n, (3, 3), prefix=n) for n in ("a", "b")]
    mixture = mixtures.Mixture(
        [record_format.Records(f, "train", ["id"]) for f in folders]
    )
    fourth, event = batches.Order(mixture, 0).pairs(3, 4)[0], threading.Event()
    part, place = mixture.parts[fourth // 6], fourth % 6
    whole = type(part).__getitem__

    def get(self, index):
        if self is part and index == place:
            event.wait()
        return whole(self, index)

    monkeypatch.setattr(record_format.Records, "__getitem__", get)
    yield mixture, event
    event.set()


def test_a_stalled_read_is_said_once(blocked, lines):
    mixture, event = blocked
    got = stream(mixture, start_step=2, threads=1, stall_seconds=0.2)
    next(got)
    assert not lines
    threading.Timer(1.8, event.set).start()
    next(got)
    got.close()
    folders = ", ".join(mixture.directories)
    (line,) = lines
    assert re.fullmatch(
        rf"Host 0 has waited \d s for the batch of step 4 from {folders}\.", line
    )


def test_batches_to_judge_by_are_watched_too(blocked, lines):
    mixture, event = blocked
    threading.Timer(1.0, event.set).start()
    got = batches.eval_batches(
        mixture, fields=["id"], batch_size=4, count=12, stall_seconds=0.1
    )
    assert len(list(got)) == 3
    assert re.search(r"for batch \d of 3 to judge by, from .*/a, .*/b\.", lines[0])


def test_a_stall_is_not_said_where_it_is_not_wanted(blocked, lines):
    mixture, event = blocked
    threading.Timer(0.4, event.set).start()
    got = stream(mixture, start_step=3, threads=1, stall_seconds=0)
    next(got)
    got.close()
    assert not lines


def test_while_it_waits_signals_are_heeded(blocked):
    def give_up(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    begun = time.monotonic()
    try:
        with pytest.raises(TimeoutError):
            next(stream(blocked[0], start_step=3, threads=1))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begun < 30


def test_a_wait_ends_when_asked_to_stop(blocked):
    asked = threading.Event()
    got = stream(blocked[0], start_step=2, threads=1, stop=asked.is_set)
    assert next(got, None) is not None
    asked.set()
    begun = time.monotonic()
    assert next(got, None) is None
    assert time.monotonic() - begun < 30


def test_a_stream_that_is_left_alone_leaves_no_thread():
    before = set(threading.enumerate())
    got = stream(Numbers(), threads=1)
    next(got)
    (thread,) = (t for t in set(threading.enumerate()) - before if "_fetch" in t.name)
    del got
    until(lambda: not thread.is_alive())


@pytest.fixture
def pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


@pytest.mark.journey
def test_a_worker_that_waits_is_said_and_ended_by_force(pipe, lines, monkeypatch):
    monkeypatch.setattr(prefetch, "CLOSE_SECONDS", 0.5)
    got = stream(Piped(pipe, 1), threads=1, workers=1, stall_seconds=0.4)
    next(got)
    (worker,) = multiprocessing.active_children()
    threading.Timer(2.0, pipe.write_text, ("go\n",)).start()
    next(got)
    assert "step 2 from its source." in lines[-1]
    begun = time.monotonic()
    got.close()
    assert time.monotonic() - begun < 20 and not alive(worker.pid)


@pytest.mark.journey
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_ends_training_in_a_sentence_and_the_others(workers):
    got = stream(Numbers(), threads=1, workers=workers)
    next(got)
    killed, *others = multiprocessing.active_children()
    os.kill(killed.pid, signal.SIGKILL)
    with pytest.raises(InputError, match=rf"{killed.pid} \(exit code -9\) ended"):
        for _ in range(100):
            next(got)
    assert not any(alive(p.pid) for p in (killed, *others))


class Leaving(Numbers):
    """Numbers, the tenth read of which ends its process in good order."""

    reads = 0

    def __getitem__(self, i):
        self.reads += 1
        if self.reads == 10:
            os._exit(0)
        return super().__getitem__(i)


@pytest.mark.journey
def test_a_worker_that_leaves_in_good_order_ends_training_too():
    got = stream(Leaving(), threads=1, workers=1)
    with pytest.raises(InputError, match=r"\(exit code 0\) ended unexpectedly"):
        for _ in range(100):
            next(got)


class Telling(Numbers):
    """Numbers that tell the process and the thread which read them."""

    def __getitem__(self, i):
        time.sleep(0.02)  # so that no thread is left without work
        # A forked process would know what its parent has set.
        told = os.getpid(), threading.get_ident(), getattr(prefetch, "forked", 0)
        return {"x": np.array(told)}


@pytest.mark.journey
@pytest.mark.parametrize("threads, workers, each", [(4, 2, 2), (1, 2, 1), (5, 1, 5)])
def test_workers_are_spawned_and_share_the_threads(monkeypatch, threads, workers, each):
    monkeypatch.setattr(prefetch, "forked", 1, raising=False)
    got = stream(Telling(), threads=threads, workers=workers)
    told = np.concatenate([next(got)["x"] for _ in range(40)])
    got.close()
    pids = set(told[:, 0])
    assert len(pids) == workers and os.getpid() not in pids
    for pid in pids:
        assert len(set(told[told[:, 0] == pid, 1])) == each
    assert not told[:, 2].any(), "processes were forked"


def test_a_worker_that_dies_while_it_is_waited_for_ends_the_wait(pipe):
    got = stream(Piped(pipe, 1), threads=1, workers=1)
    next(got)
    (worker,) = multiprocessing.active_children()
    threading.Timer(0.5, os.kill, (worker.pid, signal.SIGKILL)).start()
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"\(exit code -9\) .* data.workers"):
        next(got)
    assert time.monotonic() - begun < 30


def test_signals_to_the_whole_group_leave_workers_to_their_parent(monkeypatch):
    monkeypatch.setattr(prefetch, "CLOSE_SECONDS", 100)  # however slow the machine
    got = stream(Numbers(), threads=1, workers=1)
    next(got)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, number)
    for _ in range(20):
        next(got)
    got.close()
    assert worker.exitcode == 0


@pytest.mark.journey
def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    script = """
import multiprocessing, time
from absl import flags
from tests import test_prefetch

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    got = test_prefetch.stream(test_prefetch.Numbers(), threads=1, workers=2)
    next(got)
    print(*(p.pid for p in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""
    (tmp_path / "read.py").write_text(script)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "read.py")],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        parent.kill()
    until(lambda: not any(map(alive, pids)))
