"""A linear head on an encoder: what it says of pairs, and how wrong that is."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fusmae_jax.evaluation import features, finetune, linear_probe
from fusmae_jax.objectives.protocol import Encoder
from fusmae_jax.training import progress

INIT_STD = 2e-5  # of the kernel, as in MAE's code: the head begins by saying nothing


class Classifier(NamedTuple):
    """An encoder and a head that were trained together.

    Attributes:
        params: of the encoder.
        head: see `init_head`.
        pool, view: what the head sees of a pair, see `features.Recipe`.
        single: whether a pair has one class: softmax, else a sigmoid for each.
    """

    params: nnx.State
    head: dict[str, jax.Array]
    pool: str
    view: str
    single: bool

    @property
    def probe(self) -> linear_probe.Probe:
        """The head as what it is: a linear layer behind a norm of each pair."""
        kernel, bias = (jax.device_get(self.head[x])[None] for x in ("kernel", "bias"))
        mean, scale = linear_probe.statistics(kernel[..., 0], "layer")
        return linear_probe.Probe(kernel, bias, mean, scale, "layer", self.single)


@dataclasses.dataclass(frozen=True, eq=False)
class Labels(finetune.Goal[Classifier]):
    """The classes of pairs, by a linear head on pooled tokens behind a norm.

    Attributes:
        encoder, recipe: see `finetune.Goal`.
        field: of a pair, that holds its labels, 0 or 1, [C].
        classes: how many there are, C.
        single: a pair has one class: softmax and cross-entropy. Otherwise a sigmoid for
            each class, and the binary cross-entropy averaged.
    """

    encoder: Encoder
    recipe: finetune.Recipe
    field: str
    classes: int
    single: bool

    def init(self, key):
        """See `finetune.Goal`."""
        width = self.encoder.width * features.Recipe(self.recipe.pool).copies
        return init_head(key, width, self.classes)

    def draw(self, keys, fields):
        """See `finetune.Goal`."""
        recipe, labels, (view_key, mix_key) = self.recipe, fields[self.field], keys
        views = recipe.draw_views(view_key, len(labels))
        images = self.encoder.inputs.images(fields, views)
        targets = soften(labels, recipe.smoothing, self.single)
        if recipe.mixup:
            size = (len(labels),)
            share = jax.random.beta(mix_key, recipe.mixup, recipe.mixup, size)
            images, targets = mix((images, targets), share)
        return images, targets

    def loss(self, head, encoded, here, targets):
        """See `finetune.Goal`."""
        pooled = features.pool(encoded, here, self.recipe.pool)
        return loss(logits(head, pooled), targets, self.single)

    def result(self, params, head):
        """See `finetune.Goal`."""
        return Classifier(params, head, self.recipe.pool, self.recipe.view, self.single)


def init_head(key: jax.Array, width: int, classes: int) -> dict[str, jax.Array]:
    """A new head, `kernel` [D, C] and `bias` [C]."""
    kernel = INIT_STD * jax.random.normal(key, (width, classes))
    return {"kernel": kernel, "bias": jnp.zeros(classes)}


def logits(head: dict[str, jax.Array], pooled: jax.Array) -> jax.Array:
    """What the head says of pooled tokens [B, D], [B, C].

    A mean of tokens is shorter the less they agree; the norm makes up for it. A scale
    and shift of its own would add nothing to a linear layer.
    """
    variance = pooled.var(axis=-1, keepdims=True)
    x = jax.nn.standardize(pooled, variance=variance, epsilon=1e-6)
    # They will be ranked; accelerators round float32 products unless asked not to.
    return jnp.matmul(x, head["kernel"], precision="highest") + head["bias"][None]


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
    """Mixes each sample with the one at the mirrored place of the batch.

    Batches come shuffled, so that this is as random a partner as any other.

    Args:
        batch: any tree of arrays [B, ...].
        share: of the sample itself, [B].
    """

    def one(x):
        own = share.reshape(-1, *(1,) * (x.ndim - 1))
        return own * x + (1.0 - own) * x[::-1]

    return jax.tree.map(one, batch)


def loss(said: jax.Array, targets: jax.Array, single: bool) -> jax.Array:
    """Cross-entropy of logits and targets [B, C], which need not be 0 or 1.

    Without `single` it is the mean of every class's own.
    """
    if single:
        return optax.softmax_cross_entropy(said, targets).mean()
    return optax.sigmoid_binary_cross_entropy(said, targets).mean()


def predict(
    extractor: features.Extractor,
    classifier: Classifier,
    source,
    *,
    sensor_set: str,
    batch_size: int,
    title: str,
) -> np.ndarray:
    """Probabilities of the classes of all pairs, [N, C].

    Args:
        extractor: takes features as the classifier wants them, with any parameters.
        classifier: its parameters, and what stands on it.
        source: random-access pairs.
        sensor_set: what is shown, see `encoder.SENSOR_SETS`.
        batch_size: pairs of a global batch.
        title: of the progress.

    Raises:
        InputError: the sensor set is unknown.
    """
    extractor = extractor.over(classifier.params, [sensor_set])
    with progress.Progress(title, len(source), "pair") as bar:
        taken = features.take(extractor, source, batch_size=batch_size, bar=bar)
    return classifier.probe.predict(taken[sensor_set])[0]
