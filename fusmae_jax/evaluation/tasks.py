"""The tasks that judge an encoder: functions that return what they found.

Each is given the `Setup`, an encoder or what was taken by it, the training pairs to
learn from, and what is to be shown; `evaluate` calls them for all that is wanted.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data_pipeline import subsets
from fusmae_jax.evaluation import (
    classifier,
    dense,
    dense_task,
    features,
    finetune,
    labelled_data,
    linear_probe,
    neighbours,
    results,
    scores,
)
from fusmae_jax.evaluation.labelled_data import Labelled, Split, Subset
from fusmae_jax.evaluation.scores import Scores
from fusmae_jax.evaluation.store import Found, Setting, Store
from fusmae_jax.objectives.protocol import Encoder
from fusmae_jax.training import metrics

log = logging.getLogger("fusmae_jax")

# No training label is used by retrieval; the setting stands for all of them.
EVERYTHING = Subset(1.0, 0, np.empty(0, int))
DIRECTIONS = ("s1->s2", "s2->s1", "s1->s1", "s2->s2", "both->both")


class Candidate(NamedTuple):
    """An encoder that is judged, by its name in tables; or a rival of one."""

    name: str
    encoder: Encoder
    params: nnx.State


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all tasks share.

    Attributes:
        config: see `configs/probe_bigearthnet.py`.
        mesh: the devices.
        data: the labelled pairs.
        groups: which test pairs show the same ground, see `ground.groups`.
        store: where trainings keep their checkpoints.
        parameters: a checksum of those of the pretrained encoder.
    """

    config: object
    mesh: Mesh
    data: Labelled
    groups: np.ndarray
    store: Store
    parameters: str

    @property
    def intervals(self) -> dict:
        """How scores are resampled."""
        c = self.config
        return dict(resamples=c.bootstrap, seed=c.seed, groups=self.groups)

    def score(self, predicted: np.ndarray) -> Scores:
        """Scores of predictions for the test pairs, [N, C]."""
        labels = self.data.test.labels
        if self.data.single:
            return scores.single_label(predicted, labels, **self.intervals)
        per_batch = self.config.score_per_batch
        return scores.multi_label(
            predicted, labels, per_batch=per_batch, **self.intervals
        )

    def validated(self, score: float) -> dict[str, float]:
        """A score on the validation pairs; nothing where these are training pairs."""
        apart = self.data.validation.name != self.data.train.name
        return {"validation": score} if apart else {}

    def keep(self, setting: Setting, which: str, head, facts: dict, encoder=None):
        """Keeps what was learnt on the pretrained encoder, and of no rival.

        Args:
            setting: of the training.
            which: see `Setting.folder`.
            head, encoder: see `Store.keep_head`.
            facts: what this task says of its head.
        """
        if setting.encoder in results.RIVALS:
            return
        shared = {
            "task": setting.task,
            "encoder": setting.encoder,
            "parameters": self.parameters,
            "sensors": setting.sensors,
            "fraction": setting.subset.fraction,
            "scene_size": self.data.description.layout.size,
        }
        self.store.keep_head(setting.folder(which), head, shared | facts, encoder)

    def learnt_from(self, subset: Subset):
        """The training pairs of a subset."""
        source = self.data.train.source
        if len(subset.pairs) == len(self.data.train):
            return source
        return subsets.Subset(source, subset.pairs)


def judge_by_neighbours(setup: Setup, setting: Setting, taken) -> Found:
    """Labels of the nearest training pairs: nothing is learnt, nothing chosen.

    Args:
        setup: what all tasks share.
        setting: of this one.
        taken: features of all splits, {split: {sensor set: [N, D]}}.
    """
    options, subset, s = setup.config.knn, setting.subset, setting.sensors
    k = min(options.k, len(subset.pairs))
    predicted = neighbours.predict(
        taken["train"][s][subset.pairs],
        setup.data.train.labels[subset.pairs],
        taken["test"][s],
        k=k,
        temperature=options.temperature,
    )
    chosen = {} if k == options.k else {"k": k}
    width = taken["test"][s].shape[1]
    return Found(setup.score(predicted), width, chosen, predicted)


def judge_by_probe(setup: Setup, setting: Setting, taken) -> Found:
    """A linear layer on frozen features: chosen on validation, tested once."""
    options, data = setup.config.probe, setup.data
    subset, s = setting.subset, setting.sensors
    name = f"{setting.encoder}, {s}, {results.percent(subset.fraction)}"
    fitted = linear_probe.fit(
        (taken["train"][s][subset.pairs], data.train.labels[subset.pairs]),
        (taken["validation"][s], data.validation.labels),
        linear_probe.Grid(options.learning_rates, options.weight_decays),
        setup.mesh,
        single=data.single,
        norm=options.norm,
        epochs=options.epochs,
        batch_size=min(options.batch_size, len(subset.pairs)),
        seed=setup.config.seed,
        name=f"probe, {name}",
    )
    if fitted.at_edge:
        log.warning(
            "The best probe of %s (%s) has the %s of the grid; widen it with "
            "probe.learning_rates or weight_decays.",
            *(setting.encoder, s, " and the ".join(fitted.at_edge)),
        )
    facts = {
        "head": setting.task,
        "classes": data.classes,
        "single": data.single,
        "norm": options.norm,
        "features": dict(setup.config.features),
        "score": fitted.score,
    }
    setup.keep(setting, "linear", fitted.probe.arrays, facts)
    (predicted,) = fitted.probe.predict(taken["test"][s])
    chosen = {
        "learning_rate": fitted.learning_rate,
        "weight_decay": fitted.weight_decay,
        **setup.validated(fitted.score),
    }
    return Found(setup.score(predicted), taken["test"][s].shape[1], chosen, predicted)


def judge_by_retrieval(setup: Setup, setting: Setting, taken) -> Found:
    """Does an image find its partner of the other sensor, and pairs like it?"""
    options = setup.config.retrieval
    query, gallery = setting.sensors.split("->")
    found = neighbours.score_retrieval(
        taken["test"][query],
        taken["test"][gallery],
        setup.data.test.labels,
        ks=options.ks,
        same=query == gallery,
        center=options.center,
        **setup.intervals,
    )
    return Found(Scores(found, {}, None), taken["test"][query].shape[1])


# What is judged on features that are taken once.
ON_FEATURES = {
    "knn": judge_by_neighbours,
    "probe": judge_by_probe,
    "retrieval": judge_by_retrieval,
}


def directions(
    sensor_sets: Sequence[str], encoder: Encoder, labelled: bool
) -> list[str]:
    """From what to what retrieval leads, of the sensor sets that are shown.

    Within one set of sensors what is right is said by labels alone.
    """
    found = (direction.split("->") for direction in DIRECTIONS)
    return [
        f"{query}->{gallery}"
        for query, gallery in found
        if {query, gallery} <= set(sensor_sets)
        # Statistics of radar and of optical images have no number in common.
        and (encoder.trained or query == gallery)
        and (labelled or query != gallery)
    ]


def finetune_recipes(config, changes) -> list[finetune.Recipe]:
    """The recipes of which validation chooses one: one for each learning rate."""
    fields = {**config.finetune, **changes}
    shown = dict(pool=config.features.pool, view=config.features.view)
    rates = fields.pop("base_lr")
    return [finetune.Recipe(base_lr=rate, **fields, **shown) for rate in rates]


class FineTuning:
    """Trains everything, for each sensor set apart; tests once.

    All its trainings share what is compiled.
    """

    def __init__(self, setup: Setup, candidate: Candidate, changes):
        """Prepares to train `candidate` by the config's recipes with `changes`."""
        self._setup, self._candidate, self.name = setup, candidate, candidate.name
        self._recipes = finetune_recipes(setup.config, changes)
        shown = self._recipes[0]
        self._seen = features.Recipe(shown.pool, view=shown.view)

    @property
    def how(self) -> str:
        """How an image becomes what the head sees."""
        return str(self._seen)

    def _goal(self, recipe: finetune.Recipe) -> finetune.Goal:
        """What is learnt, by one of the recipes."""
        data, encoder = self._setup.data, self._candidate.encoder
        field, classes = self._setup.config.labels, len(data.classes)
        return classifier.Labels(encoder, recipe, field, classes, data.single)

    @functools.cached_property
    def _tuners(self) -> list[finetune.Finetuner]:
        params, mesh = self._candidate.params, self._setup.mesh
        goals = map(self._goal, self._recipes)
        return [finetune.Finetuner(goal, params, mesh) for goal in goals]

    @functools.cached_property
    def _extractor(self) -> features.Extractor:
        _, encoder, params = self._candidate
        mesh, sensors = self._setup.mesh, self._setup.config.sensors
        return features.Extractor(encoder, params, self._seen, mesh, sensors)

    def __call__(self, setting: Setting) -> Found:
        """Judges one setting.

        Raises:
            Diverged: no training stayed finite.
        """
        setup = self._setup
        names = tuple(setting.folder(recipe.base_lr) for recipe in self._recipes)
        tuned, chosen, score = self._tune(setting, names)
        facts = {
            "head": setting.task,
            "classes": setup.data.classes,
            "single": tuned.single,
            "norm": tuned.probe.norm,
            "features": dataclasses.asdict(self._seen),
            "score": score,
        }
        setup.keep(setting, "linear", tuned.probe.arrays, facts, tuned.params)
        predicted = self._predict(tuned, setup.data.test, setting.sensors)
        width = self._candidate.encoder.width * self._seen.copies
        return Found(setup.score(predicted), width, chosen, predicted, names)

    def _tune(self, setting: Setting, names: Sequence[str]):
        """Trains by every recipe; validation chooses.

        Returns:
            What it has learnt, what was chosen, and its score on the validation pairs.
        """
        setup, subset, s = self._setup, setting.subset, setting.sensors
        best, highest, chosen = None, -math.inf, {}
        for train, name in zip(self._tuners, names):
            rate = train.recipe.base_lr
            share = results.percent(subset.fraction)
            what = f"{setting.encoder}, {s}, {share}, rate {rate:g}"
            try:
                tuned = train(
                    setup.learnt_from(subset),
                    sensor_set=s,
                    seed=setup.config.seed,
                    directory=setup.store.training(name),
                    title=f"fine-tuning {what}",
                )
            except metrics.Diverged as error:
                setup.store.forget(name)
                log.warning("Fine-tuning %s: %s", what, error)
                if best is None and name == names[-1]:
                    raise
                continue
            score = self._validate(tuned, s)
            if best is None or score > highest:
                best, highest = tuned, score
                chosen = {"base_lr": rate, **setup.validated(score)}
        return best, chosen, highest

    def _validate(self, tuned, s: str) -> float:
        """The score on the validation pairs."""
        split = self._setup.data.validation
        predicted = self._predict(tuned, split, s)
        return scores.headline(predicted, split.labels, self._setup.data.single)

    def _predict(self, tuned, split: Split, s: str) -> np.ndarray:
        """Probabilities of a fine-tuned encoder for the pairs of a split, [N, C]."""
        return classifier.predict(
            self._extractor,
            tuned,
            split.source,
            sensor_set=s,
            batch_size=self._setup.config.batch_size,
            title=f"fine-tuned, {s}, {split.name}",
        )


def dense_recipes(config) -> list[dense.Recipe]:
    """The recipes that are compared: one for each kind of head."""
    fields = {**config.dense}
    del fields["field"], fields["encoders"]
    return [dense.Recipe(head=head, **fields) for head in fields.pop("heads")]


class MaskTuning(FineTuning):
    """The same for the classes of pixels, with a head of dense probing."""

    def __init__(
        self, setup: Setup, candidate: Candidate, changes, recipe: dense.Recipe
    ):
        """See `FineTuning`; `recipe` says which head, on which tokens."""
        super().__init__(setup, candidate, changes)
        self._head = recipe

    @property
    def how(self) -> str:
        """How an image becomes what is scored."""
        return f"{self._head.head} head, fine-tuned"

    @functools.cached_property
    def _task(self) -> dense_task.Task:
        setup, (_, *encoder) = self._setup, self._candidate
        field, source = setup.config.dense.field, setup.data.train.source
        return dense.make_task(*encoder, source, field, setup.mesh, self._head)

    def _goal(self, recipe: finetune.Recipe) -> finetune.Goal:
        return dense_task.Masks(self._task, recipe)

    def __call__(self, setting: Setting) -> Found:
        """Judges one setting.

        Raises:
            Diverged: no training stayed finite.
            InputError: none of the training pairs has a labelled pixel.
        """
        setup, task, kind = self._setup, self._task, self._head.head
        source = setup.learnt_from(setting.subset)
        labelled_data.check_pixels(source, task.field, "training pairs")
        names = [setting.folder(f"{kind}-{x.base_lr}-tuned") for x in self._recipes]
        tuned, chosen, score = self._tune(setting, names)
        facts = dense_facts(setup, self._head, score)
        setup.keep(setting, f"{kind}-tuned", tuned.head, facts, tuned.params)
        confusions = self._judge(tuned, setup.data.test, setting.sensors)
        found = scores.segmentation(confusions, **setup.intervals)
        return Found(found, task.width, chosen, trainings=tuple(names))

    def _validate(self, tuned, s: str) -> float:
        found = self._judge(tuned, self._setup.data.validation, s)
        total = found.sum(axis=0, keepdims=True, dtype=np.int64)
        return scores.segmentation(total, resamples=0).overall["miou"].value

    def _judge(self, tuned: dense_task.Tuned, split: Split, s: str) -> np.ndarray:
        """Confusion matrices of the pairs of a split, [N, C, C]."""
        title = f"fine-tuned, {s}, {self._head.head}, {split.name}"
        task, size = self._task.over(tuned.params), self._setup.config.batch_size
        return dense.judge(task, tuned.head, split.source, s, size, title)


def dense_facts(setup: Setup, recipe: dense.Recipe, score: float) -> dict:
    """What is said of a head that names classes of pixels."""
    maps = setup.data.description.maps
    return {
        "head": recipe.head,
        "blocks": recipe.blocks,
        "classes": maps[setup.config.dense.field],
        "score": score,
    }


def judge_densely(
    setup: Setup, setting: Setting, *, candidate: Candidate, recipe: dense.Recipe
) -> Found:
    """A head on frozen tokens, or on bare pixels: chosen on validation, tested once."""
    config, data, s = setup.config, setup.data, setting.sensors
    training = setting.folder(recipe.head)
    title = f"dense, {setting.encoder}, {s}, {recipe.head}"
    shared = dict(sensor_set=s, mesh=setup.mesh)
    encoder = candidate.encoder, candidate.params
    fitted = dense.fit(
        *encoder,
        setup.learnt_from(setting.subset),
        data.validation.source,
        config.dense.field,
        recipe=recipe,
        seed=config.seed,
        directory=setup.store.training(training),
        title=title,
        **shared,
    )
    if fitted.at_edge:
        log.warning(
            "The best %s has the %s of the grid; widen it with dense.learning_rates.",
            *(title, " and the ".join(fitted.at_edge)),
        )
    facts = dense_facts(setup, recipe, fitted.score)
    setup.keep(setting, recipe.head, fitted.params, facts)
    confusions = dense.confusions(
        *encoder,
        fitted,
        data.test.source,
        config.dense.field,
        batch_size=config.batch_size,
        title=f"test, {title}",
        **shared,
    )
    return Found(
        scores.segmentation(confusions, **setup.intervals),
        fitted.width,
        {"learning_rate": fitted.learning_rate, **setup.validated(fitted.score)},
        trainings=(training,),
    )
