"""Damage to files, blind or with knowledge of their structure, drawn from a generator.

Blind damage seldom comes behind the first check of a parser. What knows the structure
writes lengths, counts, offsets and checksums that hold, around one that does not.
"""

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Sequence

LEAST, MOST = 1, 8  # changes to one input
INTEGERS = sorted(
    {sign * (1 << bits) + near for bits in (0, 7, 8, 15, 16, 31, 32, 63)
     for sign in (-1, 1) for near in (-1, 0, 1)}
)  # fmt: skip
VALUES = (
    *(None, True, -1, 0, 1, 3, 10**9, 1 << 64, 10**400, -0.5, 1e308, float("nan")),
    *("", "é", "s1", "../x", "x" * 5000, "\ud800", [], {}, [[]], ["", ""], {"": 0}),
)

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


def blind(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Changes a few places of `data`, or puts in something of `others`."""
    changed = bytearray(data)
    for _ in range(rng.randint(LEAST, MOST)):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 2, 4, 8, 64, 1024)))
        kind = rng.randrange(8)
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
        elif kind == 2:
            del changed[at:end]
        elif kind == 3 and rng.random() < 0.3:
            del changed[at:]
        elif kind == 4:
            changed[at:at] = bytes(changed[at:end]) * rng.choice((1, 2, 40))
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            changed[at:end] = other[start : start + end - at]
        else:
            number = integer(rng, rng.choice((1, 2, 4, 8)))
            changed[at : at + len(number)] = number
    return bytes(changed)


def integer(rng: random.Random, size: int) -> bytes:
    """A number at which parsers stumble, in `size` bytes of either order."""
    value = rng.choice(INTEGERS) & ((1 << 8 * size) - 1)
    return value.to_bytes(size, rng.choice(("little", "big")))


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    high = value >> 7
    return bytes([value & 127 | 128]) + varint(high) if high else bytes([value])


def example(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Changes features of a serialised tf.train.Example, and writes it anew."""
    entries, at = [], _content(data, 0)[0]
    while at < len(data):
        start, size = _content(data, at)
        name, length = _content(data, start)
        at = start + size
        entries.append((data[start : name + length], data[name + length : at]))
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(entries))
        kind = rng.randrange(5)
        if kind == 0:
            entries.insert(rng.randrange(len(entries)), entries[i])
        elif kind == 1 and len(entries) > 1:
            del entries[i]
        elif kind == 2:
            entries[i] = (blind(rng, b"".join(entries[i]), others), b"")
        else:  # another feature under the same name
            entries[i] = (entries[i][0], _field(b"\x12", _feature(rng)))
    body = b"".join(_field(b"\n", b"".join(entry)) for entry in entries)
    if rng.random() < 0.2:  # a length that is none, behind those that are
        return b"\n" + rng.choice((varint(rng.getrandbits(70)), b"\xff" * 4000)) + body
    return _field(b"\n", body)


def _content(data: bytes, at: int) -> tuple[int, int]:
    """Where the content of a sound field begins, and how long it is."""
    value = shift = 0
    while True:
        at += 1
        value |= (data[at] & 127) << shift
        shift += 7
        if data[at] < 128:
            return at + 1, value


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content


def _feature(rng: random.Random) -> bytes:
    """Labels, texts or numbers that a field may not expect."""
    kind = rng.choice((b"\n", b"\x12", b"\x1a"))
    if kind == b"\n":
        values = [_field(b"\n", rng.randbytes(rng.choice((0, 1, 9, 576))))]
        return _field(kind, b"".join(values * rng.randrange(3)))
    numbers = [rng.choice(INTEGERS) & ((1 << 64) - 1) for _ in range(rng.randrange(4))]
    return _field(kind, _field(b"\n", b"".join(map(varint, numbers))))


def tiff(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Changes entries of the first directory of a TIFF."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = start + 2 + 12 * rng.randrange(count)
        other = start + 2 + 12 * rng.randrange(count)
        kind = rng.randrange(6)
        if kind == 0:
            changed[at : at + 12] = changed[other : other + 12]
        elif kind == 1:
            struct.pack_into(order + "H", changed, at + 2, rng.randrange(14))
        elif kind == 2:  # the file itself as a list of offsets, lengths or colours
            struct.pack_into(order + "II", changed, at + 4, len(data) // 4, 0)
        elif kind == 3:
            changed[4:8] = integer(rng, 4)
        else:
            value = rng.choice((rng.choice(INTEGERS), rng.randrange(len(data) + 1)))
            value &= 0xFFFFFFFF
            struct.pack_into(order + "I", changed, at + rng.choice((4, 8)), value)
    return bytes(changed)


def plain_json(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Replaces, removes or repeats parts of a JSON file, wherever they stand."""
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        value = _changed(rng, value)
    if rng.random() < 0.02:
        deep = rng.choice((900, 100_000))
        return b"[" * deep + json.dumps(value).encode() + b"]" * deep
    return json.dumps(value).replace("1e+308", rng.choice(("1e308", "1e999"))).encode()


def _changed(rng: random.Random, value):
    keys = list(value if isinstance(value, dict) else range(len(value))) if (
        isinstance(value, dict | list)
    ) else []  # fmt: skip
    if not keys or rng.random() < 0.1:
        return copy.deepcopy(rng.choice(VALUES))
    key = rng.choice(keys)
    kind = rng.randrange(10)
    if kind == 0:
        del value[key]
    elif kind == 1:
        value[key] = value[rng.choice(keys)]
    elif kind == 2 and isinstance(value, dict):
        value[rng.choice(("", "x", "s1", "labels", "bands"))] = value.pop(key)
    else:
        value[key] = _changed(rng, value[key])
    return value


def lines_of_json(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Does the same to a line of a file that has JSON in each."""
    lines = data.splitlines()
    i = rng.randrange(len(lines))
    lines[i] = plain_json(rng, lines[i], others)
    return b"\n".join(lines) + b"\n"


def npz(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Changes the header of an array, in a zip whose checksums hold."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(written, "w") as new:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names:
            content = old.read(name)
            if name == chosen:
                content = npy(rng, content, others)
            new.writestr(name, content, rng.choice((0, zipfile.ZIP_DEFLATED)))
    return written.getvalue()


def npy(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Changes what an array says of its type and shape."""
    if rng.random() < 0.2:
        return blind(rng, data, others)
    (size,) = struct.unpack_from("<H", data, 8)
    kind = rng.choice(("<u8", "|O", "<U9", "<U999999999", "|u1", "<f4", "|V8", "<M8"))
    shape = tuple(rng.choice((0, 1, 5, 9, 10**15, -1)) for _ in range(rng.randrange(4)))
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    header = rng.choice((header, "[" * 200 + header, "{[]: 1}", "1e9**9**9"))
    header = (header.encode() + b"\n").rjust(rng.choice((0, 118)))
    return data[:8] + struct.pack("<H", len(header)) + header + data[10 + size :]


def tar(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Changes headers of a tar, and puts their checksums right."""
    changed = bytearray(data)
    starts = range(0, len(data), 512)
    headers = [at for at in starts if data[at + 257 : at + 262] == b"ustar"]
    for _ in range(rng.randint(1, 3)):
        at = rng.choice(headers)
        kind = rng.randrange(4)
        if kind == 0:
            changed[at + 124 : at + 136] = rng.choice(
                (b"77777777777\0", b"\x80" + bytes(3) + integer(rng, 8),
                 b"\xff" * 11 + b"\0", b"%011o\0" % rng.randrange(4096))
            )  # fmt: skip
        elif kind == 1:
            changed[at + 156] = rng.choice(b"0LKxgS")
        elif kind == 2:
            record = rng.choice((b"size=-99", b"size=" + b"9" * 30, b"path=a/a_1",
                                 b"GNU.sparse.major=1", b"size=1024"))  # fmt: skip
            record = b"%d %s\n" % (len(record) + 4, record)
            changed[at + 156 : at + 157] = b"x"
            changed[at + 124 : at + 136] = b"%011o\0" % len(record)
            changed[at + 512 : at + 512 + len(record)] = record
        else:
            changed[at : at + 512] = blind(rng, bytes(changed[at : at + 512]), others)[
                :512
            ].ljust(512, b"\0")
        changed[at + 148 : at + 156] = b" " * 8
        total = sum(changed[at : at + 512])
        changed[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(changed)


def safetensors(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Changes the header, whose length holds or does not."""
    (size,) = struct.unpack_from("<Q", data)
    header = plain_json(rng, data[8 : 8 + size], others)
    told = struct.pack("<Q", len(header)) if rng.random() < 0.8 else integer(rng, 8)
    return told + header + data[8 + size :]


def pages(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Changes headers, pointers and nodes of the pages of an LMDB, not its content."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        page = 4096 * rng.randrange(len(data) // 4096)
        at = page + rng.choice((rng.randrange(40), rng.randrange(200), 4095))
        at = min(at, len(data) - 8)
        number = integer(rng, rng.choice((1, 2, 4, 8)))
        changed[at : at + len(number)] = number
    return bytes(changed)
