"""The linear probe: logistic regression on cached features, chosen on validation.

Every learning rate is trained with every weight decay; the setting that does best on
validation pairs is the one to be tested, once.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from data_pipeline.errors import InputError
from data_pipeline.config_fields import attribute, check_attributes, number, several
from fusmae_jax.evaluation import linear, scores


@dataclasses.dataclass(frozen=True)
class Grid:
    """Learning rates x weight decays; a setting is one of each, rates outermost.

    Rates are those of a batch of 256. The defaults suit features of unit variance.
    """

    learning_rates: tuple[float, ...] = attribute(
        several(
            number(above=0.0),
            least=1,
            meaning="Learning rates of SGD for batches of 256 pairs, of which "
            "validation chooses.",
        ),
        (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0),
    )
    weight_decays: tuple[float, ...] = attribute(
        several(
            number(least=0.0),
            least=1,
            meaning="Weight decays, each tried with every learning rate.",
        ),
        (0.0, 1e-4, 1e-3, 1e-2, 0.1),
    )

    def __post_init__(self):
        check_attributes(self)

    def settings(self) -> list[tuple[float, float]]:
        """The G pairs of learning rate and weight decay."""
        return list(itertools.product(self.learning_rates, self.weight_decays))

    def at_edge(self, g: int) -> tuple[str, ...]:
        """On which sides setting `g` has no neighbour that might do better still.

        Returns:
            Some of "highest learning rate", "lowest weight decay" and so on. An axis
            of one value has no sides, and there is nothing below a decay of 0.
        """
        names = ("learning rate", "weight decay")
        axes = (self.learning_rates, self.weight_decays)
        edges = []
        for name, value, axis in zip(names, self.settings()[g], axes):
            if value == max(axis) > min(axis):
                edges.append(f"highest {name}")
            if max(axis) > min(axis) == value > 0.0:
                edges.append(f"lowest {name}")
        return tuple(edges)


class Fit(NamedTuple):
    """What validation chose, and how every setting did."""

    probe: linear.Probe  # of the best setting alone
    learning_rate: float
    weight_decay: float
    score: float
    scores: np.ndarray  # [G], as `select` gives them
    at_edge: tuple[str, ...]  # as `Grid.at_edge` says


def fit(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    grid: Grid,
    mesh: Mesh,
    *,
    single: bool,
    **options,
) -> Fit:
    """Trains every setting of a grid and chooses one on validation pairs.

    Args:
        train: features [N, D] and labels [N, C].
        validation: features [M, D] and labels [M, C].
        grid: the settings.
        mesh: the devices.
        single: one class a pair, as in `linear.train`.
        **options: of `linear.train`.

    Raises:
        InputError: the data cannot be used, or no setting stayed finite.
    """
    linear.check_pairs("validation", *validation, single)
    if [x.shape[1] for x in train] != [x.shape[1] for x in validation]:
        raise InputError(
            f"Training pairs have {train[0].shape[1]} features and "
            f"{train[1].shape[1]} classes but validation pairs "
            f"{validation[0].shape[1]} and {validation[1].shape[1]}; extract both "
            "with one encoder and one class table."
        )
    trained = linear.train(*train, grid.settings(), mesh, single=single, **options)
    found = select(trained, *validation)
    best = int(found.argmax())  # the first of equals
    if found[best] == -math.inf:
        raise InputError(
            f"All {len(found)} settings of the probe diverged; lower its learning "
            f"rates {list(grid.learning_rates)}."
        )
    return Fit(
        trained.pick(best),
        *grid.settings()[best],
        float(found[best]),
        found,
        grid.at_edge(best),
    )


def select(probe: linear.Probe, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scores every setting of a probe on features [M, D] and labels [M, C].

    Returns:
        Accuracy where a pair has one class, else micro-averaged precision, [G]; -inf
        where a setting diverged.
    """
    found = np.full(len(probe.kernel), -math.inf)
    for g, probabilities in enumerate(probe.predict(features)):
        if not all(np.isfinite(x).all() for x in (probe.kernel[g], probabilities)):
            continue
        found[g] = scores.headline(probabilities, labels, probe.single)
    return found
