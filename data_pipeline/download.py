"""Files of public archives: fetched, resumed, and verified before anything reads them.

What has come of FILE lies in FILE.part, of which a request asks for the rest only. It
becomes FILE when size and checksum are the published ones, and FILE.verified notes that
they were, so that no run reads it through again. The network is not believed: of no
file more bytes are kept than it can have.
"""

import contextlib
import dataclasses
import hashlib
import http.client
import json
import logging
import os
import pathlib
import re
import shlex
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence

import tqdm

from data_pipeline import atomic, locks, safe_io
from data_pipeline.archives import tars
from data_pipeline.config_fields import Field, choice, location, several
from data_pipeline.errors import InputError

TIMEOUT = 60  # seconds without a byte
PAUSES = (1, 5, 25, 60, 120)  # seconds, before a request that failed is made again
MOST_UNSAID = 1 << 30  # bytes of a file whose size neither we nor its server tell

log = logging.getLogger("fusmae_jax")

PART, MARK = ".part", ".verified"  # what is added to the name of a file
TAG = ".etag"  # and to that of a part: the version that it is of, as its server says
_BLOCK = 1 << 20
_REFUSED = {
    401: "asks for a login; fetch it by hand",
    403: "refuses it, as where a login is needed; fetch it by hand",
    404: "does not have it any more; look up where it has moved",
    410: "does not have it any more; look up where it has moved",
}
_LATER = (408, 425, 429, 500, 502, 503, 504)  # what a server says when it is busy


@dataclasses.dataclass(frozen=True)
class Download:
    """A published file of an archive.

    Attributes:
        part: what it is of, one of the choices of `config.download_parts`.
        url: where it is; not all are served by HTTP, which alone is spoken here.
        checksum: as published, "md5:..." or "sha256:...".
        size: exact number of bytes; None where it is not known to us.
        about: bytes as its host rounds them, where the exact number is not known.
        needed: tells of a config whether what it reads is in this file.
        tar: bytes, more or less, of the .tar that is made here of a .tar.gz and read in
            place; 0 where nothing is made.
        unpack: command that unpacks it, with {folder} for where it is, and {file}.
        option: what a build from the folder is passed because of it, likewise.
    """

    part: str
    url: str
    checksum: str
    size: int | None = None
    about: int = 0
    needed: Callable[..., bool] = lambda config: True
    tar: int = 0
    unpack: str = ""
    option: str = ""

    @property
    def file(self) -> str:
        """Its name."""
        return self.url.partition("?")[0].rpartition("/")[2]


class _Dropped(Exception):
    """A request brought no whole file, and the next one may."""


def fields(downloads: Sequence[Download]) -> dict[str, Field]:
    """The fields of a config that can download these."""
    parts = tuple(dict.fromkeys(item.part for item in downloads))
    any_part = choice(*parts) if parts else choice("none")
    return {
        "download": location(
            meaning="Folder to fetch the archive into, instead of building; what is "
            "there already is kept."
        ),
        "download_parts": several(
            any_part,
            meaning="Parts of the archive to fetch; empty for those that a build with "
            "this config reads.",
        ),
    }


def fetch(config, downloads: Sequence[Download]) -> None:
    """Fetches into `config.download` what a `prepare` config wants of an archive.

    What is verified already is not fetched again. Prints what to do next.

    Raises:
        InputError: a file cannot be fetched or is not the published one, or there is no
            room for it; what has come stays, and the next call goes on from there.
    """
    folder, parts = pathlib.Path(config.download), config.download_parts
    wanted = [
        item
        for item in downloads
        if (item.part in parts if parts else item.needed(config))
    ]
    try:
        with _alone(folder):
            missing = [item for item in wanted if not _is_there(folder, item)]
            _check_served(folder, missing)
            _check_space(folder, wanted, missing)
            for item in missing:
                _fetch(folder, item)
            for item in wanted:
                if item.tar and not _is_noted(_tar(folder, item), item):
                    _decompress(folder, item)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder} cannot be written or read "
            f"({error.strerror or error}); {atomic.advice(error)}, which goes on from "
            "what has come."
        ) from error
    print(_advice(str(folder), wanted))


def _advice(folder: str, items: Sequence[Download]) -> str:
    """What to do with what was fetched."""
    quoted = shlex.quote(folder)
    unpack = [item.unpack.format(folder=quoted, file=item.file) for item in items]
    options = [f"--config.source={quoted}"]
    options += [item.option.format(folder=quoted) for item in items]
    commands = "".join(f"\n    {line}" for line in dict.fromkeys(filter(None, unpack)))
    unpacked = f" Unpack them:\n{commands}\n\nThen build" if commands else " Now build"
    return (
        f"{folder} has the {len(items)} files, verified.{unpacked} from there with the "
        "same command, but without what it says of downloads and with\n\n"
        f"    {' '.join(dict.fromkeys(filter(None, options)))}"
    )


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other downloads out of a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "download.lock"
    try:
        locks.lock(lock)
    except locks.Locked as error:
        raise InputError(
            f"{folder} is being downloaded into by {error}; let it end, or pass "
            "another download=DIR."
        ) from None
    try:
        yield
    finally:
        locks.unlock(lock)


def _is_there(folder: pathlib.Path, item: Download) -> bool:
    """Whether a file, or the tar made of it, is there and the published one."""
    path = folder / item.file
    if not path.exists():
        return bool(item.tar) and _is_noted(_tar(folder, item), item)
    if not _is_noted(path, item):
        if wrong := _fault(path, item):
            raise InputError(
                f"{path} is not the published file: {wrong}; fetch the rest of it as "
                "it was begun, delete it or move it away, then give the same command "
                "again."
            )
        _note(path, item)
    return True


def _check_served(folder: pathlib.Path, items: Sequence[Download]) -> None:
    """Refuses what is not served by HTTP, with the command that gets it."""
    others = [item for item in items if not item.url.startswith(("http:", "https:"))]
    if others:
        urls = " ".join(shlex.quote(item.url) for item in others)
        raise InputError(
            f"{len(others)} files that are missing in {folder} are served by FTP with "
            "a login that is published with them, which is not spoken here; fetch them "
            f"with `wget --continue --directory-prefix={shlex.quote(str(folder))} "
            f"{urls}`, then give the same command again, which verifies them."
        )


def _check_space(
    folder: pathlib.Path, wanted: Sequence[Download], missing: Sequence[Download]
) -> None:
    """Refuses to begin what the disk cannot hold, as far as sizes are known."""
    sizes = [
        (_beside(folder / item.file, PART), item.size or item.about) for item in missing
    ]
    tars = [(_tar(folder, item), item) for item in wanted if item.tar]
    sizes += [(_beside(tar, PART), x.tar) for tar, x in tars if not _is_noted(tar, x)]
    _check_room(folder, sum(max(size - _size(part), 0) for part, size in sizes))


def _check_room(folder: pathlib.Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder} needs {needed / 1e9:.1f} GB more and has {free / 1e9:.1f} GB "
            "free; make room, pass another download=DIR, or name fewer "
            "download_parts."
        )


def _fetch(folder: pathlib.Path, item: Download) -> None:
    """Fetches a file, in as many requests as it takes while they bring anything."""
    path, part = folder / item.file, _beside(folder / item.file, PART)
    failed, most = 0, _size(part)
    while True:
        try:
            _receive(item, part)
            break
        except _Dropped as error:
            failed = 0 if _size(part) > most else failed
            most = max(most, _size(part))
            if failed == len(PAUSES):
                raise InputError(
                    f"{item.url} cannot be fetched ({error}); give the same command "
                    f"again later, which goes on from the {_size(part)} bytes that "
                    "have come."
                ) from error
            pause = PAUSES[failed]
            log.warning("%s: %s; going on in %d s.", path.name, error, pause)
            time.sleep(pause)
            failed += 1
    if wrong := _fault(part, item):
        _discard(part)
        raise InputError(
            f"{item.url} is not the file that was published: {wrong}; nothing of it "
            "was kept, so give the same command again, and if that ends likewise, look "
            "for a newer version of the archive."
        )
    os.replace(part, path)
    _note(path, item)
    _discard(part)


def _receive(item: Download, part: pathlib.Path) -> None:
    """Makes one request, for what `part` lacks, and appends what comes.

    Raises:
        _Dropped: less came than was to come.
        InputError: the server does not serve it, or serves another file.
        OSError: of the disk.
    """
    have = _size(part)
    if have and have == item.size:
        return
    answer = _ask(item, part, have)
    if answer is None:
        return  # there is no more of it
    with answer:
        start, end = _extent(answer, part, have)
        _check_answer(item, answer, end)
        end = item.size if end is None else end
        _check_room(part.parent, 0 if end is None else end - have)
        with (
            atomic.named(part),
            part.open("r+b" if start else "wb") as file,
            _progress(item.file, end, start) as progress,
        ):
            atomic.write_whole(_beside(part, TAG), answer.headers.get("ETag", ""))
            file.seek(start)
            while block := _read(answer):
                start += len(block)
                if start > (MOST_UNSAID if end is None else end):
                    _discard(part)
                    raise InputError(
                        f"{item.url} sends more than the {end or MOST_UNSAID} bytes "
                        "that it can have; nothing of it was kept."
                    )
                file.write(block)
                progress.update(len(block))
            file.flush()
            os.fsync(file)
    if end is not None and start < end:
        raise _Dropped(f"the connection ended {end - start} bytes early")


def _ask(
    item: Download, part: pathlib.Path, have: int
) -> http.client.HTTPResponse | None:
    """The answer of the server; None where it says that `have` bytes are all."""
    headers = {"User-Agent": "fusmae_jax", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        with contextlib.suppress(OSError, ValueError):
            tag = safe_io.read(_beside(part, TAG), _BLOCK).decode("ascii")
            if tag.isprintable() and tag.startswith('"'):  # not one of a weak kind
                headers["If-Range"] = tag
    try:
        with _network():
            request = urllib.request.Request(item.url, headers=headers)
            return _opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        said = f"{error.code} {_shown(error.reason)}"
        if error.code == 416:
            if error.headers.get("Content-Range", "") == f"bytes */{have}":
                return None
            _discard(part)
            raise _Dropped("the file is shorter than what has come of it") from None
        if error.code in _LATER:
            raise _Dropped(f"the server says {said}") from None
        refused = _REFUSED.get(error.code, "does not send it; try it in a browser")
        raise InputError(
            f"The server of {item.url} {refused} and put it into {part.parent}, where "
            f"the same command verifies it. ({said})"
        ) from None


def _opener() -> urllib.request.OpenerDirector:
    """Speaks HTTP alone, wherever a server redirects to; proxies are as usual."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Tells errors of the network from those of the disk."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise InputError(
                f"The server cannot prove who it is ({reason}); see to the clock and "
                "the certificates of this machine."
            ) from error
        raise _Dropped(_shown(reason) or type(reason).__name__) from error


def _shown(words) -> str:
    """What a server says, as it can be repeated in a sentence."""
    return "".join(filter(str.isprintable, " ".join(str(words).split())))[:100]


def _check_answer(
    item: Download, answer: http.client.HTTPResponse, size: int | None
) -> None:
    """Refuses another file than the published one before any of it is kept."""
    if answer.headers.get_content_type() == "text/html":
        raise InputError(
            f"{item.url} is a page now, as where a login is needed or the server is "
            "not at work; open it in a browser, or give the same command again later."
        )
    if None not in (item.size, size) and item.size != size:
        raise InputError(
            f"{item.url} has {size} bytes, where {item.size} were published; look for "
            "a newer version of the archive."
        )


def _read(answer: http.client.HTTPResponse) -> bytes:
    with _network():
        return answer.read1(_BLOCK)


def _extent(
    answer: http.client.HTTPResponse, part: pathlib.Path, have: int
) -> tuple[int, int | None]:
    """Where in the file an answer begins, and how long all of it is, if that is told.

    A server that does not resume, or whose file was changed, sends it from the start.
    """
    if answer.status != 206:
        told = answer.headers.get("Content-Length", "")
        return 0, int(told) if re.fullmatch(r"\d{1,18}", told) else None
    told = answer.headers.get("Content-Range", "")
    place = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", told)
    if not place or int(place[1]) != have:
        _discard(part)
        raise _Dropped(f"the server sends {told!r:.60}, where byte {have} was asked")
    return have, None if place[2] == "*" else int(place[2])


def _fault(path: pathlib.Path, item: Download) -> str:
    """How a file differs from what was published; "" where it does not."""
    size = _size(path)
    if not path.is_file():
        return "it is no file"
    if item.size is not None and size != item.size:
        return f"it has {size} bytes, and {item.size} were published"
    method, _, published = item.checksum.partition(":")
    digest = hashlib.new(method, usedforsecurity=False)
    with (
        safe_io.open_file(path) as file,
        _progress(f"verifying {item.file}", size) as progress,
    ):
        while block := file.read(_BLOCK):
            digest.update(block)
            progress.update(len(block))
    found = digest.hexdigest()
    return "" if found == published else f"its {method} is {found}, not {published}"


def _decompress(folder: pathlib.Path, item: Download) -> None:
    """Makes the .tar of a .tar.gz."""
    path, tar = folder / item.file, _tar(folder, item)
    with _progress(f"decompressing {item.file}", _size(path)) as progress:
        tars.decompress(path, tar, _beside(tar, PART), progress.update)
    _note(tar, item)


def _state(path: pathlib.Path, item: Download) -> dict:
    status = path.stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "checksum": item.checksum,
    }


def _note(path: pathlib.Path, item: Download) -> None:
    """Notes that a file, as it is now, is the published one or was made of it."""
    atomic.write_whole(_beside(path, MARK), json.dumps(_state(path, item)))


def _is_noted(path: pathlib.Path, item: Download) -> bool:
    try:
        return safe_io.read_json(_beside(path, MARK)) == _state(path, item)
    except (OSError, ValueError):
        return False


def _beside(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(path.name + suffix)


def _tar(folder: pathlib.Path, item: Download) -> pathlib.Path:
    return folder / item.file.removesuffix(".gz")


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _discard(part: pathlib.Path) -> None:
    """Deletes what has come of a file."""
    part.unlink(missing_ok=True)
    _beside(part, TAG).unlink(missing_ok=True)


def _progress(title: str, total: int | None, done: int = 0) -> tqdm.tqdm:
    return tqdm.tqdm(
        desc=title, total=total, initial=done, unit="B", unit_scale=True, leave=False
    )
