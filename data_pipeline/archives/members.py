"""The files in a tar, found by its headers alone.

Headers of strangers may send Python's own tarfile in circles, with sizes below zero or
sparse files without an end. What is read here is what archives consist of: files and
folders, in the formats ustar, GNU and pax, each header further on than the one before.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512  # a tar consists of blocks of so many bytes

_MOST_NAME = 1 << 16  # bytes of a header that only tells a long name
_MOST_SIZE = 1 << 42  # bytes of a file; far behind them no file can be sought
_LONG_NAME, _LONG_LINK, _PAX, _PAX_FOR_ALL = b"L", b"K", b"x", b"g"
_FILES, _SPARSE = (b"0", b"\0", b"7"), b"S"
_EMPTY = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes


class BadHeader(ValueError):
    """A header that no tar of an archive has."""


class Member(NamedTuple):
    """An entry of a tar.

    Attributes:
        name: with the folders it is in.
        is_file: whether it is a regular file.
        offset: where its first header begins.
        start: where its content begins.
        size: of its content in bytes.
    """

    name: str
    is_file: bool
    offset: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """Where the next header is."""
        return self.start + -(-self.size // BLOCK) * BLOCK


def members(file: BinaryIO) -> Iterator[Member]:
    """Yields the members of a tar that is read forwards, up to the first block that
    begins no member: zeros, or the end of the file, or damage.

    Args:
        file: needs only `read` and `seek`. Whoever takes a member may read its content
            before asking for the next.

    Raises:
        BadHeader: a header contradicts itself.
    """
    at, offset, told = 0, 0, {}
    while True:
        file.seek(at)
        header = file.read(BLOCK)
        if not _is_header(header):
            if told:
                raise BadHeader(f"no file after the name at byte {offset}")
            return
        kind, size = header[156:157], _number(header[124:136])
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_FOR_ALL):
            if size > _MOST_NAME:
                raise BadHeader(f"a name of {size} bytes at byte {at}")
            content = file.read(size)
            if len(content) < size:
                return
            if kind == _LONG_NAME:
                told["path"] = content.split(b"\0")[0].decode(errors="replace")
            elif kind == _PAX:
                told |= _pax(content)
            at += BLOCK + -(-size // BLOCK) * BLOCK
            continue
        if kind == _SPARSE or any(key.startswith("GNU.sparse") for key in told):
            raise BadHeader(f"a sparse file at byte {at}")
        size = _decimal(told["size"]) if "size" in told else size
        size = 0 if kind in _EMPTY else size
        name = told.get("path") or _name(header)
        member = Member(name, kind in _FILES, offset, at + BLOCK, size)
        yield member
        at, offset, told = member.end, member.end, {}


def _is_header(block: bytes) -> bool:
    """Whether the checksum of a block is that of a header."""
    if len(block) < BLOCK or not any(block):
        return False
    try:
        known = _number(block[148:156])
    except BadHeader:
        return False
    return known == sum(block[:148]) + 8 * ord(" ") + sum(block[156:])


def _number(field: bytes) -> int:
    """A number as tars write it: octal digits, or 128 and the number itself."""
    if field[0] == 128:
        return _bounded(int.from_bytes(field[1:]))
    digits = field.split(b"\0")[0].strip(b" ")
    if not all(b"0"[0] <= digit <= b"7"[0] for digit in digits):
        raise BadHeader(f"a number {field!r}")
    return _bounded(int(digits or b"0", 8))


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadHeader(f"a size of {text!r:.50}")
    return _bounded(int(text))


def _bounded(size: int) -> int:
    if size > _MOST_SIZE:
        raise BadHeader(f"a size of {size} bytes")
    return size


def _name(header: bytes) -> str:
    name, prefix = header[:100].split(b"\0")[0], b""
    if header[257:263] == b"ustar\0":  # GNU's own format has other things there
        prefix = header[345:500].split(b"\0")[0]
    joined = prefix + b"/" + name if prefix else name
    return joined.decode(errors="replace")


def _pax(content: bytes) -> dict[str, str]:
    """The records of a pax header, each `LENGTH KEY=VALUE` and a line's end."""
    found = {}
    while content:
        digits, space, _ = content[:20].partition(b" ")
        length = _decimal(digits.decode(errors="replace")) if space else 0
        record = content[len(digits) + 1 : length]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n" or length > len(content):
            raise BadHeader("a pax header that is none")
        found[key.decode(errors="replace")] = value.decode(errors="replace")
        content = content[length:]
    return found
