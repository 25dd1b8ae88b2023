"""The smallest run that has every part, for tests."""

import functools

import jax
from flax import nnx

from configs import pretrain_base
from data_pipeline import sensors
from fusmae_jax.inputs import Inputs
from fusmae_jax.models.fusmae import FusMAE
from fusmae_jax.objectives import fusmae

BANDS = {"s1": 2, "s2": 12}
MODEL = dict(
    bands=BANDS,
    image_size=24,
    patch_size=6,
    dim=32,
    depth=2,
    num_heads=2,
    decoder_dim=16,
    decoder_depth=1,
    decoder_heads=2,
)


def model(seed: int = 0, **changes) -> FusMAE:
    """A tiny model, whose parameters may be changed."""
    if bands := changes.pop("bands", None):
        changes["bands"] = tuple(bands.items())
    graphdef, params = _made(seed, tuple(changes.items()))
    return nnx.merge(graphdef, jax.tree.map(lambda x: x, params))


@functools.cache
def _made(seed: int, changes: tuple):
    changes = dict(changes)
    if "bands" in changes:
        changes["bands"] = dict(changes["bands"])
    return nnx.split(FusMAE(**MODEL | changes, rngs=nnx.Rngs(seed)))


def call(module: nnx.Module, *args, **options):
    """What a module says, in one compiled program: sooner than one an operation."""
    graphdef, params = nnx.split(module)
    run = jax.jit(lambda params, *args: nnx.merge(graphdef, params)(*args, **options))
    return run(params, *args)


def objective(*, contract=sensors.SENSORS, scene_size=24, model=(), **changes):
    """What a tiny model is trained for; `model` changes its arguments."""
    seen = Inputs(contract, MODEL["image_size"], scene_size)
    bands = {s: len(sensor.bands) for s, sensor in contract.items()}
    return fusmae.Objective(seen, MODEL | dict(bands=bands) | dict(model), **changes)


def encoder(seed: int = 0, **changes):
    """A tiny encoder that nothing has trained, and its parameters."""
    made = objective(**changes).encoder()
    return made, made.init(nnx.Rngs(seed))


def config(method: str = "fusmae"):
    """A tiny run of a method on synthetic scenes: 6 steps of 8 pairs."""
    c = pretrain_base.get_config(method)
    c.epochs, c.batch_size = 2, 8
    c.data.update(source="synthetic", count=24, size=24, threads=1)
    c.model.update({k: v for k, v in MODEL.items() if k != "bands"})
    c.model.dtype = "float32"
    c.optim.warmup_epochs = 0
    c.fsdp_min_size = 0
    c.log_every, c.eval_every, c.checkpoint_every = 1, 3, 3
    c.keep_every = 0
    c.eval_pairs, c.eval_draws, c.figure_pairs = 3, 2, 2
    return c
