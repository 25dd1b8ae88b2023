"""LMDB in a process of its own: what was written is read, damage costs only that."""

import random
import struct

import pytest

from data_pipeline.archives import base, lmdb_reader

lmdb = pytest.importorskip("lmdb", reason="pip install lmdb")
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
    database = lmdb_reader.Database(str(tmp_path))
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


BRANCH, LEAF, OVERFLOW = 1, 2, 4


@pytest.mark.parametrize(
    "kind, offset, value",
    [
        (LEAF, 16, b"\xff\xff"),  # a node outside of its page
        (LEAF, 12, b"\xff\xff"),  # more nodes than there is room for
        (LEAF, 10, b"\x08"),  # no page of the tree
        (BRANCH, 12, b"\x10\0"),  # no nodes
    ],
)
def test_damaged_pages_cost_the_process_that_reads_them(tmp_path, kind, offset, value):
    content = written(tmp_path, 600)
    path = tmp_path / "data.mdb"
    data = bytearray(path.read_bytes())
    for at in pages(data, kind):
        data[at + offset : at + offset + len(value)] = value
    path.write_bytes(data)
    database = lmdb_reader.Database(str(tmp_path))
    for _ in range(2):  # another process answers, or fails, the second time
        with pytest.raises(lmdb_reader.Damaged):
            for key in list(database.keys()) or content:
                database.get(key)


META = struct.Struct("<IIQQ IHHQQQQQ IHHQQQQQ QQ")  # behind the heads of pages 0 and 1


def test_tree_that_leads_back_to_its_root_ends_and_spares_the_process(tmp_path):
    content = written(tmp_path, 600)
    path = tmp_path / "data.mdb"
    data = bytearray(path.read_bytes())
    metas = [META.unpack_from(data, at + 16) for at in (0, PAGE)]
    root = max(metas, key=lambda meta: meta[-1])[19]
    count = (struct.unpack_from("<H", data, root * PAGE + 12)[0] - 16) // 2
    nodes = struct.unpack_from(f"<{count}H", data, root * PAGE + 16)
    for at in nodes[1:]:  # all but the first
        struct.pack_into("<HHH", data, root * PAGE + at, root & 0xFFFF, root >> 16, 0)
    path.write_bytes(data)
    database = lmdb_reader.Database(str(tmp_path))
    process = database._process
    for _ in range(2):
        with pytest.raises(lmdb_reader.Damaged, match="CURSOR_FULL"):
            database.get(max(content))
        assert database.get(min(content)) == content[min(content)]
    assert database._process is process
    with pytest.raises(lmdb_reader.Damaged):
        list(database.keys())


def test_a_process_that_was_killed_is_replaced(tmp_path):
    content = written(tmp_path, 60)
    database = lmdb_reader.Database(str(tmp_path))
    database._process.kill()
    key = min(content)
    with pytest.raises(lmdb_reader.Damaged, match="end the process .* SIGKILL"):
        database.get(key)
    assert database.get(key) == content[key]


def test_keys_that_go_round_in_circles_end(tmp_path, monkeypatch):
    written(tmp_path, 60)
    database = lmdb_reader.Database(str(tmp_path))
    answer = database._ask(b"k", b"")
    monkeypatch.setattr(database, "_ask", lambda *question: answer)
    with pytest.raises(lmdb_reader.Damaged, match="comes after"):
        list(database.keys())


def test_the_process_ends_with_its_database(tmp_path):
    written(tmp_path, 3)
    database = lmdb_reader.Database(str(tmp_path))
    process = database._process
    del database
    assert process.poll() == 0


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda data: data[: len(data) // 2], "cut short, .* of at least"),
        (lambda data: b"junk" * 5000, "data.mdb|[Ii]nvalid|LMDB"),
        (lambda data: data[:20] + b"\2" + data[21:], "version|VERSION|[Ii]nvalid"),
        (lambda data: b"", "."),
    ],
)
def test_what_is_no_whole_lmdb_is_refused(tmp_path, change, reason):
    written(tmp_path, 300)
    path = tmp_path / "data.mdb"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(lmdb_reader.Damaged, match=reason):
        lmdb_reader.Database(str(tmp_path))


def test_value_larger_than_any_patch_is_refused(tmp_path, monkeypatch):
    content = written(tmp_path, 60)
    key = next(key for key, value in content.items() if len(value) == 9000)
    monkeypatch.setattr(base, "MOST_BYTES", 8999)
    with lmdb.open(str(tmp_path), readonly=True) as environment:
        with environment.begin(buffers=True) as transaction:
            with pytest.raises(ValueError, match="has 9000 bytes, and no patch has"):
                lmdb_reader._value(transaction, key)
