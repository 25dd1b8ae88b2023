"""A run's encoder, restored from its directory; and what stands for one without."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from data_pipeline import sensors
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from fusmae_jax import build, patches, streams
from fusmae_jax.config import check_checkpoint
from fusmae_jax.inputs import SENSORS, Inputs, Present
from fusmae_jax.objectives.protocol import Encoded, Encoder, Objective
from fusmae_jax.training import checkpoint, run_directory, sharding

# What a sample shows of itself, by name, in the order of inputs.SENSORS.
SENSOR_SETS = {"s1": (True, False), "s2": (False, True), "both": (True, True)}


def sensor_sets(
    *descriptions: Description, reads: Sequence[str] = SENSORS
) -> tuple[str, ...]:
    """Those of `SENSOR_SETS` of which all of some datasets have every sensor.

    Args:
        *descriptions: of the datasets.
        reads: the sensors that an encoder reads.
    """
    there = set(reads).intersection(*(d.sensors for d in descriptions))
    return tuple(
        name
        for name, shown in SENSOR_SETS.items()
        if {s for s, here in zip(SENSORS, shown) if here} <= there
    )


def check_sensors(field: str, wanted: Sequence[str], encoder: Encoder) -> None:
    """Refuses sensor sets of which an encoder does not read every sensor.

    Args:
        field: of the config, that says which are wanted.
        wanted: names of `SENSOR_SETS`.
        encoder: what is to encode them.

    Raises:
        InputError: it reads one sensor alone.
    """
    read = tuple(s in encoder.sensors for s in SENSORS)
    fit = tuple(
        name
        for name, shown in SENSOR_SETS.items()
        if all(there for there, asked in zip(read, shown) if asked)
    )
    if not set(wanted) <= set(fit):
        raise InputError(
            f"{field} is {tuple(wanted)}, and this encoder reads "
            f'{encoder.reads} alone; set {field}="{fit}".'
        )


PERCENTILES = (5, 25, 50, 75, 95)


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics(Encoder):
    """What pixels say without any network.

    Its tokens are the pixels of a patch, its summary the mean, deviation and
    percentiles of every band, [B, 7 * bands], of what was measured. Of an absent
    sensor, and of missing pixels, all are zeros.

    Attributes:
        inputs: how the data are seen.
        patch_size: side of a patch in pixels.
    """

    inputs: Inputs
    patch_size: int

    name = "image statistics"
    trained, width, depth = False, 0, 0

    @property
    def settings(self) -> dict:
        """See `protocol`."""
        return {"percentiles": PERCENTILES}

    def init(self, rngs: nnx.Rngs) -> nnx.State:
        """No parameters."""
        del rngs
        return nnx.State({})

    def __call__(self, params, images, present=None, **options) -> Encoded:
        """See `protocol`."""
        del params, options
        here, missing = shown(present, len(images["s1"])), self.inputs.missing
        mean, std, percentile = (
            (jnp.nanmean, jnp.nanstd, jnp.nanpercentile)
            if missing
            else (jnp.mean, jnp.std, jnp.percentile)
        )
        tokens, parts = {}, []
        for s in SENSORS:
            x, there = images[s], here[s].reshape(len(images[s]), -1)
            pixels = jnp.where(jnp.isnan(x), 0.0, x) if missing else x
            pixels = patches.patchify(pixels, self.patch_size)
            tokens[s] = jnp.where(there[..., None], pixels, 0.0)
            x = x.reshape(len(x), -1, x.shape[-1])  # [B, HW, C]
            percentiles = percentile(x, jnp.array(PERCENTILES), axis=1)
            stats = [mean(x, axis=1), std(x, axis=1), *percentiles]
            stats = jnp.concatenate(stats, axis=1)
            parts.append(jnp.where(there.any(axis=1, keepdims=True), stats, 0.0))
        return Encoded(tokens, jnp.concatenate(parts, axis=1))


def check_blocks(field: str, wanted: int, blocks: int) -> None:
    """Refuses outputs of more blocks than an encoder has.

    Args:
        field: of the config, that says how many are wanted.
        wanted: its value.
        blocks: that there are, see `blocks`; behind none at all stands one output, what
            the XAttnEncoder makes.

    Raises:
        InputError: with both numbers.
    """
    if wanted > max(blocks, 1):
        raise InputError(
            f"{field} is {wanted}; this encoder has {blocks} blocks behind its "
            "XAttnEncoder, if any."
        )


def present(sensor_set: str, batch: int, mesh: Mesh) -> Present | None:
    """A batch whose samples all show the same sensors, split over the mesh.

    None if they show all, so that attention has nothing to overlook.
    """
    if all(SENSOR_SETS[sensor_set]):
        return None

    mine = batch // jax.process_count()
    rows = (np.full(mine, shown) for shown in SENSOR_SETS[sensor_set])
    return sharding.to_devices(dict(zip(SENSORS, rows)), mesh)


def shown(here: Present | None, batch: int) -> Present:
    """What `present` has said, in arrays; those of None cost a program nothing."""
    return here or dict.fromkeys(SENSORS, jnp.ones(batch, bool))


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What a run directory says of its encoder.

    Attributes:
        config: of the pretraining.
        contract: the sensors it was trained on.
        objective: that it was trained for.
        params: of the whole model, those that are kept, see `Objective.kept`; restored
            and laid out on the mesh.
        step: that they are from.
        directory: of the run.
        mesh: of the devices that have them.
    """

    config: ml_collections.ConfigDict
    contract: Mapping[str, sensors.Sensor]
    objective: Objective
    params: nnx.State
    step: int
    directory: pathlib.Path
    mesh: Mesh

    def look_at(
        self, description: Description, statistics: str, missing: bool = False
    ) -> Encoder:
        """The encoder, ready for the pairs of a dataset.

        Args:
            description: of the dataset.
            statistics: that normalise its bands: "run" for those of the pretraining
                data, else those that `description` has.
            missing: whether the dataset has pixels that were not measured.

        Raises:
            InputError: it lacks a band of the model, or has it in another unit, or has
                nothing that the encoder reads.
        """
        build.check_data(self.contract, description)
        known = self.contract if statistics == "run" else description.sensors
        seen = build.inputs(self.config, known, description.layout, missing)
        encoder = build.to_judge(self.config, seen, self.mesh).encoder()
        if not sensor_sets(description, reads=encoder.sensors):
            raise InputError(
                f"This encoder reads {encoder.reads} alone, of which "
                f"{description.name} has nothing; name other data."
            )
        return encoder

    @property
    def encoder_params(self) -> nnx.State:
        """Parameters of the encoder."""
        return self.objective.encoder_params(self.params)

    def fresh(self, seed: int) -> nnx.State:
        """Parameters of the same encoder that nothing has trained."""
        init = jax.jit(
            lambda key: self.objective.encoder().init(nnx.Rngs(key)),
            out_shardings=sharding.whole(self.mesh),
        )
        return init(streams.key(seed, "params"))


def restore(directory, mesh: Mesh, step: int = 0, min_size: int = 2**18) -> Pretrained:
    """Loads an encoder from a run directory and nothing else.

    Args:
        directory: of the run.
        mesh: where the parameters go.
        step: which checkpoint; 0 for the latest.
        min_size: see `build.abstract_params`.

    Raises:
        InputError: there is no run, no checkpoint, or it is damaged or of another
            model.
    """
    check_checkpoint(directory)
    config, contract = run_directory.load(directory)
    directory = pathlib.Path(directory)
    try:
        objective = build.to_judge(config, build.inputs(config, contract), mesh)
        abstract = build.abstract_params(objective, mesh, min_size)
    except InputError:
        raise  # says it better
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{directory / 'config.json'} describes no encoder ({error!r:.99}); name "
            "the directory of a pretraining."
        ) from error
    if objective.inputs.contract != contract:
        raise InputError(
            f"{directory / 'config.json'} contradicts itself, as its bands and its "
            "contract differ; copy it again."
        )
    step, params = checkpoint.restore_params(
        directory / "checkpoints", abstract, step or None, objective.kept
    )
    return Pretrained(config, contract, objective, params, step, directory, mesh)


def digest(params) -> str:
    """A checksum of parameters: what they are, whatever path they came from.

    Every host must call this, and gets the same.

    Args:
        params: a tree of arrays, however they are laid out.
    """
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(f"{sharding.leaf_path(path)} {leaf.dtype} {leaf.shape}".encode())
        total.update(np.ascontiguousarray(_gathered(leaf)).tobytes())
    return total.hexdigest()[:16]


def _gathered(leaf):
    """An array whose parts may lie with several hosts, for each of them to read."""
    if not isinstance(leaf, jax.Array):
        return leaf
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)
