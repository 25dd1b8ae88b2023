"""Parts of a dataset: some of its classes, or a fraction of its pairs by seed.

The index of a dataset is enough to choose them; no record is read.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable

import numpy as np

from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError

log = logging.getLogger("fusmae_jax")

CANDIDATES = 128  # pairs that are compared before one of them is drawn
_ONE = 1 << 32  # in whole numbers, which every machine adds up alike


class Subset:
    """Some pairs of a source, which is itself a source.

    Attributes:
        description: of the source, with the classes that are left.
        fields: that its pairs hold.
    """

    def __init__(self, source, indices, classes: dict | None = None):
        """Takes the pairs `indices` of `source`.

        Args:
            source: random-access pairs.
            indices: which of them, [N].
            classes: for each label field that is to be narrowed, which of its classes
                are left, as indices into them.

        Raises:
            InputError: no pair is left.
        """
        self._source, self._indices = source, np.asarray(indices, np.int64)
        self._classes = classes or {}
        if not len(self._indices):
            raise InputError(
                f"None of the {len(source)} pairs is left; choose more classes or a "
                "greater fraction."
            )
        self.description, self.fields = self._describe(), source.fields

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"Pair {index} of {len(self)}.")
        pair = self._source[int(self._indices[index])]
        for field in self._classes.keys() & pair.keys():
            pair[field] = pair[field][self._classes[field]]
        return pair

    @property
    def directories(self) -> tuple[str, ...]:
        """The folders of the source."""
        return getattr(self._source, "directories", ())

    @property
    def index(self) -> dict[str, np.ndarray]:
        """The source's index of these pairs."""
        index = {k: v[self._indices] for k, v in self._source.index.items()}
        narrowed = {k: index[k][:, left] for k, left in self._classes.items()}
        return index | narrowed

    @property
    def places(self) -> np.ndarray:
        """The source's `place` of these pairs."""
        return self._source.places[self._indices]

    def fingerprint(self) -> dict:
        """Names the source and the choice."""
        digest = hashlib.sha256(self._indices.astype("<i8").tobytes()).hexdigest()[:16]
        classes = {k: np.asarray(v).tolist() for k, v in self._classes.items()}
        return self._source.fingerprint() | {
            "count": len(self),
            "subset": digest,
            "classes": classes,
        }

    def _describe(self) -> Description:
        described = self._source.description
        left = {
            field: tuple(described.classes[field][i] for i in indices)
            for field, indices in self._classes.items()
        }
        classes = {**described.classes, **left}
        return dataclasses.replace(described, classes=classes)


def spread(source, count: int) -> Subset:
    """About `count` pairs of a source, evenly spaced; all of a smaller one.

    Neighbours in a dataset are often neighbours on the ground.
    """
    places = np.linspace(0, len(source) - 1, min(count, len(source)))
    return Subset(source, np.unique(places.round().astype(int)))


def labelled(source, field: str):
    """The pairs of a source that somebody has labelled, of which it says the number.

    Args:
        source: random-access pairs with an index.
        field: of the labels.

    Raises:
        InputError: there is none.
    """
    if not source.description.unlabelled:
        return source  # without any of the classes is a label, too
    chosen = np.flatnonzero(source.index[field].any(axis=1))
    if len(chosen) == len(source):
        return source
    log.info(
        "%d of %d pairs have none of the %s and are left out where labels are needed.",
        *(len(source) - len(chosen), len(source), field),
    )
    return Subset(source, chosen)


def with_classes(source, names: Iterable[str], field: str = "") -> Subset:
    """The pairs that have at least one of the classes `names`, and no other labels.

    Args:
        source: random-access pairs.
        names: of the classes.
        field: whose classes they are; by default the first that has them all.

    Raises:
        InputError: no label field has all these classes, or no pair any.
    """
    field, classes = find_classes(source.description, names, field)
    has = source.index[field][:, classes].any(axis=1)
    return Subset(source, np.flatnonzero(has), {field: classes})


def find_classes(
    description: Description, names: Iterable[str], field: str = ""
) -> tuple[str, list[int]]:
    """The label field that has all the classes `names`, and which they are of it.

    Raises:
        InputError: no label field has them all.
    """
    names, wanted = list(names), field
    for field, known in description.classes.items():
        if field == (wanted or field) and set(names) <= set(known):
            return field, [known.index(name) for name in names]
    known = {field: list(v) for field, v in description.classes.items()}
    raise InputError(
        f"data.classes {names} must all be classes of {wanted or 'one label field'} of "
        f"{description.name}: {known}."
    )


def with_fraction(source, fraction: float, seed: int) -> Subset:
    """A fraction of the pairs, stratified by the first label field, see `choose`.

    Raises:
        InputError: `fraction` is not in (0, 1].
    """
    labels = np.zeros((len(source), 0), np.uint8)
    for field in list(source.description.classes)[:1]:
        labels = source.index[field]
    return Subset(source, choose(labels, fraction, seed))


def choose(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draws a fraction of the pairs, by seed, with every class in its share.

    Pairs are drawn one after another, so the smaller of two fractions of one seed is
    contained in the greater. Each comes from the class that lags furthest behind, the
    rarest first, and of some such pairs it is the one that brings the counts of all
    its classes closest to their shares (after Sechidis et al., "On the Stratification
    of Multi-Label Data", 2011). Any machine and later NumPy draws the same.

    Args:
        labels: which classes each pair has, [N, C], 0 or 1.
        fraction: of the N pairs, in (0, 1].
        seed: of the draw.

    Returns:
        Sorted indices of round(fraction * N) pairs; of more, where that many cannot
        have every class that there is.

    Raises:
        InputError: `fraction` is not in (0, 1].
    """
    if not 0.0 < fraction <= 1.0:
        raise InputError(f"data.fraction is {fraction}; choose one in (0, 1].")
    wanted = round(fraction * len(labels))
    # Pairs without labels are a class too, so that they keep their share.
    none = ~labels.any(axis=1, keepdims=True)
    has = np.concatenate([labels, none], axis=1).astype(np.int64)
    has = has[:, has.any(axis=0)]
    has = has[:, np.argsort(has.sum(axis=0), kind="stable")]  # the rarest first
    totals = has.sum(axis=0)

    bits = np.random.MT19937(np.random.SeedSequence(seed))
    shuffled = np.random.RandomState(bits).permutation(len(labels))
    queues = [shuffled[has[shuffled, c] > 0] for c in range(len(totals))]
    free, counts, drawn = np.ones(len(labels), bool), np.zeros_like(totals), []
    while len(drawn) < len(labels) and (len(drawn) < wanted or not counts.all()):
        c = int(np.argmin(counts / totals))
        candidates, queues[c] = _first_free(queues[c], free)
        # What (count + has - share)^2 grows by, relative to the size of each class.
        share = 2 * (len(drawn) + 1) * _ONE // len(labels)
        cost = has[candidates] @ ((2 * counts + 1) * _ONE // totals - share)
        pick = candidates[np.argmin(cost)]
        drawn.append(pick)
        free[pick] = False
        counts += has[pick]
    return np.sort(np.array(drawn, np.int64))


def _first_free(queue: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first free pairs of a queue, and the queue from the first of them on."""
    start = 0
    while not len(found := np.flatnonzero(free[queue[start : start + CANDIDATES]])):
        start += CANDIDATES
    queue = queue[start + found[0] :]
    return queue[found - found[0]], queue
