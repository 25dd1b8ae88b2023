"""Judging an encoder while it is being pretrained: kNN, a quick probe, an alarm."""

import logging

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline import sources, subsets
from fusmae_jax.training import metrics
from fusmae_jax.config import check_judged
from fusmae_jax.evaluation import collapse, features, knn, linear, scores
from fusmae_jax.evaluation.encoder import SENSOR_SETS
from fusmae_jax.objectives.protocol import Objective

log = logging.getLogger("fusmae_jax")

BATCH = 256
# One setting, so that nothing is chosen: the numbers are for comparing epochs.
QUICK = dict(epochs=30, batch_size=256, settings=[(0.1, 1e-4)])


class Judge:
    """Judges the parameters of a pretraining every few epochs."""

    def __init__(self, config, objective: Objective, mesh: Mesh, train, held):
        """Chooses the pairs to judge on, evenly spread over the splits.

        Args:
            config: of the pretraining.
            objective: whose encoder is judged.
            mesh: the devices.
            train: the training pairs, whose labels are in their index.
            held: pairs that are not trained on.

        Raises:
            InputError: the data have no such labels, or held-out pairs have others.
        """
        self._every = config.judge.every * len(train)
        self._batch, self._mesh, self._objective = config.batch_size, mesh, objective
        if not self._every:
            return
        field = config.judge.labels
        check_judged(field, train.description)
        sources.check_alike(train, held, (*train.fields, field))
        self._train = subsets.spread(train, config.judge.train_pairs)
        self._held = subsets.spread(held, config.judge.eval_pairs)
        self._labels = [s.index[field] for s in (self._train, self._held)]
        self._extractor = features.Extractor(
            objective.encoder(), None, features.Recipe(), mesh, tuple(SENSOR_SETS)
        )

    def due(self, step: int, steps: int) -> bool:
        """Whether the parameters of a step are to be judged; those of the last are."""
        if not self._every:
            return False
        before, now = ((n * self._batch) // self._every for n in (step - 1, step))
        return now > before or step == steps

    def run(self, step: int, params, writer: metrics.MetricWriter) -> dict[str, float]:
        """Judges, writes the numbers, and warns in words of collapsed features.

        Returns:
            For each sensor set `knn_<set>` and `probe_<set>`: micro mAP, or accuracy
            where every pair has one class; and, of the features of both sensors,
            `effective_rank` and `feature_std`. Nothing where a feature is not finite.
        """
        self._extractor.params = self._objective.encoder_params(params)
        train, held = (
            features.take(self._extractor, source, batch_size=BATCH)
            for source in (self._train, self._held)
        )
        self._extractor.params = None  # the next step will donate them
        both, row = held["both"], {}
        alarm = collapse.alarm(both)
        if alarm and jax.process_index() == 0:
            log.warning("Step %d: %s", step, alarm)
        if not all(np.isfinite(x).all() for x in (*train.values(), *held.values())):
            return row
        for s in SENSOR_SETS:
            k = min(20, len(train[s]))
            near = knn.predict(train[s], self._labels[0], held[s], k=k)
            row[f"knn_{s}"] = self._score(near)
            row[f"probe_{s}"] = self._score(self._probe(train[s], held[s]))
        row["effective_rank"] = collapse.effective_rank(both)
        row["feature_std"] = collapse.feature_std(both)
        if jax.process_index() == 0:
            writer.write_now(step, row)
            numbers = ", ".join(f"{name} {value:.3g}" for name, value in row.items())
            log.info("Judged at step %d: %s", step, numbers)
        return row

    @property
    def _single(self) -> bool:
        return all((labels.sum(axis=1) == 1).all() for labels in self._labels)

    def _probe(self, train: np.ndarray, held: np.ndarray) -> np.ndarray:
        options = dict(QUICK) | {"batch_size": min(QUICK["batch_size"], len(train))}
        probe = linear.train(
            train, self._labels[0], mesh=self._mesh, single=self._single, **options
        )
        return probe.predict(held)[0]

    def _score(self, predicted: np.ndarray) -> float:
        return scores.headline(predicted, self._labels[1], self._single)
