"""TensorBoard's file of a run, written at once.

`tensorboardX.SummaryWriter` writes in a thread of its own. When the disk is full that
thread dies, and the run waits for ever to hand it the next number.
"""

import pathlib
import socket
import struct
import time

from data_pipeline import atomic as files


class Board:
    """Scalars and images by step; what cannot be written is an OSError right away."""

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
        with files.named(self._path), self._path.open("ab") as file:
            file.write(record)
