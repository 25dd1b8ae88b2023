"""Held-out pairs: their loss beside training, and pictures of them."""

import collections
import concurrent.futures
import functools
import logging
from typing import NamedTuple

import jax
import numpy as np

from data_pipeline import batches, subsets
from fusmae_jax import figures, inputs
from fusmae_jax.objectives.protocol import Objective
from fusmae_jax.training import sharding, train

log = logging.getLogger("fusmae_jax")

PAIRS_AT_ONCE = 64
JOBS = 2  # evaluations that may wait to be drawn


class HeldOut:
    """Held-out pairs on the devices, and the compiled step that scores a model."""

    def __init__(self, objective: Objective, mesh, source, *, seed, count):
        """Puts `count` pairs of `source`, evenly spread, on the mesh.

        Args:
            objective: what is hidden and asked for.
            mesh: the devices.
            source: random-access pairs, with `id` beside the pixels.
            seed: of the masks.
            count: pairs in use; the source's where it has fewer.
        """
        self.objective, self.source = objective, subsets.spread(source, count)
        self.count, self._mesh = len(self.source), mesh
        # The batch is filled up to whole devices; masks belong to pairs, not places.
        devices = jax.device_count()
        self._at_once = -(-min(PAIRS_AT_ONCE, self.count) // devices) * devices
        parts = list(
            batches.eval_batches(
                self.source,
                fields=source.description.layout.fields(objective.inputs.contract),
                batch_size=self._at_once,
                count=self.count,
                host=jax.process_index(),
                hosts=jax.process_count(),
            )
        )
        missing = objective.inputs.missing
        counts = (inputs.invalid_pixels(fields, missing) for fields, _ in parts)
        invalid = sum(map(int, counts))
        if invalid:
            log.warning("%d held-out pixels %s", invalid, inputs.INVALID_ADVICE)
        self._parts = [sharding.to_devices(part, mesh) for part in parts]
        self._score, self._redraw = (
            train.make_eval_step(objective, mesh, seed=seed, redraw=redraw)
            for redraw in (False, True)
        )

        def first(function):
            """`function` of the first `rows` of a tree, compiled."""

            @jax.jit(static_argnames="rows", out_shardings=sharding.whole(mesh))
            def call(tree, rows):
                return function(jax.tree.map(lambda x: x[:rows], tree))

            return call

        self._scenes = first(objective.inputs.native_scenes)
        self._pictures = first(objective.pictures)

        @jax.jit(out_shardings=sharding.whole(mesh))
        def floor(fields, weight):
            return objective.floor(fields, weight) | {"pairs": weight.sum()}

        self._find_floor = floor

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._parts)

    def score(self, params, extra=(), *, index: int = 0, draw: int = 0):
        """Starts scoring a model on batch `index` with masks `draw`.

        Returns:
            `loss`, its parts, and the number of `pairs`, on the devices.
        """
        return self._start(self._score, params, extra, index, draw)

    def redraw(self, params, *, index: int = 0, draw: int = 0):
        """Starts redrawing all patches of batch `index` with masks `draw`.

        Pairs that fill up the last batch are redrawn too, see `pairs_in`.
        """
        return self._start(self._redraw, params, (), index, draw)

    def _start(self, step, params, extra, index: int, draw: int):
        numbers = np.int32(index * self._at_once), np.int32(draw)
        numbers = sharding.to_all(numbers, self._mesh)
        return step(params, extra, *self._parts[index], *numbers)

    def pairs_in(self, index: int) -> int:
        """Number of pairs in batch `index`, padding left out."""
        return min(self._at_once, self.count - index * self._at_once)

    @functools.cached_property
    def floor(self) -> dict[str, float]:
        """See `Objective.floor`; all hosts must call."""
        return average([self._find_floor(*part) for part in self._parts], prefix="")

    def scenes(self, rows: int) -> "Scenes":
        """The first `rows` pairs as a figure shows them; all hosts must call."""
        fields, _ = self._parts[0]
        names = [self.source[i]["id"] for i in range(rows)]
        return Scenes(names, jax.device_get(self._scenes(fields, rows=rows)))

    def pictures(self, outcome, rows: int):
        """Starts on `Objective.pictures` of the first `rows` pairs of `outcome`.

        All hosts must call.
        """
        return self._pictures(outcome, rows=rows)

    def figure(self, seen: "Scenes", drawn, note: str):
        """Draws pairs of the first batch; computes nothing with JAX.

        Args:
            seen: from `scenes`.
            drawn: from `pictures`, as many pairs, fetched from the devices.
            note: a line under the figure.
        """
        box = self.objective.inputs.center
        if self.objective.inputs.missing:
            note += "; what was not measured is pink"
        samples = [
            {"name": name, "box": box}
            | {
                s: {k: v[i] for k, v in drawn[s].items()} | {"scene": seen.images[s][i]}
                for s in drawn
            }
            for i, name in enumerate(seen.names)
        ]
        return figures.reconstruction_figure(
            samples, self.objective.inputs.contract, note=note
        )


class Scenes(NamedTuple):
    """What a figure shows of pairs, whatever the model makes of them.

    Attributes:
        names: the pairs' ids.
        images: their whole scenes in native units, {sensor: [B, H, W, C]}.
    """

    names: list[str]
    images: dict[str, np.ndarray]


class Evaluation:
    """Scores held-out pairs beside training, and draws them in the background.

    The background only fetches and draws. Whatever JAX has to compute is started in
    `start`, by all hosts alike: computations of one host alone, in a thread of its
    own, could wait for ever for devices that wait for the other hosts.
    """

    def __init__(self, held_out: HeldOut, writer, workdir, shown: int):
        self._held_out, self._writer, self._workdir = held_out, writer, workdir
        if held_out.objective.redraws:
            self._seen = held_out.scenes(min(shown, held_out.pairs_in(0)))
        self._floor = {f"eval_{name}": x for name, x in held_out.floor.items()}
        if held_out.floor:
            log.info(
                "Held out: of %s is noise or fine detail, an estimate; expect no model "
                "to predict it.",
                " and of ".join(
                    f"{name.replace('floor', 'loss')} some {x:.2f}"
                    for name, x in held_out.floor.items()
                ),
            )
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._losses, self._images = collections.deque(), collections.deque()

    def start(self, step: int, params, extra=()) -> None:
        """Queues scoring of a model behind the steps dispatched so far."""
        held_out = self._held_out
        batches = range(len(held_out))
        results = [held_out.score(params, extra, index=i) for i in batches]
        draw, drawn = jax.block_until_ready, results
        if held_out.objective.redraws:
            redrawn = held_out.redraw(params)
            draw = functools.partial(self._draw, step)
            drawn = held_out.pictures(redrawn, len(self._seen.names))
        if jax.process_index() != 0:
            return
        while len(self._images) >= JOBS:  # or results would pile up on the devices
            self._show(*self._images.popleft())
        self._losses.append((step, results))
        self._images.append((step, self._thread.submit(draw, drawn)))

    def _draw(self, step: int, drawn):
        drawn = jax.device_get(drawn)
        with jax.transfer_guard("disallow"):  # computing something would be an error
            fig = self._held_out.figure(self._seen, drawn, f"step {step}")
        name = f"reconstruction_{step:07d}.png"
        return figures.save(fig, self._workdir / "figures" / name)

    def _show(self, step: int, image) -> None:
        image = image.result()
        self.write_losses(step)
        if self._held_out.objective.redraws:
            self._writer.add_figure("reconstruction", image, step)

    def write_losses(self, last: int) -> None:
        """Waits for the losses of all steps up to `last` and writes them."""
        while self._losses and self._losses[0][0] <= last:
            step, metrics = self._losses.popleft()
            self._writer.write_now(step, average(metrics) | self._floor)

    def collect(self, wait: bool = False) -> None:
        """Writes what is finished; with `wait`, everything."""
        while self._images and (wait or self._images[0][1].done()):
            self._show(*self._images.popleft())


def average(rows, prefix: str = "eval_") -> dict[str, float]:
    """Waits for the metrics of all batches and averages them over pairs."""
    rows = jax.device_get(rows)
    pairs = np.array([row.pop("pairs") for row in rows])
    return {
        f"{prefix}{name}": float(np.average([r[name] for r in rows], weights=pairs))
        for name in rows[0]
    }
