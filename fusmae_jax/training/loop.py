"""The pretraining loop: the steps, and what goes on beside them."""

import logging
import math
import time
from typing import NamedTuple

import jax

from fusmae_jax import flops
from fusmae_jax.evaluation import monitor
from fusmae_jax.objectives.protocol import Objective
from fusmae_jax.training import (
    checkpoint,
    guard,
    heldout,
    metrics,
    preemption,
    progress,
    runtime,
    train,
)

log = logging.getLogger("fusmae_jax")

# Steps under way at a time. While they run, the next batch is read and on its way to
# the devices; more would only pile up batches in their memory.
AHEAD = 2


class Tools(NamedTuple):
    """What a loop writes to and asks.

    Attributes:
        objective: what is trained for.
        writer: of the metrics.
        scoring: of held-out pairs.
        judge: of the encoder.
        saves: the checkpoints.
        guard: of the numbers.
        notice: whether to stop.
    """

    objective: Objective
    writer: metrics.MetricWriter
    scoring: heldout.Evaluation
    judge: monitor.Monitor
    saves: checkpoint.Checkpoints
    guard: guard.Guard
    notice: preemption.Notice


def device_peak(config) -> float | None:
    """Peak of one device in FLOP/s for the config's products, None if not known."""
    return flops.peak(jax.devices()[0].device_kind, config.model.dtype)


def run_steps(config, state, train_step, stream, tools: Tools, steps: int, start: dict):
    """Advances `state` to step `steps`, writing what a run leaves behind.

    Args:
        config: see `configs/pretrain_base.py`.
        state: where to begin.
        train_step: compiled `step(state, fields) -> (state, metrics)`.
        stream: batches, from the first one that is wanted on; to stop, it ends.
        tools: what goes on beside the steps.
        steps: where to end.
        start: what is known of the start of the run, for the first row logged.

    Returns:
        The state, of an earlier step if the run was asked to stop. It is saved.

    Raises:
        Diverged: too many steps in a row could not be applied.
    """
    objective, writer, scoring, _, saves, watch, notice = tools
    first, owed = int(jax.device_get(state.step)), False
    # A line for each row that is logged, and for none besides.
    bar = progress.Progress("", steps, "step", first, quiet=math.inf)
    work, peak = objective.flops(), device_peak(config)
    clock = metrics.Clock(config.batch_size, work, peak, ahead=AHEAD)

    def show(row):
        if row is not None:
            bar.show(row["step"], metrics.in_words(row))
            watch.look(row)

    for step in range(first + 1, steps + 1):
        asked = time.monotonic()
        fields = next(stream, None)
        if fields is None:  # asked to stop while no batch came
            show(writer.flush())
            if step - 1 != watch.saved:
                save(step - 1, state, tools, last=True)
            break
        came = time.monotonic()
        state, step_metrics = train_step(state, fields)
        clock.step(asked, came, step_metrics["loss"])
        if step == first + 1:
            clock.restart()  # the first step fills the pipeline
            start |= tell_start(start)
        if step % config.log_every == 0 or step == steps:
            show(writer.write(step, step_metrics | clock.rates() | start))
            start = {}
        judge_and_draw(config, step, steps, state, tools, clock)
        owed = owed or saves.due(step)
        last = notice.reached(step) or step == steps
        if owed or last:
            show(writer.flush())
            owed = not save(step, state, tools, last=last)
        bar.update()
        if last:
            break
    show(writer.flush())
    scoring.collect(wait=True)
    bar.close()
    return state


def judge_and_draw(config, step: int, steps: int, state, tools: Tools, clock) -> None:
    """Does what is due after a step to see how well the model does."""
    if step % config.eval_every == 0 or step == steps:
        tools.scoring.start(step, state.params, state.extra)
    tools.scoring.collect()
    if tools.judge.due(step, steps):
        with jax.transfer_guard("allow"):  # its steps are few, and wait anyway
            kept = train.kept(state, tools.objective)
            tools.judge.run(step, kept, tools.writer)
        clock.restart()


def save(step: int, state, tools: Tools, *, last: bool) -> bool:
    """Starts saving a state, with the rows of its step, which no later run writes.

    Args:
        step: that it follows.
        state: to be saved.
        tools: of the loop; the row of the step is written already.
        last: whether no step comes after.

    Returns:
        Whether it does. Not while steps are left out, unless it is the last: a state
        that no step may ever follow must not push out the checkpoints before.

    Raises:
        Diverged: too many steps in a row could not be applied.
    """
    tools.scoring.write_losses(step)
    if not (tools.guard.sound(step, state) or last):
        return False
    tools.saves.save(step, state)
    tools.guard.saved = step
    return True


def tell_start(start: dict) -> dict:
    """Logs how long the first step took to come, and returns it for a row."""
    seconds = runtime.seconds_since_launch()
    log.info(
        "First step after %.1f s (compiled in %.1f s).",
        *(seconds, start["compile_seconds"]),
    )
    return {"start_seconds": seconds}
