"""From a config to the objects it describes; modules take plain arguments."""

import functools
import logging
from collections.abc import Callable, Mapping

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from data_pipeline import sensors
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from data_pipeline.layout import Layout
from fusmae_jax import checkpoint, optim, sharding, train
from fusmae_jax.model import FusMAE
from fusmae_jax.objective import Objective

log = logging.getLogger("fusmae_jax")


def contract(
    config, known: Mapping[str, sensors.Sensor] = sensors.SENSORS
) -> dict[str, sensors.Sensor]:
    """The sensors with the bands that the config uses, by name.

    Args:
        config: see `configs/pretrain_base.py`.
        known: the sensors of the training data, whose statistics normalise the bands.

    Raises:
        InputError: a band is not among them.
    """
    return {s: known[s].select(config.bands[s]) for s in config.bands}


def check_data(
    contract: dict[str, sensors.Sensor], description: Description
) -> tuple[str, ...]:
    """The fields of the data that hold the contract's bands.

    Raises:
        InputError: a band is missing, or its values mean something else.
    """
    for name, sensor in contract.items():
        stored = description.sensors[name]
        if stored.unit != sensor.unit:
            raise InputError(
                f"The model takes {sensor.title} in {sensor.unit}, and "
                f"{description.name} holds {stored.unit}; prepare the data again."
            )
        if stored.level != sensor.level:
            log.warning(
                "%s is %s %s, and the model learnt from %s: expect other brightness.",
                *(description.name, sensor.title, stored.level, sensor.level),
            )
    return description.layout.fields(contract)


def target(mesh: Mesh) -> dict:
    """What programs of a mesh are compiled for: the model's platform and devices."""
    return {"platform": sharding.platform(mesh), "devices": mesh.size}


def model(config, **changes) -> Callable[..., FusMAE]:
    """What makes the model, given `rngs`; `changes` go before the config.

    Without `target` among them it computes alike anywhere, and fast nowhere.
    """
    bands = {s: len(names) for s, names in config.bands.items()}
    return functools.partial(FusMAE, bands=bands, **{**config.model, **changes})


def objective(
    config,
    known: Mapping[str, sensors.Sensor] = sensors.SENSORS,
    layout: Layout | None = None,
) -> Objective:
    """The pretraining objective.

    Args:
        config: see `configs/pretrain_base.py`.
        known: see `contract`.
        layout: of the data; None where every band is on its own grid.
    """
    return Objective(
        contract=contract(config, known),
        grids=layout and {s: layout.of(s) for s in config.bands},
        image_size=config.model.image_size,
        patch_size=config.model.patch_size,
        mask_ratio=config.mask.ratio,
        mask_mode=config.mask.mode,
        drop_sensor=config.mask.drop_sensor,
        normalize=config.loss.normalize,
        weights={"s1": config.loss.weight_s1, "s2": config.loss.weight_s2},
        crop_scale=tuple(config.view.crop_scale),
        crop_ratio=tuple(config.view.crop_ratio),
        turn=config.view.turn,
        resampling=config.view.resampling,
    )


def optimizer(config, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW with the config's constants."""
    c = config.optim
    return optim.adamw(
        rate,
        b1=c.b1,
        b2=c.b2,
        weight_decay=c.weight_decay,
        clip_norm=c.clip_norm,
    )


def train_step(config, graphdef, objective, tx, rate, layout, mesh: Mesh):
    """The config's step, see `train.make_train_step`."""
    return train.make_train_step(
        graphdef,
        objective,
        tx,
        rate,
        layout,
        mesh,
        seed=config.seed,
        accumulate=config.accumulate,
        bad_steps=config.bad_steps,
    )


def abstract_model(config, **changes) -> tuple[nnx.GraphDef, nnx.State]:
    """The model's graph definition and the shapes of its parameters; see `model`.

    Raises:
        InputError: sizes that do not divide; nothing has been allocated yet.
    """

    def make(key):
        return nnx.split(model(config, **changes)(rngs=train.Keys(key)))

    return jax.eval_shape(make, jax.random.key(0))


def abstract_params(config, mesh: Mesh):
    """The same, with every parameter laid out whole on `mesh`, to be restored."""
    # How it was trained does not matter any more, and there may be no cuDNN here.
    changes = dict(attention="auto", remat="none", **target(mesh))
    graphdef, params = abstract_model(config, **changes)
    layout = jax.tree.map(lambda _: sharding.whole(mesh), params)
    return graphdef, checkpoint.abstract(params, layout)
