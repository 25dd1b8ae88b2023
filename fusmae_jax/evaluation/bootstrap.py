"""Bootstrap intervals: how far a score would move with other samples.

Samples of one group are alike, such as images of the same ground, and tell less than as
many that are not. So groups are drawn, and all samples of a group with it.
"""

import concurrent.futures
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_pipeline import batches

AT_ONCE = 16  # resamples per call of the statistic: a cache line of int32 weights
TAILS = (0.025, 0.975)


class Score(NamedTuple):
    """A score and its 95 % bootstrap interval; nan where it is not defined."""

    value: float
    low: float
    high: float


def draw(count: int, *, seed: int, index: int) -> np.ndarray:
    """How often each group occurs in one resample with replacement.

    Returns:
        [count] int32 with the sum `count`; depends on the arguments only.
    """
    rng = np.random.default_rng((seed, index))
    return np.bincount(rng.integers(count, size=count), minlength=count).astype(
        np.int32
    )


def bootstrap(
    statistic: Callable[[np.ndarray], dict[str, np.ndarray]],
    count: int,
    *,
    resamples: int,
    seed: int,
    groups: np.ndarray | None = None,
    centred: bool = False,
) -> dict[str, Score | list[Score]]:
    """Evaluates a statistic on all samples and on resamples of their groups.

    Args:
        statistic: gets how often each sample counts, [N, R] int32, and returns
            arrays [R] or [C, R], nan where undefined. Called from several threads.
        count: samples, N.
        resamples: how many; with 0, or a single group, intervals are nan.
        seed: of the draws; the number of threads changes nothing.
        groups: which samples belong together, [N] numbers from 0 without gaps; by
            default every sample is a group.
        centred: move each interval so that its resamples have the score as their mean,
            for a statistic that is higher or lower where samples are repeated.

    Returns:
        For each entry of the statistic a Score, or C of them. The interval is the
        middle 95 % of the resamples where the entry is defined.
    """
    groups = np.arange(count) if groups is None else groups
    drawable = len(np.unique(groups))

    def part(first):
        indices = range(first, min(first + AT_ONCE, resamples))
        drawn = [draw(drawable, seed=seed, index=i)[groups] for i in indices]
        return statistic(np.stack(drawn, axis=1))

    values = statistic(np.ones((count, 1), np.int32))
    starts = range(0, resamples if drawable > 1 else 0, AT_ONCE)
    with concurrent.futures.ThreadPoolExecutor(batches.cores()) as pool:
        parts = list(pool.map(part, starts))

    def score(name):
        value = values[name][..., 0]
        drawn = [p[name] for p in parts] or [np.full_like(values[name], np.nan)]
        drawn = np.concatenate(drawn, axis=-1)
        if centred and len(starts):
            drawn += (value - np.nanmean(drawn, axis=-1))[..., None]
        if value.ndim == 0:
            return _score(value, drawn)
        return [_score(v, d) for v, d in zip(value, drawn)]

    return {name: score(name) for name in values}


def _score(value, drawn) -> Score:
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, TAILS) if len(drawn) else (np.nan, np.nan)
    return Score(float(value), float(low), float(high))
