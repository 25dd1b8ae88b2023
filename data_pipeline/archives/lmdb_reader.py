"""Reading an LMDB by the `lmdb` package, in a process of its own.

LMDB's library trusts the pages that it maps: those of strangers may end the process, by
an assertion or a fault of memory. So another process reads; where that ends, what was
asked for is damaged, and the next question starts another. It runs this file, is asked
by a pipe, and ends with it.
"""

import os
import pathlib
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import BinaryIO

from data_pipeline import safe_io
from data_pipeline.archives import base

FILE = "data.mdb"  # LMDB's own name for its file

_KEYS, _VALUE = b"k", b"v"  # what can be asked for
_FOUND, _NONE, _FAULT = b"+", b"0", b"!"  # kinds of answers
_HEAD = struct.Struct("<cI")  # of a question or an answer: its kind and length
_LENGTH = struct.Struct("<H")  # before each of several keys
_AT_ONCE = 4096  # keys in an answer


class Damaged(ValueError):
    """What the file holds cannot be."""


class Database:
    """The main database of an LMDB; safe to share by threads."""

    def __init__(self, folder: str):
        """Opens the database in a folder.

        Raises:
            OSError: its file cannot be read.
            ValueError: it is no LMDB, cut short or no file.
        """
        self._folder, self._lock, self._process = folder, threading.Lock(), None
        with self._lock:
            self._start()

    def keys(self, start: bytes = b"") -> Iterator[bytes]:
        """All keys from `start` on, in their order.

        Raises:
            OSError: the file cannot be read.
            Damaged: a page is.
        """
        last = None
        while answer := self._ask(_KEYS, start):
            at = 0
            while at < len(answer):
                (length,) = _LENGTH.unpack_from(answer, at)
                at += _LENGTH.size + length
                key = answer[at - length : at]
                if last is not None and key <= last:
                    raise Damaged(f"{key!r:.99} comes after {last!r:.99}")
                yield key
                last = key
            start = last + b"\0"  # no key lies between

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, None where there is no such key.

        Raises:
            OSError: the file cannot be read.
            Damaged: a page is, or the value is larger than any patch.
        """
        return self._ask(_VALUE, key) if key else None

    def _start(self) -> None:
        path = os.path.join(self._folder, FILE)
        safe_io.open_file(path).close()  # a pipe would never open
        root = str(pathlib.Path(__file__).parents[2])
        paths = filter(None, (root, os.environ.get("PYTHONPATH")))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, self._folder],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # a signal to the build is the build's to act upon
        )
        self._end = weakref.finalize(self, _end, self._process)
        self._answer()

    def _ask(self, kind: bytes, content: bytes) -> bytes | None:
        with self._lock:
            if self._process is None:
                self._start()
            try:
                self._process.stdin.write(_HEAD.pack(kind, len(content)) + content)
            except BrokenPipeError:
                pass  # its answer says why
            return self._answer()

    def _answer(self) -> bytes | None:
        """The answer to what was asked; one that never comes is damage."""
        try:
            kind, length = _HEAD.unpack(_read(self._process.stdout, _HEAD.size))
            content = _read(self._process.stdout, length)
        except EOFError:
            code = self._end()
            self._process = None
            why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise Damaged(f"its pages end the process that reads them: {why}") from None
        if kind == _FAULT:
            raise Damaged(content.decode(errors="replace"))
        return content if kind == _FOUND else None


def _end(process: subprocess.Popen) -> int:
    """Lets a process end, and tells its exit code."""
    process.stdin.close()
    process.stdout.close()
    return process.wait()


def _read(pipe: BinaryIO, size: int) -> bytes:
    """So many bytes of a pipe; an EOFError where there are fewer."""
    parts = []
    while size:
        part = pipe.read(size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def serve(folder: str, questions: BinaryIO, answers: BinaryIO) -> None:
    """Answers questions about an LMDB, after one answer that says whether it opens."""
    import lmdb

    def answer(kind: bytes, content: bytes = b"") -> None:
        answers.write(_HEAD.pack(kind, len(content)) + content)
        answers.flush()

    try:
        database = lmdb.open(folder, readonly=True, lock=False, create=False)
        _check_whole(database, os.path.join(folder, FILE))
    except (lmdb.Error, ValueError) as error:
        return answer(_FAULT, str(error).encode())
    answer(_FOUND)
    while head := questions.read(_HEAD.size):
        kind, length = _HEAD.unpack(head)
        content = _read(questions, length)
        find = _keys if kind == _KEYS else _value
        try:
            # Each in a transaction of its own, as an error makes one useless.
            with database.begin(buffers=True) as transaction:
                found = find(transaction, content)
        except (lmdb.Error, ValueError) as error:
            answer(_FAULT, str(error).encode())
        else:
            answer(_NONE) if found is None else answer(_FOUND, found)


def _check_whole(database, path: str) -> None:
    size, page = os.path.getsize(path), database.stat()["psize"]
    needed = (database.info()["last_pgno"] + 1) * page
    if size < needed:
        raise ValueError(f"cut short, {size} of at least {needed} bytes")


def _keys(transaction, start: bytes) -> bytes | None:
    """The next keys, each behind its length."""
    with transaction.cursor() as cursor:
        there = cursor.set_range(start) if start else cursor.first()
        parts = []
        while there and len(parts) < _AT_ONCE:
            key = bytes(cursor.key())
            parts.append(_LENGTH.pack(len(key)) + key)
            there = cursor.next()
    return b"".join(parts) if parts else None


def _value(transaction, key: bytes) -> bytes | None:
    value = transaction.get(key)
    if value is not None and len(value) > base.MOST_BYTES:
        raise ValueError(f"{key!r:.99} has {len(value)} bytes, and no patch has")
    return None if value is None else bytes(value)


if __name__ == "__main__":
    serve(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
