"""Held-out pairs: their loss beside training, and pictures of them."""

import collections
import concurrent.futures
import functools
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline import batches
from fusmae_jax import figures, losses, patches, sharding, train, views
from fusmae_jax.masking import SENSORS
from fusmae_jax.objective import Objective, Outcome

log = logging.getLogger("fusmae_jax")

PAIRS_AT_ONCE = 64
JOBS = 2  # evaluations that may wait to be drawn


class HeldOut:
    """Held-out pairs on the devices, and the compiled step that scores a model."""

    def __init__(self, graphdef, objective: Objective, mesh, source, *, seed, count):
        """Puts the first `count` pairs of `source` on the mesh.

        Args:
            graphdef: the model's graph definition.
            objective: what is hidden and asked for.
            mesh: the devices.
            source: random-access pairs, with `id` beside the pixels.
            seed: of the masks.
            count: pairs in use; the source's where it has fewer.
        """
        self.objective, self.source, self._mesh = objective, source, mesh
        self.count = min(count, len(source))
        # The batch is filled up to whole devices; masks belong to pairs, not places.
        devices = jax.device_count()
        self._at_once = -(-min(PAIRS_AT_ONCE, self.count) // devices) * devices
        parts = list(
            batches.eval_batches(
                source,
                fields=source.description.layout.fields(objective.contract),
                batch_size=self._at_once,
                count=self.count,
                host=jax.process_index(),
                hosts=jax.process_count(),
            )
        )
        invalid = sum(int(views.invalid_pixels(fields)) for fields, _ in parts)
        if invalid:
            log.warning("%d held-out pixels %s", invalid, views.INVALID_ADVICE)
        self._parts = [sharding.to_devices(part, mesh) for part in parts]
        size = source.description.layout.size
        self._step = train.make_eval_step(
            graphdef, objective, mesh, seed=seed, scene_size=size
        )
        compiled = functools.partial(
            jax.jit, static_argnames="rows", out_shardings=sharding.whole(mesh)
        )
        self._scenes = compiled(functools.partial(scenes, objective, size))
        self._pictures = compiled(functools.partial(pictures, objective))

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._parts)

    @property
    def first(self) -> int:
        """Number of pairs in the first batch, padding left out."""
        return min(self.count, self._at_once)

    def score(self, params, *, index: int = 0, draw: int = 0, rows: int = 0):
        """Starts scoring `params` on one batch; does not wait.

        Args:
            params: of the model.
            index: which batch.
            draw: which masks.
            rows: pairs whose outcome is wanted; the rest stays on the devices.

        Returns:
            Metrics, and the outcome of the first `rows` pairs of the batch.
        """
        fields, weight = self._parts[index]
        numbers = np.int32(index * self._at_once), np.int32(draw)
        first, draw = sharding.to_all(numbers, self._mesh)
        return self._step(params, fields, weight, first, draw, rows=rows)

    def scenes(self, rows: int) -> "Scenes":
        """The first `rows` pairs as a figure shows them; all hosts must call."""
        fields, _ = self._parts[0]
        names = [self.source[i]["id"] for i in range(rows)]
        return Scenes(names, jax.device_get(self._scenes(fields, rows=rows)))

    def pictures(self, outcome: Outcome, rows: int):
        """Starts on pictures of the first `rows` pairs of `outcome`, see `pictures`.

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
        box = views.center_box(
            self.objective.image_size, self.source.description.layout.size
        )
        samples = [
            {"name": name, "box": box}
            | {
                s: {k: v[i] for k, v in drawn[s].items()} | {"scene": seen.images[s][i]}
                for s in SENSORS
            }
            for i, name in enumerate(seen.names)
        ]
        return figures.reconstruction_figure(
            samples, self.objective.contract, note=note
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
        self._seen = held_out.scenes(min(shown, held_out.first))
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._losses, self._images = collections.deque(), collections.deque()

    def start(self, step: int, params) -> None:
        """Queues scoring of `params` behind the steps dispatched so far."""
        shown = len(self._seen.names)
        results = [
            self._held_out.score(params, index=i, rows=0 if i else shown)
            for i in range(len(self._held_out))
        ]
        drawn = self._held_out.pictures(results[0][1], shown)
        if jax.process_index() != 0:
            return
        while len(self._images) >= JOBS:  # or results would pile up on the devices
            self._show(*self._images.popleft())
        self._losses.append((step, [metrics for metrics, _ in results]))
        self._images.append((step, self._thread.submit(self._draw, step, drawn)))

    def _draw(self, step: int, drawn):
        drawn = jax.device_get(drawn)
        with jax.transfer_guard("disallow"):  # computing something would be an error
            fig = self._held_out.figure(self._seen, drawn, f"step {step}")
        name = f"reconstruction_{step:07d}.png"
        return figures.save(fig, self._workdir / "figures" / name)

    def _show(self, step: int, image) -> None:
        image = image.result()
        self.write_losses(step)
        self._writer.add_figure("reconstruction", image, step)

    def write_losses(self, last: int) -> None:
        """Waits for the losses of all steps up to `last` and writes them."""
        while self._losses and self._losses[0][0] <= last:
            step, metrics = self._losses.popleft()
            self._writer.write_now(step, average_losses(metrics))

    def collect(self, wait: bool = False) -> None:
        """Writes what is finished; with `wait`, everything."""
        while self._images and (wait or self._images[0][1].done()):
            self._show(*self._images.popleft())


def average_losses(rows) -> dict[str, float]:
    """Waits for the metrics of all batches and averages them over pairs."""
    rows = jax.device_get(rows)
    pairs = np.array([row.pop("pairs") for row in rows])
    return {
        f"eval_{name}": float(np.average([r[name] for r in rows], weights=pairs))
        for name in rows[0]
    }


def scenes(objective: Objective, size: int, fields, *, rows: int):
    """Whole scenes in native units on the 10 m grid, {sensor: [B, H, W, C]}.

    Args:
        objective: how it sees the data.
        size: side of the scenes in pixels.
        fields: stored pixels by field name.
        rows: how many scenes B, the first ones.
    """
    fields = {name: x[:rows] for name, x in fields.items()}
    whole = views.fixed_view(rows, (0.0, 0.0, 1.0, 1.0))
    return {
        s: views.native_units(
            objective.see(fields, whole, s, size), objective.contract[s]
        )
        for s in SENSORS
    }


def pictures(objective: Objective, outcome: Outcome, *, rows: int):
    """Targets and predictions as images in native units.

    A prediction of normalised targets is given each patch's own mean and deviation
    back; patches that were visible are shown as they are.

    Returns:
        For each sensor `target` and `prediction` [B, H, W, C], and `hidden` [B, H, W]
        bool, of the first B = `rows` pairs.
    """
    outcome, p = jax.tree.map(lambda x: x[:rows], outcome), objective.patch_size
    drawn = {}
    for s in SENSORS:
        sensor, seen = objective.contract[s], outcome.patches[s]
        hidden = outcome.hidden[s][..., None]
        _, mean, std = losses.normalize_patches(
            seen, objective.normalize, sensor.families
        )
        predicted = losses.restore_patches(outcome.predicted[s], mean, std)
        predicted = jnp.where(hidden == 1.0, predicted, seen)
        covered = jnp.broadcast_to(hidden, (*hidden.shape[:2], p * p))
        drawn[s] = {
            "target": views.native_units(patches.unpatchify(seen, p), sensor),
            "prediction": views.native_units(patches.unpatchify(predicted, p), sensor),
            "hidden": patches.unpatchify(covered, p)[..., 0] == 1.0,
        }
    return drawn
