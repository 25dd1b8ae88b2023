"""What `fuzz.py` throws damaged files at: each reader of files of strangers.

A target makes sound files first, from the sample dataset and the tests' own writers.
"""

import functools
import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np

from data_pipeline import dataset_card, name_lists, record_format, sources
from data_pipeline.archives import (
    bigearthnet_v1,
    bigearthnet_v2,
    bigearthnet_v2_stores,
    lmdb_reader,
    pair_lists,
    rasters,
    tars,
    tiff,
)
from tests import datasets, geotiffs, packing, reben, shared_data
from tests.faults import fuzz_targets_of_runs as of_runs
from tests.faults import mutations
from tests.faults.fuzz_target import Target, by_path


def record(folder: pathlib.Path) -> Target:
    """A record, decoded from its bytes."""
    tiny = record_format.Records(datasets.write(folder / "tiny"), "train")
    sample = record_format.Records(sources.SAMPLE, "train")
    seeds = [opened._source[i] for opened in (tiny, sample) for i in (0, 1)]

    def read(data: bytes) -> None:
        opened = tiny if len(data) < 50_000 else sample
        opened._source = [data]
        labels = opened[0]["labels"]
        assert labels.max() <= 1

    seeds = [*seeds[:2] * 4, seeds[2]]  # the large one takes longer
    return Target(seeds, read, (mutations.example, mutations.blind), weight=4)


def shard(folder: pathlib.Path) -> Target:
    """A file of records."""
    folder = datasets.write(folder / "shard", counts=(3,))
    (path,) = folder.glob("*array_record*")
    opened = record_format.Records(folder, "train")

    def read(path: str) -> None:
        opened._source = opened._open()
        [opened[i] for i in range(len(opened))]

    return Target([path.read_bytes()], by_path(path, read), weight=0.5)


def band(folder: pathlib.Path) -> Target:
    """A band of BigEarthNet."""

    def read(data: bytes) -> None:
        assert tiff.read(data, "x.tif").ndim == 2

    return Target(_bands(folder), read, (mutations.tiff, mutations.blind), weight=4)


def raster(folder: pathlib.Path) -> Target:
    """Any other GeoTIFF, which GDAL reads."""
    geotiffs.write_pairs(folder / "pairs", 1)
    image = np.repeat(np.arange(120, dtype=np.uint16), 120).reshape(120, 120)
    reben.write_map(folder, "S2A_1_2", image)
    paths = [*(folder / "pairs").rglob("*.tif"), *folder.rglob("*reference_map.tif")]
    read = by_path(folder / "x.tif", rasters.read)
    seeds = [path.read_bytes() for path in paths] + _bands(folder)
    return Target(seeds, read, (mutations.tiff, mutations.blind), weight=0.5)


def card(folder: pathlib.Path) -> Target:
    """The card of a dataset: what its records hold."""

    def read(path: str) -> None:
        for statistics in dataset_card.STATISTICS:
            described = dataset_card.read_description(folder, statistics)
            described.layout.shapes, described.layout.dtypes

    seed = (sources.SAMPLE / dataset_card.CARD_FILE).read_bytes()
    read = by_path(folder / dataset_card.CARD_FILE, read)
    return Target([seed], read, (mutations.plain_json, mutations.blind), weight=0.5)


def _of_tfds(folder: pathlib.Path, name: str) -> Target:
    folder = datasets.write(folder / name)
    described = dataset_card.read_description(folder)

    def read(path: str) -> None:
        stored = record_format.tfds_info(folder)
        record_format.check_features(folder, described, stored.features)
        {split: part.filepaths for split, part in stored.splits.items()}

    seed = (folder / name).read_bytes()
    ways = (mutations.plain_json, mutations.blind)
    return Target([seed], by_path(folder / name, read), ways, weight=0.1)


def index(folder: pathlib.Path) -> Target:
    """What is known of all records."""
    folder = folder / "index"
    folder.mkdir()
    shutil.copy(sources.SAMPLE / dataset_card.CARD_FILE, folder)
    seeds = [(sources.SAMPLE / dataset_card.index_name("validation")).read_bytes()]

    def read(path: str) -> None:
        found = dataset_card.read_index(folder, "x")
        found["id"].tolist(), found["place"].tolist()

    read = by_path(folder / dataset_card.index_name("x"), read)
    return Target(seeds, read, (mutations.npz, mutations.blind))


def labels(folder: pathlib.Path) -> Target:
    """The json of a patch of BigEarthNet v1."""
    content = {
        "labels": shared_data.LABELS,
        "corresponding_s2_patch": "S2A_MSIL2A_20170701T93031_1_7",
        "acquisition_date": "2017-07-01 09:30:31",
    }

    def read(data: bytes) -> None:
        found = bigearthnet_v1._metadata(lambda name: data, "x")
        json.dumps(found, ensure_ascii=False).encode()

    ways = (mutations.plain_json, mutations.blind)
    return Target([json.dumps(content).encode()], read, ways, weight=2)


def parquet(folder: pathlib.Path) -> Target:
    """The table of BigEarthNet v2."""
    row = reben.write_patches(folder / "v2", 1)
    reben.write_metadata(folder, [row | {"patch_id": f"{i}"} for i in range(9)])
    path = folder / bigearthnet_v2.METADATA

    def read(path: str) -> None:
        for _, row in bigearthnet_v2.read_metadata(path):
            row.fault, row.flag

    return Target([path.read_bytes()], by_path(path, read), weight=0.5)


def database(folder: pathlib.Path) -> Target:
    """The LMDB of BigEarthNet v2."""
    value = reben.safetensors.save({"VV": np.ones((4, 4), np.float32)})
    large = reben.safetensors.save({"VV": np.ones((60, 60), np.float32)})
    names = [f"S{1 + i % 2}_{i}" for i in range(120)]
    source = folder / "lmdb"
    source.mkdir()
    reben.put(source, {n: large if i % 40 == 0 else value for i, n in enumerate(names)})
    path = source / lmdb_reader.FILE
    seed = path.read_bytes()

    def read(path: str) -> None:
        bigearthnet_v2_stores._open.cache_clear()  # of the file before
        store = bigearthnet_v2_stores.open_store(str(source))
        for name in sorted(set.union(*store.names()))[:9]:
            store.bands(name)

    ways = (mutations.pages, mutations.blind)
    return Target([seed], by_path(path, read), ways, weight=0.5)


def safetensors(folder: pathlib.Path) -> Target:
    """A patch in that LMDB."""
    images = {"B02": np.ones((9, 9), np.uint16), "VV": np.ones((4, 4), np.float32)}
    seed = reben.safetensors.save(images)
    ways = (mutations.safetensors, mutations.blind)
    return Target([seed], lambda data: bigearthnet_v2_stores._parse(data, "x"), ways)


def tar(folder: pathlib.Path) -> Target:
    """A tar of patches."""
    files = [("t/a/a_1.tif", b"1" * 700), ("t/b/b_1.json", b'{"note": "c"}')]
    files += [(f"t/{'c' * 120}/{'c' * 120}_1.tif", b"long"), ("t/a/a_2.tif", b"2")]
    path = pathlib.Path(packing.write_tar(folder / "x.tar", files))
    scratch = folder / "scratch"

    def read(path: str) -> None:
        try:
            where, _ = tars.index(path, str(scratch), "note")
            for place in where.values():
                tars.reader(place)
        finally:
            tars.clean(path, str(scratch))
            for left in scratch.glob("*"):
                left.unlink()

    ways = (mutations.tar, mutations.blind)
    return Target([path.read_bytes()], by_path(path, read), ways, weight=0.3)


def pairs(folder: pathlib.Path) -> Target:
    """The CSV of somebody's own pairs."""
    seed = "s1,s2,id,split,labels\na.tif,b.tif,x,train,water;forest\nc.tif,é.tif,,,\n"
    return Target([seed.encode()], by_path(folder / "x.csv", pair_lists.find_files))


def splits(folder: pathlib.Path) -> Target:
    """A list of who is in which split."""
    seeds = [b"s2_name,s1_name,split\na,b,train\nc,d,val\n", b"patch_id,split\na,test"]
    read = by_path(folder / "x.csv", lambda path: name_lists.listed(path, {"a"}))
    return Target(seeds, read)


def _bands(folder: pathlib.Path) -> list[bytes]:
    """Bands of both sensors in strips, and one that is compressed."""
    made = []
    for i, dtype in enumerate((np.uint16, np.float32, np.uint16)):
        inside = folder / f"bands{i}"
        inside.mkdir(exist_ok=True)
        image = np.random.default_rng(0).integers(1, 9000, (20, 20)).astype(dtype)
        form = dict(rowsperstrip=7) if i < 2 else dict(compression="zlib")
        shared_data.write_band(inside, "B02", image, **form)
        made.append((inside / f"bands{i}_B02.tif").read_bytes())
    return made


TARGETS: dict[str, Callable[[pathlib.Path], Target]] = {
    "record": record,
    "shard": shard,
    "card": card,
    "features": functools.partial(_of_tfds, name="features.json"),
    "dataset_info": functools.partial(_of_tfds, name="dataset_info.json"),
    "index": index,
    "tiff": band,
    "raster": raster,
    "labels": labels,
    "parquet": parquet,
    "lmdb": database,
    "safetensors": safetensors,
    "tar": tar,
    "pairs.csv": pairs,
    "splits.csv": splits,
    "config": of_runs.config,
    "exported": of_runs.exported_config,
    "weights": of_runs.exported_weights,
    "places": of_runs.places,
    "metrics": of_runs.logged,
    "scores": of_runs.scores,
    "predictions": of_runs.predictions,
}
