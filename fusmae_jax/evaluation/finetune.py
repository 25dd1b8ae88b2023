"""Fine-tuning: a linear head, and every parameter of the encoder with it.

What is not said otherwise follows the fine-tuning of MAE (He et al. 2021) and its
code: mean of tokens, a norm, a linear head that begins next to zero; AdamW with rates
that fall towards the patches; stochastic depth. Its colour changes, random erasing and
CutMix are left out: bands are measurements, and parts of a scene have other labels.
The last parameters are the result; no step is chosen by looking at any score.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from flax import nnx
from jax.sharding import Mesh

from data_pipeline import batches
from data_pipeline.errors import InputError
from fusmae_jax import layers, optim, sharding, views
from fusmae_jax.evaluation import features, layer_decay, loop
from fusmae_jax.evaluation.backbone import Backbone, boxes, present
from fusmae_jax.masking import SENSORS
from fusmae_jax.train import TrainState

log = logging.getLogger("fusmae_jax")

INIT_STD = 2e-5  # of the head's kernel, as in MAE's code


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an encoder is fine-tuned.

    Attributes:
        epochs: over the pairs.
        batch_size: pairs of a global batch.
        base_lr: peak of the learning rate for batches of 256; it grows with them.
        warmup_epochs: in which the rate rises, before it falls to 0 as a cosine.
        layer_decay: what the rate is multiplied by from one layer to the next deeper,
            see `layer_decay.layer`; 1 treats all alike.
        drop_path: chance that a sample skips a branch of the last block.
        weight_decay: of the matrices.
        b1, b2: decay of AdamW's moments.
        clip_norm: gradients longer than this are scaled down to it; 0 never clips.
        smoothing: share of each target that is spread evenly over what is possible.
        mixup: both parameters of the Beta distribution of the shares in which two
            samples and their targets are mixed; 0 mixes none.
        crop_scale: least and greatest area of a training crop, as a fraction of the
            scene's. Labels are those of scenes, and small crops lose some.
        turn: whether to draw flips and quarter turns.
        pool: what the head sees, see `features.Recipe`.
        view: what part of a scene is shown in predictions, see `backbone.boxes`. It
            should show about as much ground as training crops do.
    """

    epochs: int
    batch_size: int
    base_lr: float
    warmup_epochs: int = 5
    layer_decay: float = 0.65
    drop_path: float = 0.1
    weight_decay: float = 0.05
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float = 0.0
    smoothing: float = 0.0
    mixup: float = 0.0
    crop_scale: tuple[float, float] = (0.8, 1.0)
    turn: bool = True
    pool: str = "mean"
    view: str = "center"

    def __post_init__(self):
        for name, fits, what in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("base_lr", 0.0 < self.base_lr < math.inf, "above 0"),
            (
                "warmup_epochs",
                0 <= self.warmup_epochs < self.epochs,
                f"at least 0 and below epochs, {self.epochs}",
            ),
            ("layer_decay", 0.0 < self.layer_decay <= 1.0, "in (0, 1]"),
            ("drop_path", 0.0 <= self.drop_path < 1.0, "in [0, 1)"),
            ("weight_decay", 0.0 <= self.weight_decay < math.inf, "at least 0"),
            ("b1", 0.0 <= self.b1 < 1.0, "in [0, 1)"),
            ("b2", 0.0 <= self.b2 < 1.0, "in [0, 1)"),
            ("clip_norm", 0.0 <= self.clip_norm < math.inf, "at least 0"),
            ("smoothing", 0.0 <= self.smoothing < 1.0, "in [0, 1)"),
            ("mixup", 0.0 <= self.mixup < math.inf, "at least 0"),
        ):
            if not fits:
                value = getattr(self, name)
                raise InputError(f"finetune.{name} is {value}; it must be {what}.")
        features.Recipe(pool=self.pool, view=self.view)
        jax.eval_shape(lambda: self.draw_views(jax.random.key(0), 1))

    def draw_views(self, key: jax.Array, batch: int) -> views.View:
        """Draws the views of a training batch, shared by the sensors."""
        return views.draw_views(key, batch, scale=self.crop_scale, turn=self.turn)


class Tuned(NamedTuple):
    """A fine-tuned encoder and its head.

    Attributes:
        params: of the whole autoencoder; only those of its encoder have changed.
        head: `kernel` [D, C] and `bias` [C].
        recipe: it was made by.
        single: whether a pair has one class.
    """

    params: nnx.State
    head: dict[str, jax.Array]
    recipe: Recipe
    single: bool


def finetune(
    backbone: Backbone,
    params: nnx.State,
    source,
    labels_field: str,
    *,
    classes: int,
    single: bool,
    sensor_set: str,
    recipe: Recipe,
    mesh: Mesh,
    seed: int,
    directory,
    title: str,
    min_size: int = 2**18,
) -> Tuned:
    """Trains all parameters of an encoder to name the classes of pairs.

    Args:
        backbone: the encoder's graph, and how it sees the data.
        params: to begin with; they stay as they are.
        source: random-access pairs.
        labels_field: which of their fields holds the labels, 0 or 1, [C].
        classes: how many there are, C.
        single: a pair has one class: softmax and cross-entropy. Otherwise a sigmoid
            for each class, and the binary cross-entropy averaged over classes.
        sensor_set: what is shown, see `backbone.SENSOR_SETS`.
        recipe: how.
        mesh: the devices.
        seed: of the head, of the order of pairs, and of all that a step draws.
        directory: for checkpoints, of this one training; it goes on from the last.
        title: of the progress.
        min_size: kernels with fewer elements are not split over devices.

    Raises:
        InputError: the batch does not divide over the devices, the sensor set is
            unknown, or the loss is not finite.
    """
    features.check_sensor_sets([sensor_set])
    batch_size = recipe.batch_size
    if batch_size % mesh.size:
        raise InputError(
            f"finetune.batch_size is {batch_size} and does not divide over "
            f"{mesh.size} devices; choose a multiple."
        )
    head_key, step_key = jax.random.split(jax.random.key(seed))
    steps = max(1, recipe.epochs * len(source) // batch_size)
    tx = optimizer(recipe, steps, backbone.blocks)
    trained, rest = nnx.split_state(params, nnx.PathContains("encoder"), ...)
    init = _initializer(tx, _width(backbone, params, recipe.pool), classes)
    layout = sharding.layout(jax.eval_shape(init, trained, head_key), mesh, min_size)
    state = jax.jit(init, out_shardings=layout)(trained, head_key)
    step = make_step(
        backbone,
        recipe,
        tx,
        layout,
        mesh,
        labels_field=labels_field,
        single=single,
        sensor_set=sensor_set,
    )
    fields = source.description.layout.fields(backbone.objective.contract)
    state = loop.train(
        lambda state, batch: step(state, rest, step_key, batch),
        state,
        layout,
        lambda first: loop.load(
            source,
            fields=(*fields, labels_field),
            batch_size=batch_size,
            seed=seed,
            first=first,
            mesh=mesh,
        ),
        steps,
        directory=directory,
        title=title,
    )
    gather = jax.jit(lambda x: x, out_shardings=sharding.whole(mesh))
    tuned = gather(state.params)
    return Tuned(_join(rest, tuned["encoder"]), tuned["head"], recipe, single)


def _width(backbone: Backbone, params: nnx.State, how: str) -> int:
    """Length of the pooled features."""
    bands = backbone.objective.contract
    side = backbone.image_size
    images = {
        s: jax.ShapeDtypeStruct((1, side, side, len(bands[s].bands)), jnp.float32)
        for s in SENSORS
    }
    here = present("both", 1)

    def pooled(params, images):
        return features.pool(backbone.encode(params, images, here), here, how)

    return jax.eval_shape(pooled, params, images).shape[1]


def _initializer(tx: optax.GradientTransformation, width: int, classes: int):
    """Returns `init(encoder's params, key) -> state`, with a new head."""

    def init(trained, key):
        kernel = INIT_STD * jax.random.normal(key, (width, classes))
        head = {"kernel": kernel, "bias": jnp.zeros(classes)}
        # Copied, for the state will be donated, and the parameters are not ours.
        encoder = jax.tree.map(jnp.copy, trained["encoder"])
        params = {"encoder": encoder, "head": head}
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

    return init


def _join(rest: nnx.State, encoder: nnx.State) -> nnx.State:
    """Parameters of the whole autoencoder."""
    return nnx.merge_state(rest, nnx.State({"encoder": encoder}))


def optimizer(
    recipe: Recipe, steps: int, blocks: int
) -> optax.GradientTransformation:
    """AdamW whose rate warms up, falls as a cosine, and is lower in deeper layers."""
    peak = recipe.base_lr * recipe.batch_size / 256
    # A share of the steps, so that it fits however few pairs there are.
    warmup = steps * recipe.warmup_epochs // recipe.epochs
    return optax.chain(
        optim.adamw(
            optim.schedule(peak, warmup, steps),
            b1=recipe.b1,
            b2=recipe.b2,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
        ),
        layer_decay.scale_by_layer(blocks, recipe.layer_decay),
    )


def make_step(
    backbone: Backbone,
    recipe: Recipe,
    tx: optax.GradientTransformation,
    layout: TrainState,
    mesh: Mesh,
    *,
    labels_field: str,
    single: bool,
    sensor_set: str,
) -> Callable:
    """Returns the compiled `step(state, rest, key, fields) -> (state, loss)`.

    `rest` are the parameters that are not trained; of the key each step makes its own.
    """

    @jax.jit(donate_argnames="state", out_shardings=(layout, sharding.whole(mesh)))
    def step(state, rest, key, fields):
        keys = jax.random.split(jax.random.fold_in(key, state.step), 3)
        rows = len(fields[labels_field])
        images = backbone.images(fields, recipe.draw_views(keys[0], rows))
        targets = soften(fields[labels_field], recipe.smoothing, single)
        branches = None
        if recipe.drop_path:
            branches = layers.drop_path(
                keys[1], recipe.drop_path, backbone.blocks, rows
            )
        if recipe.mixup:
            share = jax.random.beta(keys[2], recipe.mixup, recipe.mixup, (rows,))
            images, targets = mix((images, targets), share)
        here = present(sensor_set, rows)

        def loss_fn(params):
            whole = _join(rest, params["encoder"])
            encoded = backbone.encode(whole, images, here, branches=branches)
            pooled = features.pool(encoded, here, recipe.pool)
            return loss(classify(params["head"], pooled), targets, single)

        value, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), value

    return step


def classify(head: dict[str, jax.Array], pooled: jax.Array) -> jax.Array:
    """Logits [B, C] of pooled tokens [B, D].

    A mean of tokens is shorter the less they agree; the norm makes up for it. Its own
    scale and shift would add nothing to a linear layer.
    """
    variance = pooled.var(axis=-1, keepdims=True)
    x = jax.nn.standardize(pooled, variance=variance, epsilon=1e-6)
    # They will be ranked; accelerators round float32 products unless asked not to.
    logits = jnp.matmul(x, head["kernel"], precision="highest")
    return logits + head["bias"][None]


def soften(labels: jax.Array, smoothing: float, single: bool) -> jax.Array:
    """Smoothed targets: a share goes evenly to all classes, or to yes and no of each.

    Args:
        labels: 0 or 1, [B, C].
        smoothing: the share; 0.2 makes 0.9 and 0.1 of a multi-label 1 and 0.
        single: whether a pair has one class.
    """
    even = 1.0 / labels.shape[1] if single else 0.5
    return labels.astype(jnp.float32) * (1.0 - smoothing) + even * smoothing


def mix(batch, share: jax.Array):
    """Mixes each sample with the one at its mirrored place in the batch.

    Batches come shuffled, so that is as random a partner as any other, and between
    devices it costs one exchange.

    Args:
        batch: any tree of arrays [B, ...].
        share: of the sample itself, [B].
    """

    def one(x):
        own = share.reshape(-1, *(1,) * (x.ndim - 1))
        return own * x + (1.0 - own) * x[::-1]

    return jax.tree.map(one, batch)


def loss(logits: jax.Array, targets: jax.Array, single: bool) -> jax.Array:
    """Cross-entropy of (soft) targets [B, C]: over classes, or mean of each one's."""
    if single:
        return optax.softmax_cross_entropy(logits, targets).mean()
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean()


def predict(
    backbone: Backbone,
    tuned: Tuned,
    source,
    *,
    sensor_set: str,
    mesh: Mesh,
    batch_size: int,
    title: str,
) -> np.ndarray:
    """Probabilities of the classes of all pairs, [N, C], mean of views.

    Args:
        backbone: as in `finetune`, or for a source with other grids.
        tuned: what `finetune` returned.
        source: random-access pairs.
        sensor_set: what is shown.
        mesh: the devices, over which batches are split.
        batch_size: pairs of a global batch.
        title: of the progress.
    """
    features.check_sensor_sets([sensor_set])
    count, fields = len(source), source.description.layout.fields(
        backbone.objective.contract
    )
    rows = -(-min(batch_size, count) // mesh.size) * mesh.size
    shown = boxes(tuned.recipe.view, backbone.image_size, backbone.scene_size)
    step = _make_predict_step(backbone, tuned, shown, sensor_set, rows, mesh)
    stream = batches.eval_batches(
        source,
        fields=fields,
        batch_size=rows,
        count=count,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    found = []
    bar = tqdm.tqdm(
        stream,
        desc=title,
        total=-(-count // rows),
        unit="batch",
        dynamic_ncols=True,
        disable=None if jax.process_index() == 0 else True,
    )
    for pixels, _ in bar:
        pixels = sharding.to_devices(pixels, mesh)
        found.append(step(tuned.params, tuned.head, pixels))
        if len(found) > loop.AHEAD:
            found[-loop.AHEAD].block_until_ready()
    return np.concatenate(jax.device_get(found))[:count]


def _make_predict_step(
    backbone: Backbone,
    tuned: Tuned,
    shown: Sequence[tuple[float, ...]],
    sensor_set: str,
    rows: int,
    mesh: Mesh,
) -> Callable:
    """Returns the compiled `step(params, head, fields) -> probabilities [B, C]`."""
    here = present(sensor_set, rows)
    activate = jax.nn.softmax if tuned.single else jax.nn.sigmoid

    @jax.jit(out_shardings=sharding.whole(mesh))
    def step(params, head, fields):
        def one(box):
            images = backbone.images(fields, views.fixed_view(rows, box))
            encoded = backbone.encode(params, images, here)
            pooled = features.pool(encoded, here, tuned.recipe.pool)
            return activate(classify(head, pooled))

        return sum(one(box) for box in shown) / len(shown)

    return step
