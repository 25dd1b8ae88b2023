"""Every compiled step of the library, ready to be lowered for any machine.

A step is made as the library makes it, of shapes alone: no array of a model is ever
allocated, and what it is lowered for need not be there.
"""

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from configs import compare_archives
from data_pipeline import layout as layouts
from data_pipeline import synthetic
from fusmae_jax import build, dtypes
from fusmae_jax.evaluation import (
    change_heads,
    classifier,
    dense_task,
    features,
    finetune,
    heads,
    linear_probe,
    neighbours,
)
from fusmae_jax.inputs import SENSORS
from fusmae_jax.training import checkpoint, optim, sharding, train

# As JAX names what it lowers for.
LOWERING = {"gpu": "cuda"}
RESAMPLING = 2  # float32 products that take a grid to an image: of rows and of columns
CLASSES = 19  # of BigEarthNet
# Where methods ask for more than that: the sizes of crops that they resample to, and
# products of the loss, which have two more in the gradient.
CROPS, OF_LOSS = {"dinomm": 2}, {"decur": 3, "croma": 1}
DISTANCES = ("croma",)  # methods whose encoder's attention fades with them
MISSING = ", missing pixels"  # in names of steps on data that have some
PROBE = dict(pairs=26_970, settings=40)  # a tenth of it, and probe_bigearthnet's grid


class Program(NamedTuple):
    """A step, and what it is called with.

    Attributes:
        step: jitted.
        args: shapes, types and layouts of its arguments.
        options: static arguments by name.
        dtype: of its products, as its config has it.
        float32_products: how many are in float32 whatever `dtype` says; None for any.
        fuses: whether there is attention that cuDNN can compute.
    """

    step: Callable
    args: tuple
    options: dict[str, Any] = {}
    dtype: str = "bfloat16"
    float32_products: int | None = None
    fuses: bool = True

    def lower(self, platform: str) -> jax.stages.Lowered:
        """Lowers the step for "cpu", "gpu" or "tpu"."""
        traced = self.step.trace(*self.args, **self.options)
        return traced.lower(lowering_platforms=(LOWERING.get(platform, platform),))


def load(name: str, **changes):
    """A config of `configs/`, with fields changed, `model__remat` for model.remat.

    Its products are those of GPUs and TPUs, if it leaves them to the devices.
    """
    config = importlib.import_module(f"configs.{name}").get_config()
    return _settled(config, changes)


def _settled(config, changes: Mapping[str, Any]):
    config = config.copy_and_resolve_references()
    changes = {field.replace("__", "."): value for field, value in changes.items()}
    config.update_from_flattened_dict(changes)
    config.model.dtype = dtypes.resolve_dtype(config.model.dtype, "tpu")
    return config


class Maker:
    """Makes the steps of a config for the devices of a mesh."""

    def __init__(
        self, config, mesh: Mesh, platform: str | None = None, missing: bool = False
    ):
        """Prepares shapes.

        Args:
            config: see `configs/pretrain_base.py`.
            mesh: the devices; those of a CPU stand for any others until a program is
                compiled.
            platform: what programs are for, by default what the mesh is made of.
            missing: whether the data have pixels that were not measured.
        """
        self.config, self.mesh = config, mesh
        target = build.target(mesh)
        target["platform"] = platform or target["platform"]
        seen = build.inputs(config, missing=missing)
        self.objective = build.objective(config, seen, **target)
        _, params = self.objective.abstract
        self._shapes = params
        whole = jax.tree.map(lambda _: sharding.whole(mesh), params)
        self.params = checkpoint.abstract(params, whole)
        size = config.data.size
        contract = self.objective.inputs.contract
        names = layouts.native(size, contract).fields(contract)
        self.scenes = synthetic.Scenes(1, size=size)
        self._pair = synthetic.Scenes(1, size=size, fields=names)[0]

    def _rows(self, shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.rows(self.mesh))

    def _whole(self, shape=(), dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.whole(self.mesh))

    def _key(self):
        return jax.eval_shape(jax.random.key, 0)

    def fields(self, batch: int) -> dict:
        """Stored pixels of a global batch."""
        return sharding.abstract_rows(self._pair, batch, self.mesh)

    def here(self, batch: int, alone: bool) -> dict | None:
        """Which samples show a sensor, as of a sensor `alone`; None where all do."""
        shown = self._rows((batch,), bool)
        return dict.fromkeys(self.objective.inputs.contract, shown) if alone else None

    @property
    def encoder(self) -> tuple:
        """The encoder, and its parameters."""
        return self.objective.encoder(), self.objective.encoder_params(self.params)

    def _program(self, step, *args, **options) -> Program:
        read = self.objective.encoder().sensors
        seen = self.objective.inputs
        bands = {s: {band.name for band in seen.contract[s].bands} for s in read}
        used = [x for s in read for x in seen.grids[s] if bands[s] & set(x.bands)]
        dtype = self.config.model.dtype
        fuses = self.config.method not in DISTANCES
        return Program(step, args, options, dtype, RESAMPLING * len(used), fuses)

    def pretrain(self, batch: int) -> tuple[Program, train.PretrainState]:
        """The training step, and its abstract state, whose leaves know their layout."""
        config, mesh = self.config, self.mesh
        rate = optim.schedule(config.optim.peak_lr, 10, 1_000)
        tx = build.optimizer(config, rate)
        fresh = lambda p: train.fresh_state(self.objective, p, tx)
        state = jax.eval_shape(fresh, self._shapes)
        layout = sharding.layout(state, mesh, config.fsdp_min_size)
        step = build.train_step(config, self.objective, tx, rate, layout, mesh)
        state = checkpoint.abstract(state, layout)
        program = self._program(step, state, self.fields(batch))
        program = program._replace(float32_products=self._products(program, 3))
        return program._replace(fuses=True), state  # in a decoder at least

    def _products(self, program: Program, passes: int) -> int:
        """Those in float32 of an objective: forward, or with 3 passes backward too."""
        method, loss = self.config.method, self.config.loss
        resampling = program.float32_products * CROPS.get(method, 1)
        found = resampling + passes * OF_LOSS.get(method, 0)
        if method == "fusmae":
            found += passes * (loss.contrast > 0.0)
            # Targets are projected, and told apart: they need no gradient.
            each = 3 if passes > 1 else 2
            found += each * len(SENSORS) * (loss.targets == "latent")
        return found

    def held_out(self, batch: int, redraw: bool) -> Program:
        """The scores of held-out pairs, or with `redraw` all their patches."""
        options = dict(seed=self.config.seed, redraw=redraw)
        step = train.make_eval_step(self.objective, self.mesh, **options)
        weight = self._rows((batch,), jnp.float32)
        extra = jax.eval_shape(self.objective.init_extra, self._shapes)
        whole = jax.tree.map(lambda _: sharding.whole(self.mesh), extra)
        extra = checkpoint.abstract(extra, whole)
        args = self.params, extra, self.fields(batch), weight, 0, 0
        program = self._program(step, *args)
        program = program._replace(float32_products=self._products(program, 1))
        return program._replace(fuses=True)

    def floor(self, batch: int) -> Program:
        """What no model can be expected to predict of held-out pairs."""
        args = self.fields(batch), self._rows((batch,), jnp.float32)  # no network
        return Program(jax.jit(self.objective.floor), args, {}, "float32")

    def features(self, batch: int, *, alone: bool = False) -> Program:
        """Features of pairs, or of one sensor: the judge's, kNN's, the probe's, ..."""
        taker = features.Extractor(
            *self.encoder, features.Recipe(), self.mesh, ("both",)
        )
        box = self._whole((4,))
        args = taker.params, self.fields(batch), self.here(batch, alone), box
        return self._program(taker.step, *args)

    def finetune(self, batch: int, *, alone: bool = False, **changes) -> Program:
        """The fine-tuning step, of pairs or one sensor; `changes` are of the recipe."""
        field, recipe = "labels", finetune.Recipe(100, batch, 5e-4, **changes)
        encoder, params = self.encoder
        goal = classifier.Labels(encoder, recipe, field, CLASSES, single=False)
        tuner = finetune.Finetuner(goal, params, self.mesh)
        labels = {field: self._rows((batch, CLASSES), jnp.uint8)}
        here = self.here(batch, alone)
        args = tuner.abstract_state(), self._key(), here, self.fields(batch) | labels
        program = self._program(tuner.step, *args, np.float32(1e-4))
        # The head's, and the two of its gradient.
        return program._replace(float32_products=program.float32_products + 3)

    def finetune_masks(self, batch: int, head: str) -> Program:
        """The same for pixel labels."""
        goal = dense_task.Masks(self._pixels(head), finetune.Recipe(100, batch, 5e-4))
        tuner = finetune.Finetuner(goal, goal.task.params, self.mesh)
        fields = self._labelled_pixels(batch)
        args = tuner.abstract_state(), self._key(), None, fields, np.float32(1e-4)
        return self._program(tuner.step, *args)._replace(float32_products=None)

    def _pixels(self, head: str) -> dense_task.Task:
        place = self.scenes, "land_cover", self.mesh
        return dense_task.Task(*self.encoder, *place, head=head, blocks=1)

    def _labelled_pixels(self, batch: int):
        labels = self._rows((batch, self.scenes.size, self.scenes.size), jnp.uint8)
        return self.fields(batch) | {"land_cover": labels}

    def dense(self, batch: int, head: str) -> tuple[Program, Program]:
        """The step that trains heads for pixel labels, and the one that tests them."""
        rates, task = (3e-4, 1e-3, 3e-3, 1e-2), self._pixels(head)
        tx = optim.adamw(optim.schedule(1.0, 10, 1_000), weight_decay=0.01)
        state, layout = task.abstract_state(tx, len(rates))
        step = task.train_step(tx, rates, layout, 0)
        seen = task.params, self._labelled_pixels(batch), None
        train = self._program(step, state, *seen)
        test = self._program(task.judge_step, state.params, *seen)
        # Heads make them many.
        return tuple(x._replace(float32_products=None) for x in (train, test))

    def change(self, batch: int, head: str) -> tuple[Program, Program, Program]:
        """What takes tokens, trains heads on those of two dates, and tests them."""
        task, places, size = self._pixels("linear"), 64, self.scenes.size
        step = change_heads.tokens_step(task)
        seen = task.params, self._labelled_pixels(batch), None
        shape = jax.eval_shape(step, *seen).shape[1:]
        tokens = self._whole((places, *shape))
        labels = self._whole((places, size, size), jnp.uint8)
        dates = change_heads.Dates(tokens, tokens, labels)
        recipe, options = change_heads.Recipe(), dict(width=shape[-1], seed=0)
        made = change_heads.Heads(task, head, "difference", recipe, **options)
        learnt = dates, self._whole((places,), jnp.int32), self._whole((), jnp.int32)
        params = jax.eval_shape(made.fit, *learnt)
        whole = jax.tree.map(lambda _: sharding.whole(self.mesh), params)
        params = checkpoint.abstract(params, whole)
        # Heads have no encoder in them.
        return (
            self._program(step, *seen),
            Program(made.fit, learnt, {}, "float32"),
            Program(made.count, (params, dates, learnt[1]), {}, "float32"),
        )

    def probe(self) -> Program:
        """An epoch of the linear probe."""
        n, g, width = PROBE["pairs"], PROBE["settings"], self.config.model.dim
        params = {
            "kernel": self._whole((width, g, CLASSES)),
            "bias": self._whole((g, CLASSES)),
        }
        x, y = self._whole((n, width)), self._whole((n, CLASSES))
        rates, count = self._whole((g,)), np.int32(0)
        args = (params, params), x, y, rates, rates, self._key(), count, count
        options = dict(steps=-(-n // 256), single=False)
        return Program(linear_probe.run_epoch, args, options, "float32")

    def knn(self) -> Program:
        """A block of the nearest neighbours."""
        _, nearest = neighbours.compiled(self.mesh, 20)
        width = self.config.model.dim
        bank = self._whole((PROBE["pairs"], width))
        queries = self._rows((64 * self.mesh.size, width), jnp.float32)
        return Program(nearest, (bank, queries), {}, "float32")


class Named(NamedTuple):
    """A step by its name; `make` traces what it needs, and may fail."""

    name: str
    make: Callable[[], Program]


def pretrainings(mesh_of: Callable[[int], Mesh], platform: str) -> Iterator[Named]:
    """Yields the training step of every pretraining; see `every`."""

    def pretrain(name: str, fsdp: int = 1, missing: bool = False, **changes) -> Named:
        def make():
            config = load(name, fsdp=fsdp, **changes)
            maker = Maker(config, mesh_of(fsdp), platform, missing)
            return maker.pretrain(config.batch_size)[0]

        changed = {"fsdp": fsdp} if fsdp > 1 else {}
        changed |= {field.split("__")[-1]: value for field, value in changes.items()}
        words = [name, *(f"{field}={value}" for field, value in changed.items())]
        return Named(" ".join(words) + missing * MISSING, make)

    def arm(archive: str, name: str, size: int) -> Named:
        def make():
            config = compare_archives.get_config(archive).arms[name]
            config = _settled(config, {"data.size": size})
            return Maker(config, mesh_of(1), platform).pretrain(config.batch_size)[0]

        return Named(f"compare_archives:{archive}, {name}", make)

    for size in ("small", "base", "large", "huge"):
        yield pretrain(f"pretrain_{size}")
        yield pretrain(f"pretrain_{size}", fsdp=4)
    yield pretrain("pretrain_base", accumulate=4)
    yield pretrain("pretrain_base", model__remat="dots")
    yield pretrain("pretrain_base", model__remat="full")
    yield pretrain("pretrain_base", mask__drop_sensor=0.25)
    yield pretrain("pretrain_base", missing=True)
    yield pretrain("pretrain_base", model__global_token="decoders")
    yield pretrain("pretrain_base", model__dtype="float32")
    yield pretrain("pretrain_base", model__feature_queries="all")
    yield pretrain("pretrain_base", loss__targets="latent", loss__contrast=0.1)
    yield pretrain("pretrain_mae")
    yield pretrain("pretrain_mae", model__sensors="s2", missing=True)
    yield pretrain("pretrain_multimae")
    yield pretrain("pretrain_multimae", missing=True)
    for method in ("dinomm", "decur", "croma"):
        yield pretrain(f"pretrain_{method}")
        yield pretrain(f"pretrain_{method}", missing=True)
    # Those on BigEarthNet are the ones above.
    yield arm("sen12ms", "fusmae", 252)  # whole on all grids, as 256 is not
    for name in ("fusmae", "mae_stacked", "multimae", "dinomm", "decur", "croma"):
        yield arm("so2sat", name, 30)


def every(mesh_of: Callable[[int], Mesh], platform: str) -> Iterator[Named]:
    """Yields every step that a user's command compiles, of the sizes of `configs/`.

    Args:
        mesh_of: makes the mesh for `fsdp`.
        platform: what for.
    """

    @functools.cache
    def base(missing: bool = False) -> Maker:
        return Maker(load("pretrain_base"), mesh_of(1), platform, missing)

    yield from pretrainings(mesh_of, platform)
    yield Named("held-out pairs, scored", lambda: base().held_out(64, redraw=False))
    yield Named("held-out pairs, redrawn", lambda: base().held_out(64, redraw=True))
    yield Named("held-out pairs, floor", lambda: base().floor(64))
    yield Named("features (judge, kNN, probe)", lambda: base().features(256))
    yield Named("features, one sensor", lambda: base().features(256, alone=True))
    yield Named("features" + MISSING, lambda: base(True).features(256))
    for method in build.METHODS:
        if method != "fusmae":  # of which all others are
            config = load(f"pretrain_{method}")
            maker = functools.partial(Maker, config, mesh_of(1), platform, True)
            yield Named(
                f"features, {method}" + MISSING,
                lambda maker=maker: maker().features(256),
            )
    yield Named("fine-tune", lambda: base().finetune(128))
    yield Named("fine-tune, one sensor", lambda: base().finetune(128, alone=True))
    yield Named("fine-tune remat=full", lambda: base().finetune(128, remat="full"))
    yield Named("fine-tune accumulate=4", lambda: base().finetune(128, accumulate=4))
    yield Named("change, tokens", lambda: base().change(64, heads.HEADS[0])[0])
    for head in heads.HEADS:
        yield Named(f"fine-tune, {head} head", lambda: base().finetune_masks(64, head))
        yield Named(f"dense, {head} head", lambda: base().dense(64, head)[0])
        yield Named(f"dense, {head} head, test", lambda: base().dense(64, head)[1])
        yield Named(f"change, {head} head", lambda: base().change(64, head)[1])
        yield Named(f"change, {head} head, test", lambda: base().change(64, head)[2])
    yield Named("linear probe, an epoch", lambda: base().probe())
    yield Named("nearest neighbours", lambda: base().knn())
