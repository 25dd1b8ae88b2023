"""Patches read straight from tar archives, which are never unpacked into files.

A patch is a folder of a few files. To find them a tar is read through once; the place
and size of each file are kept in a scratch folder for the next run, and from then on
bytes are read where they lie. A compressed tar cannot be read at random, and is refused
with the command that decompresses it.
"""

import contextlib
import gzip
import json
import os
import pathlib
import shlex
import sys
import tarfile
import zlib
from collections.abc import Callable
from typing import BinaryIO

import tqdm

from data_pipeline import atomic, safe_io
from data_pipeline.archives import base
from data_pipeline.errors import InputError

DECOMPRESS = {".gz": "gunzip --keep", ".zst": "unzstd", ".bz2": "bunzip2 --keep"}

_MOST_JSON = 1 << 20  # bytes of the json of a patch that are read
_MOST_HEADER = 1 << 16  # bytes of a header, which may tell a long name
_BLOCK = tarfile.BLOCKSIZE
_AT_ONCE = 1 << 20  # bytes that are decompressed
_INDEX = ".index.json"  # what is added to the archive's name


def scratch_folder(config) -> str:
    """The folder that a `prepare` config sets aside for `index`."""
    return config.scratch or f"{os.path.normpath(config.out)}-scratch"


def find(start: str) -> str:
    """Path of the tar whose name begins with `start`, or "".

    Raises:
        InputError: it is compressed.
    """
    path = f"{start}.tar"
    if os.path.isfile(path):
        return path
    for suffix, command in DECOMPRESS.items():
        if os.path.isfile(path + suffix):
            raise InputError(
                f"{path}{suffix} is compressed, and only plain tars can be read at "
                f"random; decompress it with `{command} {shlex.quote(path + suffix)}`."
            )
    return ""


def decompress(
    packed: pathlib.Path,
    tar: pathlib.Path,
    part: pathlib.Path,
    advance: Callable[[int], object],
) -> None:
    """Writes `tar`, by way of `part`, from a .tar.gz whose own checksums are checked.

    Args:
        packed: the .tar.gz, which stays.
        tar: is there when it is whole.
        part: what is overwritten in the meantime.
        advance: is told of bytes of `packed` as they are done.

    Raises:
        InputError: it is damaged.
        OSError: of the disk.
    """
    try:
        with (
            atomic.whole(tar, part),
            safe_io.open_file(packed) as file,
            gzip.open(file) as source,
            part.open("wb") as target,
        ):
            done = 0
            while block := source.read(_AT_ONCE):
                target.write(block)
                advance(file.tell() - done)
                done = file.tell()
            target.flush()
            os.fsync(target)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{packed} cannot be decompressed ({error}); compare its checksum with the "
            "published one, and see to the disk if it is right."
        ) from None


def reader(where: str | tuple) -> Callable[[str], bytes]:
    """Opens a patch.

    Args:
        where: path of a folder, or a place in a tar as `index` returns it.

    Returns:
        A function from the name of a file to its content; it raises an InputError for
        a file that is missing, and an OSError for one that cannot be read.

    Raises:
        InputError: the tar holds a file of the patch twice, or one too large.
        OSError: the tar cannot be read, or is not what it was when it was indexed.
    """
    if isinstance(where, str):
        return lambda name: base.read_file(os.path.join(where, name))
    tar, state, first, table = where
    names, starts, sizes = (table.split("/")[i::3] for i in range(3))
    contents = {}
    with open(tar, "rb", buffering=0) as file:
        if _state(os.fstat(file.fileno())) != state:
            raise _changed(tar)
        for name, start, size in zip(names, map(int, starts), map(int, sizes)):
            if name in contents or size > base.MOST_BYTES:
                fault = "twice" if name in contents else f"of {size} bytes"
                raise InputError(
                    f"{tar} holds {name} {fault}; mend the archive, or leave the patch "
                    "out."
                )
            contents[name] = os.pread(file.fileno(), size, first + start)
            if len(contents[name]) < size:
                raise _changed(tar)

    def read(name: str) -> bytes:
        if name not in contents:
            raise InputError(f"{tar} has no {name}; download it again.")
        return contents[name]

    return read


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _changed(tar: str) -> OSError:
    return OSError(f"{tar} was changed since the build began, so begin another")


def index(path: str, scratch: str, noted: str = "") -> tuple[dict, dict]:
    """Finds the patches in a tar, in one pass that the next call need not repeat.

    Args:
        path: a .tar with files <patch>/<patch>_<any>.
        scratch: folder to keep the index in; made where missing.
        noted: a key of the patches' json files whose text is to be noted.

    Returns:
        The place of each patch for `reader`, and the noted texts. A place is the tar,
        its size and time, where the first file begins, and a table of all of them,
        name/start/size/name/..., with starts counted from the first: so that most
        patches of an archive share one text.

    Raises:
        InputError: the archive is truncated or damaged, or the index cannot be kept.
    """
    kept, state = _kept(path, scratch), _state(os.stat(path))
    archive = [os.path.abspath(path), *state, noted]
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    if found.get("archive") != archive:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            found = dict(zip(("patches", "notes"), _scan(path, noted)))
            atomic.write_whole(kept, json.dumps(found | {"archive": archive}))
        except OSError as error:
            raise InputError(
                f"{path} cannot be indexed in {scratch} ({error}); "
                f"{atomic.advice(error)}, or pass another scratch=DIR."
            ) from None
    where = {
        patch: (path, state, start, sys.intern(table))
        for patch, (start, table) in found["patches"].items()
    }
    return where, found["notes"]


def clean(path: str, scratch: str) -> None:
    """Removes what `index` keeps of a tar.

    The scratch folder goes too, unless it is that of the tar or holds anything else.
    """
    kept = _kept(path, scratch)
    kept.unlink(missing_ok=True)
    if kept.parent.resolve() != pathlib.Path(path).resolve().parent:
        with contextlib.suppress(OSError):  # not there, or not empty
            kept.parent.rmdir()


def _kept(path: str, scratch: str) -> pathlib.Path:
    return pathlib.Path(scratch, os.path.basename(path) + _INDEX)


def _scan(path: str, noted: str) -> tuple[dict, dict]:
    """Start and table of each patch in a tar, and the noted texts."""
    starts, tables, notes = {}, {}, {}
    title, size = f"indexing {os.path.basename(path)}", os.path.getsize(path)
    with (
        open(path, "rb") as file,
        tqdm.tqdm(total=size, desc=title, unit="B", unit_scale=True) as progress,
    ):
        try:
            tar = tarfile.TarFile(
                fileobj=_Headers(file), encoding="utf-8", errors="replace"
            )
            while member := tar.next():
                tar.members.clear()  # or millions would be kept
                progress.update(tar.offset - progress.n)
                back = member.size < 0 or tar.offset <= member.offset
                if back or member.issparse():
                    raise tarfile.ReadError(f"a bad header at byte {member.offset}")
                patch, name = ("", *member.name.split("/"))[-2:]
                if not member.isreg() or not name.startswith(patch + "_"):
                    continue
                at = member.offset_data - starts.setdefault(patch, member.offset_data)
                tables.setdefault(patch, []).extend((name, str(at), str(member.size)))
                if noted and name.endswith(".json") and member.size <= _MOST_JSON:
                    content = os.pread(file.fileno(), member.size, member.offset_data)
                    _note(notes, patch, content, noted)
            # A damaged or missing header ends a tar for `tarfile`, too.
            file.seek(tar.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError(f"no valid header at byte {tar.offset}")
        except Exception as error:  # whatever tarfile makes of a header
            if isinstance(error, OSError) and error.errno:
                raise  # of the disk
            raise InputError(
                f"{path} is cut short or damaged ({error}); compare its size and "
                "checksum with the published ones and download it again."
            ) from None
    patches = {patch: (starts[patch], "/".join(tables[patch])) for patch in starts}
    return patches, notes


class _Headers:
    """An open tar as `tarfile` may read it, which believes whatever headers say.

    So it would take any size into memory, go back for a size below zero, and wait for
    ever for the rest of a header behind the end.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.tell, self.empty = file, file.tell, 0

    def seek(self, position: int) -> int:
        if position < 0:
            raise tarfile.ReadError(f"a header at byte {position}")
        return self.file.seek(position)

    def read(self, size: int) -> bytes:
        data = self.file.read(size) if 0 <= size <= _MOST_HEADER else b""
        self.empty += not data
        if self.empty > 1:  # one is how a tar may end
            raise tarfile.ReadError(f"a header of {size} bytes that is not there")
        return data


def _note(notes: dict[str, str], patch: str, content: bytes, noted: str) -> None:
    """Notes a text of a json; whoever reads the patch reports what is wrong with it."""
    try:
        value = safe_io.parse_json(content)[noted]
    except (ValueError, KeyError, TypeError):
        return
    if isinstance(value, str):
        notes[patch] = value
