"""From a config to the objects it describes; modules take plain arguments."""

import functools
from collections.abc import Callable

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from data_pipeline import sensors
from fusmae_jax import checkpoint, optim, sharding
from fusmae_jax.model import FusMAE
from fusmae_jax.objective import Objective


def contract(config) -> dict[str, sensors.Sensor]:
    """The sensors with the bands that the config uses, by name."""
    return {s: sensors.SENSORS[s].select(config.bands[s]) for s in sensors.SENSORS}


def model(config) -> Callable[..., FusMAE]:
    """What makes the model, given `rngs`."""
    bands = {s: len(names) for s, names in config.bands.items()}
    return functools.partial(FusMAE, bands=bands, **config.model)


def objective(config) -> Objective:
    """The pretraining objective."""
    return Objective(
        contract=contract(config),
        image_size=config.model.image_size,
        patch_size=config.model.patch_size,
        mask_ratio=config.mask.ratio,
        mask_mode=config.mask.mode,
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


def abstract_model(config) -> tuple[nnx.GraphDef, nnx.State]:
    """The model's graph definition and the shapes of its parameters.

    Raises:
        InputError: sizes that do not divide; nothing has been allocated yet.
    """
    return nnx.split(nnx.eval_shape(lambda: model(config)(rngs=nnx.Rngs(0))))


def abstract_params(config, mesh: Mesh):
    """The same, with every parameter laid out whole on `mesh`, to be restored."""
    graphdef, params = abstract_model(config)
    layout = jax.tree.map(lambda _: sharding.whole(mesh), params)
    return graphdef, checkpoint.abstract(params, layout)
