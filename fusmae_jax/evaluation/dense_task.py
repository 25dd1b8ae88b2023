"""Heads on the tokens of an encoder: what compiled steps they learn and judge by.

Of a frozen encoder a batch is encoded once for all heads, which stand side by side; an
encoder that is trained with its head is one of `Masks`.
"""

import copy
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipeline.errors import InputError
from fusmae_jax import streams
from fusmae_jax.evaluation import finetune, heads, loop
from fusmae_jax.evaluation.encoder import check_blocks, present, shown
from fusmae_jax.inputs import SENSORS, Present, Windows
from fusmae_jax.objectives.protocol import Encoded, Encoder
from fusmae_jax.training import checkpoint, progress, sharding
from fusmae_jax.training.train import TrainState


def tokens(
    encoder: Encoder,
    params,
    images: dict[str, jax.Array],
    here: Present | None,
    blocks: int,
) -> jax.Array:
    """Maps of tokens of images, [B, h, w, D], see `arrange`."""
    here = encoder.present(images, here)
    return arrange(encoder, encoder(params, images, here), here, blocks)


def arrange(
    encoder: Encoder, encoded: Encoded, here: Present | None, blocks: int
) -> jax.Array:
    """Maps of tokens, [B, h, w, D], the mean over the sensors that are present there.

    They have mean 0 and variance 1 over D, so that the mean of two sensors and one
    alone, and any encoder, come to the head at one scale. The measurements of an
    encoder that has no parameters stand side by side and stay as they are: bands are
    normalised already, and a patch would lose its brightness. Zeros stand where no
    sensor is.
    """
    found = encoded.last(blocks).tokens
    if not encoder.trained:
        x = jnp.concatenate([found[s] for s in SENSORS], axis=-1)
    else:
        there = shown(here, len(encoded.summary))
        there = {s: x.reshape(len(x), -1, 1) for s, x in there.items()}
        total = sum(jnp.where(there[s], found[s], 0.0) for s in SENSORS)
        x = total / jnp.maximum(sum(there.values()), 1)
        x = jax.nn.standardize(x.astype(jnp.float32), axis=-1, epsilon=1e-6)
    return x.reshape(len(x), encoder.side, encoder.side, -1)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over labelled pixels, 0 where there is none.

    Args:
        logits: [B, H, W, C].
        labels: indices of classes, [B, H, W]; any other number is no label.
    """
    labelled = labels < logits.shape[-1]
    return cross_entropies(logits, labels).sum() / jnp.maximum(labelled.sum(), 1)


def cross_entropies(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Of every pixel, [B, H, W], 0 where it has no label; see `cross_entropy`.

    Args:
        logits, labels: see there.
        smoothing: share of each label that goes evenly to all classes.
    """
    labelled = labels < logits.shape[-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(labelled, labels, 0).astype(jnp.int32)
    )
    if smoothing:
        even = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
        losses = (1.0 - smoothing) * losses + smoothing * even
    return jnp.where(labelled, losses, 0.0)


def confusion(labels: jax.Array, predicted: jax.Array, classes: int) -> jax.Array:
    """Counts pixels of one scene, rows true and columns predicted, [C, C] int32.

    Pixels whose label is no class are left out.
    """
    pair = labels.astype(jnp.int32) * classes + predicted
    pair = jnp.where(labels < classes, pair, classes**2).ravel()
    counts = jnp.bincount(pair, length=classes**2 + 1)[:-1]
    return counts.reshape(classes, classes)


class Task:
    """Pixel labels of one dataset, and the compiled steps that learn and judge them.

    Every head is one of R, the first axis of each of its parameters.
    """

    def __init__(
        self,
        encoder: Encoder,
        params,
        source,
        field: str,
        mesh: Mesh,
        *,
        head: str,
        blocks: int,
    ):
        """Prepares heads for the classes of `field` in `source`.

        Args:
            encoder: what makes tokens.
            params: its parameters.
            source: random-access pairs.
            field: of the pixel labels.
            mesh: the devices, over which batches are split.
            head: one of `dense_heads.HEADS`.
            blocks: outputs of how many of the encoder's last blocks make a token.

        Raises:
            InputError: there are no such labels, or not so many blocks.
        """
        description = source.description
        if field not in description.maps:
            raise InputError(
                f"{description.name} has no pixel labels {field!r}; it has "
                f"{list(description.maps)}."
            )
        if encoder.trained:
            check_blocks("blocks", blocks, encoder.depth)
        self.encoder, self.params, self.mesh = encoder, params, mesh
        self.field, self.names = field, description.maps[field]
        self.inputs = encoder.inputs
        self.fields = (*description.layout.fields(self.inputs.contract), field)
        self._head, self.blocks = head, blocks

    def over(self, params) -> "Task":
        """The same with other parameters of the encoder; what is compiled is shared."""
        other = copy.copy(self)
        other.params = params
        return other

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.names)

    def here(self, sensor_set: str, rows: int) -> Present | None:
        """A batch whose samples all show `sensor_set`, on the devices."""
        return present(sensor_set, rows, self.mesh)

    @functools.cached_property
    def width(self) -> int:
        """Length of what a head sees of a patch."""
        size = self.inputs.size
        images = {
            s: jax.ShapeDtypeStruct((1, size, size, len(sensor.bands)), jnp.float32)
            for s, sensor in self.inputs.contract.items()
        }
        encode = functools.partial(tokens, self.encoder, blocks=self.blocks)
        return jax.eval_shape(encode, self.params, images, None).shape[-1]

    def head(self, rngs: nnx.Rngs) -> nnx.Module:
        """A fresh head."""
        p = self.encoder.patch_size
        return heads.make(self._head, self.width, self.classes, p, rngs=rngs)

    @functools.cached_property
    def graphdef(self) -> nnx.GraphDef:
        """Of the head."""
        return nnx.graphdef(nnx.eval_shape(lambda: self.head(nnx.Rngs(0))))

    def see(self, params, fields, here: Present | None, windows) -> jax.Array:
        """Tokens of windows of stored pixels, [B, h, w, D]."""
        images = self.inputs.images(fields, self.inputs.window_view(windows))
        return tokens(self.encoder, params, images, here, self.blocks)

    def logits(self, head: nnx.State, x: jax.Array) -> jax.Array:
        """What one head says of every pixel of windows, [B, H, W, C]."""
        # Resampling logits is resampling what a last linear layer makes them of.
        return heads.resize(nnx.merge(self.graphdef, head)(x), self.inputs.window)

    def start(self, tx: optax.GradientTransformation, count: int, key: jax.Array):
        """What makes the state of `count` equal heads, and the state's layout.

        It lies whole on every device.
        """
        _, layout = self.abstract_state(tx, count)
        init = functools.partial(self._init, tx, count)
        init = jax.jit(init, out_shardings=layout)
        return functools.partial(init, key), layout

    def abstract_state(self, tx: optax.GradientTransformation, count: int):
        """Shapes and layout of that state, and the layout alone."""
        init = functools.partial(self._init, tx, count)
        shapes, whole = (
            jax.eval_shape(init, jax.random.key(0)),
            sharding.whole(self.mesh),
        )
        layout = jax.tree.map(lambda _: whole, shapes)
        return checkpoint.abstract(shapes, layout), layout

    def _init(self, tx: optax.GradientTransformation, count: int, key: jax.Array):
        _, head = nnx.split(self.head(nnx.Rngs(key)))
        heads = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), head)
        return TrainState(jnp.zeros((), jnp.int32), heads, jax.vmap(tx.init)(heads))

    def train_step(self, tx, rates: Sequence[float], layout: TrainState, seed: int):
        """Returns the compiled `step(state, params, fields, here) -> (state, loss)`.

        Args:
            tx: AdamW at a learning rate of 1.
            rates: learning rates of the heads, [R].
            layout: of the state.
            seed: from which, and from the step, windows derive.

        The loss is the lowest of the heads', as at too high a rate one may diverge.
        """
        whole = sharding.whole(self.mesh)

        @jax.jit(donate_argnames="state", out_shardings=(layout, whole))
        def step(state, params, fields, here):
            now = jax.random.fold_in(streams.key(seed, "tuning"), state.step)
            labels = fields[self.field]
            drawn = self.inputs.draw_windows(now, len(labels))
            labels = self.inputs.cut(labels, drawn)
            x = self.see(params, fields, here, drawn)

            def update(head, opt_state, rate):
                loss, grads = jax.value_and_grad(
                    lambda head: cross_entropy(self.logits(head, x), labels)
                )(head)
                updates, opt_state = tx.update(grads, opt_state, head)
                # AdamW's updates are proportional to its rate, its decay included.
                updates = jax.tree.map(lambda u: rate * u, updates)
                return optax.apply_updates(head, updates), opt_state, loss

            heads, opt_state, losses = jax.vmap(update)(
                state.params, state.opt_state, jnp.array(rates, jnp.float32)
            )
            return TrainState(state.step + 1, heads, opt_state), jnp.nanmin(losses)

        return step

    def judge(
        self, heads, source, sensor_set: str, batch_size: int, title: str
    ) -> Iterator[np.ndarray]:
        """Yields confusion matrices of batches of scenes, [R, n, C, C] int32."""
        step = self.judge_step

        def start(fields):
            here = self.here(sensor_set, len(fields[self.field]))
            return step(heads, self.params, fields, here)

        options = dict(batch_size=batch_size, mesh=self.mesh)
        with progress.Progress(title, len(source), "pair") as bar:
            for count, found in loop.over_pairs(start, source, self.fields, **options):
                bar.update(count)
                yield found[:, :count]

    @functools.cached_property
    def judge_step(self):
        """The compiled `step(heads, params, fields, here) -> [R, B, C, C]`."""
        corners = self.inputs.corners()
        rows = NamedSharding(self.mesh, P(None, *sharding.BATCH))

        @functools.partial(jax.jit, out_shardings=sharding.whole(self.mesh))
        def step(heads, params, fields, here):
            labels = fields[self.field]

            def add(total, corner):
                windows = Windows.at(corner, len(labels))
                x = self.see(params, fields, here, windows)
                y = jax.vmap(self.logits, (0, None))(heads, x)
                place = (0, 0, *corner, 0)
                y += jax.lax.dynamic_slice(total, place, y.shape)
                return jax.lax.dynamic_update_slice(total, y, place), None

            count = len(jax.tree.leaves(heads)[0])
            total = jnp.zeros((count, *labels.shape, self.classes))
            total = jax.lax.with_sharding_constraint(total, rows)
            # Where tiles overlap, the greatest sum is the greatest mean.
            total, _ = jax.lax.scan(add, total, jnp.array(corners))
            per_scene = jax.vmap(functools.partial(confusion, classes=self.classes))
            return jax.vmap(per_scene, (None, 0))(labels, total.argmax(axis=-1))

        return step


class Tuned(NamedTuple):
    """An encoder and a head of `heads` that were trained together.

    Attributes:
        params: of the encoder.
        head: its parameters.
    """

    params: nnx.State
    head: nnx.State


@dataclasses.dataclass(frozen=True, eq=False)
class Masks(finetune.Goal[Tuned]):
    """The classes of pixels, by a head on tokens of an encoder that learns with it.

    Attributes:
        task: the pixel labels, the encoder and the head.
        recipe: see `finetune.Goal`; windows are cut in whole pixels, as in all dense
            probing, so that crops have no scale, and none is mixed with another.
    """

    task: Task
    recipe: finetune.Recipe

    @property
    def encoder(self) -> Encoder:
        """See `finetune.Goal`."""
        return self.task.encoder

    @property
    def field(self) -> str:
        """See `finetune.Goal`."""
        return self.task.field

    def init(self, key):
        """See `finetune.Goal`."""
        return nnx.split(self.task.head(nnx.Rngs(key)))[1]

    def draw(self, keys, fields):
        """See `finetune.Goal`.

        Targets are labels [B, window, window], and what the sum over the pixels of each
        sample counts, [B]: the mean over all samples is that over all labelled pixels,
        however they are spread over the parts of a batch.
        """
        labels, inputs = fields[self.field], self.task.inputs
        windows = inputs.draw_windows(keys[0], len(labels), self.recipe.turn)
        images = inputs.images(fields, inputs.window_view(windows))
        labels = inputs.cut(labels, windows)
        count = (labels < self.task.classes).sum()
        weight = jnp.full(len(labels), len(labels) / jnp.maximum(count, 1))
        return images, (labels, weight)

    def loss(self, head, encoded, here, targets):
        """See `finetune.Goal`."""
        labels, weight = targets
        x = arrange(self.encoder, encoded, here, self.task.blocks)
        logits = self.task.logits(head, x)
        losses = cross_entropies(logits, labels, self.recipe.smoothing)
        return (losses.sum(axis=(1, 2)) * weight).mean()

    def result(self, params, head):
        """See `finetune.Goal`."""
        return Tuned(params, head)
