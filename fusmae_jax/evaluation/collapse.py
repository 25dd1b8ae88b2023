"""Collapse: do the features of different images still differ, and in many ways?"""

import numpy as np

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
