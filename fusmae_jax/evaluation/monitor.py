"""An encoder judged while it is being pretrained: kNN, a quick probe, an alarm."""

import logging

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline import sources, subsets
from fusmae_jax.config import check_judged
from fusmae_jax.evaluation import features, linear_probe, neighbours, scores
from fusmae_jax.evaluation.encoder import sensor_sets
from fusmae_jax.objectives.protocol import Objective
from fusmae_jax.training import metrics

log = logging.getLogger("fusmae_jax")

BATCH = 256
# One setting, so that nothing is chosen: the numbers are for comparing epochs.
QUICK = dict(epochs=30, batch_size=256, settings=[(0.1, 1e-4)])
MOST = 25_600  # features looked at; more than the directions of any encoder here
FEWEST = 16  # with less, a handful of alike images would look like a collapse

# Chosen from what was measured. Deviation: Gaussian noise 1.0, a constant with 1 %
# of noise 0.01, with 0.1 % 0.001; the quickstart's encoder 0.5 to 0.7 untrained, and
# trained, which is no collapse, 0.09 to 0.28, its global token 0.04 to 0.07.
LEAST_STD = 0.005
# Rank, of the directions there could be, but 2 at least: ten classes that do not vary
# within have 9 in any dimension, and 0.5 % of 1,536 is 7.7. Noise of 768 dimensions
# with one direction 100 times as strong as all others together has 6.4, 1,000 times
# 1.3. The trained encoder has 6.6 to 8.0 of 16, and 14 to 22 of 96.
LEAST_SHARE, LEAST_RANK = 0.005, 2.0


def effective_rank(features: np.ndarray) -> float:
    """In how many directions features vary: from 1 to min(N - 1, D).

    The exponential of the entropy of the singular values divided by their sum, as in
    RankMe (Garrido et al., arXiv 2210.02885), but of features around their mean. The
    quickstart's share a large mean, which takes their RankMe on the 17 sample pairs
    from 9 untrained to between 2 and 4 trained, though the rest tells images apart.

    Args:
        features: [N, D]; of more than 25,600, evenly spaced ones are used.

    Returns:
        0 if features vary by no more than float32's rounding; nan if one is not finite.
    """
    x = _some(features)
    if not np.isfinite(x).all():
        return float("nan")
    rounding = np.finfo(np.float32).eps * np.linalg.norm(x)
    x -= x.mean(axis=0, keepdims=True)
    # Squares of the singular values; float64 leaves the roots good to 1e-8 of the
    # largest, below the rounding of float32.
    squares = np.linalg.eigvalsh(x.T @ x if len(x) > x.shape[1] else x @ x.T)
    values = np.sqrt(np.maximum(squares, 0.0))
    values = values[values > rounding]
    if not len(values):
        return 0.0
    p = values / values.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def feature_std(features: np.ndarray) -> float:
    """How far features of length 1 spread: near 1 in all directions, 0 if all alike.

    Args:
        features: [N, D]; of more than 25,600, evenly spaced ones are used.

    Returns:
        The standard deviation of each dimension, averaged, times sqrt(D); nan if a
        feature is not finite.
    """
    x = _some(features)
    if not np.isfinite(x).all():
        return float("nan")
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    x /= np.maximum(norm, np.finfo(np.float64).tiny)
    return float(x.std(axis=0).mean() * np.sqrt(x.shape[1]))


def alarm(features: np.ndarray, what: str = "The features") -> str | None:
    """One sentence if features have collapsed; None if not, or if there are too few.

    Args:
        features: [N, D].
        what: the sentence's subject, in the plural.
    """
    n, d = features.shape
    with np.errstate(invalid="ignore"):
        bad = int((~np.isfinite(features.sum(axis=1))).sum())
    if bad:
        return f"{what} are not finite for {bad} of {n} images: the encoder diverged."
    if n < FEWEST:
        return None
    std, rank = feature_std(features), effective_rank(features)
    if std < LEAST_STD:
        return (
            f"{what} of {n} images have collapsed to nearly one point: their standard "
            f"deviation is {std:.2g}, where 0 is the same feature for every image and "
            "1 is features spread in all directions."
        )
    directions = min(n - 1, d)
    if rank < max(LEAST_RANK, LEAST_SHARE * directions):
        return (
            f"{what} of {n} images have collapsed to few directions: their effective "
            f"rank is {rank:.1f} of {directions}, so that nearly all that tells images "
            "apart lies along so many directions."
        )
    return None


def _some(features: np.ndarray) -> np.ndarray:
    """At most MOST rows, a copy in float64."""
    return features[:: max(1, -(-len(features) // MOST))].astype(np.float64)


class Monitor:
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
        train, held = (subsets.labelled(source, field) for source in (train, held))
        self._train = subsets.spread(train, config.judge.train_pairs)
        self._held = subsets.spread(held, config.judge.eval_pairs)
        self._labels = [s.index[field] for s in (self._train, self._held)]
        names = (config.data.split, config.data.eval_split)
        encoder = objective.encoder()
        described = (sources.describe(config.data, n) for n in names)
        self._sets = sensor_sets(*described, reads=encoder.sensors)
        self._extractor = features.Extractor(
            encoder, None, features.Recipe(), mesh, self._sets
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
            where every pair has one class; and, of the features of both sensors or
            the only one, `effective_rank` and `feature_std`. Nothing where a feature
            is not finite.
        """
        self._extractor.params = self._objective.encoder_params(params)
        train, held = (
            features.take(self._extractor, source, batch_size=BATCH)
            for source in (self._train, self._held)
        )
        self._extractor.params = None  # the next step will donate them
        both, row = held[self._sets[-1]], {}
        said = alarm(both)
        if said and jax.process_index() == 0:
            log.warning("Step %d: %s", step, said)
        if not all(np.isfinite(x).all() for x in (*train.values(), *held.values())):
            return row
        for s in self._sets:
            k = min(20, len(train[s]))
            near = neighbours.predict(train[s], self._labels[0], held[s], k=k)
            row[f"knn_{s}"] = self._score(near)
            row[f"probe_{s}"] = self._score(self._probe(train[s], held[s]))
        row["effective_rank"] = effective_rank(both)
        row["feature_std"] = feature_std(both)
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
        probe = linear_probe.train(
            train, self._labels[0], mesh=self._mesh, single=self._single, **options
        )
        return probe.predict(held)[0]

    def _score(self, predicted: np.ndarray) -> float:
        return scores.headline(predicted, self._labels[1], self._single)
