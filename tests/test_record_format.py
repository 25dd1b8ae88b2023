"""Reading records: what is written comes back, and TFDS agrees."""

import json
import pickle
import shutil
import tracemalloc

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from data_pipeline import classes, dataset_card, record_format, sources
from data_pipeline.errors import InputError
from tests import datasets

MAPS = {"reference_map": ("land", "sea", "sky")}


def stored_record(path) -> bytes:
    """The first record of a shard."""
    reader = array_record_module.ArrayRecordReader(str(path))
    record = reader.read([0])[0]
    reader.close()
    return record


def store(path, record: bytes) -> None:
    """Writes a shard of one record."""
    writer = array_record_module.ArrayRecordWriter(str(path), record_format.OPTIONS)
    writer.write(record)
    writer.close()


def test_every_field_comes_back_as_it_was_written(tmp_path):
    described = datasets.description(maps=MAPS)
    got = record_format.Records(datasets.write(tmp_path, described=described), "train")
    assert len(got) == 5
    for i in range(5):
        datasets.assert_equal(got[i], datasets.example(described, i))


def test_description_is_the_one_on_the_card(tmp_path):
    got = record_format.Records(datasets.write(tmp_path), "train")
    assert got.description == datasets.description()


def test_a_shard_may_be_empty(tmp_path):
    got = record_format.Records(datasets.write(tmp_path, counts=(1, 0, 2)), "train")
    assert [got[i]["id"] for i in range(3)] == ["é0", "é1", "é2"]


def test_a_record_can_be_read_without_its_neighbours(tmp_path):
    path = datasets.write(tmp_path, counts=(5,)) / record_format.shard_name(
        "tiny", "train", 0, 1
    )
    reader = array_record_module.ArrayRecordReader(str(path))
    assert "group_size:1," in reader.writer_options_string()
    reader.close()


def test_only_the_fields_asked_for_are_decoded(tmp_path):
    fields = ("s2_60m", "labels")
    got = record_format.Records(datasets.write(tmp_path), "train", fields=fields)
    assert tuple(got[0]) == got.fields == fields


def test_iteration_ends_after_the_last_record(tmp_path):
    assert len(list(record_format.Records(datasets.write(tmp_path), "train"))) == 5


def test_whatever_protobuf_takes_for_a_record_is_one(tmp_path):
    path = datasets.write(tmp_path, counts=(1,)) / record_format.shard_name(
        "tiny", "train", 0, 1
    )
    written = stored_record(path)
    stored = tf_example_pb2.Example.FromString(written).features.feature
    # A message may come in parts, in any order, with fields of later versions.
    parts = [
        tf_example_pb2.Example(features={"feature": {name: value}}).SerializeToString()
        for name, value in sorted(stored.items(), reverse=True)
    ]
    later = b"\xfa\x3f\x01x"  # field 1023, a text
    record = b"".join([*parts, later])
    assert record != written
    store(path, record)
    opened = record_format.Records(tmp_path, "train")
    datasets.assert_equal(opened[0], datasets.example(opened.description, 0))


def test_records_can_be_sent_to_another_process_without_their_index(tmp_path):
    opened = record_format.Records(datasets.write(tmp_path), "train")
    opened[0], opened.index
    sent = pickle.loads(pickle.dumps(opened))
    assert "index" not in vars(sent)
    datasets.assert_equal(sent[1], datasets.example(opened.description, 1))


def test_index_knows_all_records_without_reading_them(tmp_path):
    opened = record_format.Records(
        datasets.write(tmp_path), "train", fields=("s1_10m",)
    )
    assert opened.index["id"].tolist() == [f"é{i}" for i in range(5)]
    assert opened.places.tolist() == [f"place {i}" for i in range(5)]
    everything = record_format.Records(tmp_path, "train")
    for field in datasets.CLASSES:
        want = [record[field] for record in everything]
        np.testing.assert_array_equal(opened.index[field], want)


def test_index_of_other_records_is_an_error(tmp_path):
    datasets.write(tmp_path)
    described = datasets.description()
    rows = [datasets.example(described, i) for i in range(4)]
    datasets.write_index(tmp_path, "train", described, rows)
    with pytest.raises(InputError, match="not the index of the 5 records there"):
        record_format.Records(tmp_path, "train").index


@pytest.mark.parametrize("content", [None, b"PK damaged"])
def test_index_that_cannot_be_read_is_an_error(tmp_path, content):
    path = datasets.write(tmp_path) / dataset_card.index_name("train")
    path.unlink()
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError, match="index-train.npz cannot be read"):
        record_format.Records(tmp_path, "train").index


@pytest.mark.parametrize("count, letters", [(1 << 22, 1), (5, 1 << 20)])
def test_index_of_more_than_the_records_costs_no_memory(tmp_path, count, letters):
    opened = record_format.Records(datasets.write(tmp_path), "train")
    index = opened.index | {"id": np.zeros(count, f"U{letters}")}  # 17 or 21 MB
    np.savez_compressed(tmp_path / dataset_card.index_name("train"), **index)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="index-train.npz cannot be read"):
            opened.index
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": None},
        {"crops": np.zeros((5, 2), np.uint8)},
        {"labels": np.zeros((5, 3), np.uint8)},
        {"labels": np.zeros((2, 5), np.uint8)},
        {"labels": np.zeros(5, np.uint8)},
        {"labels": np.zeros((4, 2), np.uint8)},
        {"labels": np.zeros((5, 2), np.uint64)},
        {"labels": np.zeros((5, 2), bool)},
        {"labels": np.full((5, 2), "x")},
        {"place": None},
        {"place": np.zeros(5)},
        {"place": np.full((5, 1), "x")},
        {"place": np.full(4, "x")},
        {"id": np.array("x")},
        {"id": np.arange(5, dtype=np.uint8)},
    ],
)
@pytest.mark.parametrize("options", [{"fraction": 0.5}, {"classes": ("water",)}])
def test_index_that_is_not_as_the_card_has_it_is_an_error(tmp_path, changes, options):
    path = datasets.write(tmp_path / "data") / dataset_card.index_name("train")
    arrays = dict(np.load(path)) | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    known = dict(source="records", dir=str(tmp_path / "data"), split="train")
    data = ml_collections.ConfigDict(known | options)
    with pytest.raises(InputError, match="index-train.npz .*(cannot be read|index of)"):
        # Whether pairs are drawn by their labels or their places compared.
        sources.check_overlap(*[sources.open_split(data, "train")] * 2, allow=True)


@pytest.mark.parametrize("split, count", [("train", 17), ("validation", 5)])
def test_sample_reads_the_same_through_tfds(split, count):
    ours = record_format.Records(sources.SAMPLE, split)
    theirs = tfds.builder_from_directory(sources.SAMPLE).as_data_source(split)
    assert len(ours) == len(theirs) == count
    for i in range(count):
        want = dict(theirs[i])
        for field in record_format.TEXTS:
            want[field] = want[field].decode()
        for field in ours.description.classes:
            want[field] = list(want[field])
        datasets.assert_equal(ours[i], want)


def test_sample_is_120_px_with_both_nomenclatures():
    described = record_format.Records(sources.SAMPLE, "train").description
    assert described.layout.size == 120
    assert described.classes == {
        "labels": classes.BIGEARTHNET_19,
        "labels_43": classes.BIGEARTHNET_43,
    }


def test_sample_splits_share_no_tile():
    tiles = [
        {
            record["tile"]
            for record in record_format.Records(sources.SAMPLE, split, ("tile",))
        }
        for split in ("train", "validation")
    ]
    assert tiles == [{"29UPU", "35VNJ", "35VPK"}, {"29SND", "33UUP"}]


def test_sample_stays_small_and_carries_its_licence():
    size = sum(path.stat().st_size for path in sources.SAMPLE.iterdir())
    assert size < 7_000_000
    assert "CDLA-Permissive-1.0" in (sources.SAMPLE / "LICENSE").read_text()


def test_fingerprint_tells_splits_and_datasets_apart(tmp_path):
    prints = [
        record_format.Records(
            datasets.write(tmp_path / name, **options), split
        ).fingerprint()
        for name, split, options in (
            ("a", "train", {}),
            ("b", "validation", dict(split="validation")),
            ("c", "train", dict(counts=(2, 2))),
        )
    ]
    assert prints[0] != prints[1] != prints[2] != prints[0]
    assert json.loads(json.dumps(prints)) == prints


def test_fingerprint_tells_datasets_of_one_size_apart_by_their_checksums(tmp_path):
    opened = record_format.Records(datasets.write(tmp_path), "train")
    card, shard = (
        dataset_card.read_card(tmp_path),
        next(tmp_path.glob("*array_record*")),
    )
    prints = []
    for checksum in ("a" * 64, "b" * 64):
        card["files"] = {shard.name: checksum}
        (tmp_path / dataset_card.CARD_FILE).write_text(json.dumps(card))
        prints.append(opened.fingerprint())
    assert prints[0] != prints[1]


@pytest.mark.parametrize("missing", ["nowhere", ""])
def test_folder_without_dataset_is_an_error_that_says_how_to_build_one(
    tmp_path, missing
):
    with pytest.raises(InputError, match="prepare_bigearthnet.py, .*data.dir=DIR"):
        record_format.Records(tmp_path / missing, "train")


def test_damaged_metadata_is_an_error(tmp_path):
    (datasets.write(tmp_path) / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="metadata of .* cannot be read"):
        record_format.Records(tmp_path, "train")


@pytest.mark.parametrize("content", ["{", "{}", '{"description": {"name": 3}}'])
def test_damaged_card_is_an_error(tmp_path, content):
    (datasets.write(tmp_path) / dataset_card.CARD_FILE).write_text(content)
    reasons = "card.json cannot be read|no card|no description"
    with pytest.raises(InputError, match=reasons):
        record_format.Records(tmp_path, "train")


def test_unknown_split_is_an_error_that_lists_the_splits(tmp_path):
    with pytest.raises(InputError, match=r"Split 'test' .*\{'train': 5\}"):
        record_format.Records(datasets.write(tmp_path), "test")


@pytest.mark.parametrize("fields", [("s3",), ()])
def test_unknown_fields_are_an_error_that_lists_the_fields(tmp_path, fields):
    with pytest.raises(InputError, match=r"must be some of .*'s1_10m'"):
        record_format.Records(datasets.write(tmp_path), "train", fields=fields)


@pytest.mark.parametrize("field", ["s2_10m", "s1_10m", "id"])
def test_dataset_with_other_fields_is_an_error_that_names_them(tmp_path, field):
    stored = datasets.write(tmp_path) / "features.json"
    content = json.loads(stored.read_text())
    del content["featuresDict"]["features"][field]
    stored.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"fields .*'{field}'.* are missing or not"):
        record_format.Records(tmp_path, "train")


def test_dataset_with_another_pixel_type_is_an_error(tmp_path):
    stored = datasets.write(tmp_path) / "features.json"
    stored.write_text(stored.read_text().replace("float16", "float32"))
    with pytest.raises(InputError, match=r"fields \['s1_10m'\] of"):
        record_format.Records(tmp_path, "train")


def test_missing_shard_is_an_error(tmp_path):
    (
        datasets.write(tmp_path) / record_format.shard_name("tiny", "train", 1, 2)
    ).unlink()
    with pytest.raises(InputError, match="00001-of-00002.*copy or rebuild that shard"):
        record_format.Records(tmp_path, "train")


def test_shard_of_another_build_is_an_error(tmp_path):
    names = [record_format.shard_name("tiny", "train", i, 2) for i in range(2)]
    datasets.write(tmp_path)
    shutil.copy(tmp_path / names[0], tmp_path / names[1])
    with pytest.raises(InputError, match="holds 4 records where .* says 5"):
        record_format.Records(tmp_path, "train")


def test_damaged_record_is_an_error_that_names_split_index_and_shard(tmp_path):
    path = datasets.write(tmp_path) / record_format.shard_name("tiny", "train", 1, 2)
    data = bytearray(path.read_bytes())
    start = data.index(b"\x28\xb5\x2f\xfd")  # a zstd frame
    data[start + 20] ^= 0xFF
    path.write_bytes(data)
    opened = record_format.Records(tmp_path, "train")
    opened[1]
    with pytest.raises(InputError, match="Record 2 of split train .*00001-of-00002"):
        opened[2]


@pytest.mark.parametrize(
    "damage", ["short", "cut", "empty", "other", "s2_60m", "labels", "tile"]
)
def test_record_with_other_content_is_an_error(tmp_path, damage):
    path = datasets.write(tmp_path, counts=(1,)) / record_format.shard_name(
        "tiny", "train", 0, 1
    )
    example = tf_example_pb2.Example.FromString(stored_record(path))
    if damage == "short":
        stored = example.features.feature["s2_60m"].bytes_list.value
        stored[0] = stored[0][:-2]
    if damage in example.features.feature:  # is missing
        del example.features.feature[damage]
    whole = example.SerializeToString()
    content = {"cut": whole[: len(whole) // 2], "empty": b"", "other": b"what is this?"}
    store(path, content.get(damage, whole))
    with pytest.raises(InputError, match="Record 0 of split train .*00000-of-00001"):
        record_format.Records(tmp_path, "train")[0]
