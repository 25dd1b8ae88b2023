"""A small method with all that the protocol allows: a momentum teacher and a centre."""

import contextlib
import dataclasses
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from data_pipeline.config_fields import choice
from fusmae_jax import build as builder
from fusmae_jax import config as checks
from fusmae_jax import inputs, patches
from fusmae_jax.inputs import SENSORS, Inputs
from fusmae_jax.models import layers
from fusmae_jax.models.products import Arithmetic
from fusmae_jax.objectives import fusmae, protocol
from fusmae_jax.objectives.protocol import Encoded

WIDTH, MOMENTUM = 16, 0.9


class Network(nnx.Module):
    """Embeds the patches of both sensors."""

    def __init__(self, bands, patch_size, *, rngs):
        kw = dict(arithmetic=Arithmetic(), rngs=rngs)
        self.embed = nnx.Dict(
            {s: layers.Linear(patch_size**2 * bands[s], WIDTH, **kw) for s in SENSORS}
        )
        self.patch_size = patch_size

    def __call__(self, images):
        """Tokens {sensor: [B, N, D]}, and their mean [B, D]."""
        tokens = {
            s: self.embed[s](patches.patchify(images[s], self.patch_size))
            for s in SENSORS
        }
        return tokens, sum(x.mean(axis=1) for x in tokens.values()) / len(tokens)


@contextlib.contextmanager
def known():
    """Makes it a module of `objectives`: of method="teacher", and soon compiled."""
    with pytest.MonkeyPatch.context() as patch:
        here = sys.modules[__name__]
        patch.setitem(sys.modules, "fusmae_jax.objectives.teacher", here)
        every = choice(*builder.METHODS, "teacher", meaning="What is trained.")
        patch.setitem(checks.TABLE, "method", every)
        yield


FIELDS = fusmae.FIELDS  # which it has no use for, but those of `model`


def check(config):
    """What `config.check_config` asks for."""


def build(config, seen, target):
    """What `build.objective` asks a module of `objectives` for."""
    return Objective(seen, config.model.patch_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Objective(protocol.Objective):
    """What a teacher says of another view, less the mean of all that it has said."""

    inputs: Inputs
    patch_size: int

    separable = False

    def init(self, rngs):
        bands = {s: len(sensor.bands) for s, sensor in self.inputs.contract.items()}
        return Network(bands, self.patch_size, rngs=rngs)

    def init_extra(self, params):
        return {"teacher": jax.tree.map(jnp.copy, params), "center": jnp.zeros(WIDTH)}

    def draw(self, key, batch):
        return [inputs.draw_views(k, batch) for k in jax.random.split(key)]

    def draw_fixed(self, key, pairs):
        return [inputs.fixed_view(len(pairs), self.inputs.center)] * 2

    def loss(self, model, extra, fields, draw, weight=None):
        graphdef, _ = nnx.split(model)
        one, other = (self.inputs.images(fields, view) for view in draw)
        _, taught = nnx.merge(graphdef, extra["teacher"])(other)
        error = jnp.square(model(one)[1] - taught + extra["center"][None]).mean(axis=1)
        weight = jnp.ones_like(error) if weight is None else weight
        loss = (error * weight).sum() / weight.sum()
        return loss, {"teacher_norm": jnp.abs(taught).mean()}, taught.mean(axis=0)

    def after(self, extra, params, aux, step):
        move = lambda old, new: MOMENTUM * old + (1.0 - MOMENTUM) * new
        teacher = jax.tree.map(move, extra["teacher"], params)
        return {"teacher": teacher, "center": move(extra["center"], aux)}

    def encoder(self):
        return Encoder(self)

    def encoder_params(self, params):
        return params

    def pixels_of(self, path):
        sensor, kind = path.split("/")[1:]
        return (sensor, 0) if kind == "kernel" else None

    def flops(self):
        return 1e6


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder(protocol.Encoder):
    """The student's network."""

    objective: Objective

    name, width, depth = "student", WIDTH, 1

    @property
    def inputs(self):
        return self.objective.inputs

    @property
    def patch_size(self):
        return self.objective.patch_size

    @property
    def settings(self):
        return {"width": WIDTH}

    def init(self, rngs):
        return nnx.split(self.objective.init(rngs))[1]

    def __call__(self, params, images, present=None, *, branches=None, remat="none"):
        if present is not None:
            there = {
                s: here.reshape(here.shape[0], -1).any(axis=1)[:, None, None, None]
                for s, here in present.items()
            }
            images = {
                s: jnp.where(there[s] & ~jnp.isnan(x), x, 0.0)
                for s, x in images.items()
            }
        graphdef, _ = self.objective.abstract
        return Encoded(*nnx.merge(graphdef, params)(images))

    def layer_of(self, path):
        return 0
