"""Reading an LMDB: its B-tree of pages, and nothing but that.

LMDB's own library trusts what it maps: pages of strangers end the process, by an
assertion or a fault of memory. Here every number in a page is checked before it is
followed. As the file is read and not mapped, one that is cut short is an error too.
"""

import bisect
import os
import struct
import weakref
from collections.abc import Iterator
from typing import NamedTuple

from data_pipeline import untrusted
from data_pipeline.archives import base

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_META = struct.Struct("<IIQQ IHHQQQQQ IHHQQQQQ QQ")  # at the beginning of pages 0 and 1
_HEAD = struct.Struct("<QHHHH")  # of a page: number, padding, flags, ends of its middle
_NODE = struct.Struct("<HHHH")  # of a node: size or page in two halves, flags, key size
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
_ELSEWHERE, _OTHER_KINDS = 1, 6  # flags of a node: on pages of its own; not plain
_DEEPEST = 32  # levels of a tree; LMDB allows no more


class Damaged(ValueError):
    """What a page says cannot be."""


class Meta(NamedTuple):
    """What the file says of itself.

    Attributes:
        page_size: in bytes.
        flags: of the main database.
        root: number of its root page.
        last: number of the last page in use.
        transaction: that wrote this.
    """

    page_size: int
    flags: int
    root: int
    last: int
    transaction: int


class Page(NamedTuple):
    """A page of the tree: its bytes, its kind, and where its nodes begin."""

    data: bytes
    is_leaf: bool
    nodes: tuple[int, ...]

    def node(self, i: int) -> tuple[int, int, int, bytes]:
        """The two halves of a size or page number, the flags, and the key."""
        at = self.nodes[i]
        low, high, flags, size = _NODE.unpack_from(self.data, at)
        key = self.data[at + _NODE.size : at + _NODE.size + size]
        if len(key) < size:
            raise Damaged(f"a key of {size} bytes goes over the end of its page")
        return low, high, flags, key

    def key(self, i: int) -> bytes:
        return self.node(i)[3]

    def child(self, i: int) -> int:
        """Number of the page that a node of a branch leads to."""
        low, high, flags, _ = self.node(i)
        return low | high << 16 | flags << 32


class Database:
    """The main database of an LMDB; safe to share by forked processes."""

    def __init__(self, path: str):
        """Opens the file.

        Raises:
            OSError: it cannot be read.
            Damaged: it is no LMDB, or cut short.
        """
        self._file = untrusted.open_file(path)
        weakref.finalize(self, self._file.close)
        self._size = os.fstat(self._file.fileno()).st_size
        first = self._meta(0)
        second = self._meta(first.page_size)
        self._known = max(first, second, key=lambda meta: meta.transaction)
        needed = (self._known.last + 1) * self._known.page_size
        if self._size < needed:
            raise Damaged(f"cut short, {self._size} of at least {needed} bytes")

    def keys(self, start: bytes = b"") -> Iterator[bytes]:
        """All keys from `start` on, in their order.

        Raises:
            OSError: the file cannot be read.
            Damaged: a page is.
        """
        stack, seen = self._roots(), set()
        while stack:
            number = stack.pop()
            if number in seen:
                raise Damaged(f"page {number} is in the tree twice")
            seen.add(number)
            page = self._page(number)
            if page.is_leaf:
                found = (page.key(i) for i in range(len(page.nodes)))
                yield from (key for key in found if key >= start)
            else:
                first = self._place(page, start)
                children = range(len(page.nodes) - 1, first - 1, -1)
                stack += [page.child(i) for i in children]

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, None where there is no such key.

        Raises:
            OSError: the file cannot be read.
            Damaged: a page is, or the value is larger than any patch.
        """
        stack = self._roots()
        for _ in range(_DEEPEST):
            if not stack:
                return None
            page = self._page(stack.pop())
            if page.is_leaf:
                i = bisect.bisect_left(range(len(page.nodes)), key, key=page.key)
                there = i < len(page.nodes) and page.key(i) == key
                return self._value(page, i) if there else None
            stack = [page.child(self._place(page, key))]
        raise Damaged(f"a tree of more than {_DEEPEST} levels")

    def _roots(self) -> list[int]:
        empty = self._known.root == (1 << 64) - 1
        return [] if empty else [self._known.root]

    def _place(self, page: Page, key: bytes) -> int:
        """Which node of a branch leads to a key; its first has none of its own."""
        return bisect.bisect_right(range(1, len(page.nodes)), key, key=page.key)

    def _meta(self, at: int) -> Meta:
        data = self._read(at, _HEAD.size + _META.size)
        flags = _HEAD.unpack_from(data)[2]
        content = _META.unpack_from(data, _HEAD.size)
        if not flags & _META_PAGE or content[:2] != (_MAGIC, _VERSION):
            raise Damaged(f"no LMDB of version {_VERSION} at byte {at}")
        size = content[4]
        if size not in (1 << bits for bits in range(9, 17)):
            raise Damaged(f"pages of {size} bytes")
        if content[13]:
            raise Damaged(f"keys of a kind {content[13]} that no archive has")
        return Meta(size, content[13], content[19], *content[20:])

    def _page(self, number: int) -> Page:
        size = self._known.page_size
        data = self._read(number * size, size)
        told, _, flags, lower, upper = _HEAD.unpack_from(data)
        kind = flags & (_BRANCH | _LEAF | _OVERFLOW | _META_PAGE)
        if told != number or kind not in (_BRANCH, _LEAF):
            raise Damaged(f"page {number} is none of the tree")
        count = (lower - _HEAD.size) // 2
        if not _HEAD.size <= lower <= upper <= size or (kind == _BRANCH and count < 2):
            raise Damaged(f"page {number} has no room for its nodes")
        nodes = struct.unpack_from(f"<{count}H", data, _HEAD.size)
        if nodes and not upper <= min(nodes) <= max(nodes) <= size - _NODE.size:
            raise Damaged(f"page {number} has nodes outside of it")
        return Page(data, kind == _LEAF, nodes)

    def _value(self, page: Page, i: int) -> bytes:
        low, high, flags, key = page.node(i)
        size, at = low | high << 16, page.nodes[i] + _NODE.size + len(key)
        if flags & _OTHER_KINDS:
            raise Damaged(f"{key!r:.99} is another database")
        if not flags & _ELSEWHERE:
            value = page.data[at : at + size]
            if len(value) < size:
                raise Damaged(f"{key!r:.99} goes over the end of its page")
            return value
        if at + 8 > len(page.data):
            raise Damaged(f"{key!r:.99} does not tell where it is")
        (number,) = struct.unpack_from("<Q", page.data, at)
        start = number * self._known.page_size
        told, _, kind, *_ = _HEAD.unpack(self._read(start, _HEAD.size))
        if told != number or not kind & _OVERFLOW or size > base.MOST_BYTES:
            raise Damaged(f"{key!r:.99} is not on page {number}")
        return self._read(start + _HEAD.size, size)

    def _read(self, at: int, size: int) -> bytes:
        if at + size > self._size:
            raise Damaged(f"byte {at + size} of {self._size}")
        data = os.pread(self._file.fileno(), size, at)
        if len(data) < size:
            raise Damaged(f"cut short at byte {at + len(data)}")
        return data
