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
from fusmae_jax import inputs
from fusmae_jax.training import run_directory, sharding
from fusmae_jax.evaluation import loop, progress
from fusmae_jax.evaluation.encoder import SENSOR_SETS, check_blocks, digest, present
from fusmae_jax.evaluation.encoder import shown
from fusmae_jax.inputs import SENSORS, VIEWS, Present
from fusmae_jax.objectives.protocol import Encoded, Encoder

POOLS = ("mean", "global", "sensors")
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


class Extractor:
    """Takes features of pairs with one encoder, or with none.

    One compiled graph serves all sensors, one every other set, with any `params` of the
    same shapes.
    """

    def __init__(
        self, encoder: Encoder, params, recipe: Recipe, mesh: Mesh, sensor_sets
    ):
        """Prepares to extract.

        Args:
            encoder: what takes them.
            params: its parameters.
            recipe: which features.
            mesh: the devices, over which batches are split.
            sensor_sets: names of `encoder.SENSOR_SETS`.

        Raises:
            InputError: a sensor set is unknown, or the encoder has too few blocks.
        """
        check_sensor_sets(sensor_sets)
        if encoder.trained:
            check_blocks("blocks", recipe.blocks, encoder.depth)
        self.sensor_sets = tuple(sensor_sets)
        self._encoder, self.params, self._recipe = encoder, params, recipe
        self.mesh = mesh
        parts = encoder.inputs.boxes(recipe.view)
        self._boxes = sharding.to_all([np.float32(box) for box in parts], mesh)
        self._mean = jax.jit(lambda parts: sum(parts) / len(parts))
        self.step = jax.jit(self._features, out_shardings=sharding.whole(mesh))

    def _features(self, params, fields, here, box):
        rows = len(next(iter(fields.values())))
        images = self._encoder.inputs.images(fields, inputs.fixed_view(rows, box))
        encoded = self._encoder(params, images, here)
        if not self._encoder.trained:
            return encoded.summary
        return pool(encoded.last(self._recipe.blocks), here, self._recipe.pool)

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
        return source.description.layout.fields(self._encoder.inputs.contract)

    def key(self, source) -> dict:
        """Everything that decides the features of a source's pairs."""
        seen = self._encoder.inputs
        return {
            "version": VERSION,
            "parameters": digest(self.params),
            "encoder": self._encoder.name,
            "model": dict(self._encoder.settings),
            "data": source.fingerprint(),
            "contract": run_directory.describe(seen.contract),
            "image_size": seen.size,
            "resampling": seen.resampling,
            "recipe": dataclasses.asdict(self._recipe),
            "sensors": self.sensor_sets,
        }


def check_sensor_sets(names) -> None:
    """Refuses names that are not in `encoder.SENSOR_SETS`."""
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
