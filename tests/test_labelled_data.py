"""What an encoder is judged on: labels that fit, and pairs nobody has learnt from."""

import types

import numpy as np
import pytest

from data_pipeline import layout, sensors, sources, synthetic
from data_pipeline.errors import InputError
from fusmae_jax.evaluation import labelled_data
from fusmae_jax.training import run_directory
from tests import datasets, judging


@pytest.fixture
def pretrained(tmp_path):
    """As much of an encoder as the data have to fit to."""
    directory = tmp_path / "run"
    directory.mkdir()
    return types.SimpleNamespace(contract=sensors.SENSORS, directory=directory)


@pytest.fixture
def config(tmp_path):
    """An evaluation on three splits, each a dataset of its own."""
    folders = {}
    for split in labelled_data.SPLITS:
        folders[split] = datasets.write(
            tmp_path / split, (3, 4), split=split, prefix=split
        )
    c = judging.config("run")
    c.data.update(source="records", dir=str(folders["train"]))
    c.data.eval_dir = f"{folders['validation']},{folders['test']}"
    return c


def rewrite(config, split, tmp_path, **writing):
    """Replaces the dataset of a split."""
    folder = datasets.write(tmp_path / f"{split}-2", (3, 4), split=split, **writing)
    config.data.eval_dir = config.data.eval_dir.replace(
        str(tmp_path / split), str(folder)
    )


def refused(config, pretrained, match):
    with pytest.raises(InputError, match=match) as caught:
        labelled_data.open_labelled(config, pretrained)
    assert "\n" not in str(caught.value)


def test_splits_come_with_names_and_labels(config, pretrained):
    data = labelled_data.open_labelled(config, pretrained)
    assert data.classes == datasets.CLASSES["labels"] and not data.single
    for name in labelled_data.SPLITS:
        split = getattr(data, name)
        assert split.name == name and len(split) == len(split.source) == 7
        assert split.ids.tolist() == [f"é{i}" for i in range(7)]
        want = [split.source[i]["labels"] for i in range(7)]
        np.testing.assert_array_equal(split.labels, want)
        assert set(split.source.fields) == {
            *("s1_10m", "s2_10m", "s2_20m", "s2_60m", "labels"),
        }


def test_synthetic_scenes_of_the_splits_are_others(pretrained):
    data = labelled_data.open_labelled(judging.config("run"), pretrained)
    assert [len(getattr(data, s)) for s in labelled_data.SPLITS] == [160, 16, 16]
    a, b = data.validation.source[0], data.test.source[0]
    assert not np.array_equal(a["s1_10m"], b["s1_10m"])


def test_classes_can_be_chosen(config, pretrained):
    config.data.classes = ("water",)
    data = labelled_data.open_labelled(config, pretrained)
    assert data.classes == ("water",)
    for name in labelled_data.SPLITS:
        np.testing.assert_array_equal(getattr(data, name).labels, np.ones((6, 1)))


def test_labels_that_there_are_not_are_refused(config, pretrained):
    config.labels = "crops"
    refused(config, pretrained, r"no labels 'crops'; .* \['labels', 'labels_43'\]")


def test_another_class_table_is_refused(config, pretrained, tmp_path):
    other = datasets.description(
        classes=datasets.CLASSES | {"labels": ("water", "forest, mixed")}
    )
    rewrite(config, "test", tmp_path, described=other, prefix="x")
    refused(config, pretrained, r"differ in classes of labels .*and \('water', 'f")


def test_pixels_of_another_size_or_unit_are_refused(config, pretrained, tmp_path):
    wide = dict(sensors.SENSORS)
    wide["s2"] = sensors.S2.select([b for b in sensors.S2.band_names[::-1]])
    other = datasets.description(layout=layout.native(datasets.SIZE, wide))
    rewrite(config, "validation", tmp_path, described=other, prefix="x")
    refused(config, pretrained, "validation-2 do not go together.*bands of s2_10m")


def test_a_dataset_without_a_band_is_refused(config, pretrained):
    pretrained.contract = dict(sensors.SENSORS, s2=sensors.S2_L1C)
    refused(config, pretrained, r"no Sentinel-2 bands \['B10'\]")


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"data.test_split": "train"}, "'train' would be tested on and learnt from"),
        ({"data.test_split": "validation"}, "'validation' would be tested on"),
        ({"data.test_split": "all"}, "'all'"),
        ({"data.split": "test"}, "'test'"),
        ({"data.dir": "/nowhere"}, "/nowhere"),
        ({"data.dir": ""}, "--config.data.dir"),
        ({"single_label": True}, "4 pairs of split train have not exactly one"),
    ],
)
def test_splits_that_cannot_be_used_are_refused(config, pretrained, changes, match):
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=match):
        labelled_data.open_labelled(config, pretrained)


def test_a_split_tested_on_and_learnt_from_is_a_warning_if_allowed(
    config, pretrained, lines
):
    config.data.test_split, config.data.allow_overlap = "train", True
    data = labelled_data.open_labelled(config, pretrained)
    assert data.test.ids.tolist() == data.train.ids.tolist()
    want = "7 pairs of split train, to be tested on, are in split train too"
    assert any(want in line for line in lines)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_test_pairs_that_were_learnt_from_are_refused(
    config, pretrained, tmp_path, lines, split
):
    rewrite(config, "test", tmp_path, prefix=split)  # the same places
    refused(config, pretrained, "7 of 7 in split test, to be tested on, show")
    config.data.allow_overlap = True
    labelled_data.open_labelled(config, pretrained)
    assert any(f"tested on, are in split {split} too" in line for line in lines)


def test_pairs_to_choose_settings_on_that_were_learnt_from_are_refused(
    config, pretrained, tmp_path, lines
):
    rewrite(config, "validation", tmp_path, prefix="train")  # the same places
    refused(config, pretrained, "7 of 7 in split validation, to choose settings on,")
    config.data.allow_overlap = True
    labelled_data.open_labelled(config, pretrained)
    want = "7 pairs of split validation, to choose settings on, are in split train too"
    assert any(want in line for line in lines)


def test_test_pairs_that_were_pretrained_on_are_refused(config, pretrained, lines):
    test = labelled_data.open_labelled(config, pretrained).test.source
    codes = sources.place_codes(test)
    run_directory.remember_places(pretrained.directory, codes[:3])
    refused(config, pretrained, "3 of the 7 pairs .* ground that .*run was")
    config.data.allow_overlap = True
    labelled_data.open_labelled(config, pretrained)
    said = "3 of 7 tested pairs show ground that was pretrained on"
    assert any(said in line for line in lines)
    (pretrained.directory / run_directory.PLACES).write_bytes(b"")
    refused(config, pretrained, "places.npy cannot be read")


def test_pretraining_on_the_pairs_to_learn_from_is_no_leak(config, pretrained):
    train = labelled_data.open_labelled(config, pretrained).train.source
    run_directory.remember_places(pretrained.directory, sources.place_codes(train))
    labelled_data.open_labelled(config, pretrained)


def labelled(train, test, single=False):
    """Splits that are labels alone."""
    names = tuple("abc"[: train.shape[1]])

    def split(name, labels):
        return labelled_data.Split(
            name, None, np.arange(len(labels)).astype(str), labels
        )

    parts = (split("train", train), split("validation", train), split("test", test))
    return labelled_data.Labelled(None, *parts, names, single)


def test_a_tested_class_that_nobody_could_learn_is_refused(lines):
    train = np.array([[1, 0, 0], [1, 1, 0]], np.uint8)
    test = np.array([[1, 0, 1], [1, 0, 0]], np.uint8)
    with pytest.raises(InputError, match=r"^1 classes of the test .* \(c\); .*=True"):
        labelled_data.check_labels(labelled(train, test), "labels", allow=False)
    labelled_data.check_labels(labelled(train, test), "labels", allow=True)
    assert any("(c); their scores are chance" in line for line in lines)
    # A class that is only learnt is none of our business.
    labelled_data.check_labels(labelled(test, train[:1]), "labels", allow=False)


def test_single_labels_are_one_a_pair():
    one = np.eye(3, dtype=np.uint8)
    labelled_data.check_labels(labelled(one, one, single=True), "labels", allow=False)
    for other in ([[1, 1, 0]], [[0, 0, 0]]):
        data = labelled(one, np.array(other, np.uint8), single=True)
        with pytest.raises(InputError, match="1 pairs of split test .*single_label"):
            labelled_data.check_labels(data, "labels", allow=False)


def test_fractions_are_nested_without_repeats_and_keep_every_class():
    labels = synthetic.Scenes(200, size=24).index["labels"]
    data = labelled(labels, labels)
    data = labelled_data.Labelled(
        None, data.train, *[data.test] * 2, data.classes, False
    )
    for seed in range(3):
        chosen = [data.subset(f, seed) for f in (0.1, 0.3, 1.0)]
        assert [(s.fraction, s.seed) for s in chosen] == [
            *((0.1, seed), (0.3, seed), (1.0, seed)),
        ]
        for small, large in zip(chosen, chosen[1:]):
            assert set(small.pairs) < set(large.pairs)
        for subset, count in zip(chosen, (20, 60, 200)):
            assert len(set(subset.pairs)) == len(subset.pairs) == count
            has = labels[subset.pairs].any(axis=0)
            np.testing.assert_array_equal(has, labels.any(axis=0))
    assert set(data.subset(0.1, 0).pairs) != set(data.subset(0.1, 1).pairs)


def test_pixel_labels_have_to_be_there_and_of_the_same_classes(pretrained, config):
    config.methods = ("dense",)
    refused(config, pretrained, "no pixel labels 'land_cover', nor any other; bu")
    scenes = judging.config("run", methods=("knn", "dense"))
    data = labelled_data.open_labelled(scenes, pretrained)
    assert "land_cover" in data.train.source.fields
    scenes.data.classes = ("water", "urban")
    refused(scenes, pretrained, "classes of land_cover are not those of labels")
