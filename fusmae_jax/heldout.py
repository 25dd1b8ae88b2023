"""Held-out pairs: their loss beside training, and pictures of them."""

import collections
import concurrent.futures
import logging

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
        self.objective, self.source = objective, source
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
        first = index * self._at_once
        return self._step(params, fields, weight, first, draw, rows=rows)

    def figure(self, outcome: Outcome, note: str):
        """Draws the pairs of the first batch's `outcome`."""
        outcome = jax.tree.map(np.asarray, outcome)
        pairs = [self.source[i] for i in range(len(outcome.hidden["s1"]))]
        drawn, size = {}, self.source.description.layout.size
        for s in SENSORS:
            scene = scenes(pairs, s, self.objective, size)
            drawn[s] = pictures(outcome, s, self.objective) | {"scene": scene}
        box = views.center_box(self.objective.image_size, size)
        samples = [
            {"name": pair["id"], "box": box}
            | {s: {k: v[i] for k, v in drawn[s].items()} for s in SENSORS}
            for i, pair in enumerate(pairs)
        ]
        return figures.reconstruction_figure(
            samples, self.objective.contract, note=note
        )


class Evaluation:
    """Scores held-out pairs beside training, and draws them in the background."""

    def __init__(self, held_out: HeldOut, writer, workdir, shown: int):
        self._held_out, self._writer, self._workdir = held_out, writer, workdir
        self._shown = min(shown, held_out.first)
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._jobs = collections.deque()

    def start(self, step: int, params) -> None:
        """Queues scoring of `params` behind the steps dispatched so far."""
        if len(self._jobs) >= JOBS:  # or results would pile up on the devices
            self._write(*self._jobs.popleft())
        results = [
            self._held_out.score(params, index=i, rows=0 if i else self._shown)
            for i in range(len(self._held_out))
        ]
        self._jobs.append((step, self._thread.submit(self._finish, step, results)))

    def _finish(self, step: int, results):
        row = average_losses([metrics for metrics, _ in results])
        if jax.process_index() != 0:
            return row, None
        fig = self._held_out.figure(results[0][1], f"step {step}")
        name = f"reconstruction_{step:07d}.png"
        return row, figures.save(fig, self._workdir / "figures" / name)

    def _write(self, step: int, job) -> None:
        row, image = job.result()
        self._writer.write_now(step, row)
        if image is not None:
            self._writer.add_figure("reconstruction", image, step)

    def collect(self, wait: bool = False) -> None:
        """Writes what is finished; with `wait`, everything."""
        while self._jobs and (wait or self._jobs[0][1].done()):
            self._write(*self._jobs.popleft())


def average_losses(rows) -> dict[str, float]:
    """Waits for the metrics of all batches and averages them over pairs."""
    rows = jax.device_get(rows)
    pairs = np.array([row.pop("pairs") for row in rows])
    return {
        f"eval_{name}": float(np.average([r[name] for r in rows], weights=pairs))
        for name in rows[0]
    }


def scenes(pairs, s: str, objective: Objective, size: int) -> np.ndarray:
    """One sensor's whole scenes in native units on the 10 m grid, [B, H, W, C]."""
    fields = {
        field: np.stack([pair[field] for pair in pairs])
        for field in pairs[0]
        if field.startswith(f"{s}_")
    }
    whole = views.fixed_view(len(pairs), (0.0, 0.0, 1.0, 1.0))
    images = objective.see(fields, whole, s, size)
    return np.asarray(views.native_units(images, objective.contract[s]))


def pictures(outcome: Outcome, s: str, objective: Objective) -> dict[str, np.ndarray]:
    """One sensor's target and prediction as images in native units.

    A prediction of normalised targets is given each patch's own mean and deviation
    back; patches that were visible are shown as they are.

    Returns:
        `target` and `prediction` [B, H, W, C], and `hidden` [B, H, W] bool.
    """
    sensor, p = objective.contract[s], objective.patch_size
    seen, hidden = outcome.patches[s], outcome.hidden[s]
    _, mean, std = losses.normalize_patches(
        seen, objective.normalize, sensor.families
    )
    predicted = losses.restore_patches(outcome.predicted[s], mean, std)
    predicted = jnp.where(hidden[..., None] == 1.0, predicted, seen)

    def image(x):
        return views.native_units(patches.unpatchify(x, p), sensor)

    covered = jnp.broadcast_to(hidden[..., None], (*hidden.shape, p * p))
    return {
        "target": np.asarray(image(seen)),
        "prediction": np.asarray(image(predicted)),
        "hidden": np.asarray(patches.unpatchify(covered, p)[..., 0] == 1.0),
    }
