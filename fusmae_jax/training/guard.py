"""What a pretraining does when its numbers go wrong: it says so, and stops in time.

The step itself leaves out an update that is not finite, see `train.make_train_step`;
this file is the host's part.
"""

import collections
import json
import logging
import math
import pathlib
import statistics

import jax

from data_pipeline import atomic, batches
from fusmae_jax import inputs
from fusmae_jax.training.metrics import Diverged

log = logging.getLogger("fusmae_jax")

BAD_BATCHES = "bad_batches.json"
# A logged loss above SPIKE times the median of up to ROWS before it, MIN_ROWS at least.
SPIKE, ROWS, MIN_ROWS = 3.0, 20, 5


class Guard:
    """Watches the rows that are logged and the states that are to be saved.

    Attributes:
        saved: the step of the last checkpoint, None before the first.
    """

    def __init__(self, config, source, workdir, state, saved: int | None):
        """Begins to watch a run.

        Args:
            config: see `configs/pretrain_base.py`.
            source: the training pairs.
            workdir: the run directory.
            state: that the run goes on from.
            saved: the step of the last checkpoint, if any.
        """
        self._limit, self.saved = config.bad_steps, saved
        self._order = config.seed, config.batch_size
        self._source, self._workdir = source, pathlib.Path(workdir)
        self._seen, self._skipped = int(state.step), int(state.skipped)
        self._losses = collections.deque(maxlen=ROWS)
        self._told_of_pixels = False

    def look(self, row: dict) -> None:
        """Warns of what a logged row says.

        Raises:
            Diverged: too many steps in a row were not applied.
        """
        step, loss, skipped = row["step"], row["loss"], int(row["skipped_steps"])
        if jax.process_index() == 0:
            self._warn_of_pixels(step, row.get("invalid_pixels", 0))
            if skipped > self._skipped:
                log.warning(
                    "Step %d: %d of the %d steps since step %d were not applied, as "
                    "their loss or gradient was not finite (%d in all).",
                    *(step, skipped - self._skipped, step - self._seen, self._seen),
                    skipped,
                )
            self._warn_of_spike(step, loss)
        self._seen, self._skipped = step, skipped
        if math.isfinite(loss):
            self._losses.append(loss)
        self._check(step, int(row["skipped_in_a_row"]))

    def _warn_of_pixels(self, step: int, invalid: float) -> None:
        if invalid and not self._told_of_pixels:
            self._told_of_pixels = True
            log.warning("Step %d: %.0f pixels %s", step, invalid, inputs.INVALID_ADVICE)

    def _warn_of_spike(self, step: int, loss: float) -> None:
        if len(self._losses) < MIN_ROWS:
            return
        usual = statistics.median(self._losses)
        if loss > SPIKE * usual:
            log.warning(
                "Step %d: the loss of %.4g is %.1f times what it was before (%.4g); "
                "unless it comes down, start again with a lower optim.base_lr or with "
                "optim.clip_norm=1.0.",
                *(step, loss, loss / usual, usual),
            )

    def sound(self, step: int, state) -> bool:
        """Waits for `state`; whether its step was applied.

        Raises:
            Diverged: too many steps in a row were not applied.
        """
        in_a_row = int(jax.device_get(state.skipped_in_a_row))
        self._check(step, in_a_row)
        return in_a_row == 0

    def _check(self, step: int, in_a_row: int) -> None:
        if in_a_row < self._limit:
            return
        # All that came after these were not applied either, whatever they were.
        first = step - in_a_row + 1
        steps = range(first, first + self._limit)
        path = self._workdir / BAD_BATCHES
        if jax.process_index() == 0:
            ids = pair_ids(self._source, *self._order, steps)
            atomic.write_whole(path, json.dumps(ids, indent=1) + "\n")
        goes_on = "from the start" if self.saved is None else f"from step {self.saved}"
        raise Diverged(
            f"Steps {steps[0]} to {steps[-1]} were not applied, as their loss or "
            f"gradient was not finite; {path} lists their pairs. The same command goes "
            f"on {goes_on}: mend these pairs first, or pass them over with "
            f"bad_steps={2 * self._limit}; or start again in another "
            "--workdir with a lower optim.base_lr or with optim.clip_norm=1.0."
        )


def pair_ids(source, seed: int, batch_size: int, steps) -> dict[int, list]:
    """The pairs of some steps' batches, {step: ids}, in the order of their rows.

    Args:
        source: the training pairs; where it has no ids, their numbers are given.
        seed: of their order.
        batch_size: pairs of a global batch.
        steps: numbers of steps, the first being 1.
    """
    order = batches.Order(source, seed)
    known = source.index.get("id")
    found = {}
    for step in steps:
        pairs = order.pairs((step - 1) * batch_size, step * batch_size)
        found[step] = pairs if known is None else known[pairs].tolist()
    return found
