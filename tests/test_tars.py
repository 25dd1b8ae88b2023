"""Reading patches from tars: the same as from folders, and damage noticed."""

import fcntl
import io
import json
import os
import pathlib
import shutil
import tarfile
import types

import numpy as np
import pytest

from data_pipeline.archives import compressed, tars
from data_pipeline.errors import InputError
from tests import shared_data
from tests.packing import compress, open_archive, pack, records, write_tar

NOTED = "corresponding_s2_patch"


def assert_same(got: list[dict], want: list[dict]):
    assert len(got) == len(want)
    for a, b in zip(got, want):
        assert a.keys() == b.keys()
        for field in a:
            np.testing.assert_array_equal(a[field], b[field], strict=True)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_hold_the_same_records_as_folders(tmp_path, suffix, form):
    unpacked, packed = tmp_path / "unpacked", tmp_path / "packed"
    packed.mkdir()
    for column in range(3):
        shared_data.write_pair(unpacked, column)
    for folder in unpacked.iterdir():
        path = pack(folder, packed / f"{folder.name}.tar", format=form)
        if suffix:
            compress(path, suffix)
    want = records(open_archive(unpacked, tmp_path))
    archive = open_archive(packed, tmp_path)
    assert_same(records(archive), want)
    assert_same(records(archive), want)  # from what the first reading left


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_real_tars_hold_the_same_records_as_folders(tmp_path, suffix):
    source = pathlib.Path(shared_data.bigearthnet_v1())
    for name in ("BigEarthNet-S1", "BigEarthNet-S2"):
        path = pack(source / name, tmp_path / f"{name}.tar")
        if suffix:
            compress(path, suffix)
    want = records(open_archive(source, tmp_path))
    assert len(want) == 22
    assert_same(records(open_archive(tmp_path, tmp_path)), want)


def test_one_archive_may_be_a_folder_and_the_other_a_tar(tmp_path):
    s2, _ = shared_data.write_pair(tmp_path, 1)
    want = records(open_archive(tmp_path, tmp_path))
    pack(s2.parent, tmp_path / "BigEarthNet-S2-v1.0.tar")
    shutil.rmtree(s2.parent)
    assert_same(records(open_archive(tmp_path, tmp_path)), want)


def test_index_tells_spans_and_notes_but_no_other_files(tmp_path):
    note = json.dumps({NOTED: "partner"}).encode()
    files = [
        ("top/README", b"read me"),
        ("top/a/a_1.tif", b"1" * 700),
        ("top/a/a_labels.json", note),
        ("top/b/b_labels.json", b"{"),
        ("top/a/a_2.tif", b"2"),  # in a second run
        ("top/c/c_labels.json", json.dumps({NOTED: 7}).encode()),
    ]
    path = write_tar(tmp_path / "x.tar", files)
    where, notes = tars.index(path, str(tmp_path / "scratch"), NOTED)
    assert where == {
        "a": (path, 1024, 1024 + 1536 + 1024, 4608 + 1024 - 1024, 4608 + 1024),
        "b": (path, 3584, 4608),
        "c": (path, 5632, 6656),
    }
    assert notes == {"a": "partner"}
    read = tars.reader(where["a"])
    assert (read("a_1.tif"), read("a_2.tif")) == (b"1" * 700, b"2")
    assert json.loads(read("a_labels.json")) == {NOTED: "partner"}


def test_file_that_a_patch_lacks_or_has_twice_is_an_error(tmp_path):
    files = [("t/a/a_1.tif", b"x"), ("t/b/b_1.tif", b"y"), ("t/a/a_1.tif", b"z")]
    path = write_tar(tmp_path / "x.tar", files)
    where, _ = tars.index(path, str(tmp_path / "scratch"))
    with pytest.raises(InputError, match="x.tar has no b_2.tif"):
        tars.reader(where["b"])("b_2.tif")
    with pytest.raises(InputError, match="x.tar holds a_1.tif twice"):
        tars.reader(where["a"])


def test_archive_is_scanned_once_until_it_changes(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", [("t/a/a_1.tif", b"x")])
    path = str(compress(pathlib.Path(path), ".gz"))
    scans = []
    survey = tars._survey
    monkeypatch.setattr(
        tars, "_survey", lambda *args: scans.append(args) or survey(*args)
    )
    scratch = str(tmp_path / "scratch")
    first = tars.index(path, scratch)
    assert tars.index(path, scratch) == first and len(scans) == 1
    os.utime(path, (1, 1))
    assert tars.index(path, scratch) == first and len(scans) == 2
    pathlib.Path(first[0]["a"][0]).unlink()
    assert tars.index(path, scratch) == first and len(scans) == 3


def test_scan_that_was_stopped_begins_again(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", [("t/a/a_1.tif", b"x")])
    path, scratch = str(compress(pathlib.Path(path), ".gz")), str(tmp_path / "scratch")

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tars.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            tars.index(path, scratch)
    where, _ = tars.index(path, scratch)
    assert tars.reader(where["a"])("a_1.tif") == b"x"


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_archive_is_an_error_that_names_it(tmp_path, suffix, keep):
    rng = np.random.default_rng(0)
    files = [(f"t/{i}/{i}_1.tif", rng.bytes(20_000)) for i in range(40)]
    path = pathlib.Path(write_tar(tmp_path / "x.tar", files))
    if suffix:
        path = compress(path, suffix)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(InputError, match=f"x.tar{suffix} is cut short or damaged"):
        tars.index(str(path), str(tmp_path / "scratch"))
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("start", [0, 1024, 2048])
def test_tar_cut_between_two_files_or_with_a_damaged_header_is_an_error(
    tmp_path, start, suffix
):
    files = [(f"t/{i}/{i}_1", bytes(1)) for i in range(3)]
    path = pathlib.Path(write_tar(tmp_path / "x.tar", files))
    data = path.read_bytes()
    for bad in (data[:start], data[:start] + b"?" * 512 + data[start + 512 :]):
        path.write_bytes(bad)
        bad = compress(path, suffix) if suffix else path
        with pytest.raises(InputError, match=f"x.tar{suffix} is cut short or damaged"):
            tars.index(str(bad), str(tmp_path / "scratch"))


def test_damaged_byte_in_the_last_part_of_a_gzip_is_noticed(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("t/a/a_1.tif", b"x")])
    path = compress(pathlib.Path(path), ".gz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # of the checksum, which follows the end of the tar
    path.write_bytes(data)
    with pytest.raises(InputError, match="x.tar.gz is cut short or damaged .*CRC"):
        tars.index(str(path), str(tmp_path / "scratch"))


def test_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path, monkeypatch
):
    path = write_tar(tmp_path / "x.tar", [("t/a/a_1.tif", bytes(30_000_000))])
    path = str(compress(pathlib.Path(path), ".gz"))
    free = types.SimpleNamespace(free=10_000_000)
    monkeypatch.setattr(tars.shutil, "disk_usage", lambda folder: free)
    match = "about 0.0.* GB decompressed, and .*scratch has 0.0.* GB free"
    with pytest.raises(InputError, match=match):
        tars.index(path, str(tmp_path / "scratch"))
    assert not list((tmp_path / "scratch").iterdir())


def test_disk_that_becomes_full_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", [("t/a/a_1.tif", b"x")])
    path = str(compress(pathlib.Path(path), ".gz"))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compressed.Copy, "read", full)
    with pytest.raises(InputError, match="cannot be indexed in .*No space left"):
        tars.index(path, str(tmp_path / "scratch"))
    assert not list((tmp_path / "scratch").iterdir())


def test_two_builds_cannot_decompress_into_one_folder(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("t/a/a_1.tif", b"x")])
    path = str(compress(pathlib.Path(path), ".gz"))
    with (tmp_path / "x.tar.gz.plain.tar.part").open("ab") as other:
        other.write(b"what it has so far")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="Another build is decompressing .*gz"):
            tars.index(path, str(tmp_path))
        assert pathlib.Path(other.name).read_bytes() == b"what it has so far"
    where, _ = tars.index(path, str(tmp_path))  # the other was killed
    assert tars.reader(where["a"])("a_1.tif") == b"x"


def test_tar_that_changed_under_the_build_stops_it(tmp_path):
    path = pathlib.Path(write_tar(tmp_path / "x.tar", [("t/a/a_1.tif", b"x" * 700)]))
    where, _ = tars.index(str(path), str(tmp_path / "scratch"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OSError, match="x.tar was changed since the build began .*1536"):
        tars.reader(where["a"])
    path.write_bytes(b"?" * 2048)
    with pytest.raises(OSError, match="x.tar was changed since the build began"):
        tars.reader(where["a"])
    path.unlink()
    with pytest.raises(FileNotFoundError):
        tars.reader(where["a"])


def test_disk_that_fails_while_a_compressed_tar_is_read_is_not_taken_for_damage():
    class Failing(io.RawIOBase):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        compressed.Copy(Failing(), io.BytesIO(), "x.tar.gz").read(1)
