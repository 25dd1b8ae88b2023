"""BigEarthNet v2 as LMDB: damage, other processes, missing packages."""

import concurrent.futures
import multiprocessing
import os
import pathlib
import pickle
import sys

import numpy as np
import pytest

from data_pipeline.archives import bigearthnet_v2_stores as stores
from data_pipeline.archives import lmdb_reader
from data_pipeline.errors import InputError
from tests import reben

safetensors = reben.safetensors


@pytest.fixture
def one(tmp_path) -> tuple[pathlib.Path, dict]:
    return reben.one(tmp_path)


BF16 = b'{"VV":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff" * 64,
        safetensors.save({"VV": np.ones(9, np.float32)})[:-1],
        len(BF16).to_bytes(8, "little") + BF16 + b"\0\0",  # a type NumPy lacks
    ],
)
def test_damaged_value_of_an_lmdb_is_an_error_that_names_it(one, value):
    archive, row = one
    source = reben.to_lmdb(archive, archive / "lmdb")
    reben.put(source, {row["s1_name"]: value})
    with pytest.raises(InputError, match=f"{row['s1_name']} in .* is damaged"):
        reben.read_one(source)


def test_map_in_an_lmdb_without_data_is_an_error(one):
    archive, row = one
    source = reben.to_lmdb(archive, archive / "lmdb")
    value = safetensors.save({"data": np.ones((120, 120), np.uint16)})
    reben.put(source, {row["patch_id"] + "_reference_map": value})
    with pytest.raises(InputError, match=r"holds \['data'\] and not 'Data'"):
        reben.read_one(source)


def test_lmdb_that_is_cut_short_is_an_error_and_no_crash(one):
    archive, _ = one
    source = reben.to_lmdb(archive, archive / "lmdb")
    path = source / "data.mdb"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="data.mdb is no .*cut short, .* of at least"):
        reben.open_archive(source)


def test_lmdb_with_damaged_pages_or_none_is_an_error(one):
    archive, _ = one
    source = reben.to_lmdb(archive, archive / "lmdb")
    path = source / "data.mdb"
    content = bytearray(path.read_bytes())
    size = os.sysconf("SC_PAGESIZE")
    for page in range(2, len(content) // size):
        if content[page * size + 10] & 2:  # a leaf, where the keys are
            content[page * size : (page + 1) * size] = b"\xa5" * size
    path.write_bytes(content)
    with pytest.raises(InputError, match="data.mdb is damaged"):
        reben.open_archive(source)
    other = archive / "other"
    other.mkdir()
    (other / "data.mdb").write_bytes(b"junk" * 5000)
    with pytest.raises(InputError, match="no LMDB that is whole"):
        reben.open_archive(other)


def test_patch_that_vanished_from_an_lmdb_is_an_error(one):
    archive, row = one
    pairs, _ = reben.open_archive(archive).find_pairs()
    reben.put(archive / "lmdb", {"other": b""})
    with pytest.raises(InputError, match=f"lmdb has no {row['s1_name']}; write"):
        reben.open_archive(archive / "lmdb").read_pair(pairs[0])


def test_lmdb_is_opened_once_in_a_process_by_whatever_path(one, monkeypatch):
    source = reben.to_lmdb(one[0], one[0] / "lmdb")
    link = one[0].parent / "link"
    link.symlink_to(one[0], target_is_directory=True)
    opened, database = [], lmdb_reader.Database

    def count(path):
        opened.append(path)
        return database(path)

    monkeypatch.setattr(lmdb_reader, "Database", count)
    reben.assert_same(reben.read_one(source), reben.read_one(link / "lmdb"))
    assert len(opened) == 1


def test_lmdb_is_read_in_other_processes(one):
    archive = reben.open_archive(reben.to_lmdb(one[0], one[0] / "lmdb"))
    ((pair,), _) = archive.find_pairs()  # opened here, and pickled all the same
    assert len(pickle.dumps(archive)) < 500
    record = archive.read_pair(pair)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        reben.assert_same(pool.submit(archive.read_pair, pair).result(), record)


def test_missing_package_is_an_error_that_names_the_extra(one, monkeypatch):
    source = reben.to_lmdb(one[0], one[0] / "lmdb")
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(InputError, match=r"needs safetensors; .*-e '\.\[archives\]'"):
        reben.read_one(source)
    monkeypatch.setattr(stores.importlib.util, "find_spec", lambda name: None)
    stores._open.cache_clear()
    with pytest.raises(InputError, match="data.mdb needs lmdb; install it"):
        reben.read_one(source)


def test_map_that_cannot_be_looked_for_stops_the_build(one):
    archive, row = one
    reben.write_map(archive, row["patch_id"], np.full((120, 120), 211, np.uint16))
    (path,) = archive.rglob("*_reference_map.tif")
    path.unlink()
    path.symlink_to(path.name)  # a loop, which nobody can open
    with pytest.raises(OSError, match="symbolic links"):
        reben.read_one(archive)


def test_lmdb_that_a_worker_cannot_open_any_more_stops_the_build(one):
    archive = reben.open_archive(reben.to_lmdb(one[0], one[0] / "lmdb"))
    ((pair,), _) = archive.find_pairs()
    os.truncate(one[0] / "lmdb" / "data.mdb", 8192)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        with pytest.raises(OSError, match="data.mdb is no .*cut short"):
            pool.submit(archive.read_pair, pair).result()
