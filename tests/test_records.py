"""The record format: what is written comes back, and TFDS agrees."""

import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipeline import records
from data_pipeline import sensors
from data_pipeline import sources
from data_pipeline.errors import InputError

SIZE = 12
CLASSES = {"labels": ("forest, mixed", "water"), "labels_43": ("a", "b/c", "d")}
SAMPLE = pathlib.Path(sources.SAMPLE)


def example(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    dtypes = {g.field: s.dtype for s in sensors.SENSORS.values() for g in s.grids}
    pixels = {
        field: rng.integers(0, 900, shape).astype(dtypes[field])
        for field, shape in sensors.shapes(SIZE).items()
    }
    labels = {"labels": [] if seed == 0 else [1], "labels_43": [0, 2]}
    texts = dict.fromkeys(records.TEXTS, "") | {"id": f"é{seed}"}
    return pixels | labels | texts


def write(directory, counts=(2, 3)) -> pathlib.Path:
    features = records.features(SIZE, CLASSES)
    seeds = iter(range(sum(counts)))
    infos = []
    for i, count in enumerate(counts):
        path = directory / records.shard_name("tiny", "train", i, len(counts))
        chosen = [example(next(seeds)) for _ in range(count)]
        infos.append(records.write_shard(path, chosen, features))
    records.write_metadata(
        directory, "tiny", features, {"train": infos}, description="D", licence="L"
    )
    return directory


def assert_equal(got: dict, want: dict):
    """Compares a record with the fields it was written from."""
    assert got.keys() == want.keys()
    for field, value in want.items():
        if field in CLASSES:
            hot = np.zeros(len(got[field]), np.uint8)
            hot[value] = 1
            assert got[field].dtype == np.uint8
            np.testing.assert_array_equal(got[field], hot)
        elif isinstance(value, str):
            assert got[field] == value
        else:
            assert got[field].dtype == value.dtype
            np.testing.assert_array_equal(got[field], value)


def test_every_field_comes_back_as_it_was_written(tmp_path):
    got = records.Records(write(tmp_path), "train")
    assert len(got) == 5
    for i in range(5):
        assert_equal(got[i], example(i))


def test_size_and_classes_come_from_the_metadata(tmp_path):
    got = records.Records(write(tmp_path), "train")
    assert got.size == SIZE and got.classes == CLASSES


def test_a_shard_may_be_empty(tmp_path):
    got = records.Records(write(tmp_path, counts=(1, 0, 2)), "train")
    assert [got[i]["id"] for i in range(3)] == ["é0", "é1", "é2"]


def test_only_the_fields_asked_for_are_decoded(tmp_path):
    got = records.Records(write(tmp_path), "train", fields=("s2_60m", "labels"))
    assert list(got[0]) == ["s2_60m", "labels"]


def test_iteration_ends_after_the_last_record(tmp_path):
    assert len(list(records.Records(write(tmp_path), "train"))) == 5


def test_records_can_be_sent_to_another_process(tmp_path):
    opened = records.Records(write(tmp_path), "train")
    opened[0]
    assert_equal(pickle.loads(pickle.dumps(opened))[1], example(1))


@pytest.mark.parametrize("split, count", [("train", 17), ("validation", 5)])
def test_sample_reads_the_same_through_tfds(split, count):
    ours = records.Records(SAMPLE, split)
    theirs = tfds.builder_from_directory(SAMPLE).as_data_source(split)
    assert len(ours) == len(theirs) == count
    for i in range(count):
        want = dict(theirs[i])
        for field in records.TEXTS:
            want[field] = want[field].decode()
        assert_equal(ours[i], want)


def test_sample_is_120_px_with_both_nomenclatures():
    opened = records.Records(SAMPLE, "train")
    assert opened.size == 120
    assert {k: len(v) for k, v in opened.classes.items()} == {
        "labels": 19,
        "labels_43": 43,
    }


def test_sample_splits_share_no_tile():
    tiles = [
        {record["tile"] for record in records.Records(SAMPLE, split, fields=("tile",))}
        for split in ("train", "validation")
    ]
    assert tiles == [{"29UPU", "35VNJ", "35VPK"}, {"29SND", "33UUP"}]


def test_sample_stays_small_and_carries_its_licence():
    size = sum(path.stat().st_size for path in SAMPLE.iterdir())
    assert size < 5_000_000
    assert "CDLA-Permissive-1.0" in (SAMPLE / "LICENSE").read_text()


def test_fingerprint_tells_splits_and_datasets_apart(tmp_path):
    ours = records.Records(write(tmp_path), "train").fingerprint()
    train = records.Records(SAMPLE, "train").fingerprint()
    validation = records.Records(SAMPLE, "validation").fingerprint()
    assert ours != train != validation
    assert json.loads(json.dumps(train)) == train


def test_shard_that_fails_leaves_nothing_under_its_name(tmp_path):
    path = tmp_path / records.shard_name("tiny", "train", 0, 1)

    def examples():
        yield example(0)
        raise InputError("bad pair")

    with pytest.raises(InputError, match="bad pair"):
        records.write_shard(path, examples(), records.features(SIZE, CLASSES))
    assert not path.exists()


@pytest.mark.parametrize("missing", ["nowhere", ""])
def test_folder_without_dataset_is_an_error_that_says_how_to_build_one(
    tmp_path, missing
):
    with pytest.raises(InputError, match="prepare_bigearthnet.py .*config.data.dir"):
        records.Records(tmp_path / missing, "train")


def test_damaged_metadata_is_an_error(tmp_path):
    (write(tmp_path) / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="metadata of .* cannot be read"):
        records.Records(tmp_path, "train")


def test_unknown_split_is_an_error_that_lists_the_splits(tmp_path):
    with pytest.raises(InputError, match=r"Split 'test' .*\{'train': 5\}"):
        records.Records(write(tmp_path), "test")


@pytest.mark.parametrize("fields", [("s3",), ()])
def test_unknown_fields_are_an_error_that_lists_the_fields(tmp_path, fields):
    with pytest.raises(InputError, match=r"must be some of .*'s1_10m'"):
        records.Records(write(tmp_path), "train", fields=fields)


@pytest.mark.parametrize("field", ["s2_10m", "s1_10m", "id"])
def test_dataset_with_other_fields_is_an_error_that_names_them(tmp_path, field):
    stored = write(tmp_path) / "features.json"
    content = json.loads(stored.read_text())
    del content["featuresDict"]["features"][field]
    stored.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"fields .*'{field}'.* are missing or not"):
        records.Records(tmp_path, "train")


def test_dataset_with_another_pixel_type_is_an_error(tmp_path):
    stored = write(tmp_path) / "features.json"
    stored.write_text(stored.read_text().replace("float16", "float32"))
    with pytest.raises(InputError, match=r"fields \['s1_10m'\] of"):
        records.Records(tmp_path, "train")


def test_missing_shard_is_an_error(tmp_path):
    (write(tmp_path) / records.shard_name("tiny", "train", 1, 2)).unlink()
    with pytest.raises(InputError, match="00001-of-00002.*copy or rebuild that shard"):
        records.Records(tmp_path, "train")


def test_shard_of_another_build_is_an_error(tmp_path):
    names = [records.shard_name("tiny", "train", i, 2) for i in range(2)]
    write(tmp_path)
    shutil.copy(tmp_path / names[0], tmp_path / names[1])
    with pytest.raises(InputError, match="holds 4 records where .* says 5"):
        records.Records(tmp_path, "train")


def test_damaged_record_is_an_error_that_names_split_index_and_shard(tmp_path):
    path = write(tmp_path) / records.shard_name("tiny", "train", 1, 2)
    data = bytearray(path.read_bytes())
    start = data.index(b"\x28\xb5\x2f\xfd")  # a zstd frame
    data[start + 20] ^= 0xFF
    path.write_bytes(data)
    opened = records.Records(tmp_path, "train")
    assert_equal(opened[1], example(1))
    with pytest.raises(InputError, match="Record 2 of split train .*00001-of-00002"):
        opened[2]
