"""A small build of a false archive, and what it leaves behind."""

import csv
import pathlib

from configs import prepare_bigearthnet
from data_pipeline import record_format
from tests import shared_data


def false_archive(tmp_path):
    """Six pairs on two tiles, to be built in this process in shards of two."""
    for column in range(6):
        tile = "33UUP" if column % 3 == 0 else "35VPK"
        shared_data.write_pair(tmp_path / "archive", column, tile=tile)
    config = prepare_bigearthnet.get_config()
    config.source, config.out = str(tmp_path / "archive"), str(tmp_path / "out")
    config.pairs_per_shard, config.workers = 2, 0
    config.most_skipped = 1.0  # one of six is more than a tenth
    return config


def s2_folder(config, column):
    archive = pathlib.Path(config.source) / "BigEarthNet-v1.0"
    return archive / f"S2A_MSIL2A_20170701T93031_{column}_7"


def break_pair(config, column):
    folder = s2_folder(config, column)
    (folder / f"{folder.name}_B02.tif").write_bytes(b"not a TIFF")


def ids(config, split):
    opened = record_format.Records(config.out, split, fields=("id",))
    return [record["id"] for record in opened]


def out_files(config):
    return pathlib.Path(config.out).iterdir()


def files(config):
    return [path.name for path in out_files(config)]


def skipped(config):
    with (pathlib.Path(config.out) / "skipped.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["s2_name", "s1_name", "reason"]
    return rows
