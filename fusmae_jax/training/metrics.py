"""Metrics to `metrics.jsonl` and TensorBoard, and in words."""

import collections
import concurrent.futures
import functools
import json
import math
import pathlib
import socket
import struct
import time

import jax

from data_pipeline import atomic, safe_io
from data_pipeline.errors import InputError


class Diverged(InputError):
    """A loss is not finite."""


class MetricWriter:
    """Appends one JSON object per logged step, and the same to TensorBoard.

    A context manager. Host 0 writes; on other hosts it does nothing. Device arrays
    are kept until the next call, so that fetching them never stalls the step just
    dispatched.
    """

    def __init__(self, workdir, *, first_step: int = 0):
        """Opens the run's metrics, forgetting what was logged after `first_step`."""
        self._path = pathlib.Path(workdir) / "metrics.jsonl"
        self._workdir, self._first_step = pathlib.Path(workdir), first_step
        self._pending = None
        if jax.process_index() == 0:
            if self._path.exists():
                rows = read_metrics(workdir)
                kept = [row for row in rows if row["step"] <= first_step]
                lines = "".join(json.dumps(row) + "\n" for row in kept)
                atomic.write_whole(self._path, lines)

    @functools.cached_property
    def _board(self):
        """TensorBoard's file, opened for the first row: importing it is slow."""
        folder = self._workdir / "tensorboard"
        return TensorBoard(folder, first_step=self._first_step)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self) -> None:
        """Ends the metrics; what was not flushed is lost."""
        self._pending = None

    def write(self, step: int, metrics: dict) -> dict | None:
        """Takes metrics of a step that may still run; returns the row before it."""
        row = self.flush()
        self._pending = (step, metrics)
        return row

    def flush(self) -> dict | None:
        """Waits for what `write` took last and writes it; returns the row."""
        if self._pending is None:
            return None
        (step, metrics), self._pending = self._pending, None
        return self.write_now(step, jax.device_get(metrics))

    def write_now(self, step: int, metrics: dict) -> dict:
        """Writes metrics that are known already, null where JSON has no number.

        Returns:
            The row, in which what is not finite is not.
        """
        row = {"step": step} | {k: float(v) for k, v in metrics.items()}
        finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
        if jax.process_index() == 0:
            with atomic.named(self._path), self._path.open("a") as f:
                f.write(json.dumps(finite) + "\n")
            known = {k: v for k, v in finite.items() if v is not None and k != "step"}
            self._board.add_scalars(step, known)
        return row

    def add_figure(self, name: str, image, step: int) -> None:
        """Shows an RGB image [H, W, 3] uint8 in TensorBoard."""
        if jax.process_index() == 0:
            self._board.add_image(step, name, image)


def check_finite(step: int, loss, advice: str) -> None:
    """Waits for the loss of a step.

    Args:
        step: its number.
        loss: its loss.
        advice: what to start again with.

    Raises:
        Diverged: it is not finite.
    """
    if not math.isfinite(loss):
        raise Diverged(
            f"The loss is {float(loss)} at step {step}; start again in another "
            f"--workdir with {advice}."
        )


def read_metrics(workdir) -> list[dict]:
    """The rows of a run's `metrics.jsonl`; a last line cut short is left out.

    Raises:
        InputError: another line is damaged.
    """
    path, rows = pathlib.Path(workdir) / "metrics.jsonl", []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = safe_io.parse_json(line)
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise ValueError("it is no row with a step")
            rows.append(row)
        except ValueError as error:
            if number < len(lines):
                raise InputError(
                    f"Line {number} of {path} is not JSON; mend or delete it."
                ) from error
    return rows


def in_words(row: dict) -> str:
    """The loss of a row and what `Clock.rates` said, as far as it is there."""
    words = (
        ("loss", "loss {:.4f}"),
        ("images_per_sec", "{:.1f} img/s"),
        ("tflops_per_device", "{:.3g} TFLOP/s a device"),
        ("mfu", "{:.1%} MFU"),
        ("data_wait", "{:.1%} waiting for data"),
    )
    return ", ".join(text.format(row[name]) for name, text in words if name in row)


class Clock:
    """Rates over the steps between two logged ones; holds the host back.

    Steps run after they have been dispatched, several of them ahead. A thread waits for
    each and notes when it has ended: that alone counts, so nothing looks faster for
    being asynchronous, and the host need not stop to know.
    """

    def __init__(self, batch_size: int, work: int, peak: float | None, *, ahead: int):
        """Starts an interval.

        Args:
            batch_size: pairs of a step.
            work: FLOPs of a pair.
            peak: of one device in FLOP/s, if known.
            ahead: steps that may be under way.
        """
        self._batch, self._work, self._peak = batch_size, work, peak
        self._ahead, self._running = ahead, collections.deque()
        self._watcher = concurrent.futures.ThreadPoolExecutor(1)
        self.restart()

    def restart(self) -> None:
        """Waits for all steps, counts none of them, and starts an interval."""
        while self._running:
            self._running.popleft()[-1].result()
        self._start = self._ended = time.monotonic()
        self._steps, self._waited = 0, 0.0

    def step(self, asked: float, came: float, result: jax.Array) -> None:
        """Takes a step just dispatched; waits for the one `ahead` steps before it.

        Args:
            asked: when its batch was asked for, by `time.monotonic`.
            came: when the batch was there.
            result: of the step.
        """
        ended = self._watcher.submit(self._ended_at, result)
        self._running.append((asked, came, ended))
        if len(self._running) > self._ahead:
            asked, came, ended = self._running.popleft()
            # Before the last step ended, the devices did not wait for data.
            self._waited += max(0.0, came - max(asked, self._ended))
            self._ended, self._steps = ended.result(), self._steps + 1

    def _ended_at(self, result: jax.Array) -> float:
        result.block_until_ready()
        return time.monotonic()

    def rates(self) -> dict[str, float]:
        """Rates of the steps that ended in the interval, none if none did.

        Starts the next interval. `data_wait` is the share of time in which the devices
        had nothing to do because the next batch was not there.
        """
        if not self._steps:
            return {}
        elapsed = self._ended - self._start
        images = self._steps * self._batch / elapsed
        per_device = images * self._work / jax.device_count()
        rates = {
            "images_per_sec": images,
            "data_wait": self._waited / elapsed,
            "tflops_per_device": per_device / 1e12,
        }
        if self._peak is not None:
            rates["mfu"] = per_device / self._peak
        self._start, self._steps, self._waited = self._ended, 0, 0.0
        return rates


class TensorBoard:
    """TensorBoard's file of a run; what cannot be written is an OSError right away.

    `tensorboardX.SummaryWriter` writes in a thread of its own. When the disk is full
    that thread dies, and the run waits for ever to hand it the next number.
    """

    def __init__(self, folder: pathlib.Path, *, first_step: int = 0):
        """Begins a new file in `folder`, hiding what others say of steps from then on.

        Args:
            folder: made if need be.
            first_step: that is already done.
        """
        # Importing it is slow; only a run that writes does so.
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2, summary_pb2

        self._checksum, self._image = record_writer.masked_crc32c, summary.image
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._path = folder / name
        self._write(0, file_version="brain.Event:2")
        begun = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(first_step + 1, session_log=begun)

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes numbers by their names."""
        pairs = [{"tag": k, "simple_value": v} for k, v in values.items()]
        self._write(step, summary=self._summary(value=pairs))

    def add_image(self, step: int, name: str, image) -> None:
        """Writes an RGB image [H, W, 3] uint8."""
        self._write(step, summary=self._image(name, image, dataformats="HWC"))

    def _write(self, step: int, **what) -> None:
        event = self._event(step=step, wall_time=time.time(), **what)
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        sums = (struct.pack("<I", self._checksum(x)) for x in (length, content))
        record = length + next(sums) + content + next(sums)
        with atomic.named(self._path), self._path.open("ab") as file:
            file.write(record)
