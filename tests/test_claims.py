"""What datasets and archives of strangers claim, reader by reader."""

import json
import struct
import sys

import numpy as np
import pyarrow
import pytest
import rasterio
from pyarrow import parquet as tables

from data_pipeline import dataset_card, name_lists, record_format, safe_io, sensors
from data_pipeline.archives import (
    base,
    bigearthnet_v1,
    bigearthnet_v2,
    pair_lists,
    rasters,
    tiff,
)
from data_pipeline.errors import InputError
from fusmae_jax.training import metrics, run_directory
from tests import datasets, geotiffs
from tests.fakes import DESCRIPTION
from tests.faults import mutations


def field(name: bytes, feature: bytes) -> bytes:
    """An entry of a tf.train.Example, of less than 128 bytes."""
    entry = b"\n" + bytes([len(name)]) + name
    entry += b"\x12" + bytes([len(feature)]) + feature
    return b"\n" + bytes([len(entry)]) + entry


def decoded(tmp_path, feature: bytes, name: str = "labels"):
    opened = record_format.Records(datasets.write(tmp_path), "train", fields=[name])
    body = field(name.encode(), feature)
    opened._source = [b"\n" + bytes([len(body)]) + body]
    return opened[0][name]


def labels(*values: int) -> bytes:
    packed = b"".join(mutations.varint(value % (1 << 64)) for value in values)
    packed = b"\n" + bytes([len(packed)]) + packed
    return b"\x1a" + bytes([len(packed)]) + packed


def test_labels_of_classes_that_there_are_come_back(tmp_path):
    assert decoded(tmp_path, labels(0, 1)).tolist() == [1, 1]
    assert decoded(tmp_path / "none", b"").tolist() == [0, 0]


STRANGE = [labels(-1), labels(0, 2), labels(1 << 62), b"\n\0"]


@pytest.mark.parametrize("feature", STRANGE)
def test_labels_of_classes_that_there_are_not_are_an_error(tmp_path, feature):
    with pytest.raises(InputError, match="Record 0 of split train .*labels"):
        decoded(tmp_path, feature)


@pytest.mark.parametrize(
    "feature", [b"\n\0", labels(1), b"\n\4\n\0\n\0", b"\n\3\n\1\xff"]
)
def test_text_that_is_none_or_several_is_an_error(tmp_path, feature):
    with pytest.raises(InputError, match="Record 0 of split train"):
        decoded(tmp_path, feature, "tile")


def test_length_without_an_end_is_refused_at_once(tmp_path):
    opened = record_format.Records(datasets.write(tmp_path), "train")
    opened._source = [b"\n" + b"\xff" * 10_000_000]
    with pytest.raises(InputError, match="Record 0 of split train .*not decode"):
        opened[0]


@pytest.mark.parametrize(
    "path, value",
    [
        ("layout size", 10**12),
        ("layout size", 12.0),
        ("layout size", True),
        ("layout grids 0 gsd", 5),
        ("layout grids 0 gsd", 0),
        ("layout grids 0 sensor", "s3"),
        ("layout grids 0 bands", [["VV"]]),
        ("layout grids 0 bands", ["B02"]),
        ("layout grids", []),
        ("sensors s1", None),
        ("sensors s1 name", "s2"),
        ("sensors s1 dtype", "object"),
        ("sensors s1 valid_range", [0]),
        ("sensors s1 bands VV mean", "0"),
        ("sensors s1 bands VV mean", float("nan")),
        ("sensors s1 bands VV std", 10**400),
        ("sensors s1 bands VV gsd", 0),
        ("sensors s1 bands VV name", "VH"),
        ("sensors s1 unit", 3),
        ("classes labels", "hall"),
        ("classes labels", [1, 2]),
        ("classes labels", ["a", "a"]),
        ("classes s1_10m", ["a"]),
        ("name", 3),
    ],
)
def test_card_that_cannot_be_is_an_error(tmp_path, path, value):
    *folders, last = path.split()
    card = dataset_card.read_card(datasets.write(tmp_path))
    part = card["description"]
    for key in folders:
        part = part[int(key) if isinstance(part, list) else key]
    part[last] = value
    (tmp_path / dataset_card.CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(InputError, match="This is no description of a|lacks computed"):
        dataset_card.read_description(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"splits": {"a": 3}},
        {"splits": {}, "files": 1},
        {"splits": {"a": {"pairs": "3"}}},
    ],
)
def test_card_with_other_parts_is_none(tmp_path, content):
    (tmp_path / dataset_card.CARD_FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match="is no card of a dataset"):
        dataset_card.read_card(tmp_path)


def beside(fields, evil):
    fields["tile"] = evil


def below(fields, evil):
    """In a sequence."""
    fields["labels"]["sequence"]["feature"] = evil


def deep(fields, evil):
    """In a dict of a dict in a sequence of sequences."""
    dicts, lists = ["features_dict.FeaturesDict"] * 2, ["sequence_feature.Sequence"] * 2
    for kind in (*dicts, *lists):
        name = f"tensorflow_datasets.core.features.{kind}"
        if "Dict" in kind:
            evil = {"featuresDict": {"features": {"a": evil}}, "pythonClassName": name}
        else:
            evil = {"sequence": {"feature": evil}, "pythonClassName": name}
    fields["tile"] = evil


@pytest.mark.parametrize("put", [beside, below, deep])
@pytest.mark.parametrize("how", ["pythonClassName", "type"])
def test_no_module_is_imported_because_features_name_it(
    tmp_path, how, put, monkeypatch
):
    evil = tmp_path / "code"
    evil.mkdir()
    (evil / "evil_features.py").write_text("raise SystemExit('code of a stranger')")
    monkeypatch.syspath_prepend(evil)
    stored = datasets.write(tmp_path / "data") / "features.json"
    content = json.loads(stored.read_text())
    fields = content["featuresDict"]["features"]
    evil = {how: "evil_features.Text", "text": {}, "content": {}}
    if how == "pythonClassName":
        del evil["content"]
    put(fields, evil)
    stored.write_text(json.dumps(content))
    with pytest.raises(InputError, match="metadata of .* cannot be read"):
        record_format.Records(tmp_path / "data", "train")
    assert "evil_features" not in sys.modules


def test_shards_that_cannot_be_named_are_an_error(tmp_path):
    stored = datasets.write(tmp_path) / "dataset_info.json"
    assert "{FILEFORMAT}" in stored.read_text()
    stored.write_text(stored.read_text().replace("{FILEFORMAT}", "{FILE}"))
    with pytest.raises(InputError, match="metadata of .* cannot be read"):
        record_format.Records(tmp_path, "train")


@pytest.mark.parametrize(
    "index", [dict(id=["a"]), dict(id=[1], place=["a"]), dict(id="a", place="b")]
)
def test_index_of_other_arrays_is_an_error(tmp_path, index):
    datasets.write(tmp_path)
    np.savez(tmp_path / dataset_card.index_name("train"), **index)
    with pytest.raises(InputError, match="index-train.npz cannot be read"):
        dataset_card.read_index(tmp_path, "train")


def test_index_that_is_a_single_array_is_an_error(tmp_path):
    datasets.write(tmp_path)
    with (tmp_path / dataset_card.index_name("train")).open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match="index-train.npz cannot be read"):
        dataset_card.read_index(tmp_path, "train")


def tiff_of(entries: list[tuple[int, int, int, int]], after: bytes = b"") -> bytes:
    """A TIFF of (tag, type, count, value) and whatever follows them."""
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return head + body + bytes(4) + after


def test_strips_that_share_their_bytes_do_not_make_an_image_of_a_small_file():
    strips, lines = 2000, 2000
    after = 14 + 12 * 5
    entries = [
        *((256, 4, 1, 50_000), (257, 4, 1, lines), (258, 3, 1, 16)),
        *((273, 4, strips, after), (279, 4, strips, after + 4 * strips)),
    ]
    offsets = struct.pack("<I", 8) * strips
    lengths = struct.pack("<I", 100_000) * strips
    data = tiff_of(entries, offsets + lengths + bytes(100_000))
    with pytest.raises(InputError, match="x.tif is cut short or damaged"):
        tiff.read(data, "x.tif")


def test_many_tags_that_each_take_the_whole_file_cost_nothing():
    size = 4_000_000
    data = tiff_of([(273 + i % 2, 1, size, 8) for i in range(5000)], bytes(size))
    with pytest.raises(InputError, match="has no TIFF tag"):
        tiff.read(data, "x.tif")


def test_image_that_gdal_would_invent_is_refused(tmp_path, monkeypatch):
    shape = dict(height=60_000, width=60_000, count=1, dtype="uint16")
    path = str(tmp_path / "x.tif")
    options = dict(sparse_ok=True, tiled=True, compress="deflate", crs="EPSG:32633")
    place = rasterio.Affine(10, 0, 0, 0, -10, 0)
    with rasterio.open(path, "w", driver="GTiff", transform=place, **shape, **options):
        pass
    with pytest.raises(InputError, match="1 bands of 60000 x 60000 px, more than"):
        rasters.read(path)
    geotiffs.write(tmp_path / "x.tif", np.ones((3, 4, 4), np.uint16))
    monkeypatch.setattr(rasters, "MOST_BANDS", 2)
    with pytest.raises(InputError, match="3 bands of 4 x 4 px, more than"):
        rasters.read(path)


def test_file_that_is_larger_than_any_patch_or_no_file_is_refused(tmp_path):
    with (tmp_path / "x.tif").open("wb") as file:
        file.truncate(base.MOST_BYTES + 1)
    for path in (str(tmp_path / "x.tif"), "/dev/zero", "a\0b"):
        with pytest.raises(
            InputError, match="cannot be read .*unpack or write it again"
        ):
            base.read_file(path)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"labels": ["\\ud800"]}', '{"labels": "forest"}', "3"]
)
def test_labels_that_are_none_are_an_error(content):
    with pytest.raises(InputError, match="x_labels_metadata.json is damaged"):
        bigearthnet_v1._metadata(lambda name: content.encode(), "x")


ROW = {
    **{"patch_id": "a", "labels": ["b"], "split": "train", "s1_name": "c"},
    **{"s2v1_name": "d", "contains_seasonal_snow": False},
    **{"contains_cloud_or_shadow": None},
}


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"patch_id": 5}, "patch_id is 5"),
        ({"labels": [5]}, "labels is 5"),
        ({"labels": "b"}, "labels is 'b'"),
        ({"contains_seasonal_snow": "False"}, "contains_seasonal_snow is 'False'"),
        ({"split": {"a": "b"}}, "split is"),
        ({"split": "x" * 5000}, "split is a text of 5000 characters"),
    ],
)
def test_table_of_other_values_is_an_error(tmp_path, changes, reason):
    path = tmp_path / "metadata.parquet"
    tables.write_table(pyarrow.Table.from_pylist([ROW]), path)
    assert len(list(bigearthnet_v2.read_metadata(str(path)))) == 1
    tables.write_table(pyarrow.Table.from_pylist([ROW | changes]), path)
    with pytest.raises(InputError, match=f"metadata.parquet cannot be read .{reason}"):
        list(bigearthnet_v2.read_metadata(str(path)))


def test_table_of_more_rows_than_any_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    tables.write_table(pyarrow.table({"s2_name": ["a"] * 9}), path)
    monkeypatch.setattr(safe_io, "MOST_ROWS", 8)
    with pytest.raises(InputError, match="x.parquet cannot be read .it has 9 rows"):
        name_lists.listed(str(path), ())


@pytest.mark.parametrize("content", [b"s1,s2\na\xff,b\n", b's1,s2\n"a,b\n', b"\xff"])
def test_list_of_pairs_that_is_no_csv_is_an_error(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InputError, match="x.csv cannot be read as a CSV"):
        pair_lists.find_files(str(tmp_path / "x.csv"))


def test_places_of_a_run_that_are_no_codes_are_an_error(tmp_path):
    codes = np.arange(4, dtype=np.uint64)
    for stored in (codes.astype(float), codes.reshape(1, 4)):
        np.save(tmp_path / run_directory.PLACES, stored)
        with pytest.raises(InputError, match="places.npy cannot be read"):
            run_directory.trained_on(tmp_path, codes.reshape(2, 2))


def test_config_that_is_nested_too_deeply_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text('{"config":' * 100_000)
    with pytest.raises(InputError, match="config.json cannot be read .*too deeply"):
        run_directory.load(tmp_path)


@pytest.mark.parametrize(
    "line", [b"\xff", b"[" * 100_000, b"3", b'{"loss": 1}', b"1" * 5000]
)
def test_metrics_that_are_none_are_an_error(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(line + b'\n{"step": 1}\n')
    with pytest.raises(InputError, match="Line 1 of .*metrics.jsonl"):
        metrics.read_metrics(tmp_path)


def test_what_the_project_describes_is_what_it_restores():
    for sensor in (sensors.S1, sensors.S2, sensors.S2_L1C):
        assert sensors.restore(json.loads(json.dumps(sensor.describe()))) == sensor
    described = json.loads(json.dumps(DESCRIPTION.describe()))
    assert dataset_card.restore(described) == DESCRIPTION
