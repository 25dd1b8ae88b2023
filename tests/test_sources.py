"""What a config's data may be: one dataset or several, whole or in part."""

import json
import pathlib

import ml_collections
import numpy as np
import pytest

from data_pipeline import dataset_card, sources, synthetic
from data_pipeline.errors import InputError
from tests import datasets


def data(**changes) -> ml_collections.ConfigDict:
    known = dict(source="records", dir="", split="train", count=20, size=24, seed=0)
    return ml_collections.ConfigDict(known | changes)


def test_a_folder_is_a_dataset(tmp_path):
    got = sources.open_split(data(dir=str(datasets.write(tmp_path))), "train", ["id"])
    assert [pair["id"] for pair in got] == [f"é{i}" for i in range(5)]


def test_folders_with_commas_between_them_are_mixed(tmp_path):
    a, b = (
        datasets.write(tmp_path / name, counts, prefix=name)
        for name, counts in (("a", (2, 3)), ("b", (4,)))
    )
    config = data(dir=f"{a}, {b}", weights=(1.0, 3.0))
    got = sources.open_split(config, "train", ("place", "labels"))
    assert got.shares == (0.25, 0.75) and len(got) == 9
    assert sources.open_split(data(dir=f"{a},{b}"), "train").shares == (5 / 9, 4 / 9)


def test_the_fraction_is_drawn_of_the_pairs_with_the_chosen_classes(tmp_path):
    folder = datasets.write(tmp_path, (40,))
    config = data(dir=str(folder), classes=("b/c",), fraction=0.5)
    got = sources.open_split(config, "train")
    # "b/c" are the pairs 1, 4, 7, ... 37.
    assert len(got) == round(13 / 2)
    assert got.description.classes["labels_43"] == ("b/c",)
    assert all(pair["labels_43"].tolist() == [1] for pair in got)


def test_held_out_pairs_are_all_used(tmp_path):
    config = data(source="synthetic", split="train", fraction=0.5)
    assert len(sources.open_split(config, "train")) == 10
    assert len(sources.open_split(config, "validation")) == 2


def test_synthetic_splits_are_different_scenes():
    config = data(source="synthetic")
    seeds = {sources.open_split(config, split).seed for split in sources.SPLITS}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(), "Build a dataset"),
        (dict(dir=" , "), "Build a dataset"),
        (dict(source="web"), "choose records, sample, synthetic"),
        (dict(source="synthetic", fraction=2.0), "data.fraction is 2.0"),
    ],
)
def test_data_that_there_is_not_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        sources.open_split(data(**changes), "train")


def test_an_unknown_synthetic_split_is_refused():
    with pytest.raises(InputError, match="Split 'all' is not one of"):
        sources.open_split(data(source="synthetic"), "all")


def splits(tmp_path, *prefixes):
    """A dataset for each prefix, which is what tells its places from others."""
    for i, prefix in enumerate(prefixes):
        folder = datasets.write(tmp_path / str(i), (5,), prefix=prefix)
        yield sources.open_split(data(dir=str(folder)), "train", ("id",))


def test_a_place_in_training_and_held_out_data_is_refused(tmp_path):
    train, held_out = splits(tmp_path, "a ", "a ")
    with pytest.raises(InputError, match="5 of 5 .*a place 0.*allow_overlap=True"):
        sources.check_overlap(train, held_out)
    assert sources.check_overlap(train, held_out, allow=True) == 5


def test_other_places_pass(tmp_path):
    assert sources.check_overlap(*splits(tmp_path, "a ", "b ")) == 0


def test_a_place_is_found_in_parts_of_mixtures_and_in_subsets(tmp_path):
    datasets.write(tmp_path / "a", (5,), prefix="a ")
    datasets.write(tmp_path / "b", (6,), prefix="b ")
    both = sources.open_split(data(dir=f"{tmp_path}/a,{tmp_path}/b"), "train")
    config = data(dir=f"{tmp_path}/b", fraction=0.5)
    assert (
        sources.check_overlap(both, sources.open_split(config, "train"), allow=True)
        == 3
    )


def test_pairs_of_unknown_place_pass():
    scenes = synthetic.Scenes(3, size=24)
    assert sources.check_overlap(scenes, scenes) == 0


def test_empty_places_are_no_place(tmp_path):
    train, held_out = splits(tmp_path, "a ", "a ")
    for source in (train, held_out):
        index = source.index
        index["place"][:4] = ""  # all but one
        path = pathlib.Path(*source.directories, dataset_card.index_name("train"))
        np.savez(path, **index)
    assert sources.check_overlap(train, held_out, allow=True) == 1


def test_held_out_pairs_may_be_elsewhere(tmp_path):
    a = datasets.write(tmp_path / "a")
    b = datasets.write(tmp_path / "b", (4,), split="validation", prefix="b")
    config = data(dir=str(a), eval_dir=str(b))
    assert len(sources.open_split(config, "train")) == 5
    assert len(sources.open_split(config, "validation")) == 4


def test_settings_are_chosen_beside_the_training_pairs_where_the_second_has_none(
    tmp_path,
):
    a = datasets.write(tmp_path / "a")
    chosen_on = datasets.write(tmp_path / "c", (3,), split="validation", prefix="c")
    b = datasets.write(tmp_path / "b", (4,), split="test", prefix="b")
    config = data(dir=f"{a},{chosen_on}", eval_dir=str(b), val_split="validation")
    config.test_split = "test"
    assert len(sources.open_split(config, "validation")) == 3
    assert len(sources.open_split(config, "test")) == 4
    config.test_split = "validation"  # what is tested is never looked for elsewhere
    with pytest.raises(InputError, match="'validation' of .*/b holds no records"):
        sources.open_split(config, "validation")


def test_a_dataset_without_a_held_out_split_has_no_part_in_it(tmp_path):
    a = datasets.write(tmp_path / "a")
    b = datasets.write(tmp_path / "b", (4,), split="validation", prefix="b")
    config = data(dir=f"{a},{b}", weights=(1.0, 2.0))
    held = sources.open_split(config, "validation")
    assert [pair["place"] for pair in held] == [f"bplace {i}" for i in range(4)]
    with pytest.raises(InputError, match="'train' of .*/b holds no records.*eval_dir"):
        sources.open_split(config, "train")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_held_out_split_that_is_nowhere_is_an_error_with_advice(tmp_path, split):
    config = data(dir=str(datasets.write(tmp_path / "a")))
    with pytest.raises(InputError, match="holds no records.* holdout_share"):
        sources.open_split(config, split)


def test_computed_statistics_come_from_the_card(tmp_path):
    folder = datasets.write(tmp_path)
    card = dataset_card.read_card(folder)
    bands = {
        name: {band: {"mean": 3.0, "std": 2.0} for band in sensor.band_names}
        for name, sensor in datasets.description().sensors.items()
    }
    card |= {"reference_split": "train", "splits": {"train": {"sensors": bands}}}
    (folder / dataset_card.CARD_FILE).write_text(json.dumps(card))
    config = data(dir=str(folder), statistics="computed")
    for description in (
        sources.describe(config),
        sources.open_split(config, "train").description,
    ):
        assert {b.mean for b in description.sensors["s2"].bands} == {3.0}
        assert "computed from split train of tiny" in description.sensors["s1"].source
    with pytest.raises(InputError, match="data.statistics is 'guessed'"):
        sources.describe(data(dir=str(folder), statistics="guessed"))


def test_computed_statistics_that_the_card_lacks_are_an_error(tmp_path):
    config = data(dir=str(datasets.write(tmp_path)), statistics="computed")
    with pytest.raises(InputError, match="lacks computed statistics"):
        sources.describe(config)
