"""TensorBoard's file of a run, written at once and by nobody else.

`tensorboardX.SummaryWriter` writes in a thread of its own. When the disk is full that
thread dies, and the run waits for ever to hand it the next number.
"""

import pathlib
import time

from data_pipeline import files


class Board:
    """Scalars and images by step; what cannot be written is an OSError right away."""

    def __init__(self, folder: pathlib.Path, *, first_step: int = 0):
        """Opens a new file in `folder`, hiding what others say of steps from then on.

        Args:
            folder: made if need be.
            first_step: that is already done.
        """
        # Importing it is slow; only a run that writes does so.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2, summary_pb2

        self._image, self._summary = summary.image, summary_pb2.Summary
        self._event = event_pb2.Event
        self._folder = folder
        with files.named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._events = event_file_writer.EventsWriter(str(folder / "events"))
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
        with files.named(self._folder):
            self._events.write_event(event)
            self._events.flush()

    def close(self) -> None:
        """Closes the file."""
        with files.named(self._folder):
            self._events.close()
