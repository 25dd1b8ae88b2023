"""Patterns: each sensor sees one, and neither statistics nor one sensor sees both."""

import ml_collections
import numpy as np
import pytest

from data_pipeline import sources, synthetic
from data_pipeline.synthetic import Patterns, halves

SCENES = Patterns(60, size=48)


def test_a_record_is_a_function_of_seed_and_index_whatever_fields_are_wanted():
    whole = SCENES[7]
    again = Patterns(9, size=48)[7]
    assert whole.keys() == again.keys()
    for field, value in whole.items():
        np.testing.assert_array_equal(value, again[field])
        alone = Patterns(60, size=48, fields=(field,))[7]
        assert alone.keys() == {field}
        np.testing.assert_array_equal(value, alone[field])
    other = Patterns(60, size=48, seed=1)[7]
    assert not np.array_equal(whole["s1_10m"], other["s1_10m"])


def test_a_record_has_the_fields_and_types_of_its_description():
    layout, record = SCENES.description.layout, SCENES[0]
    for field, shape in layout.shapes.items():
        assert record[field].shape == shape
        assert record[field].dtype == layout.dtypes[field]
    assert record["id"] == "patterns-000000" and not SCENES.description.maps


def test_every_pair_has_one_of_nine_classes_and_the_index_knows_which():
    labels = SCENES.index["labels"]
    assert labels.shape == (60, 9) and (labels.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(labels[11], SCENES[11]["labels"])
    counts = Patterns(2_000, size=12).index["labels"].mean(axis=0)
    np.testing.assert_allclose(counts, 1 / 9, atol=0.03)


@pytest.mark.parametrize("shape", synthetic.SHAPES)
def test_either_half_has_as_many_pixels(shape):
    rng = np.random.default_rng(0)
    for _ in range(20):
        field = halves(rng, shape, 48)
        assert set(np.unique(field)) == {0, 1}
        assert field.mean() == pytest.approx(0.5, abs=1e-3)


def test_shapes_differ_in_how_they_are_ordered():
    """Strips repeat along a line, checks along two, patches along none."""

    def lines(shape):
        """Share of a pattern's power in its strongest frequency."""
        shares = []
        for seed in range(20):
            field = halves(np.random.default_rng(seed), shape, 48) - 0.5
            power = np.abs(np.fft.rfft2(field)) ** 2
            shares.append(power.max() / power.sum())
        return np.mean(shares)

    assert lines("strips") > 1.3 * lines("checks") > 1.5 * lines("patches")


def test_each_sensor_shows_the_pattern_of_its_own_part_of_the_name():
    """The strongest frequency of each sensor's picture tells strips from patches."""
    names = SCENES.description.classes["labels"]
    strength = {("s1_10m", True): [], ("s1_10m", False): []}
    strength |= {("s2_10m", True): [], ("s2_10m", False): []}
    for i in range(len(SCENES)):
        record = SCENES[i]
        optics, radar = names[record["labels"].argmax()].split(", ground in ")
        for field, shape in (("s2_10m", optics.split(" in ")[1]), ("s1_10m", radar)):
            if shape == "checks":
                continue
            x = record[field][..., -1].astype(float)
            power = np.abs(np.fft.rfft2(x - x.mean())) ** 2
            strength[field, shape == "strips"].append(power.max() / power.sum())
    for field in ("s1_10m", "s2_10m"):
        assert np.mean(strength[field, True]) > 1.5 * np.mean(strength[field, False])


def test_a_config_opens_them():
    data = ml_collections.ConfigDict(
        dict(source="patterns", count=20, size=24, seed=0, split="train")
    )
    train, test = (sources.open_split(data, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (20, 2)
    assert train.fingerprint()["name"] == "patterns"
    assert not np.array_equal(train[0]["s1_10m"], test[0]["s1_10m"])
    assert sources.describe(data).name == "patterns"
