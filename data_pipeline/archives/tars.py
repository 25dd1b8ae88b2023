"""Patches read straight from tar archives, which are never unpacked into files.

A patch is a folder of a few files: it lies in a folder on disk, or in one or more spans
of bytes of a tar archive. `reader` reads either. To find the spans an archive is read
through once; one that is compressed becomes a plain tar on the way, as a compressed one
cannot be read at random. What was found is kept in a scratch folder for the next run.

Builds may share that folder: each holds the tars in it that it reads, and leaves those
that others hold.
"""

import contextlib
import fcntl
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import BinaryIO

import tqdm

from data_pipeline import untrusted
from data_pipeline.archives import base, compressed, holds
from data_pipeline.archives.members import BLOCK, BadHeader, members
from data_pipeline.errors import InputError
from data_pipeline.files import advice, flock

SUFFIXES = tuple(f".tar{suffix}" for suffix in ("", *compressed.SUFFIXES))

_MOST_JSON = 1 << 20  # bytes of the json of a patch that are read
_INDEX, _PLAIN = ".index.json", ".plain.tar"  # what is added to the archive's name


def scratch_folder(config) -> str:
    """The folder that a `prepare` config sets aside for `index`."""
    return config.scratch or f"{os.path.normpath(config.out)}-scratch"


def reader(where: str | tuple) -> Callable[[str], bytes]:
    """Opens a patch.

    Args:
        where: path of a folder, or a place in a tar as `index` returns it.

    Returns:
        A function from the name of a file to its content; it raises an InputError for
        a file that is missing, and an OSError for one that cannot be read.

    Raises:
        InputError: the tar holds a file of the patch twice.
        OSError: the tar cannot be read, or is not what it was when it was indexed.
    """
    if isinstance(where, str):
        return lambda name: base.read_file(os.path.join(where, name))
    tar, *bounds = where
    contents = {}
    for start, stop in zip(bounds[::2], bounds[1::2]):
        for name, content in _members(tar, start, stop):
            if name in contents:
                raise InputError(
                    f"{tar} holds {name} twice; remove one from the archive, or leave "
                    "the patch out."
                )
            contents[name] = content

    def read(name: str) -> bytes:
        if name not in contents:
            raise InputError(f"{tar} has no {name}; download it again.")
        return contents[name]

    return read


def index(path: str, scratch: str, noted: str = "") -> tuple[dict, dict]:
    """Finds the patches in a tar, in one pass that the next call need not repeat.

    A compressed tar is written out as a plain one in the scratch folder, and held there
    until this process ends or calls `clean`.

    Args:
        path: a .tar, .tar.gz, .tar.zst or .tar.bz2 with files <patch>/<patch>_<any>.
        scratch: folder to keep the index and the plain tar in; made where missing.
        noted: a key of the patches' json files whose text is to be noted.

    Returns:
        The place of each patch for `reader`: a plain tar, start, stop, and further
        starts and stops where its files do not follow each other; and the noted texts.

    Raises:
        InputError: the archive is truncated or damaged, the disk is too small, or
            another build is at work on the same archive in the same folder.
    """
    state, (known, plain) = os.stat(path), _kept(path, scratch)
    expand = not path.endswith(".tar")
    key = [os.path.abspath(path), state.st_size, state.st_mtime_ns, noted]
    there = not expand or holds.hold(plain)
    try:
        found = json.loads(known.read_text(encoding="utf-8")) if there else {}
    except (OSError, ValueError):
        found = {}
    if found.get("key") != key:
        try:
            known.parent.mkdir(parents=True, exist_ok=True)
            survey = _expand(path, plain, noted) if expand else _scan(path, noted)
            found = dict(zip(("key", "spans", "notes"), (key, *survey)))
            part = known.with_name(f"{known.name}.{os.getpid()}.part")
            part.write_text(json.dumps(found), encoding="utf-8")
            os.replace(part, known)
        except OSError as error:
            raise InputError(
                f"{path} cannot be indexed in {scratch} ({error}); {advice(error)}, or "
                "pass another --config.scratch=DIR."
            ) from None
        if expand and not holds.hold(plain):  # another build removed it at once
            return index(path, scratch, noted)
    tar = str(plain) if expand else path
    where = {patch: (tar, *bounds) for patch, bounds in found["spans"].items()}
    return where, found["notes"]


def clean(path: str, scratch: str) -> None:
    """Removes what `index` keeps of a tar, unless another process holds it.

    The scratch folder goes too, unless it is that of the tar or holds anything else.
    """
    known, plain = _kept(path, scratch)
    if path.endswith(".tar") or holds.remove(plain):
        holds.remove(known)
        if known.parent.resolve() != pathlib.Path(path).resolve().parent:
            with contextlib.suppress(OSError):  # not there, or not empty
                known.parent.rmdir()


def _kept(path: str, scratch: str) -> tuple[pathlib.Path, pathlib.Path]:
    """The index of a tar, and what it is expanded to where it is compressed."""
    start = os.path.join(scratch, os.path.basename(path))
    return pathlib.Path(start + _INDEX), pathlib.Path(start + _PLAIN)


def _members(tar: str, start: int, stop: int) -> list[tuple[str, bytes]]:
    """Name and content of the files between two positions of a plain tar.

    Raises:
        OSError: it cannot be read, or was sound when it was indexed and is not now.
    """
    with open(tar, "rb") as file:
        file.seek(start)
        data = file.read(stop - start)
    try:
        if len(data) < stop - start:
            raise BadHeader(f"it ends before byte {stop}")
        found = [member for member in members(io.BytesIO(data)) if member.is_file]
        if not found or found[-1].end != len(data):
            raise BadHeader(f"its files do not end at byte {stop}")
    except BadHeader as error:
        raise OSError(
            f"{tar} was changed since the build began ({error}), so begin another"
        ) from None
    return [(os.path.basename(m.name), data[m.start : m.start + m.size]) for m in found]


def _scan(path: str, noted: str) -> tuple[dict, dict]:
    """Spans and notes of the patches in a plain tar."""
    with open(path, "rb") as file, _progress(path) as progress:
        advance = lambda: _advance(progress, file.tell())
        *found, end = _survey(file, path, noted, advance)
        _check_end(file, end, path)
    return found


def _expand(path: str, plain: pathlib.Path, noted: str) -> tuple[dict, dict]:
    """The same of a compressed tar, which is written to `plain` at the same time."""
    part = plain.with_name(plain.name + ".part")
    with contextlib.suppress(FileNotFoundError), holds.alone(plain) as nobody_else:
        if not nobody_else:
            raise InputError(
                f"Another build reads {plain}, made of another {path}; wait for it, or "
                "pass another --config.scratch=DIR."
            )
    expected = compressed.expected_size(path)
    free = shutil.disk_usage(plain.parent).free
    if expected > free:
        raise InputError(
            f"{path} will take about {expected / 1e9:.1f} GB decompressed, and "
            f"{plain.parent} has {free / 1e9:.1f} GB free; make room there, or pass "
            "another --config.scratch=DIR."
        )
    with open(part, "ab", buffering=compressed.CHUNK) as sink:
        try:
            flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"Another build is decompressing {path} into {part}; wait for it, or "
                "pass another --config.scratch=DIR."
            ) from None
        try:
            sink.truncate(0)  # of a build that was killed
            *found, end = _copy(path, sink, noted)
            sink.flush()
            with open(part, "rb") as file:
                _check_end(file, end, path)
        except (OSError, InputError):
            part.unlink()
            raise
        os.replace(part, plain)
    return found


def _copy(path: str, sink: BinaryIO, noted: str) -> tuple[dict, dict, int]:
    """What `_survey` returns of a compressed tar, whose content goes to `sink`."""
    with (
        open(path, "rb") as file,
        compressed.decompressed(file, path) as stream,
        _progress(path) as progress,
    ):
        copy = compressed.Copy(stream, sink, path)
        found = _survey(copy, path, noted, lambda: _advance(progress, file.tell()))
        while copy.read(compressed.CHUNK):  # to the end, where a checksum is verified
            pass
    return found


def _survey(
    file: BinaryIO, path: str, noted: str, advance: Callable[[], None]
) -> tuple[dict, dict, int]:
    """Spans and notes of the patches in a tar that is read forwards, and where it ends.

    Args:
        file: the tar; needs only `read`, `tell` and `seek`.
        path: what it is called in errors.
        noted: see `index`.
        advance: called for every file.
    """
    spans, notes, end = {}, {}, 0
    try:
        for member in members(file):
            advance()
            end = member.end
            patch, name = ("", *member.name.split("/"))[-2:]
            if not member.is_file or not name.startswith(patch + "_"):
                continue
            bounds = spans.setdefault(patch, [])
            if not bounds or bounds[-1] != member.offset:
                bounds += [member.offset, member.offset]
            bounds[-1] = member.end
            if noted and name.endswith(".json") and member.size <= _MOST_JSON:
                file.seek(member.start)
                _note(notes, patch, file.read(member.size), noted)
    except BadHeader as error:
        raise compressed.damaged(path, error) from None
    return spans, notes, end


def _check_end(file: BinaryIO, end: int, path: str) -> None:
    """Refuses a tar that does not end in zeros.

    `members` takes a damaged or missing header for the end, too.
    """
    file.seek(end)
    if file.read(BLOCK) != bytes(BLOCK):
        raise compressed.damaged(path, f"no valid header at byte {end}")


def _note(notes: dict[str, str], patch: str, content: bytes, noted: str) -> None:
    """Notes a text of a json; whoever reads the patch reports what is wrong with it."""
    try:
        value = untrusted.parse_json(content)[noted]
    except (ValueError, KeyError, TypeError):
        return
    if isinstance(value, str):
        notes[patch] = value


def _progress(path: str) -> tqdm.tqdm:
    title = f"indexing {os.path.basename(path)}"
    return tqdm.tqdm(total=os.path.getsize(path), desc=title, unit="B", unit_scale=True)


def _advance(progress: tqdm.tqdm, position: int) -> None:
    progress.update(position - progress.n)
