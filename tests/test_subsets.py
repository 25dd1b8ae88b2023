"""Parts of a dataset: nothing twice, nothing lost, every class in its share."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from data_pipeline import record_format, subsets, synthetic
from data_pipeline.errors import InputError
from tests import datasets


def labels(count: int, classes: int = 8, seed: int = 0) -> np.ndarray:
    """Correlated labels [count, classes], the last ones common, the first rare."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=(count, 3)) @ rng.normal(size=(3, classes))
    score += rng.normal(size=(count, classes))
    shares = np.geomspace(0.003, 0.4, classes)
    cuts = [np.quantile(score[:, c], 1 - share) for c, share in enumerate(shares)]
    return (score > cuts).astype(np.uint8)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.37, 1.0])
def test_a_fraction_is_exact_and_without_replacement(fraction):
    chosen = subsets.choose(labels(3000), fraction, seed=0)
    assert len(chosen) == round(3000 * fraction)
    assert (np.diff(chosen) > 0).all() and 0 <= chosen[0] and chosen[-1] < 3000


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_class_shares_are_kept_closer_than_by_chance(fraction):
    has = labels(6000)
    chosen = subsets.choose(has, fraction, seed=0)
    want = has.sum(axis=0) * fraction
    error = np.abs(has[chosen].sum(axis=0) - want)
    assert (error <= 4 + 0.05 * want).all()
    rng, size = np.random.default_rng(0), len(chosen)
    draws = [rng.choice(6000, size, replace=False) for _ in range(9)]
    chance = [np.abs(has[draw].sum(axis=0) - want).mean() for draw in draws]
    assert error.mean() < 0.5 * min(chance)


def test_pairs_without_labels_keep_their_share():
    has = labels(4000)
    has[:1000] = 0
    share = (~has.any(axis=1)).mean()
    chosen = subsets.choose(has, 0.1, seed=0)
    assert abs((~has[chosen].any(axis=1)).mean() - share) < 0.01


def test_no_class_vanishes_even_if_that_takes_more_pairs():
    has = np.eye(10, dtype=np.uint8).repeat([1, *[111] * 9], axis=0)
    chosen = subsets.choose(has, 0.002, seed=3)
    assert len(chosen) == 10 and has[chosen].any(axis=0).all()


def test_a_class_that_no_pair_has_is_no_class():
    has = np.zeros((100, 3), np.uint8)
    has[:50, 1] = 1
    assert len(subsets.choose(has, 0.1, seed=0)) == 10


def test_a_smaller_fraction_is_contained_in_a_greater_one():
    has = labels(2000)
    chosen = [set(subsets.choose(has, f, seed=5)) for f in (0.01, 0.1, 0.5, 1.0)]
    assert all(a < b for a, b in zip(chosen, chosen[1:]))


def test_the_seed_decides_the_draw():
    has = labels(2000)
    a, b, c = (subsets.choose(has, 0.1, seed=s).tolist() for s in (0, 0, 1))
    assert a == b != c


def test_the_draw_is_the_same_on_every_machine_and_in_every_version():
    i = np.arange(40_000)
    has = np.stack([i * i % p < p // q for p, q in ((97, 9), (53, 3), (31, 2))], axis=1)
    chosen = subsets.choose(has.astype(np.uint8), 0.1, seed=7)
    digest = hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("5c93c051518a19e2")


def test_unlabelled_pairs_are_drawn_too():
    chosen = subsets.choose(np.zeros((50, 0), np.uint8), 0.2, seed=0)
    assert len(chosen) == 10


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(InputError, match=f"data.fraction is {fraction}"):
        subsets.choose(labels(10), fraction, seed=0)


def opened(tmp_path, **options):
    return record_format.Records(datasets.write(tmp_path, (4, 3)), "train", **options)


def test_a_subset_holds_the_pairs_and_the_index_of_the_source(tmp_path):
    source = opened(tmp_path)
    part = subsets.Subset(source, [5, 0])
    assert [pair["id"] for pair in part] == ["é5", "é0"] and len(part) == 2
    assert part.index["id"].tolist() == ["é5", "é0"]
    assert part.places.tolist() == ["place 5", "place 0"]
    assert part.description == source.description


def test_a_class_subset_has_those_classes_only(tmp_path):
    source = opened(tmp_path)
    part = subsets.with_classes(source, ("d", "b/c"))
    assert part.description.classes == {
        "labels": datasets.CLASSES["labels"],
        "labels_43": ("d", "b/c"),
    }
    # Pair 0 has no labels, all others have "d", and "b/c" are pairs 1 and 4.
    assert part.index["id"].tolist() == [f"é{i}" for i in range(1, 7)]
    want = [[1, i % 3 == 1] for i in range(1, 7)]
    np.testing.assert_array_equal(part.index["labels_43"], want)
    np.testing.assert_array_equal([pair["labels_43"] for pair in part], want)
    np.testing.assert_array_equal(part.index["labels"], source.index["labels"][1:])


def test_classes_of_a_named_field_narrow_that_field(tmp_path):
    classes = {"labels": ("a", "b", "c"), "main_label": ("a", "b", "c")}
    described = datasets.description(classes=classes)
    folder = datasets.write(tmp_path / "d", described=described)
    source = record_format.Records(folder, "train")
    part = subsets.with_classes(source, ("a", "b"), "main_label")
    assert part.description.classes == classes | {"main_label": ("a", "b")}
    assert part.index["main_label"].any(axis=1).all()
    with pytest.raises(InputError, match=r"\['z'\] must all be classes of main_label"):
        subsets.with_classes(source, ("z",), "main_label")


def test_unknown_classes_are_refused_with_those_there_are(tmp_path):
    with pytest.raises(InputError, match=r"\['water', 'd'\] .*'forest, mixed'"):
        subsets.with_classes(opened(tmp_path), ("water", "d"))


def test_a_choice_without_pairs_is_refused(tmp_path):
    with pytest.raises(InputError, match="None of the 7 pairs is left"):
        subsets.Subset(opened(tmp_path), [])


def test_fingerprints_tell_subsets_apart(tmp_path):
    source = opened(tmp_path)
    prints = [source.fingerprint()]
    for seed in (0, 2):
        prints += [subsets.with_fraction(source, 0.5, seed).fingerprint()]
    prints += [subsets.with_classes(source, ("a",)).fingerprint()]
    prints += [subsets.with_classes(source, ("a", "b/c")).fingerprint()]
    assert len({json.dumps(known) for known in prints}) == len(prints)


def test_synthetic_scenes_can_be_chosen_by_label():
    scenes = synthetic.Scenes(12, size=24)
    part = subsets.with_classes(scenes, ("water",))
    for pair in part:
        assert pair["labels"].tolist() == [1]
    assert 0 < len(part) < 12
    assert part.description.classes["labels"] == ("water",)


def test_pairs_that_nobody_labelled_are_left_out_only_where_none_is_unknown(
    tmp_path, lines
):
    source = opened(tmp_path)
    has = source.index["labels"].any(axis=1)
    assert not has.all() and subsets.labelled(source, "labels") is source
    source.description = dataclasses.replace(source.description, unlabelled=True)
    chosen = subsets.labelled(source, "labels")
    assert chosen.index["id"].tolist() == source.index["id"][has].tolist()
    assert f"{(~has).sum()} of {len(has)} pairs have none of the labels" in lines[-1]
