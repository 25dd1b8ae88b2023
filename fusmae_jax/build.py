"""From a config to the objects it describes; modules take plain arguments."""

import dataclasses
import importlib
import logging
import pkgutil
import types
from collections.abc import Mapping

import optax
from jax.sharding import Mesh

from data_pipeline import layout as layouts
from data_pipeline import sensors
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from data_pipeline.layout import Layout
from fusmae_jax import objectives
from fusmae_jax.inputs import Inputs
from fusmae_jax.objectives.protocol import Encoder, Objective
from fusmae_jax.training import checkpoint, optim, sharding, train


def method(name: str) -> types.ModuleType:
    """The module of a method: `FIELDS` of a config, and `check` and `build` for it."""
    return importlib.import_module(f"{objectives.__name__}.{name}")


METHODS = tuple(
    name
    for name in sorted(m.name for m in pkgutil.iter_modules(objectives.__path__))
    if hasattr(method(name), "build")  # the others are what methods share
)

LACKING = "none: the training data have nothing of this sensor"  # of statistics

log = logging.getLogger("fusmae_jax")


def contract(
    config, known: Mapping[str, sensors.Sensor] | None = None
) -> dict[str, sensors.Sensor]:
    """The sensors with the bands that the config uses, by name.

    Args:
        config: see `configs/pretrain_base.py`.
        known: the sensors of the training data, whose statistics normalise the bands;
            one that they lack is as it usually is, and all are without any data.

    Raises:
        InputError: a band is not among them.
    """
    chosen = {s: sensors.product(s, config.bands[s]) for s in config.bands}
    if known is not None:
        usual = {s: dataclasses.replace(x, source=LACKING) for s, x in chosen.items()}
        chosen = {s: known.get(s, usual[s]) for s in chosen}
    return {s: sensor.select(config.bands[s]) for s, sensor in chosen.items()}


def check_data(
    contract: dict[str, sensors.Sensor], description: Description
) -> tuple[str, ...]:
    """The fields of the data that hold the contract's bands, of the sensors they have.

    Raises:
        InputError: a band is missing, or its values mean something else.
    """
    for name, stored in description.sensors.items():
        sensor = contract[name]
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


def inputs(
    config,
    known: Mapping[str, sensors.Sensor] | None = None,
    layout: Layout | None = None,
    missing: bool = False,
) -> Inputs:
    """How pairs are seen.

    Args:
        config: see `configs/pretrain_base.py`.
        known: see `contract`.
        layout: of the data; by default that of procedural scenes.
        missing: whether the data have pixels that were not measured.
    """
    layout = layout or layouts.native(config.data.size, sensors.SENSORS)
    return Inputs(
        contract(config, known),
        size=config.model.image_size,
        scene_size=layout.size,
        grids={s: layout.of(s) for s in config.bands},
        resampling=config.view.resampling,
        missing=missing,
    )


def objective(config, seen: Inputs | None = None, **target) -> Objective:
    """What the config's method trains for.

    Args:
        config: see `configs/pretrain_base.py`.
        seen: how the data are seen; by default as procedural scenes.
        target: see there. Without it programs compute alike anywhere, and fast nowhere.

    Raises:
        InputError: sizes that do not divide; nothing has been allocated yet.
    """
    return method(config.method).build(config, seen or inputs(config), target)


def to_judge(config, seen: Inputs, mesh: Mesh | None) -> Objective:
    """The objective of a run, for whoever wants its parameters and trains no more.

    Without a mesh its programs are for any machine, see `objective`.
    """
    config = config.copy_and_resolve_references()
    # How it was trained does not matter any more, and there may be no cuDNN here.
    config.model.update(attention="auto", remat="none")
    return objective(config, seen, **({} if mesh is None else target(mesh)))


def image_encoder(
    config, contract: Mapping[str, sensors.Sensor], mesh: Mesh | None
) -> Encoder:
    """A run's encoder for images of its own size, whose pixels may be missing.

    Args:
        config: of the run.
        contract: that it was trained under.
        mesh: see `to_judge`.
    """
    layout = layouts.resampled(config.model.image_size, contract)
    seen = inputs(config, contract, layout, missing=True)
    return to_judge(config, seen, mesh).encoder()


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


def train_step(config, objective, tx, rate, layout, mesh: Mesh):
    """The config's step, see `train.make_train_step`."""
    return train.make_train_step(
        objective,
        tx,
        rate,
        layout,
        mesh,
        seed=config.seed,
        accumulate=config.accumulate,
        bad_steps=config.bad_steps,
    )


def abstract_params(objective: Objective, mesh: Mesh, min_size: int = 2**18):
    """The parameters' shapes, laid out on `mesh` as in training, to be restored.

    Args:
        objective: whose model it is.
        mesh: where they go; they are whole on every device of one without "fsdp".
        min_size: kernels with fewer elements are not split.
    """
    _, params = objective.abstract
    layout = sharding.layout({"params": params}, mesh, min_size)["params"]
    return checkpoint.abstract(params, layout)
