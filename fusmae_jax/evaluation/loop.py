"""Loops of whoever learns on top of an encoder, or judges by it.

The devices are given work ahead of what the host waits for.
"""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator

import jax
from jax.sharding import Mesh

from data_pipeline import batches
from fusmae_jax.training import checkpoint, metrics, progress, sharding

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


def ahead(started: Iterable, count: int = AHEAD) -> Iterator:
    """Yields what has been dispatched, in order, when `count` more have been."""
    waiting = collections.deque()
    for one in started:
        waiting.append(one)
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def over_pairs(
    compute: Callable,
    source,
    fields: Iterable[str],
    *,
    batch_size: int,
    mesh: Mesh,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[int, object]]:
    """Yields what is computed of a source's pairs, a batch at a time, on the host.

    Args:
        compute: starts on a batch of `fields` that is split over `mesh`.
        source: random-access pairs, of which `start` to `stop` - 1 are read.
        fields: of theirs that are read.
        batch_size: pairs of a global batch, which grows to whole devices.

    Returns:
        An iterator over numbers of pairs and what `compute` returned of these and, in
        the last batch, of padding behind them.
    """
    stop, devices = len(source) if stop is None else stop, mesh.size
    rows = -(-min(batch_size, len(source)) // devices) * devices
    stream = batches.eval_batches(
        source,
        fields=fields,
        batch_size=rows,
        start=start,
        count=stop,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    started = (
        (min(rows, stop - first), compute(sharding.to_devices(batch, mesh)))
        for first, (batch, _) in zip(range(start, stop, rows), stream)
    )
    for count, found in ahead(started):
        yield count, jax.device_get(found)


def load(source, *, batch_size: int, seed: int, first: int, mesh: Mesh) -> Iterator:
    """Yields a source's training batches from `first` on, on their way to the mesh."""
    stream = batches.train_batches(
        source,
        batch_size=batch_size,
        seed=seed,
        start_step=first,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    try:
        # One is in use while the others are on their way.
        yield from ahead((sharding.to_devices(x, mesh) for x in stream), AHEAD - 1)
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

        def take_steps(stream):
            nonlocal state
            for number in range(first + 1, steps + 1):
                state, loss = step(state, next(stream))
                if saves.due(number) or number == steps:
                    metrics.check_finite(
                        number, jax.device_get(loss), "lower learning rates"
                    )
                    saves.save(number, state)
                yield loss

        with (
            asked_only(),
            contextlib.closing(open_batches(first)) as stream,
            progress.Progress(title, steps, "step", first) as bar,
        ):
            for loss in ahead(take_steps(stream)):
                bar.update(note=f"loss {jax.device_get(loss):.4f}")
    return state
