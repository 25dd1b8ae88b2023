"""Features: one vector for each pair and sensor set."""

import collections
import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data_pipeline import batches
from data_pipeline.errors import InputError
from data_pipeline.config_fields import attribute, check_attributes, choice, whole
from fusmae_jax import run, sharding, views
from fusmae_jax.encoder import Encoded, Present
from fusmae_jax.evaluation import loop, progress
from fusmae_jax.evaluation.backbone import SENSOR_SETS, VIEWS, Backbone
from fusmae_jax.evaluation.backbone import boxes, check_blocks, digest, present
from fusmae_jax.evaluation.backbone import shown
from fusmae_jax.masking import SENSORS

POOLS = ("mean", "global", "sensors")
PERCENTILES = (5, 25, 50, 75, 95)
VERSION = 1  # of the code that takes them: raise it when the same input gives others
AHEAD = 2  # batches dispatched before the first is waited for


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Which features are taken of a pair."""

    pool: str = attribute(
        choice(
            *POOLS,
            meaning="What of the tokens is kept: the mean of all that are present, the "
            "global token, or the means of both sensors one behind the other, zeros "
            "for an absent one.",
        ),
        "mean",
    )
    blocks: int = attribute(
        whole(
            1,
            meaning="Outputs of how many of the last blocks, one behind the other.",
        ),
        1,
    )
    view: str = attribute(
        choice(
            *VIEWS,
            meaning="What is shown of a scene: its center, all of it resampled, or "
            "tiles whose features are averaged.",
        ),
        "center",
    )

    def __post_init__(self):
        check_attributes(self)

    @property
    def copies(self) -> int:
        """Length of a feature in widths of the encoder."""
        return self.blocks * (len(SENSORS) if self.pool == "sensors" else 1)

    def __str__(self) -> str:
        what = {
            "mean": "mean of tokens",
            "global": "global token",
            "sensors": "mean of each sensor's tokens",
        }[self.pool]
        last = "last block" if self.blocks == 1 else f"last {self.blocks} blocks"
        return f"{what}, {last}, {self.view} view"


def pool(encoded: Encoded, here: Present | None, how: str) -> jax.Array:
    """One vector a sample, [B, D] or for "sensors" [B, 2 * D], see `Recipe`."""
    if how == "global":
        return encoded.summary
    here = shown(here, len(encoded.summary))
    means = {s: encoded.tokens[s].mean(axis=1) for s in SENSORS}
    if how == "sensors":
        return jnp.concatenate(
            [jnp.where(here[s][:, None], means[s], 0.0) for s in SENSORS], axis=1
        )
    counts = {s: here[s][:, None] * encoded.tokens[s].shape[1] for s in SENSORS}
    total = sum(jnp.where(here[s][:, None], means[s], 0.0) * counts[s] for s in SENSORS)
    return total / jnp.maximum(sum(counts.values()), 1)


def image_statistics(images: dict[str, jax.Array], here: Present | None) -> jax.Array:
    """Mean, deviation and percentiles of every band, [B, 7 * bands].

    What pixels say without any network; those of an absent sensor are zeros.
    """
    here, parts = shown(here, len(images["s1"])), []
    for s in SENSORS:
        x = images[s].reshape(len(images[s]), -1, images[s].shape[-1])  # [B, HW, C]
        percentiles = jnp.percentile(x, jnp.array(PERCENTILES), axis=1)
        stats = [x.mean(axis=1), x.std(axis=1), *percentiles]
        stats = jnp.concatenate(stats, axis=1)
        parts.append(jnp.where(here[s][:, None], stats, 0.0))
    return jnp.concatenate(parts, axis=1)


class Extractor:
    """Takes features of pairs with one encoder, or with none.

    One compiled graph serves all sensors, one every other set, with any `params` of the
    same shapes.
    """

    def __init__(
        self, backbone: Backbone, params, recipe: Recipe, mesh: Mesh, sensor_sets
    ):
        """Prepares to extract.

        Args:
            backbone: the encoder's graph, and how it sees the data.
            params: its parameters; None takes statistics of the images instead.
            recipe: which features.
            mesh: the devices, over which batches are split.
            sensor_sets: names of `backbone.SENSOR_SETS`.

        Raises:
            InputError: a sensor set is unknown, or the encoder has too few blocks.
        """
        check_sensor_sets(sensor_sets)
        check_blocks("blocks", recipe.blocks, backbone.blocks)
        self.sensor_sets = tuple(sensor_sets)
        self._backbone, self.params, self._recipe = backbone, params, recipe
        self.mesh = mesh
        parts = boxes(recipe.view, backbone.image_size, backbone.scene_size)
        self._boxes = sharding.to_all([np.float32(box) for box in parts], mesh)
        self._mean = jax.jit(lambda parts: sum(parts) / len(parts))
        self.step = jax.jit(self._features, out_shardings=sharding.whole(mesh))

    def _features(self, params, fields, here, box):
        rows = len(next(iter(fields.values())))
        view = views.View(
            jnp.broadcast_to(box, (rows, 4)), jnp.zeros((rows, 3), bool)
        )
        images = self._backbone.images(fields, view)
        if params is None:
            return image_statistics(images, here)
        last = self._recipe.blocks
        encoded = self._backbone.encode(params, images, here, last=last)
        return pool(encoded, here, self._recipe.pool)

    def __call__(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Starts on a batch of stored pixels; {sensor set: [B, D]}, mean of views."""
        rows = len(next(iter(fields.values())))
        result = {}
        for name in self.sensor_sets:
            here = present(name, rows, self.mesh)
            parts = [self.step(self.params, fields, here, box) for box in self._boxes]
            result[name] = self._mean(parts)
        return result

    def over(self, params, sensor_sets) -> "Extractor":
        """The same with other parameters and sensors; what is compiled is shared."""
        check_sensor_sets(sensor_sets)
        other = copy.copy(self)
        other.params, other.sensor_sets = params, tuple(sensor_sets)
        return other

    def fields(self, source) -> tuple[str, ...]:
        """The fields of the data that hold the encoder's bands."""
        return source.description.layout.fields(self._backbone.objective.contract)

    def key(self, source) -> dict:
        """Everything that decides the features of a source's pairs."""
        objective = self._backbone.objective
        return {
            "version": VERSION,
            "parameters": "none" if self.params is None else digest(self.params),
            "model": None if self.params is None else self._backbone.model,
            "data": source.fingerprint(),
            "contract": run.describe(objective.contract),
            "image_size": objective.image_size,
            "resampling": objective.resampling,
            "recipe": dataclasses.asdict(self._recipe),
            "sensors": self.sensor_sets,
        }


def check_sensor_sets(names) -> None:
    """Refuses names that are not in `backbone.SENSOR_SETS`."""
    if not names or not set(names) <= set(SENSOR_SETS):
        raise InputError(
            f"sensors is {list(names)}; choose some of {list(SENSOR_SETS)}."
        )


def take(
    extractor: Extractor,
    source,
    *,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    bar: progress.Progress | None = None,
) -> dict[str, np.ndarray]:
    """Features of pairs `start` to `stop` - 1, see `Extractor`."""
    stop = len(source) if stop is None else stop
    devices = extractor.mesh.size
    rows = -(-min(batch_size, len(source)) // devices) * devices
    stream = batches.eval_batches(
        source,
        fields=extractor.fields(source),
        batch_size=rows,
        start=start,
        count=stop,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    taken, ahead = [], collections.deque()

    def collect():
        counts, found = ahead.popleft()
        taken.append({s: x[:counts] for s, x in jax.device_get(found).items()})
        if bar is not None:
            bar.update(counts)

    with loop.asked_only():
        for first, (fields, _) in zip(range(start, stop, rows), stream):
            fields = sharding.to_devices(fields, extractor.mesh)
            ahead.append((min(rows, stop - first), extractor(fields)))
            if len(ahead) > AHEAD:
                collect()
        while ahead:
            collect()
    return {s: np.concatenate([t[s] for t in taken]) for s in extractor.sensor_sets}
