"""Features: one vector for each pair and sensor set, taken once and kept on disk.

The cache holds parts of a few thousand pairs, written whole, so that an interrupted
extraction goes on where it stopped. Its name is a checksum of everything that decides
a feature: parameters, data, bands and their statistics, view, pooling.
"""

import copy
import dataclasses
import hashlib
import io
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from data_pipeline import atomic, safe_io
from data_pipeline.config_fields import attribute, check_attributes, choice, whole
from data_pipeline.errors import InputError
from fusmae_jax import inputs
from fusmae_jax.evaluation import loop
from fusmae_jax.evaluation.encoder import (
    SENSOR_SETS,
    check_blocks,
    digest,
    present,
    shown,
)
from fusmae_jax.inputs import SENSORS, VIEWS, Present
from fusmae_jax.objectives.protocol import Encoded, Encoder
from fusmae_jax.training import progress, run_directory, sharding

POOLS = ("mean", "global", "sensors")
VERSION = 1  # of the code that takes them: raise it when the same input gives others


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
    """One vector a sample, [B, D] or for "sensors" [B, 2 * D], see `Recipe`.

    Zeros where no token is `here`, which says it of samples [B] or of tokens [B, N].
    """
    if how == "global":
        return encoded.summary
    here = shown(here, len(encoded.summary))
    means, counts = {}, {}
    for s in SENSORS:
        x = encoded.tokens[s]
        there = jnp.broadcast_to(here[s].reshape(len(x), -1), x.shape[:2])
        counts[s] = there.sum(axis=1, keepdims=True)
        total = jnp.where(there[..., None], x, 0.0).sum(axis=1)
        means[s] = total / jnp.maximum(counts[s], 1)
    if how == "sensors":
        return jnp.concatenate([means[s] for s in SENSORS], axis=1)
    total = sum(means[s] * counts[s] for s in SENSORS)
    return total / jnp.maximum(sum(counts.values()), 1)


def mean_of_views(views) -> jax.Array:
    """The mean of features [B, D] of several views, each with a count [B, 1] or None.

    The counts say how many tokens stand behind them; None for as many in all.
    """
    features, counts = zip(*views)
    if counts[0] is None:
        return sum(features) / len(features)
    total = sum(x * count for x, count in views)
    return total / jnp.maximum(sum(counts), 1)


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
        self._mean = jax.jit(mean_of_views)
        self.step = jax.jit(self._features, out_shardings=sharding.whole(mesh))

    def _features(self, params, fields, here, box):
        rows = len(next(iter(fields.values())))
        images = self._encoder.inputs.images(fields, inputs.fixed_view(rows, box))
        here = self._encoder.present(images, here)
        count = None
        if self._encoder.inputs.missing:
            count = sum(x.sum(axis=1, keepdims=True) for x in here.values())
        encoded = self._encoder(params, images, here)
        if not self._encoder.trained:
            return encoded.summary, count
        return pool(encoded.last(self._recipe.blocks), here, self._recipe.pool), count

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
    taken = []
    with loop.asked_only():
        for count, found in loop.over_pairs(
            extractor,
            source,
            extractor.fields(source),
            batch_size=batch_size,
            mesh=extractor.mesh,
            start=start,
            stop=stop,
        ):
            taken.append({s: x[:count] for s, x in found.items()})
            if bar is not None:
                bar.update(count)
    return {s: np.concatenate([t[s] for t in taken]) for s in extractor.sensor_sets}


PART = 4096  # pairs in a file


def extract(
    extractor: Extractor, source, *, folder, batch_size: int, title: str
) -> dict[str, np.ndarray]:
    """Features of all pairs of a source, {sensor set: [N, D]} float32.

    Args:
        extractor: what takes them.
        source: random-access pairs.
        folder: where they are kept, under their key.
        batch_size: pairs of a global batch.
        title: what the progress bar says.

    Raises:
        InputError: the cache cannot be written.
    """
    key = json.dumps(extractor.key(source), sort_keys=True, default=list)
    name = hashlib.sha256(key.encode()).hexdigest()[:20]
    folder = pathlib.Path(folder) / name
    starts = range(0, len(source), PART)
    known = np.array([_part(folder, start).exists() for start in starts])
    if jax.process_count() > 1:  # hosts that differ would wait for each other for ever
        known = multihost_utils.broadcast_one_to_all(known)
    missing = [start for start, there in zip(starts, known) if not there]
    if missing:
        if jax.process_index() == 0:  # a folder that cannot be written shows itself now
            _write(folder / "key.json", key.encode())
        _fill(extractor, source, folder, missing, batch_size, title)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"features {name}")
    parts = [_read(folder, start) for start in starts]
    return {s: np.concatenate([p[s] for p in parts]) for s in extractor.sensor_sets}


def _part(folder: pathlib.Path, start: int) -> pathlib.Path:
    return folder / f"pairs-{start:08d}.npz"


def _read(folder: pathlib.Path, start: int) -> dict[str, np.ndarray]:
    path = _part(folder, start)
    try:
        return safe_io.read_arrays(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The cached features {path} cannot be read ({error}); delete that file, "
            "and they are taken again."
        ) from error


def _fill(extractor, source, folder, missing, batch_size: int, title: str) -> None:
    """Takes and writes the parts that begin at `missing`."""
    total = sum(min(PART, len(source) - start) for start in missing)
    with progress.Progress(f"Features: {title}", total, "pair") as bar:
        for start in missing:
            part = take(
                extractor,
                source,
                batch_size=batch_size,
                start=start,
                stop=min(start + PART, len(source)),
                bar=bar,
            )
            if jax.process_index() == 0:
                content = io.BytesIO()
                np.savez(content, **part)
                _write(_part(folder, start), content.getvalue())


def _write(path: pathlib.Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_whole(path, content)
    except OSError as error:
        raise InputError(
            f"Features cannot be kept in {path.parent} ({error.strerror}); name "
            "another folder as their cache."
        ) from error
