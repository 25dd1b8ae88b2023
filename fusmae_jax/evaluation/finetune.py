"""Fine-tuning: a head, and every parameter of the encoder with it.

What is learnt, classes of pairs or of pixels, is a `Goal`. What is not said otherwise
follows the fine-tuning of MAE (He et al. 2021) and its code: AdamW with rates that fall
towards the patches; stochastic depth. Its colour changes, random erasing and CutMix are
left out: bands are measurements, and parts of a scene have other labels. The last
parameters are the result; no step is chosen by looking at any score.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from data_pipeline.config_fields import (
    attribute,
    check_attributes,
    choice,
    flag,
    number,
    several,
    whole,
)
from data_pipeline.errors import InputError
from fusmae_jax import inputs, streams
from fusmae_jax.evaluation import features, loop
from fusmae_jax.evaluation.encoder import present
from fusmae_jax.inputs import Present
from fusmae_jax.models import layers
from fusmae_jax.objectives.protocol import Encoded, Encoder
from fusmae_jax.training import checkpoint, optim, sharding
from fusmae_jax.training.train import TrainState, gradients


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an encoder is fine-tuned; see `features.Recipe` for the last two."""

    epochs: int = attribute(whole(1, meaning="Passes over the training pairs."))
    batch_size: int = attribute(
        whole(1, meaning="Pairs of a step, over all devices and hosts.")
    )
    base_lr: float = attribute(
        number(above=0.0, meaning="Peak learning rate of AdamW for batches of 256.")
    )
    warmup_epochs: int = attribute(
        whole(0, meaning="Epochs in which the rate rises; then it falls as a cosine."),
        5,
    )
    least_steps: int = attribute(
        whole(
            0,
            meaning="Steps at least, as passes over a fraction of few pairs are few.",
        ),
        0,
    )
    layer_decay: float = attribute(
        number(
            above=0.0,
            most=1.0,
            meaning="What the rate is multiplied by from a layer to the next deeper.",
        ),
        0.65,
    )
    drop_path: float = attribute(
        number(
            least=0.0,
            below=1.0,
            meaning="Chance that a sample skips a branch of the last block.",
        ),
        0.1,
    )
    weight_decay: float = attribute(
        number(least=0.0, meaning="Weight decay of the matrices."), 0.05
    )
    b1: float = attribute(
        number(least=0.0, below=1.0, meaning="Decay of AdamW's mean gradient."), 0.9
    )
    b2: float = attribute(
        number(least=0.0, below=1.0, meaning="Decay of AdamW's mean squared gradient."),
        0.999,
    )
    clip_norm: float = attribute(
        number(
            least=0.0,
            meaning="Longer gradients are scaled to this norm; 0 never clips.",
        ),
        0.0,
    )
    smoothing: float = attribute(
        number(
            least=0.0,
            below=1.0,
            meaning="Share of each target that is spread over what is possible.",
        ),
        0.0,
    )
    mixup: float = attribute(
        number(
            least=0.0,
            meaning="Both parameters of the Beta distribution of the shares in which "
            "two samples are mixed; 0 mixes none.",
        ),
        0.0,
    )
    crop_scale: tuple[float, float] = attribute(
        several(
            number(),
            length=2,
            twice=True,
            meaning="Least and greatest area of a training crop, as shares of the "
            "scene's; small crops lose labels.",
        ),
        (0.8, 1.0),
    )
    turn: bool = attribute(
        flag(meaning="Whether crops are flipped and turned by quarters."), True
    )
    remat: str = attribute(
        choice(
            *layers.REMAT,
            meaning="What of a block is computed again for the gradient, for less "
            "memory and more time: nothing, all but the linear layers, or everything.",
        ),
        "none",
    )
    accumulate: int = attribute(
        whole(
            1,
            meaning="Parts of a batch that go through the network one by one: less "
            "memory, the same steps.",
        ),
        1,
    )
    pool: str = "mean"
    view: str = "center"  # about as much ground as training crops show

    def __post_init__(self):
        check_attributes(self)
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"warmup_epochs is {self.warmup_epochs}; it must be below epochs, "
                f"{self.epochs}."
            )
        if self.batch_size % self.accumulate:
            raise InputError(
                f"batch_size={self.batch_size} does not divide into accumulate="
                f"{self.accumulate} parts; choose a multiple of that."
            )
        features.Recipe(pool=self.pool, view=self.view)
        inputs.check_crops(self.crop_scale)

    def draw_views(self, key: jax.Array, batch: int) -> inputs.View:
        """Draws the views of a training batch, shared by the sensors."""
        return inputs.draw_views(key, batch, scale=self.crop_scale, turn=self.turn)


Tuned = TypeVar("Tuned")


class Goal(Generic[Tuned]):
    """What an encoder learns to say by fine-tuning, and the head that says it.

    Attributes:
        encoder: what is trained.
        recipe: how.
        field: of a pair, which holds what it is to say.
    """

    encoder: Encoder
    recipe: Recipe
    field: str

    def init(self, key: jax.Array):
        """Parameters of a new head, a tree of arrays."""
        raise NotImplementedError

    def draw(
        self, keys: Sequence[jax.Array], fields: dict[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], Any]:
        """What a training batch shows, and what is to be said of it.

        Args:
            keys: two, for views and for what else is random.
            fields: stored pixels and labels.

        Returns:
            Images {sensor: [B, H, W, C]}, and targets, a tree of arrays [B, ...].
        """
        raise NotImplementedError

    def loss(self, head, encoded: Encoded, here: Present | None, targets) -> jax.Array:
        """How wrong a head is about a batch, or a part of one: a mean over samples.

        Args:
            head: its parameters.
            encoded: what the encoder says.
            here: what of it there is, see `Encoder.present`.
            targets: of `draw`.
        """
        raise NotImplementedError

    def result(self, params: nnx.State, head) -> Tuned:
        """What has been learnt: parameters of the encoder, and of the head."""
        raise NotImplementedError


class Finetuner(Generic[Tuned]):
    """Trains all parameters of an encoder, with a head, for a goal.

    It may do so any number of times, always from the same parameters: on other pairs,
    with other sensors, by other seeds. All these trainings share one compiled step.
    """

    def __init__(
        self, goal: Goal[Tuned], params: nnx.State, mesh: Mesh, min_size: int = 2**18
    ):
        """Prepares to train.

        Args:
            goal: what is learnt, by what encoder, and how.
            params: of the encoder; they stay as they are.
            mesh: the devices.
            min_size: kernels with fewer elements are not split over devices.

        Raises:
            InputError: the batch does not divide over the devices.
        """
        recipe = goal.recipe
        if recipe.batch_size % (mesh.size * recipe.accumulate):
            raise InputError(
                f"batch_size={recipe.batch_size} does not divide over {mesh.size} "
                f"devices in accumulate={recipe.accumulate} parts; choose a multiple "
                f"of {mesh.size * recipe.accumulate}."
            )
        self._goal, self.recipe, self._mesh = goal, recipe, mesh
        self._tx, self._params = optimizer(recipe, goal.encoder), params
        start = jax.eval_shape(self._start, params, jax.random.key(0))
        self._layout = sharding.layout(start, mesh, min_size)
        self._init = jax.jit(self._start, out_shardings=self._layout)
        self.step = jax.jit(
            self._step,
            donate_argnames="state",
            out_shardings=(self._layout, sharding.whole(mesh)),
        )

    def __call__(
        self, source, *, sensor_set: str, seed: int, directory, title: str
    ) -> Tuned:
        """Trains on the pairs of a source.

        Args:
            source: random-access pairs without texts.
            sensor_set: what is shown, see `encoder.SENSOR_SETS`.
            seed: of the head, of the order of pairs, and of all that a step draws.
            directory: for checkpoints of this training, which goes on from the last.
            title: of the progress.

        Raises:
            InputError: the sensor set is unknown, or the loss is not finite.
        """
        features.check_sensor_sets([sensor_set])
        recipe, mesh = self.recipe, self._mesh
        rates = learning_rates(recipe, len(source))
        here = present(sensor_set, recipe.batch_size, mesh)
        head_key, draw_key = streams.key(seed, "head"), streams.key(seed, "tuning")
        gather = jax.jit(lambda x: x, out_shardings=sharding.whole(mesh))
        draw_key = gather(draw_key)
        state = loop.train(
            lambda state, batch: self.step(state, draw_key, here, *batch),
            functools.partial(self._init, self._params, head_key),
            self._layout,
            lambda first: self._batches(source, first, rates, seed),
            len(rates),
            directory=directory,
            title=title,
        )
        tuned = gather(state.params)
        return self._goal.result(tuned["encoder"], tuned["head"])

    def abstract_state(self) -> TrainState:
        """Shapes and layout of what the step advances."""
        shapes = jax.eval_shape(self._start, self._params, jax.random.key(0))
        return checkpoint.abstract(shapes, self._layout)

    def _start(self, encoder: nnx.State, key: jax.Array) -> TrainState:
        # A copy, for the state will be donated, and the parameters are not ours.
        params = {
            "encoder": jax.tree.map(jnp.copy, encoder),
            "head": self._goal.init(key),
        }
        return TrainState(jnp.zeros((), jnp.int32), params, self._tx.init(params))

    def _batches(self, source, first: int, rates: np.ndarray, seed: int) -> Iterator:
        """Yields batches from `first` on, each with its learning rate."""
        stream = loop.load(
            source,
            batch_size=self.recipe.batch_size,
            seed=seed,
            first=first,
            mesh=self._mesh,
        )
        with contextlib.closing(stream):
            for fields, rate in zip(stream, rates[first:]):
                yield fields, sharding.to_all(rate, self._mesh)

    def draw(self, key: jax.Array, fields: dict[str, jax.Array]):
        """All that is random about a step, for the whole batch at once.

        Args:
            key: of the step.
            fields: stored pixels and labels.

        Returns:
            Images {sensor: [B, H, W, C]}, targets, see `Goal.draw`, and which branches
            count, see `layers.drop_path`, or None.
        """
        *keys, path_key = jax.random.split(key, 3)
        images, targets = self._goal.draw(keys, fields)
        batch = len(fields[self._goal.field])
        rate, blocks = self.recipe.drop_path, self._goal.encoder.depth
        branches = layers.drop_path(path_key, rate, blocks, batch) if rate else None
        return images, targets, branches

    def _step(self, state: TrainState, key, here, fields, rate):
        """Advances the state; returns it and the loss.

        Args:
            state: donated.
            key: of this training; each step makes one of its own.
            here: which sensors are shown, None for all.
            fields: stored pixels and labels.
            rate: the learning rate.
        """
        step_key = jax.random.fold_in(key, state.step)
        images, targets, branches = self.draw(step_key, fields)

        def loss_fn(params, images, targets, branches, here):
            here = self._goal.encoder.present(images, here)
            encoded = self._goal.encoder(
                params["encoder"],
                images,
                here,
                branches=None if branches is None else jnp.moveaxis(branches, 0, -1),
                remat=self.recipe.remat,
            )
            loss = self._goal.loss(params["head"], encoded, here, targets)
            return loss, loss

        if branches is not None:
            branches = jnp.moveaxis(branches, -1, 0)  # samples first, to be cut
        batch = images, targets, branches, here
        grads, loss = gradients(
            loss_fn, state.params, batch, self.recipe.accumulate, self._layout.params
        )
        updates, opt_state = self._tx.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p + rate * u, state.params, updates)
        return TrainState(state.step + 1, params, opt_state), loss


def optimizer(recipe: Recipe, encoder: Encoder) -> optax.GradientTransformation:
    """AdamW at a rate of 1, lower in deeper layers."""
    adamw = optim.adamw(
        1.0,
        b1=recipe.b1,
        b2=recipe.b2,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
    )
    return optax.chain(adamw, scale_by_layer(encoder, recipe.layer_decay))


def scale_by_layer(encoder: Encoder, decay: float) -> optax.GradientTransformation:
    """Multiplies finished updates, weight decay included, by `decay` to the power of
    how many layers lie above, see `Encoder.layer_of`; what is learnt on top of the
    encoder is left as it is.
    """

    def factor(path, _):
        part, _, name = sharding.leaf_path(path).partition("/")
        if part == "head":
            return 1.0
        return decay ** (encoder.depth + 1 - encoder.layer_of(name))

    def scale(updates, _):
        factors = jax.tree_util.tree_map_with_path(factor, updates)
        return jax.tree.map(lambda u, factor: u * factor, updates, factors)

    return optax.stateless(scale)


def learning_rates(recipe: Recipe, pairs: int) -> np.ndarray:
    """The learning rate of every step that a recipe takes on so many pairs.

    Few pairs may not fill a batch, which then has those of several epochs.
    """
    steps = recipe.epochs * pairs // recipe.batch_size
    steps = max(1, steps, recipe.least_steps)
    # A share of the steps, so that it fits however few there are.
    warmup = steps * recipe.warmup_epochs // recipe.epochs
    peak = recipe.base_lr * recipe.batch_size / 256
    rates = optim.schedule(peak, warmup, steps)(jnp.arange(steps))
    return np.asarray(rates, np.float32)
