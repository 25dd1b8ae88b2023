"""Fine-tuning: a linear head, and every parameter of the encoder with it.

What is not said otherwise follows the fine-tuning of MAE (He et al. 2021) and its
code: mean of tokens, a norm, a linear head that begins next to zero; AdamW with rates
that fall towards the patches; stochastic depth. Its colour changes, random erasing and
CutMix are left out: bands are measurements, and parts of a scene have other labels.
The last parameters are the result; no step is chosen by looking at any score.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from data_pipeline.errors import InputError
from fusmae_jax import layers, optim, sharding, views
from fusmae_jax.evaluation import classifier, features, layer_decay, loop
from fusmae_jax.evaluation.backbone import Backbone, present
from fusmae_jax.evaluation.classifier import Classifier
from fusmae_jax.train import TrainState


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
        view: which part of a scene is shown in predictions, see `backbone.boxes`; it
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
) -> Classifier:
    """Trains all parameters of an encoder to name the classes of pairs.

    Args:
        backbone: the encoder's graph, and how it sees the data.
        params: of the autoencoder, to begin with; they stay as they are.
        source: random-access pairs without texts.
        labels_field: which of their fields holds the labels, 0 or 1, [C].
        classes: how many there are, C.
        single: a pair has one class: softmax and cross-entropy. Otherwise a sigmoid
            for each class, and the binary cross-entropy averaged over classes.
        sensor_set: what is shown, see `backbone.SENSOR_SETS`.
        recipe: how.
        mesh: the devices.
        seed: of the head, of the order of pairs, and of all that a step draws.
        directory: for checkpoints of this training, which goes on from the last.
        title: of the progress.
        min_size: kernels with fewer elements are not split over devices.

    Raises:
        InputError: the batch does not divide over the devices, the sensor set is
            unknown, or the loss is not finite.
    """
    features.check_sensor_sets([sensor_set])
    if recipe.batch_size % mesh.size:
        raise InputError(
            f"A batch of {recipe.batch_size} does not divide over {mesh.size} devices; "
            "change finetune.batch_size."
        )
    head_key, draw_key = jax.random.split(jax.random.key(seed))
    # Few labels may not fill a batch, which then has pairs of several epochs.
    steps = max(1, recipe.epochs * len(source) // recipe.batch_size)
    tx = optimizer(recipe, steps, backbone.blocks)
    trained, rest = nnx.split_state(params, nnx.PathContains("encoder"), ...)

    def init(encoder, key):
        width = encoder["global_token"].shape[-1] * (1 + (recipe.pool == "sensors"))
        # A copy, for the state will be donated, and the parameters are not ours.
        params = {
            "encoder": jax.tree.map(jnp.copy, encoder),
            "head": classifier.init_head(key, width, classes),
        }
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

    start = (trained["encoder"], head_key)
    layout = sharding.layout(jax.eval_shape(init, *start), mesh, min_size)
    state = jax.jit(init, out_shardings=layout)(*start)
    step = make_step(backbone, recipe, tx, layout, mesh, labels_field, single)
    here = jax.device_put(present(sensor_set, recipe.batch_size), sharding.rows(mesh))
    state = loop.train(
        lambda state, fields: step(state, rest, draw_key, fields, here),
        state,
        layout,
        lambda first: loop.load(
            source,
            batch_size=recipe.batch_size,
            seed=seed,
            first=first,
            mesh=mesh,
        ),
        steps,
        directory=directory,
        title=title,
    )
    tuned = jax.jit(lambda x: x, out_shardings=sharding.whole(mesh))(state.params)
    params = join(rest, tuned["encoder"])
    return Classifier(params, tuned["head"], recipe.pool, recipe.view, single)


def join(rest: nnx.State, encoder: nnx.State) -> nnx.State:
    """Parameters of the whole autoencoder."""
    return nnx.merge_state(rest, nnx.State({"encoder": encoder}))


def optimizer(recipe: Recipe, steps: int, blocks: int) -> optax.GradientTransformation:
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
    labels_field: str,
    single: bool,
):
    """Returns the compiled `step(state, rest, key, fields, here) -> (state, loss)`.

    `rest` are the parameters that are not trained. All randomness derives from the
    key and the state's step, and is drawn for the whole batch at once.
    """

    def draw(key, fields):
        """What the network sees of a batch, targets, and which branches count."""
        view_key, mix_key, path_key = jax.random.split(key, 3)
        batch = len(fields[labels_field])
        images = backbone.images(fields, recipe.draw_views(view_key, batch))
        targets = classifier.soften(fields[labels_field], recipe.smoothing, single)
        if recipe.mixup:
            share = jax.random.beta(mix_key, recipe.mixup, recipe.mixup, (batch,))
            images, targets = classifier.mix((images, targets), share)
        rate, blocks = recipe.drop_path, backbone.blocks
        branches = layers.drop_path(path_key, rate, blocks, batch) if rate else None
        return images, targets, branches

    @jax.jit(donate_argnames="state", out_shardings=(layout, sharding.whole(mesh)))
    def step(state, rest, key, fields, here):
        images, targets, branches = draw(jax.random.fold_in(key, state.step), fields)

        def loss_fn(params):
            encoded = backbone.encode(
                join(rest, params["encoder"]), images, here, branches=branches
            )
            pooled = features.pool(encoded, here, recipe.pool)
            said = classifier.logits(params["head"], pooled)
            return classifier.loss(said, targets, single)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), loss

    return step
