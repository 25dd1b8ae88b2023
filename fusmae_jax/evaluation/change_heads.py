"""Heads that tell change from the tokens of two dates, trained and tested in folds.

Tokens are taken once, as the encoder stays as it is. Heads of all settings of a recipe
are trained side by side on the same windows, in one compiled program for all folds.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from data_pipeline.config_fields import (
    attribute,
    check_attributes,
    number,
    several,
    whole,
)
from fusmae_jax import streams
from fusmae_jax.evaluation import dense_task, heads, loop
from fusmae_jax.inputs import Windows
from fusmae_jax.training import optim, progress, sharding

WAYS = {
    "difference": lambda before, after: jnp.abs(after - before),
    "concatenation": lambda before, after: jnp.concatenate([before, after], axis=-1),
}
WARMUP = 0.1  # share of the steps


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a head is trained."""

    steps: int = attribute(whole(1, meaning="Steps of a head's training."), 300)
    batch_size: int = attribute(whole(1, meaning="Windows of a step."), 16)
    learning_rates: tuple[float, ...] = attribute(
        several(
            number(above=0.0),
            least=1,
            meaning="Learning rates of AdamW, of which validation chooses.",
        ),
        (3e-3, 1e-2, 3e-2, 0.1),
    )
    class_weights: tuple[float, ...] = attribute(
        several(
            number(above=0.0),
            least=1,
            meaning="How many times a changed pixel counts as much as another in the "
            "loss, as few have changed; validation chooses.",
        ),
        (1.0, 4.0, 16.0, 64.0),
    )
    weight_decay: float = attribute(
        number(least=0.0, meaning="Weight decay of the matrices."), 0.01
    )

    def __post_init__(self):
        check_attributes(self)

    @property
    def settings(self) -> list[tuple[float, float]]:
        """Learning rate and weight of a changed pixel of each of the R heads."""
        return list(itertools.product(self.learning_rates, self.class_weights))


def tokens_step(task: dense_task.Task):
    """The compiled `step(params, pixels, here)`: tokens of a batch, [B, T, h, w, D].

    Of the T windows that cover each scene.
    """
    corners = task.inputs.corners()

    @functools.partial(jax.jit, out_shardings=sharding.whole(task.mesh))
    def step(params, pixels, here):
        rows = len(pixels[task.field])
        seen = lambda corner: task.see(params, pixels, here, Windows.at(corner, rows))
        return jnp.moveaxis(jax.lax.map(seen, jnp.array(corners)), 0, 1)

    return step


def take_tokens(
    task: dense_task.Task, source, sensor_set: str, batch_size: int, title: str
) -> np.ndarray:
    """Tokens of windows that cover each scene, [N, T, h, w, D] on the host."""
    step, parts = tokens_step(task), []

    def start(pixels):
        here = task.here(sensor_set, len(pixels[task.field]))
        return step(task.params, pixels, here)

    options = dict(batch_size=batch_size, mesh=task.mesh)
    with progress.Progress(title, len(source), "pair", brief=True) as bar:
        for count, found in loop.over_pairs(start, source, task.fields, **options):
            parts.append(found[:count])
            bar.update(count)
    return np.concatenate(parts)


class Dates(NamedTuple):
    """What heads learn from, or are judged by.

    Attributes:
        before, after: tokens of windows of each place, [P, T, h, w, D].
        labels: indices of classes of each pixel, [P, S, S]; above 1 is none.
    """

    before: jax.Array
    after: jax.Array
    labels: jax.Array


class Heads:
    """Heads of one kind for all settings of a recipe, the first axis of parameters."""

    def __init__(
        self,
        task: dense_task.Task,
        head: str,
        way: str,
        recipe: Recipe,
        *,
        width: int,
        seed: int,
    ):
        """Prepares them for tokens of length `width`, combined in a `way`."""
        self.recipe, self._inputs, self._mesh = recipe, task.inputs, task.mesh
        self._seed = seed
        self._combine = WAYS[way]
        self.width = width * (2 if way == "concatenation" else 1)
        p = task.encoder.patch_size
        self._make = lambda rngs: heads.make(head, self.width, 2, p, rngs=rngs)
        self._graphdef = nnx.graphdef(nnx.eval_shape(lambda: self._make(nnx.Rngs(0))))

    def _logits(self, head: nnx.State, before, after) -> jax.Array:
        """What one head says of windows, [B, window, window, 2]."""
        x = nnx.merge(self._graphdef, head)(self._combine(before, after))
        return heads.resize(x, self._inputs.window)

    @functools.cached_property
    def fit(self):
        """The compiled `fit(dates, places, count) -> parameters`.

        All heads are trained side by side on random windows of the first `count` of
        `places`, which are filled up to one length, to be compiled for once.
        """
        recipe, corners = self.recipe, self._inputs.corners()
        rates, weights = jnp.array(recipe.settings, jnp.float32).T
        rise = int(WARMUP * recipe.steps)
        schedule = optim.schedule(1.0, rise, recipe.steps)
        tx = optim.adamw(schedule, weight_decay=recipe.weight_decay)

        def loss(head, weight, before, after, labels):
            logits = self._logits(head, before, after)
            losses = dense_task.cross_entropies(logits, labels)
            counts = jnp.where(labels == 1, weight, 1.0) * (labels < 2)
            return (losses * counts).sum() / jnp.maximum(counts.sum(), 1.0)

        def update(head, opt_state, rate, weight, *batch):
            grads = jax.grad(loss)(head, weight, *batch)
            updates, opt_state = tx.update(grads, opt_state, head)
            # AdamW's updates are proportional to its rate, its decay included.
            updates = jax.tree.map(lambda u: rate * u, updates)
            return optax.apply_updates(head, updates), opt_state

        @functools.partial(jax.jit, out_shardings=sharding.whole(self._mesh))
        def fit(dates: Dates, places, count):
            def step(state, key):
                place, window = jax.random.split(key)
                drawn = (recipe.batch_size,)
                i = places[jax.random.randint(place, drawn, 0, count)]
                t = jax.random.randint(window, drawn, 0, len(corners))
                windows = Windows.at(jnp.zeros(2, jnp.int32), recipe.batch_size)
                windows = windows._replace(corner=jnp.array(corners)[t])
                labels = self._inputs.cut(dates.labels[i], windows)
                batch = dates.before[i, t], dates.after[i, t], labels
                every = jax.vmap(update, (0, 0, 0, 0, None, None, None))
                return every(*state, rates, weights, *batch), None

            first = nnx.Rngs(streams.key(self._seed, "head"))
            _, head = nnx.split(self._make(first))
            spread = lambda x: jnp.broadcast_to(x, (len(rates), *x.shape))
            params = jax.tree.map(spread, head)
            state = params, jax.vmap(tx.init)(params)
            order = streams.key(self._seed, "tuning")
            keys = jax.random.split(order, recipe.steps)
            return jax.lax.scan(step, state, keys)[0][0]

        return fit

    def _say(self, params: nnx.State, place: Dates) -> jax.Array:
        """Which pixels of a place have changed, by each head, [R, S, S] bool."""
        logits = jax.vmap(self._logits, (0, None, None))
        y = logits(params, place.before, place.after)  # [R, T, window, window, 2]
        total = jnp.zeros((len(y), *place.labels.shape, 2))
        # Where windows overlap, the greatest sum is the greatest mean.
        for t, corner in enumerate(self._inputs.corners()):
            at = tuple(slice(int(c), int(c) + self._inputs.window) for c in corner)
            total = total.at[:, *at].add(y[:, t])
        return total[..., 1] > total[..., 0]

    @functools.cached_property
    def count(self):
        """The compiled `count(params, dates, places)`: pixels, [P, R, 2, 2]."""

        @functools.partial(jax.jit, out_shardings=sharding.whole(self._mesh))
        def count(params, dates, places):
            def one(i):
                place = jax.tree.map(lambda x: x[i], dates)
                each = functools.partial(dense_task.confusion, classes=2)
                said = self._say(params, place).astype(jnp.int32)
                return jax.vmap(each, (None, 0))(place.labels, said)

            return jax.lax.map(one, places)

        return count

    @functools.cached_property
    def say(self):
        """The compiled `say(params, dates, places)`: of one head, [P, S, S] bool."""

        @functools.partial(jax.jit, out_shardings=sharding.whole(self._mesh))
        def say(params, dates, places):
            def one(i):
                return self._say(params, jax.tree.map(lambda x: x[i], dates))[0]

            return jax.lax.map(one, places)

        return say


def cross_validate(
    made: Heads, dates: Dates, folds: np.ndarray, mesh: Mesh, title: str
) -> tuple[np.ndarray, list[tuple[float, float, float]]]:
    """Tests every fold by heads that others taught, chosen by one more.

    Args:
        made: the heads.
        dates: of P places.
        folds: of the places, [P].
        mesh: the devices, each of which holds all.
        title: of the progress.

    Returns:
        Which pixels are said to have changed, [P, S, S] bool; and of each fold the
        chosen learning rate, weight, and F1 on the fold that chose.
    """
    number = int(folds.max()) + 1
    said, chosen = np.zeros(dates.labels.shape, bool), []
    put = lambda x: sharding.to_all(x, mesh)
    dates = put(dates)
    # Of one length, or every fold would be compiled for.
    filled = lambda at, most: put(np.resize(at, most).astype(np.int32))
    largest = int(np.bincount(folds).max())
    with progress.Progress(title, number, "fold", brief=True) as bar:
        for test in range(number):
            chooses = (test + 1) % number
            learns = np.flatnonzero((folds != test) & (folds != chooses))
            count = put(np.int32(len(learns)))
            places = filled(learns, len(folds))
            params = made.fit(dates, places, count)
            at = np.flatnonzero(folds == chooses)
            counts = jax.device_get(made.count(params, dates, filled(at, largest)))
            f1 = _f1(counts[: len(at)].sum(axis=0))
            best = int(f1.argmax())  # the first of equals
            head = jax.tree.map(lambda x, best=best: x[best : best + 1], params)
            at = np.flatnonzero(folds == test)
            found = jax.device_get(made.say(head, dates, filled(at, largest)))
            said[at] = found[: len(at)]
            chosen.append((*made.recipe.settings[best], float(f1[best])))
            bar.update()
    return said, chosen


def _f1(counts: np.ndarray) -> np.ndarray:
    """Of change by confusion matrices [R, 2, 2]; 0 where none is said to be."""
    wrong, missed, right = counts[:, 0, 1], counts[:, 1, 0], counts[:, 1, 1]
    return 2 * right / np.maximum(2 * right + wrong + missed, 1)


def confusions(labels: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Pixels of places, rows true and columns said, [P, 2, 2].

    Args:
        labels: [P, S, S]; above 1 is none.
        said: [P, S, S] bool.
    """
    cells = [
        ((labels == true) & (said == bool(other))).sum(axis=(1, 2))
        for true, other in itertools.product((0, 1), (0, 1))
    ]
    return np.stack(cells, axis=1).reshape(-1, 2, 2)
