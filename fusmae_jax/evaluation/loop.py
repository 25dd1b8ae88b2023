"""A training loop for whoever learns on top of an encoder: progress, and resuming."""

import collections
import contextlib
from collections.abc import Callable, Iterator

import jax

from data_pipeline import batches
from fusmae_jax.evaluation import progress
from fusmae_jax.training import checkpoint, metrics, sharding

AHEAD = 2  # steps and batches dispatched before the first is waited for
SAVES = 10  # checkpoints over a whole training


@contextlib.contextmanager
def asked_only() -> Iterator[None]:
    """Makes an error of what goes between host and devices unasked.

    It would hold up every step. Between devices parameters may move, from wherever
    they were.
    """
    with (
        jax.transfer_guard_host_to_device("disallow"),
        jax.transfer_guard_device_to_host("disallow"),
    ):
        yield


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
    init: Callable,
    layout,
    open_batches: Callable[[int], Iterator],
    steps: int,
    *,
    directory,
    title: str,
):
    """Advances a state to `steps`, from the last checkpoint in `directory` if any.

    Args:
        step: compiled `step(state, batch) -> (state, loss)`.
        init: makes a fresh state, which has a `step`, see `train.TrainState`.
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
        state = saves.restore(init, layout)
        first = int(state.step)
        losses = collections.deque()
        with (
            asked_only(),
            contextlib.closing(open_batches(first)) as stream,
            progress.Progress(title, steps, "step", first) as bar,
        ):
            for number in range(first + 1, steps + 1):
                state, loss = step(state, next(stream))
                losses.append(loss)
                if len(losses) > AHEAD:
                    bar.update(note=f"loss {jax.device_get(losses.popleft()):.4f}")
                if saves.due(number) or number == steps:
                    loss = jax.device_get(loss)
                    metrics.check_finite(number, loss, "lower learning rates")
                    saves.save(number, state)
            for loss in losses:
                bar.update(note=f"loss {jax.device_get(loss):.4f}")
    return state
