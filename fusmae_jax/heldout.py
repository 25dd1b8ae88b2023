"""Held-out pairs: their loss beside training, and pictures of them."""

import collections
import concurrent.futures
import functools
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline import batches, subsets
from fusmae_jax import figures, losses, patches, sharding, train, views
from fusmae_jax.masking import SENSORS
from fusmae_jax.objective import Objective, Outcome

log = logging.getLogger("fusmae_jax")

PAIRS_AT_ONCE = 64
JOBS = 2  # evaluations that may wait to be drawn


class HeldOut:
    """Held-out pairs on the devices, and the compiled step that scores a model."""

    def __init__(self, graphdef, objective: Objective, mesh, source, *, seed, count):
        """Puts `count` pairs of `source`, evenly spread, on the mesh.

        Args:
            graphdef: the model's graph definition.
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
        self._score, self._redraw = (
            train.make_eval_step(
                graphdef, objective, mesh, seed=seed, scene_size=size, whole=whole
            )
            for whole in (False, True)
        )
        compiled = functools.partial(jax.jit, out_shardings=sharding.whole(mesh))
        self._detail = compiled(functools.partial(detail, objective, size))
        compiled = functools.partial(compiled, static_argnames="rows")
        self._scenes = compiled(functools.partial(scenes, objective, size))
        self._pictures = compiled(functools.partial(pictures, objective))

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._parts)

    def score(self, params, *, index: int = 0, draw: int = 0):
        """Starts scoring `params` on batch `index` with masks `draw`.

        Returns:
            `loss`, its parts, and the number of `pairs`, on the devices.
        """
        return self._start(self._score, params, index, draw)

    def redraw(self, params, *, index: int = 0, draw: int = 0) -> Outcome:
        """Starts redrawing all patches of batch `index` with masks `draw`.

        Pairs that fill up the last batch are redrawn too, see `pairs_in`.
        """
        return self._start(self._redraw, params, index, draw)

    def _start(self, step, params, index: int, draw: int):
        numbers = np.int32(index * self._at_once), np.int32(draw)
        return step(params, *self._parts[index], *sharding.to_all(numbers, self._mesh))

    def pairs_in(self, index: int) -> int:
        """Number of pairs in batch `index`, padding left out."""
        return min(self._at_once, self.count - index * self._at_once)

    @functools.cached_property
    def floor(self) -> dict[str, float]:
        """What no model can be expected to predict, see `detail`; all hosts must call.

        Returns:
            `floor_s1` and `floor_s2`, comparable to `loss_s1` and `loss_s2`.
        """
        return average([self._detail(*part) for part in self._parts], prefix="")

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
        self._seen = held_out.scenes(min(shown, held_out.pairs_in(0)))
        self._floor = {f"eval_{name}": x for name, x in held_out.floor.items()}
        log.info(
            "Held out: of loss_s1 some %.2f and of loss_s2 some %.2f is noise or fine "
            "detail, an estimate; expect no model to predict it.",
            *(self._floor[f"eval_floor_{s}"] for s in SENSORS),
        )
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._losses, self._images = collections.deque(), collections.deque()

    def start(self, step: int, params) -> None:
        """Queues scoring of `params` behind the steps dispatched so far."""
        shown = len(self._seen.names)
        batches = range(len(self._held_out))
        results = [self._held_out.score(params, index=i) for i in batches]
        drawn = self._held_out.pictures(self._held_out.redraw(params), shown)
        if jax.process_index() != 0:
            return
        while len(self._images) >= JOBS:  # or results would pile up on the devices
            self._show(*self._images.popleft())
        self._losses.append((step, results))
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


def detail(objective: Objective, size: int, fields, weight):
    """What a mean over 5 x 5 pixels takes from the true images: a floor of the loss.

    No model can predict speckle. Noise of each pixel alone comes out with its whole
    variance, noise that neighbours share with a part of it; measured detail below 50 m,
    of which optical images have more, comes out too.

    Args:
        objective: how it sees the data, and the targets.
        size: side of the scenes in pixels.
        fields: stored pixels by field name, [B, H, W, C] each.
        weight: 0.0 for samples that are padding, [B].

    Returns:
        `floor_s1` and `floor_s2`, mean squares in the space of the targets; `pairs`.
    """
    view = views.fixed_view(len(weight), views.center_box(objective.image_size, size))
    found = {"pairs": weight.sum()}
    for s in SENSORS:
        images = objective.see(fields, view, s)
        count = sum_around(jnp.ones_like(images))
        # A mean has a share of each of its pixels' noise, which is lost with it.
        rest = (images - sum_around(images) / count) / jnp.sqrt(1 - 1 / count)
        seen, rest = (patches.patchify(x, objective.patch_size) for x in (images, rest))
        _, _, std = losses.normalize_patches(
            seen, objective.normalize, objective.contract[s].families
        )
        rest = losses.restore_patches(rest, 0.0 * std, 1.0 / std)
        found[f"floor_{s}"] = losses.hidden_error(
            rest,
            jnp.zeros_like(rest),
            jnp.broadcast_to(weight[:, None], rest.shape[:2]),
        )
    return found


def sum_around(images: jax.Array) -> jax.Array:
    """Each pixel of [B, H, W, C] and the up to 24 around it, added up."""
    return jax.lax.reduce_window(
        images, 0.0, jax.lax.add, (1, 5, 5, 1), (1, 1, 1, 1), "SAME"
    )


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
