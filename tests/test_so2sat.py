"""So2Sat read from tiny datasets that TFDS itself finds at home."""

import concurrent.futures
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from configs import prepare_so2sat
from data_pipeline import classes
from data_pipeline.archives import so2sat
from data_pipeline.errors import InputError

NAMES = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")


def features(root) -> tfds.features.FeaturesDict:
    return tfds.builder("so2sat/all", data_dir=str(root)).info.features


def example(seed: int, **changes) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "sentinel1": rng.lognormal(-3, 1, (32, 32, 8)).astype(np.float32),
        "sentinel2": rng.uniform(0.01, 0.6, (32, 32, 10)).astype(np.float32),
        "label": seed % 17,
        "sample_id": 900 + seed,
    } | changes


def write(root, splits: dict[str, list[dict]], file_format="array_record") -> None:
    """Writes what `download_and_prepare` would leave behind, one shard a split."""
    folder = epath.Path(root) / "so2sat" / "all" / "2.1.0"
    folder.mkdir(parents=True)
    stored, infos = features(root), []
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="so2sat", filetype_suffix=file_format
    )
    for split, examples in splits.items():
        path = folder / f"so2sat-{split}.{file_format}-00000-of-00001"
        records = [stored.serialize_example(content) for content in examples]
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(records)],
                num_bytes=sum(map(len, records)),
                filename_template=template.replace(split=split),
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=stored, split_infos=infos, check_data=False
    )


def opened(root, speckle="lee") -> so2sat.So2Sat:
    config = prepare_so2sat.get_config()
    config.source, config.read.speckle = str(root), speckle
    return so2sat.open_archive(config)


def read(root, **changes) -> dict:
    write(root, {"train": [example(3, **changes)]})
    archive = opened(root)
    (pair,), _ = archive.find_pairs()
    return archive.read_pair(pair)


def test_pairs_are_the_records_of_every_split(tmp_path):
    counts = {"train": 5, "validation": 2, "test": 1}
    write(tmp_path, {s: [example(i) for i in range(n)] for s, n in counts.items()})
    pairs, skipped = opened(tmp_path).find_pairs()
    assert not skipped and pairs == sorted(pairs)
    splits = [pair.split for pair in pairs]
    assert {split: splits.count(split) for split in counts} == counts
    assert pairs[1].name == "so2sat-train-000000"
    assert len({pair.name for pair in pairs}) == 8


def test_there_may_be_no_test_split(tmp_path):
    write(tmp_path, {"train": [example(0)], "validation": [example(1)]})
    pairs, _ = opened(tmp_path).find_pairs()
    assert [pair.split for pair in pairs] == ["train", "validation"]


def test_filtered_intensity_becomes_decibel(tmp_path):
    stored = example(3)["sentinel1"]
    got = read(tmp_path)["s1_10m"]
    assert got.dtype == np.float16 and got.shape == (32, 32, 2)
    vv_vh = np.log10(stored[..., [5, 4]].astype(np.float64)) * 10
    np.testing.assert_allclose(got, vv_vh, rtol=0, atol=0.02)


def test_unfiltered_intensity_is_the_power_of_a_complex_signal(tmp_path):
    write(tmp_path, {"train": [example(3)]})
    archive = opened(tmp_path, speckle="none")
    (pair,), _ = archive.find_pairs()
    got = archive.read_pair(pair)["s1_10m"]
    signal = example(3)["sentinel1"].astype(np.float64)
    vh, vv = (signal[..., i] + 1j * signal[..., i + 1] for i in (0, 2))
    expected = 20 * np.log10(np.abs(np.stack([vv, vh], axis=-1)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.02)


def test_reflectance_becomes_dn_in_canonical_order(tmp_path):
    got = read(tmp_path)["s2_10m"]
    (grid,) = so2sat.DESCRIPTION.layout.of("s2")
    assert grid.bands == NAMES and got.dtype == np.uint16
    expected = np.rint(example(3)["sentinel2"].astype(np.float64) * 10000)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1)  # of float32


def test_record_has_label_names_and_place(tmp_path):
    record = read(tmp_path)
    assert record["labels"] == [3]
    assert record["id"] == record["id_s1"] == "so2sat-train-000000"
    assert record["place"] == "so2sat train 903"


def test_classes_are_those_of_tfds(tmp_path):
    assert classes.LOCAL_CLIMATE_ZONES == tuple(features(tmp_path)["label"].names)
    zones = so2sat.DESCRIPTION.classes["labels"]
    assert (zones[0], zones[9], zones[10]) == (
        *("Compact high-rise", "Heavy industry", "Dense trees"),
    )


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_backscatter_that_no_decibel_expresses_is_missing(tmp_path, value):
    sentinel1 = example(3)["sentinel1"]
    sentinel1[4, 4, 4] = value
    stored = read(tmp_path, sentinel1=sentinel1)["s1_10m"]
    assert np.isnan(stored[4, 4]).all()
    assert np.isnan(stored).sum() == 2


def test_impossible_backscatter_is_refused(tmp_path):
    sentinel1 = example(3)["sentinel1"]
    sentinel1[4, 4, 4] = 1e9
    with pytest.raises(InputError, match="train-000000, band VH, holds values from"):
        read(tmp_path, sentinel1=sentinel1)


@pytest.mark.parametrize("value", [-0.5, 5.0])
def test_impossible_reflectance_is_refused(tmp_path, value):
    sentinel2 = example(3)["sentinel2"]
    sentinel2[4, 4, 7] = value
    with pytest.raises(InputError, match="train-000000, band B8A, holds values from"):
        read(tmp_path, sentinel2=sentinel2)


def test_dataset_that_is_not_prepared_is_an_error_that_says_how(tmp_path):
    with pytest.raises(InputError, match="not prepared .*download_and_prepare"):
        opened(tmp_path).find_pairs()


def test_dataset_of_another_file_format_is_an_error_that_says_how(tmp_path):
    write(tmp_path, {"train": [example(0)]}, file_format="tfrecord")
    with pytest.raises(InputError, match="is as tfrecord .*file_format='array_record'"):
        opened(tmp_path).find_pairs()


def test_damaged_record_is_an_error(tmp_path):
    write(tmp_path, {"train": [example(0)]})
    archive = opened(tmp_path)
    (pair,), _ = archive.find_pairs()
    (path,) = (tmp_path / "so2sat" / "all" / "2.1.0").glob("*train*")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="Record 0 of split train .* not decode"):
        archive.read_pair(pair)


@pytest.mark.parametrize("size", [0, 40_000])
def test_file_that_vanished_or_was_cut_short_stops_the_build(tmp_path, size):
    write(tmp_path, {"train": [example(0)]})
    archive = opened(tmp_path)
    (pair,), _ = archive.find_pairs()
    (path,) = (tmp_path / "so2sat" / "all" / "2.1.0").glob("*train*")
    os.truncate(path, size) if size else path.unlink()
    with pytest.raises(OSError, match="Record 0 of split train of so2sat/all in "):
        archive.read_pair(pair)


def test_workers_open_the_dataset_themselves(tmp_path):
    write(tmp_path, {"train": [example(i) for i in range(3)]})
    archive = opened(tmp_path)
    assert len(pickle.dumps(archive)) < 300
    pairs, _ = archive.find_pairs()
    expected = [archive.read_pair(pair)["s2_10m"] for pair in pairs]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        records = list(pool.map(archive.read_pair, pairs))
    for record, pixels in zip(records, expected):
        np.testing.assert_array_equal(record["s2_10m"], pixels)
