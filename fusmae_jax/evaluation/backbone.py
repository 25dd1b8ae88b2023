"""A pretrained encoder, restored from its run directory, looking at a dataset."""

import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data_pipeline import sensors
from data_pipeline.description import Description
from data_pipeline.errors import InputError
from fusmae_jax import build, checkpoint, run, sharding, streams, views
from fusmae_jax import config as checks
from fusmae_jax.encoder import Encoded, Present
from fusmae_jax.masking import SENSORS
from fusmae_jax.objective import Objective

log = logging.getLogger("fusmae_jax")

# What a sample shows of itself, by name, in the order of masking.SENSORS.
SENSOR_SETS = {"s1": (True, False), "s2": (False, True), "both": (True, True)}

# The parts of a scene that an encoder can be shown, see `boxes`.
VIEWS = ("center", "whole", "tiles")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """An encoder, and how it sees the pairs of a dataset.

    Parameters are handed in by the caller, so that one graph serves pretrained,
    random and fine-tuned ones.

    Attributes:
        graphdef: of the whole autoencoder.
        objective: knows the bands, their statistics and grids, and the image size.
        scene_size: side of the dataset's scenes in pixels at 10 m.
        blocks: of the encoder, the XAttnEncoder not counted.
        model: the encoder's sizes as its config has them; parameters do not tell,
            for one, the number of heads.
    """

    graphdef: nnx.GraphDef
    objective: Objective
    scene_size: int
    blocks: int
    model: Mapping = dataclasses.field(default_factory=dict)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.objective.image_size

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.objective.patch_size

    @property
    def side(self) -> int:
        """Patches along one side of an image."""
        return self.image_size // self.patch_size

    def images(
        self, fields: dict[str, jax.Array], view: views.View
    ) -> dict[str, jax.Array]:
        """What is seen of stored pixels under `view`, {sensor: [B, H, W, C]}."""
        return {s: self.objective.see(fields, view, s) for s in SENSORS}

    def encode(
        self,
        params: nnx.State,
        images: dict[str, jax.Array],
        present: Present | None,
        *,
        last: int = 1,
        branches: jax.Array | None = None,
        remat: str = "none",
    ) -> Encoded:
        """Encodes images, nothing hidden; see `FusMAE`, and its `encode`.

        `remat` is whoever's that wants gradients now, not the pretraining's.
        """
        model = nnx.merge(self.graphdef, params)
        model.encoder.remat = remat
        return model.encode(images, present, last=last, branches=branches)


def blocks(config) -> int:
    """Blocks of an encoder, the XAttnEncoder not counted."""
    return config.model.depth - int(config.model.fuse_early)


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


def boxes(how: str, image_size: int, scene_size: int) -> list[tuple[float, ...]]:
    """The parts of a scene that an encoder is shown, as `views.View` has them.

    Args:
        how: "center" pixel by pixel (or all of a scene that is smaller than the
            image); "whole" scene resampled to the image; or "tiles" that together
            cover the scene pixel by pixel, overlapping where they must.
        image_size: side of the images in pixels.
        scene_size: side of the scenes in pixels.
    """
    if how == "whole":
        return [(0.0, 0.0, 1.0, 1.0)]
    if how == "center" or scene_size <= image_size:
        return [views.center_box(image_size, scene_size)]
    if how != "tiles":
        raise InputError(f"features.view is {how!r}; choose one of {list(VIEWS)}.")
    # In whole pixels, so that pixel labels can be cut alike.
    count = -(-scene_size // image_size)
    starts = np.linspace(0, scene_size - image_size, count).round() / scene_size
    side = image_size / scene_size
    return [(float(y), float(x), side, side) for y in starts for x in starts]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What a run directory says of its encoder.

    Attributes:
        config: of the pretraining.
        contract: the sensors it was trained on.
        graphdef: of the model.
        params: restored, whole on every device.
        step: that they are from.
        directory: of the run.
    """

    config: ml_collections.ConfigDict
    contract: Mapping[str, sensors.Sensor]
    graphdef: nnx.GraphDef
    params: nnx.State
    step: int
    directory: pathlib.Path

    def look_at(self, description: Description, statistics: str) -> Backbone:
        """The encoder, ready for the pairs of a dataset.

        Args:
            description: of the dataset.
            statistics: that normalise its bands: "run" for those of the pretraining
                data, else those that `description` has.

        Raises:
            InputError: it lacks a band of the model, or has it in another unit.
        """
        build.check_data(self.contract, description)
        known = self.contract if statistics == "run" else description.sensors
        objective = build.objective(self.config, known, description.layout)
        size = description.layout.size
        model = self.config.model.to_dict()
        return Backbone(self.graphdef, objective, size, blocks(self.config), model)

    def fresh(self, seed: int) -> nnx.State:
        """Parameters of the same model that nothing has trained."""
        make = build.model(self.config)
        layout = jax.tree.map(lambda x: x.sharding, self.params)
        init = jax.jit(
            lambda key: nnx.split(make(rngs=nnx.Rngs(key)))[1], out_shardings=layout
        )
        return init(streams.key(seed, "params"))


def restore(directory, mesh: Mesh, step: int = 0) -> Pretrained:
    """Loads an encoder from a run directory and nothing else.

    Args:
        directory: of the run.
        mesh: where the parameters go.
        step: which checkpoint; 0 for the latest.

    Raises:
        InputError: there is no run, no checkpoint, or it is damaged or of another
            model.
    """
    checks.check_checkpoint(directory)
    config, contract = run.load(directory)
    directory = pathlib.Path(directory)
    try:
        graphdef, abstract = build.abstract_params(config, mesh)
        learnt = build.objective(config, contract).contract
    except InputError:
        raise  # says it better
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{directory / 'config.json'} describes no encoder ({error!r:.99}); name "
            "the directory of a pretraining."
        ) from error
    if learnt != contract:
        raise InputError(
            f"{directory / 'config.json'} contradicts itself, as its bands and its "
            "contract differ; copy it again."
        )
    step, params = checkpoint.restore_params(
        directory / "checkpoints", abstract, step or None
    )
    return Pretrained(config, contract, graphdef, params, step, directory)


def digest(params: nnx.State) -> str:
    """A checksum of parameters: what they are, whatever path they came from."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(f"{sharding.leaf_path(path)} {leaf.dtype} {leaf.shape}".encode())
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()[:16]
