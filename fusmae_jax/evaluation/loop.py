"""A training loop for whoever learns on top of an encoder: progress, and resuming."""

import collections
import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import jax
import tqdm

from data_pipeline import batches
from fusmae_jax import checkpoint, metrics, sharding

log = logging.getLogger("fusmae_jax")

AHEAD = 2  # steps and batches dispatched before the first is waited for
LINES = 10  # of progress, where there is no terminal for a bar
SAVES = 10  # checkpoints over a whole training


def load(source, *, batch_size: int, seed: int, first: int, mesh) -> Iterator:
    """Yields a source's training batches from `first` on, on their way to the mesh."""
    stream = batches.train_batches(
        source,
        batch_size=batch_size,
        seed=seed,
        start_step=first,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    ready = collections.deque()
    try:
        while True:
            while len(ready) < AHEAD:
                ready.append(sharding.to_devices(next(stream), mesh))
            yield ready.popleft()
    finally:
        stream.close()


def train(
    step: Callable,
    state,
    layout,
    open_batches: Callable[[int], Iterator],
    steps: int,
    *,
    directory,
    title: str,
):
    """Advances `state` to `steps`, from the last checkpoint in `directory` if any.

    Args:
        step: compiled `step(state, batch) -> (state, loss)`.
        state: has a `step`, see `train.TrainState`.
        layout: of the state on the devices.
        open_batches: yields batches from a given step on.
        steps: to be taken in all.
        directory: for this training's checkpoints.
        title: of the progress.

    Returns:
        The final state.

    Raises:
        InputError: the loss is not finite.
    """
    every = max(1, steps // SAVES)
    with checkpoint.Checkpoints(directory, every=every, keep=1) as saves:
        if saves.latest is not None:
            state = saves.restore(state, layout)
        first = int(state.step)
        progress = Progress(title, first, steps)
        losses = collections.deque()
        with contextlib.closing(open_batches(first)) as stream, progress:
            for number in range(first + 1, steps + 1):
                state, loss = step(state, next(stream))
                losses.append(loss)
                if len(losses) > AHEAD:
                    progress.step(losses.popleft())
                if saves.due(number) or number == steps:
                    metrics.check_finite(number, loss)
                    saves.save(number, state)
            for loss in losses:
                progress.step(loss)
    return state


class Progress:
    """A bar with the time left on a terminal, a few log lines elsewhere; host 0."""

    def __init__(self, title: str, first: int, steps: int):
        """Counts from `first`, which are done already, to `steps`."""
        self._title, self._steps, self._done = title, steps, first
        self._first, self._start = first, time.monotonic()
        self._bar = tqdm.tqdm(
            total=steps,
            initial=first,
            desc=title,
            unit="step",
            dynamic_ncols=True,
            disable=None if jax.process_index() == 0 else True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._bar.close()

    def step(self, loss: jax.Array) -> None:
        """Counts one step, and waits for it."""
        self._done += 1
        self._bar.update()
        due = self._done % max(1, self._steps // LINES) == 0
        if not due and self._done < self._steps:
            loss.block_until_ready()
            return
        self._bar.set_postfix_str(f"loss {float(loss):.4f}")
        if self._bar.disable and jax.process_index() == 0:
            elapsed = time.monotonic() - self._start
            left = elapsed / (self._done - self._first) * (self._steps - self._done)
            log.info(
                "%s: step %d/%d, loss %.4f, %s left",
                *(self._title, self._done, self._steps, float(loss)),
                tqdm.tqdm.format_interval(left),
            )
