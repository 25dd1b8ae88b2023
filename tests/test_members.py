"""Tars: the members that tarfile finds, and headers that would lead it astray."""

import io
import tarfile

import pytest

from data_pipeline.archives import members, tars
from data_pipeline.errors import InputError

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


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
def test_members_are_those_that_tarfile_finds(form):
    tall = "/".join(["d" * 60, "e" * 60, "f" * 90])
    files = [
        *(("a/a_1", b"1" * 700, b"0"), ("a", b"", b"5"), (tall, b"2" * 512, b"0")),
        *(("link", b"", b"2") if form != FORMATS[0] else ("x", b"", b"0"),),
        *(("a/é", b"", b"0"), ("last", b"3", b"0")),
    ]
    tar = packed(files, form)
    with tarfile.open(fileobj=io.BytesIO(tar)) as known:
        want = [
            (m.name, m.isreg(), m.offset, m.offset_data, m.size, tar_end(m))
            for m in known
        ]
    found = members.members(io.BytesIO(tar))
    got = [(m.name.rstrip("/"), *m[1:], m.end) for m in found]
    assert got == want


def tar_end(member: tarfile.TarInfo) -> int:
    return member.offset_data + -(-member.size // 512) * 512


@pytest.mark.parametrize(
    "size, reason",
    [
        (b"\xff" * 11 + b"\x00", "a number"),  # -256, back to where it came from
        (b"-0000001000\0", "a number"),
        (b"\x80" + b"\xff" * 11, "a size of"),
        (b"99999999999\0", "a number"),
    ],
)
def test_size_that_leads_back_or_far_off_is_refused(size, reason):
    tar = packed([("a/a_1", b"1" * 700, b"0"), ("a/a_2", b"2", b"0")])
    tar[1536 + 124 : 1536 + 136] = size
    with pytest.raises(members.BadHeader, match=reason):
        list(members.members(io.BytesIO(with_checksum(tar, 1536))))


@pytest.mark.parametrize(
    "record", ["size=-512", "size=" + "9" * 30, "GNU.sparse.major=1", "=", ""]
)
def test_pax_header_that_leads_astray_is_refused(tmp_path, record):
    key, _, value = record.partition("=")
    tar = packed([("a/a_1", b"1", b"0")], tarfile.PAX_FORMAT, comment="-" * 40)
    line = f"{len(record) + 4} {record}\n".encode()
    at = tar.index(b" comment=") - 2
    tar[at : at + len(line)] = line
    tar[124:136] = b"%011o\0" % len(line)
    path = tmp_path / "x.tar"
    path.write_bytes(with_checksum(tar, 0))
    with pytest.raises(InputError, match="x.tar is cut short or damaged"):
        tars.index(str(path), str(tmp_path / "scratch"))


@pytest.mark.parametrize("kind, size", [(b"S", 1), (b"L", 1 << 20), (b"x", 1 << 20)])
def test_sparse_files_and_endless_names_are_refused(kind, size):
    tar = packed([("a/a_1", bytes(size), b"0")])
    tar[156:157] = kind
    with pytest.raises(members.BadHeader, match="sparse|a name of 1048576 bytes"):
        list(members.members(io.BytesIO(with_checksum(tar, 0))))


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
