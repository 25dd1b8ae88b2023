"""The labelled pairs an encoder is judged on: to train, to choose, and to test with."""

import dataclasses
import logging
from typing import NamedTuple

import ml_collections
import numpy as np

from data_pipeline import sources, subsets
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from fusmae_jax.evaluation.encoder import Pretrained
from fusmae_jax.training import run_directory

log = logging.getLogger("fusmae_jax")

SPLITS = ("train", "validation", "test")  # what they are for, whatever their names


class Split(NamedTuple):
    """Pairs and what is known of them without reading any."""

    name: str  # in the dataset
    source: object
    ids: np.ndarray  # [N]
    labels: np.ndarray  # [N, C] uint8, C may be 0

    def __len__(self) -> int:
        return len(self.ids)


class Subset(NamedTuple):
    """Some of the training pairs."""

    fraction: float
    seed: int
    pairs: np.ndarray  # indices into them


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A dataset with labels, ready to judge on.

    Attributes:
        description: of the dataset.
        train: what may be learnt from.
        validation: what settings are chosen on.
        test: what is scored, once.
        classes: names of the C classes of pairs, none where pixels alone have labels.
        single: whether every pair has exactly one of them.
    """

    description: Description
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    single: bool

    def subset(self, fraction: float, seed: int) -> Subset:
        """Draws a fraction of the training pairs without replacement, classes kept.

        The smaller of two fractions of one seed is contained in the greater.
        """
        if fraction == 1.0:
            return Subset(fraction, seed, np.arange(len(self.train)))
        pairs = subsets.choose(self.train.labels, fraction, seed)
        if len(pairs) > max(1, round(fraction * len(self.train))):
            log.warning(
                "%g %% of %d pairs is too few to have every class; %d are drawn.",
                *(100 * fraction, len(self.train), len(pairs)),
            )
        return Subset(fraction, seed, pairs)


def open_labelled(config, pretrained: Pretrained) -> Labelled:
    """Opens what a config judges on.

    Args:
        config: see `configs/probe_bigearthnet.py`.
        pretrained: what is judged; its training pairs must not be tested on.

    Raises:
        InputError: there is no such data, its labels do not fit, or splits share
            places.
    """
    description = sources.describe(config.data)
    check_description(description, config)
    fields = description.layout.fields(pretrained.contract)
    if config.labels in description.classes:
        fields = (*fields, config.labels)
    if "dense" in config.methods:
        fields = (*fields, config.dense.field)
    names = (config.data.split, config.data.val_split, config.data.test_split)
    check_names(*names, allow=config.data.allow_overlap)
    named = ml_collections.ConfigDict({**config.data, "labels": config.labels})
    train, validation, test = (_open(named, name, fields, config) for name in names)
    description = train.source.description  # data.classes may have narrowed it
    for other in (validation, test):
        sources.check_alike(train.source, other.source)
    if "dense" in config.methods:
        check_map_classes(description, config.dense.field, config)
        for split in (train, validation, test):
            title = f"pairs of split {split.name}"
            check_pixels(split.source, config.dense.field, title)
    classes = description.classes.get(config.labels, ())
    single = config.single_label
    data = Labelled(description, train, validation, test, classes, single)
    check_apart(data, pretrained, allow=config.data.allow_overlap)
    check_labels(data, config.labels, allow=config.allow_empty_classes)
    return data


def check_description(description: Description, config) -> None:
    """Refuses labels, classes of them and pixel labels that a dataset does not have.

    Raises:
        InputError: and what it has.
    """
    if reads_labels(config):
        check_classes(description, config.labels)
    if config.data.classes:
        subsets.find_classes(description, config.data.classes, config.labels)
    if "dense" in config.methods:
        check_maps(description, config.dense.field)


def reads_labels(config) -> bool:
    """Whether labels of pairs must be known, not of pixels, nor which make a pair."""
    from_scratch = "supervised" in config.baselines and not tunes_on_masks(config)
    return bool(set(config.methods) - {"dense", "retrieval"}) or from_scratch


def tunes_on_masks(config) -> bool:
    """Whether encoders are fine-tuned for the classes of pixels."""
    return "dense" in config.methods and "tuned" in config.dense.encoders


def check_classes(description: Description, field: str) -> None:
    """Refuses labels that there are not."""
    if not description.classes:
        raise InputError(
            f"{description.name} has no labels, so nothing can be learnt from it or "
            "tested on it; build it again with labels, or choose another dataset with "
            "data.dir=DIR."
        )
    if field not in description.classes:
        raise InputError(
            f"{description.name} has no labels {field!r}; choose with "
            f"labels= one of {list(description.classes)}."
        )


def check_names(train: str, validation: str, test: str, *, allow: bool) -> None:
    """Refuses to test on a split that is learnt from, unless that is allowed.

    Raises:
        InputError: naming it.
    """
    if test in (train, validation) and not allow:
        raise InputError(
            f"Split {test!r} would be tested on and learnt from; name another "
            "data.test_split, or pass data.allow_overlap=True."
        )


def check_maps(description: Description, field: str, name: str = "dense.field") -> None:
    """Refuses pixel labels that there are not; `name` is the config's field."""
    if not description.maps:
        raise InputError(
            f"{description.name} has no pixel labels {field!r}, nor any other; build "
            "it again with masks, or choose another dataset with data.dir=DIR."
        )
    if field not in description.maps:
        raise InputError(
            f"{description.name} has no pixel labels {field!r}; choose with "
            f"{name}= one of {list(description.maps)}."
        )


def check_map_classes(description: Description, field: str, config) -> None:
    """Refuses pixel labels of other classes than the labels, if both are scored."""
    if not set(config.methods) - {"dense"}:
        return
    if description.maps[field] != description.classes[config.labels]:
        raise InputError(
            f"The classes of {field} are not those of {config.labels}; run "
            "methods=\"('dense',)\" in a --workdir of its own."
        )


def check_pixels(source, field: str, title: str) -> None:
    """Refuses pairs of which none has a labelled pixel.

    The first one ends the search, in most data that of the first pair.
    """
    classes = len(source.description.maps[field])
    maps = (source[i][field] for i in range(len(source)))
    if not any((labels < classes).any() for labels in maps):
        raise InputError(
            f"None of the {len(source)} {title} has a labelled pixel in {field!r}; use "
            "another field or other pairs."
        )


def _open(data, name: str, fields, config) -> Split:
    """A split, without pairs that nobody labelled where these labels are needed."""
    source = sources.open_split(data, name, fields)
    there = config.labels in source.description.classes
    if there and set(config.methods) != {"dense"}:
        source = subsets.labelled(source, config.labels)
    index = source.index
    none = np.zeros((len(source), 0), np.uint8)
    return Split(name, source, index["id"], index.get(config.labels, none))


def check_apart(data: Labelled, pretrained: Pretrained, *, allow: bool) -> None:
    """Refuses to choose or test on what was learnt from, here or in the pretraining."""
    for split, use, others in (
        (data.validation, "to choose settings on", (data.train,)),
        (data.test, "to be tested on", (data.train, data.validation)),
    ):
        title = f"split {split.name}, {use},"
        known = getattr(split.source, "places", np.empty(0, str))
        for other in others:
            if other.name == split.name:
                shared = len(split)
            else:
                places = sources.Places(title, known)
                shared = sources.check_overlap(other.source, places, allow=allow)
            if shared:
                log.warning(
                    "%d pairs of %s are in split %s too.", shared, title, other.name
                )
    check_unseen(data.test.source, pretrained, allow=allow)


def check_unseen(source, pretrained: Pretrained, *, allow: bool) -> None:
    """Refuses to test on ground that was pretrained on, as far as that is known."""
    codes = sources.place_codes(source)
    told = bool(codes[:, 0].all())
    if not told or not run_directory.keeps_places(pretrained.directory):
        log.warning(
            "Whether ground to be tested on was pretrained on is not known: %s.",
            f"{pretrained.directory} keeps none in a {run_directory.PLACES}"
            if told
            else "not all pairs say theirs",
        )
    seen = run_directory.trained_on(pretrained.directory, codes)
    if seen and not allow:
        raise InputError(
            f"{seen} of the {len(source)} pairs to be tested on show ground that "
            f"{pretrained.directory} was pretrained on; test on others, or pass "
            "data.allow_overlap=True."
        )
    if seen:
        log.warning(
            "%d of %d tested pairs show ground that was pretrained on.",
            *(seen, len(source)),
        )


def check_labels(data: Labelled, field: str, *, allow: bool) -> None:
    """Refuses labels of another kind, and classes that nobody could learn."""
    for split in (data.train, data.validation, data.test):
        counts = split.labels.sum(axis=1)
        if data.single and (counts != 1).any():
            raise InputError(
                f"{int((counts != 1).sum())} pairs of split {split.name} have not "
                f"exactly one of the classes of {field!r}; set "
                "single_label=False, or choose other labels."
            )
    missing = data.test.labels.any(axis=0) & ~data.train.labels.any(axis=0)
    if missing.any():
        names = [data.classes[c] for c in np.flatnonzero(missing)]
        text = (
            f"{len(names)} classes of the test pairs have no training pair "
            f"({', '.join(names)})"
        )
        if not allow:
            raise InputError(
                f"{text}; leave them out with data.classes=(...), add training "
                "pairs, or pass allow_empty_classes=True to score them as "
                "they are."
            )
        log.warning("%s; their scores are chance.", text)
