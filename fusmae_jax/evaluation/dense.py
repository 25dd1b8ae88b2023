"""Dense probing: the class of every pixel from the tokens of a frozen encoder.

A batch is encoded once for heads of all learning rates, which are trained side by side
on the same tokens; the rate that does best on validation pairs is the one to be tested.
"""

import dataclasses
import math

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data_pipeline import sources
from data_pipeline.config_fields import (
    attribute,
    check_attributes,
    choice,
    number,
    several,
    whole,
)
from data_pipeline.errors import InputError
from fusmae_jax import streams
from fusmae_jax.evaluation import heads, labelled_data, linear_probe, loop, scores
from fusmae_jax.evaluation.dense_task import Task
from fusmae_jax.objectives.protocol import Encoder
from fusmae_jax.training import optim

WARMUP = 0.1  # share of the steps


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a head is trained."""

    head: str = attribute(
        choice(
            *heads.HEADS,
            meaning="One linear layer for all tokens, or a small upsampling network.",
        ),
        "linear",
    )
    epochs: int = attribute(
        whole(1, meaning="Passes over the training pairs, one window of each."), 20
    )
    least_steps: int = attribute(
        whole(
            0,
            meaning="Steps at least, as passes over a fraction of few pairs are few.",
        ),
        0,
    )
    batch_size: int = attribute(
        whole(1, meaning="Pairs of a step, over all devices and hosts."), 64
    )
    learning_rates: tuple[float, ...] = attribute(
        several(
            number(above=0.0),
            least=1,
            meaning="Learning rates of AdamW, of which validation chooses.",
        ),
        (3e-4, 1e-3, 3e-3, 1e-2),
    )
    weight_decay: float = attribute(
        number(least=0.0, meaning="Weight decay of the matrices."), 0.01
    )
    blocks: int = attribute(
        whole(1, meaning="Outputs of how many of the last blocks make a token."), 1
    )

    def __post_init__(self):
        check_attributes(self)

    @property
    def grid(self) -> linear_probe.Grid:
        """The settings, one for each learning rate."""
        return linear_probe.Grid(self.learning_rates, (self.weight_decay,))


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What validation chose, and how every learning rate did.

    Attributes:
        params: of the best head.
        learning_rate: that it was trained with.
        score: its mean IoU on validation pairs.
        scores: of every learning rate, -inf where one diverged, [R].
        at_edge: as `probe.Grid.at_edge` says.
        width: length of what the heads see of a patch.
        recipe: that all were trained by.
    """

    params: nnx.State
    learning_rate: float
    score: float
    scores: np.ndarray
    at_edge: tuple[str, ...]
    width: int
    recipe: Recipe


def fit(
    encoder: Encoder,
    params,
    train_source,
    validation_source,
    field: str,
    *,
    sensor_set: str,
    recipe: Recipe,
    mesh: Mesh,
    seed: int,
    directory,
    title: str,
) -> Fitted:
    """Trains a head at every learning rate and chooses one on validation pairs.

    Args:
        encoder: what makes tokens.
        params: its parameters, left as they are.
        train_source: random-access pairs without texts.
        validation_source: others.
        field: of the pixel labels.
        sensor_set: of `encoder.SENSOR_SETS`, that is shown.
        recipe: how heads are trained.
        mesh: the devices, over which batches are split.
        seed: of the heads, the order of pairs and their windows.
        directory: for checkpoints of this training, which goes on from the last.
        title: of the progress.

    Raises:
        InputError: the data cannot be used, or no head stayed finite.
    """
    task = make_task(encoder, params, train_source, field, mesh, recipe)
    sources.check_alike(train_source, validation_source)
    heads = _train(task, recipe, train_source, sensor_set, seed, directory, title)
    rates, size = recipe.learning_rates, recipe.batch_size
    found = _validate(task, heads, validation_source, sensor_set, size, title)
    best = int(found.argmax())  # the first of equals
    if found[best] == -math.inf:
        raise InputError(
            f"All {len(found)} dense heads diverged; lower their learning rates "
            f"{list(rates)}."
        )
    return Fitted(
        jax.tree.map(lambda x: x[best], heads),
        rates[best],
        float(found[best]),
        found,
        recipe.grid.at_edge(best),
        task.width,
        recipe,
    )


def _train(
    task: Task, recipe: Recipe, source, sensor_set: str, seed: int, directory, title
) -> nnx.State:
    """Parameters of heads, one for each learning rate."""
    steps, rates = _count_steps(recipe, task, source), recipe.learning_rates
    schedule = optim.schedule(1.0, int(WARMUP * steps), steps)
    tx = optim.adamw(schedule, weight_decay=recipe.weight_decay)
    here = task.here(sensor_set, recipe.batch_size)
    init, layout = task.start(tx, len(rates), streams.key(seed, "head"))
    step = task.train_step(tx, rates, layout, seed)
    state = loop.train(
        lambda state, fields: step(state, task.params, fields, here),
        init,
        layout,
        lambda first: loop.load(
            source,
            batch_size=recipe.batch_size,
            seed=seed,
            first=first,
            mesh=task.mesh,
        ),
        steps,
        directory=directory,
        title=title,
    )
    return state.params


def confusions(
    encoder: Encoder,
    params,
    fitted: Fitted,
    source,
    field: str,
    *,
    sensor_set: str,
    batch_size: int,
    mesh: Mesh,
    title: str = "dense probe",
) -> np.ndarray:
    """Judges a head on every pixel of every scene, for `scores.segmentation`.

    Args:
        encoder, params: those that the head was fitted with.
        fitted: the head.
        source: random-access pairs.
        field: of the pixel labels.
        sensor_set: that is shown.
        batch_size: pairs of a global batch.
        mesh: the devices.
        title: of the progress.

    Returns:
        Pixels of each scene, rows true and columns predicted, [N, C, C].

    Raises:
        InputError: the pairs have not these pixel labels.
    """
    task = make_task(encoder, params, source, field, mesh, fitted.recipe)
    return judge(task, fitted.params, source, sensor_set, batch_size, title)


def judge(
    task: Task, head, source, sensor_set: str, batch_size: int, title: str
) -> np.ndarray:
    """The same of a head of a task."""
    heads = jax.tree.map(lambda x: x[None], head)
    parts = task.judge(heads, source, sensor_set, batch_size, title)
    with loop.asked_only():
        return np.concatenate([part[0] for part in parts])


def make_task(
    encoder: Encoder, params, source, field: str, mesh: Mesh, recipe: Recipe
) -> Task:
    """The task that a recipe's heads learn, see `dense_task.Task`."""
    head, blocks = recipe.head, recipe.blocks
    return Task(encoder, params, source, field, mesh, head=head, blocks=blocks)


def _validate(
    task: Task, heads, source, sensor_set: str, batch_size: int, title: str
) -> np.ndarray:
    """Mean IoU of every head, [R]; -inf where it diverged."""
    title = f"{title}, validation"
    parts = task.judge(heads, source, sensor_set, batch_size, title)
    with loop.asked_only():
        total = sum(part.sum(axis=1, dtype=np.int64) for part in parts)
    found = [scores.segmentation(one[None], resamples=0).overall for one in total]
    miou = np.array([overall["miou"].value for overall in found])
    for x in map(np.asarray, jax.tree.leaves(heads)):
        miou[~np.isfinite(x).reshape(len(x), -1).all(axis=1)] = -math.inf
    return miou


def _count_steps(recipe: Recipe, task: Task, source) -> int:
    """Steps of the whole training.

    Raises:
        InputError: batches do not fit devices or pairs, or there is nothing to learn.
    """
    batch, devices = recipe.batch_size, task.mesh.size
    if batch % devices:
        raise InputError(
            f"batch_size={batch} does not divide over {devices} devices; choose a "
            "multiple of their number."
        )
    steps = max(recipe.epochs * len(source) // batch, recipe.least_steps)
    if steps < 1:
        raise InputError(
            f"{recipe.epochs} epochs of {len(source)} pairs are less than one batch of "
            f"{batch}; lower batch_size or raise epochs."
        )
    labelled_data.check_pixels(source, task.field, "training pairs")
    return steps
