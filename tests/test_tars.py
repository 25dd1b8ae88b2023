"""Reading patches from tars: the same as from folders, and damage noticed."""

import io
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import tarfile

import numpy as np
import pytest

from data_pipeline.archives import tars
from data_pipeline.errors import InputError
from tests import shared_data
from tests.packing import open_archive, pack, records, write_tar

NOTED = "corresponding_s2_patch"
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def assert_same(got: list[dict], want: list[dict]):
    assert len(got) == len(want)
    for a, b in zip(got, want):
        assert a.keys() == b.keys()
        for field in a:
            np.testing.assert_array_equal(a[field], b[field], strict=True)


@pytest.mark.parametrize("form", FORMATS)
def test_tars_hold_the_same_records_as_folders(tmp_path, form):
    unpacked, packed = tmp_path / "unpacked", tmp_path / "packed"
    packed.mkdir()
    for column in range(3):
        shared_data.write_pair(unpacked, column)
    for folder in unpacked.iterdir():
        pack(folder, packed / f"{folder.name}.tar", format=form)
    want = records(open_archive(unpacked, tmp_path))
    archive = open_archive(packed, tmp_path)
    assert_same(records(archive), want)
    assert_same(records(archive), want)  # from what the first reading left


def test_real_tars_hold_the_same_records_as_folders(tmp_path):
    source = pathlib.Path(shared_data.bigearthnet_v1())
    for name in ("BigEarthNet-S1", "BigEarthNet-S2"):
        pack(source / name, tmp_path / f"{name}.tar")
    want = records(open_archive(source, tmp_path))
    assert len(want) == 22
    assert_same(records(open_archive(tmp_path, tmp_path)), want)


@pytest.mark.parametrize("suffix", tars.DECOMPRESS)
def test_compressed_tars_are_refused_with_the_command_that_helps(tmp_path, suffix):
    s2, _ = shared_data.write_pair(tmp_path, 1)
    path = pack(s2.parent, tmp_path / f"{s2.parent.name}.tar")
    shutil.rmtree(s2.parent)
    packed = path.rename(f"{path}{suffix}")
    with pytest.raises(InputError, match="is compressed, .*; decompress it") as caught:
        open_archive(tmp_path, tmp_path).find_pairs()
    command = shlex.split(str(caught.value).split("`")[1])
    assert command[-1] == str(packed)
    compress = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}[suffix]
    if not all(map(shutil.which, (compress, command[0]))):
        pytest.skip(f"there is no {compress}")
    packed.rename(path)
    subprocess.run([compress, path], check=True)
    path.unlink(missing_ok=True)  # zstd keeps it
    subprocess.run(command, check=True)
    assert len(records(open_archive(tmp_path, tmp_path))) == 1


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
    starts = {patch: place[2] for patch, place in where.items()}
    assert starts == {"a": 1536, "b": 4096, "c": 6144}
    assert where["a"][3] == "a_1.tif/0/700/a_labels.json/1536/37/a_2.tif/3584/1"
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


def test_a_tar_is_scanned_once_until_it_changes(tmp_path, monkeypatch):
    path, scratch = write_tar(tmp_path / "x.tar", [("t/a/a_1", b"x")]), str(tmp_path)
    scans, scan = [], tars._scan
    monkeypatch.setattr(tars, "_scan", lambda *args: scans.append(args) or scan(*args))
    first = tars.index(path, scratch)
    assert tars.index(path, scratch) == first and len(scans) == 1
    os.utime(path, (1, 1))
    assert tars.index(path, scratch)[0]["a"][1] == (10240, 10**9) and len(scans) == 2
    (tmp_path / "x.tar.index.json").write_text("{")
    assert tars.reader(tars.index(path, scratch)[0]["a"])("a_1") == b"x"


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_archive_is_an_error_that_names_it(tmp_path, keep):
    rng = np.random.default_rng(0)
    files = [(f"t/{i}/{i}_1.tif", rng.bytes(20_000)) for i in range(40)]
    path = pathlib.Path(write_tar(tmp_path / "x.tar", files))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(InputError, match="x.tar is cut short or damaged"):
        tars.index(str(path), str(tmp_path / "scratch"))
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("start", [0, 1024, 2048])
def test_tar_cut_between_two_files_or_with_a_damaged_header_is_an_error(
    tmp_path, start
):
    files = [(f"t/{i}/{i}_1", bytes(1)) for i in range(3)]
    path = pathlib.Path(write_tar(tmp_path / "x.tar", files))
    data = path.read_bytes()
    for bad in (data[:start], data[:start] + b"?" * 512 + data[start + 512 :]):
        path.write_bytes(bad)
        with pytest.raises(InputError, match="x.tar is cut short or damaged"):
            tars.index(str(path), str(tmp_path / "scratch"))


def test_disk_that_fails_or_fills_is_not_taken_for_damage(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", [("t/a/a_1.tif", b"x")])

    def fail(*args):
        raise OSError(28, "No space left on device")

    for place, name in ((tars.atomic, "write_whole"), (tars.tarfile.TarFile, "next")):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, fail)
            with pytest.raises(
                InputError, match="cannot be indexed in .*No space left"
            ):
                tars.index(path, str(tmp_path / "scratch"))


def test_tar_that_changed_under_the_build_stops_it(tmp_path):
    path = pathlib.Path(write_tar(tmp_path / "x.tar", [("t/a/a_1.tif", b"x" * 700)]))
    where, _ = tars.index(str(path), str(tmp_path / "scratch"))
    data = path.read_bytes()
    for changed in (data[:1000], b"?" * len(data)):
        path.write_bytes(changed)
        os.utime(path, (1, 1))
        with pytest.raises(OSError, match="x.tar was changed since the build began"):
            tars.reader(where["a"])
    path.unlink()
    with pytest.raises(FileNotFoundError):
        tars.reader(where["a"])


def packed(files, form=tarfile.GNU_FORMAT, **changes) -> bytearray:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form) as tar:
        for name, content, kind in files:
            member = tarfile.TarInfo(name)
            member.size, member.type = len(content), kind
            member.linkname = "l" * 120 if kind == tarfile.SYMTYPE else ""
            member.pax_headers = changes
            tar.addfile(member, io.BytesIO(content))
    return bytearray(written.getvalue())


def with_checksum(tar: bytearray, at: int) -> bytearray:
    tar[at + 148 : at + 156] = b" " * 8
    tar[at + 148 : at + 156] = b"%06o\0 " % sum(tar[at : at + 512])
    return tar


@pytest.mark.parametrize("form", FORMATS)
def test_files_of_patches_are_found_whatever_else_a_tar_holds(tmp_path, form):
    tall = "/".join(["d" * 60, "e" * 60, "f" * 90, "f" * 90 + "_1"])
    files = [
        *(("a/a_1", b"1" * 700, b"0"), ("a", b"", b"5"), ("pipe/pipe_1", b"", b"6")),
        *(("link/link_1", b"", b"2"),) * (form != FORMATS[0]),
        *((tall, b"2" * 512, b"0"),) * (form != FORMATS[0]),
        *(("é/é_1", b"", b"0"), ("last/last_1", b"3", b"0")),
    ]
    path = tmp_path / "x.tar"
    path.write_bytes(packed(files, form))
    where, _ = tars.index(str(path), str(tmp_path / "scratch"))
    want = {name.split("/")[-2]: (name, data) for name, data, k in files if k == b"0"}
    assert where.keys() == want.keys()
    for patch, (name, data) in want.items():
        assert tars.reader(where[patch])(name.split("/")[-1]) == data


def refuse(tmp_path, tar: bytearray) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar)
    with pytest.raises(InputError, match="x.tar is cut short or damaged"):
        tars.index(str(path), str(tmp_path / "scratch"))


@pytest.mark.parametrize(
    "size",
    [
        b"\xff" * 11 + b"\x00",  # -256
        b"\xff" * 10 + b"\xf8\x00",  # -2048, back to where it came from
        b"-0000001000\0",
        b"\x80" + b"\xff" * 11,
        b"99999999999\0",
    ],
)
def test_size_that_leads_back_or_far_off_is_refused(tmp_path, size):
    tar = packed([("a/a_1", b"1" * 700, b"0"), ("a/a_2", b"2", b"0")])
    tar[1536 + 124 : 1536 + 136] = size
    refuse(tmp_path, with_checksum(tar, 1536))


@pytest.mark.parametrize(
    "pax_headers",
    [
        {"size": "-512"},
        {"size": "9" * 30},
        {"size": "x"},
        {"GNU.sparse.size": "9"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},  # its map never ends
        {"GNU.sparse.map": "a,b"},
    ],
)
def test_pax_header_that_leads_astray_is_refused(tmp_path, pax_headers):
    tar = packed([("a/a_1", b"1" * 512, b"0")], FORMATS[2], **pax_headers)
    refuse(tmp_path, tar[: -tarfile.RECORDSIZE + 2048])


@pytest.mark.parametrize("kind, size", [(b"S", 1), (b"L", 1 << 20), (b"x", 1 << 20)])
def test_sparse_files_and_endless_names_are_refused(tmp_path, kind, size):
    tar = packed([("a/a_1", bytes(size), b"0")])
    tar[156:157] = kind
    refuse(tmp_path, with_checksum(tar, 0))


def test_headers_that_hold_headers_without_end_are_refused(tmp_path):
    tar = packed([("a/a_1", b"", b"0")])
    tar[156:157] = b"L"
    refuse(tmp_path, with_checksum(tar, 0)[:512] * 5000)


def test_nothing_is_written_whatever_members_are_called(tmp_path):
    files = [("/etc/etc_1", b"1", b"0"), ("../x/x_1", b"2", b"0"), ("l/l_1", b"", b"2")]
    path = tmp_path / "in" / "x.tar"
    path.parent.mkdir()
    path.write_bytes(packed(files))
    where, _ = tars.index(str(path), str(tmp_path / "in" / "scratch"))
    assert tars.reader(where["x"])("x_1") == b"2"
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        *("in", "scratch", "x.tar", "x.tar.index.json")
    ]


def test_clean_removes_what_index_wrote_and_nothing_else(tmp_path):
    one, two = (
        write_tar(tmp_path / x, [("t/a/a_1", b"x")]) for x in ("x.tar", "y.tar")
    )
    (tmp_path / "mine.index.json").write_text("of somebody else")
    before, scratch = set(tmp_path.iterdir()), tmp_path / "scratch"
    for path in (one, two):
        tars.index(path, str(tmp_path))  # scratch is the source, of all folders
        tars.clean(path, str(tmp_path))
    assert set(tmp_path.iterdir()) == before
    for path in (one, two):
        tars.index(path, str(scratch))
    tars.clean(one, str(scratch))
    assert [path.name for path in scratch.iterdir()] == ["y.tar.index.json"]
    tars.clean(two, str(scratch))
    tars.clean(two, str(scratch))  # and again, where there is nothing
    assert set(tmp_path.iterdir()) == before


def test_the_archive_cleans_up_after_its_tars_and_leaves_folders_alone(tmp_path):
    s2, _ = shared_data.write_pair(tmp_path / "in", 1)
    scratch = tmp_path / "out-scratch"
    scratch.mkdir()
    archive = open_archive(tmp_path / "in", tmp_path)
    archive.find_pairs()
    archive.clean()
    assert scratch.exists()  # two folders need none
    pack(s2.parent, tmp_path / "in" / f"{s2.parent.name}.tar")
    shutil.rmtree(s2.parent)
    before = sorted(tmp_path.rglob("*"))
    records(archive)
    assert len(os.listdir(scratch)) == 1
    archive.clean()
    assert sorted(tmp_path.rglob("*")) == [path for path in before if path != scratch]
