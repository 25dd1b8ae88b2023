"""LMDB read by its pages: what the library wrote, and pages that would kill it."""

import random
import struct

import pytest

from data_pipeline.archives import lmdb_file

lmdb = pytest.importorskip("lmdb", reason="pip install lmdb, which writes what is read")
PAGE = 4096


def written(folder, count: int, seed: int = 0) -> dict[bytes, bytes]:
    """Writes an LMDB whose pages were freed and used again."""
    rng, content = random.Random(seed), {}
    with lmdb.open(str(folder), map_size=1 << 26, sync=False) as environment:
        for _ in range(3):
            with environment.begin(write=True) as transaction:
                for _ in range(count // 3):
                    key = rng.randbytes(rng.randint(1, 400))
                    content[key] = rng.randbytes(rng.choice((0, 1, 99, 2030, 9000)))
                    transaction.put(key, content[key])
                for key in rng.sample(sorted(content), len(content) // 4):
                    del content[key]
                    transaction.delete(key)
    return content


@pytest.mark.parametrize("count", [0, 3, 60, 900])
def test_keys_and_values_are_those_that_were_written(tmp_path, count):
    content = written(tmp_path, count)
    database = lmdb_file.Database(tmp_path / "data.mdb")
    assert list(database.keys()) == sorted(content)
    for key, value in content.items():
        assert database.get(key) == value
    rng = random.Random(1)
    for _ in range(50):
        other = rng.randbytes(rng.randint(1, 3))
        assert database.get(other) == content.get(other)
        assert list(database.keys(other)) == sorted(k for k in content if k >= other)


def pages(data: bytes, kind: int) -> list[int]:
    """Where the pages of a kind begin, by their flags."""
    starts = range(2 * PAGE, len(data), PAGE)
    return [at for at in starts if data[at : at + 8] == struct.pack("<Q", at // PAGE)
            and data[at + 10] == kind]  # fmt: skip


def damaged(tmp_path, kind: int, offset: int, value: bytes):
    """A database with something else in all pages of a kind."""
    content = written(tmp_path, 600)
    path = tmp_path / "data.mdb"
    data = bytearray(path.read_bytes())
    for at in pages(data, kind):
        first = struct.unpack_from("<H", data, at + 16)[0] if offset < 0 else offset
        place = at + first - (offset if offset < 0 else 0) - (offset < 0)
        data[place : place + len(value)] = value
    path.write_bytes(data)
    return lmdb_file.Database(path), content


BRANCH, LEAF, OVERFLOW = 1, 2, 4


@pytest.mark.parametrize(
    "kind, offset, value, reason",
    [
        (LEAF, 16, b"\xff\xff", "nodes outside"),
        (LEAF, 12, b"\xff\xff", "no room for its nodes"),
        (LEAF, 0, b"\xff", "none of the tree"),
        (LEAF, 10, b"\x08", "none of the tree"),
        (LEAF, -7, b"\xff\xff", "a key of|is another database|goes over|is not on"),
        (BRANCH, -1, b"\xff\xff\xff\xff\xff\xff", "byte .* of"),
        (BRANCH, 12, b"\x10\0", "no room for its nodes"),
        (OVERFLOW, 0, b"\xff", "is not on page"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path, kind, offset, value, reason):
    database, content = damaged(tmp_path, kind, offset, value)
    with pytest.raises(lmdb_file.Damaged, match=reason):
        list(database.keys())
        for key in content:
            database.get(key)


def test_tree_that_leads_back_to_its_root_ends(tmp_path):
    written(tmp_path, 600)
    path = tmp_path / "data.mdb"
    database = lmdb_file.Database(path)
    root, data = database._known.root, bytearray(path.read_bytes())
    page = database._page(root)
    for at in page.nodes:
        struct.pack_into("<HHH", data, root * PAGE + at, root & 0xFFFF, root >> 16, 0)
    path.write_bytes(data)
    database = lmdb_file.Database(path)
    with pytest.raises(lmdb_file.Damaged, match="in the tree twice"):
        list(database.keys())
    with pytest.raises(lmdb_file.Damaged, match="more than 32 levels"):
        database.get(b"any")


@pytest.mark.parametrize(
    "at, value, reason",
    [
        (16, b"\0", "no LMDB of version 1"),
        (20, b"\2", "no LMDB of version 1"),
        (40, b"\3\0\0\0", "pages of 3 bytes"),
        (40, b"\0\0\1\0", "byte|no LMDB"),  # pages of 64 KiB, and no second one
        (92, b"\4", "keys of a kind 4"),
    ],
)
def test_head_that_cannot_be_is_refused(tmp_path, at, value, reason):
    written(tmp_path, 3)
    path = tmp_path / "data.mdb"
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(lmdb_file.Damaged, match=reason):
        lmdb_file.Database(path)


def test_value_larger_than_any_patch_is_refused_unread(tmp_path, monkeypatch):
    content = written(tmp_path, 60)
    database = lmdb_file.Database(tmp_path / "data.mdb")
    key = next(key for key, value in content.items() if len(value) == 9000)
    monkeypatch.setattr(lmdb_file.files, "MOST_BYTES", 8999)
    with pytest.raises(lmdb_file.Damaged, match="is not on page"):
        database.get(key)
