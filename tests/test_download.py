"""Archives are fetched from a server that fails in every way servers do."""

import dataclasses
import errno
import gzip
import hashlib
import http.server
import importlib
import json
import os
import re
import subprocess
import sys
import threading

import pytest

import launch
from data_pipeline import atomic, download, locks
from data_pipeline.archives import bigearthnet_v1
from data_pipeline.building import prepare
from data_pipeline.download import Download
from data_pipeline.errors import InputError
from tests import bad_configs, builds, disks, packing, processes

CONTENT = bytes(range(256)) * 12_000  # three blocks of what is read at once
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, {path: bytes}, and notes what was asked.

    Attributes:
        asked: path and headers of each request.
        sent: bytes of content, in all.
        tags: the ETag of each path; those without have none.
        cut: after so many bytes of its content each answer ends, of the next ones.
        status: answers of the next requests, each (status, headers).
        resumes: whether it knows Range.
        tells: whether it says how long a file is.
        chunks: whether it sends files in chunks.
        extra: what it sends behind a file without telling.
        silent: seconds for which it then keeps the connection, once.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.sent, self.tags = {}, [], 0, {}
        self.cut, self.status, self.resumes, self.tells = [], [], True, True
        self.extra, self.silent, self.chunks = b"", 0, False
        self.ended = threading.Event()

    def url(self, path="/a.bin"):
        return f"http://127.0.0.1:{self.server_port}{path}"

    def ranges(self):
        return [headers.get("Range") for _, headers in self.asked]

    def handle_error(self, *args):
        pass  # clients that hang up are part of it


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append((self.path, dict(self.headers)))
        if server.status:
            status, headers = server.status.pop(0)
            self.answer(status, headers)
            return
        content, tag = server.files.get(self.path), server.tags.get(self.path)
        if content is None:
            self.answer(404, {})
            return
        headers = {"ETag": tag} if tag else {}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, tag)
        if start and server.resumes and same:
            first, size = int(start[1]), len(content)
            if first >= size:
                self.answer(416, {"Content-Range": f"bytes */{size}"})
                return
            headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
            content = content[first:]
        if server.chunks:
            headers["Transfer-Encoding"] = "chunked"
            blocks = (content[i : i + 9999] for i in range(0, len(content), 9999))
            chunks = [b"%x\r\n%s\r\n" % (len(block), block) for block in blocks]
            content = b"".join(chunks) + b"0\r\n\r\n"
        if server.tells:
            headers["Content-Length"] = str(len(content))
        self.answer(206 if "Content-Range" in headers else 200, headers)
        if server.cut:
            content = content[: server.cut.pop(0)]
        server.sent += len(content)
        self.wfile.write(content + server.extra)
        self.wfile.flush()
        silent, server.silent = server.silent, 0
        server.ended.wait(silent)

    def answer(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSES", (0, 0))
    monkeypatch.setattr(download, "TIMEOUT", 10)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        server.files["/a.bin"] = CONTENT
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "archive"


def one(server, **changes):
    """The file that the server has, as an archive would list it."""
    known = {"part": "S1", "checksum": MD5, "size": len(CONTENT), "url": server.url()}
    return Download(**known | changes)


def config(folder, **changes):
    changes = {"source": "", "download": str(folder)} | changes
    return bad_configs.load("prepare_bigearthnet", changes)


def fetch(folder, *items, **changes):
    download.fetch(config(folder, **changes), items)


def refused(folder, *items):
    """What is said, in a sentence, where files cannot be fetched."""
    with pytest.raises(InputError) as caught:
        fetch(folder, *items)
    return str(caught.value)


def left(folder):
    names = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in names if name != "download.lock")


def test_a_file_is_fetched_verified_and_not_fetched_again(server, folder, capsys):
    fetch(folder, one(server))
    assert (folder / "a.bin").read_bytes() == CONTENT
    assert left(folder) == ["a.bin", "a.bin.verified"]
    told = capsys.readouterr().out
    assert "1 files, verified" in told and f"--config.source={folder}" in told
    fetch(folder, one(server))
    assert len(server.asked) == 1


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_what_was_cut_off_is_resumed_and_only_the_rest_asked_for(server, folder, size):
    server.cut = [1_000_000, 500_000]
    fetch(folder, one(server, size=size))
    assert (folder / "a.bin").read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=1000000-", "bytes=1500000-"]
    assert server.sent == len(CONTENT)
    assert left(folder) == ["a.bin", "a.bin.verified"]


def test_requests_go_on_while_they_bring_anything(server, folder):
    server.cut = [500_000] * 6
    fetch(folder, one(server))
    assert len(server.asked) == 7 and server.sent == len(CONTENT)


def test_another_command_goes_on_from_what_has_come(server, folder):
    server.cut = [1_000_000, 0, 0]
    said = refused(folder, one(server))
    assert "goes on from the 1000000 bytes" in said and "bytes early" in said
    fetch(folder, one(server))
    assert server.ranges()[-1] == "bytes=1000000-" and server.sent == len(CONTENT)


def test_a_process_that_was_killed_is_gone_on_from(server, folder):
    """Its last byte came, and nothing was verified yet."""
    folder.mkdir()
    for size in (len(CONTENT), None):
        (folder / "a.bin.part").write_bytes(CONTENT)
        fetch(folder, one(server, size=size))
        assert left(folder) == ["a.bin", "a.bin.verified"]
        assert server.sent == 0
        for name in left(folder):
            (folder / name).unlink()


def test_more_than_the_file_can_have_is_begun_again(server, folder):
    folder.mkdir()
    for size in (len(CONTENT), None):
        (folder / "a.bin.part").write_bytes(CONTENT + b"more")
        fetch(folder, one(server, size=size))
        assert (folder / "a.bin").read_bytes() == CONTENT
        for name in left(folder):
            (folder / name).unlink()


def test_a_file_that_changed_in_between_is_begun_again(server, folder):
    server.tags, server.cut = {"/a.bin": '"old"'}, [1_000_000, 0, 0]
    server.files["/a.bin"] = CONTENT[::-1]
    refused(folder, one(server))
    server.tags, server.files = {"/a.bin": '"new"'}, {"/a.bin": CONTENT}
    fetch(folder, one(server))
    assert server.asked[-1][1]["If-Range"] == '"old"'
    assert (folder / "a.bin").read_bytes() == CONTENT
    assert server.sent == 1_000_000 + len(CONTENT)


def test_what_was_mixed_of_two_versions_is_deleted(server, folder):
    """A server without ETag, whose file has the size that it had."""
    server.cut = [1_000_000, 0, 0]
    server.files["/a.bin"] = CONTENT[::-1]
    refused(folder, one(server))
    server.files["/a.bin"] = CONTENT
    assert "nothing of it was kept" in refused(folder, one(server))
    assert left(folder) == []
    fetch(folder, one(server))


def test_a_server_that_cannot_resume_sends_the_whole_file_again(server, folder):
    server.resumes, server.cut = False, [1_000_000]
    fetch(folder, one(server))
    assert (folder / "a.bin").read_bytes() == CONTENT
    assert server.sent == 1_000_000 + len(CONTENT)


def test_a_server_that_sends_another_place_of_the_file_is_not_believed(server, folder):
    server.cut = [1_000_000]
    other = {"Content-Range": f"bytes 5-9/{len(CONTENT)}", "Content-Length": "0"}
    answers = iter([False, True])
    ask = Handler.do_GET

    def lie(handler):
        if next(answers, False):
            server.status = [(206, other)]
        ask(handler)

    server.RequestHandlerClass = type("Liar", (Handler,), {"do_GET": lie})
    fetch(folder, one(server))
    assert server.ranges() == [None, "bytes=1000000-", None]
    assert (folder / "a.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_keeps_nothing(server, folder):
    server.files["/a.bin"] = CONTENT[::-1]
    said = refused(folder, one(server))
    assert "its md5 is" in said and MD5[4:] in said and "nothing of it" in said
    assert left(folder) == []


def test_sha256_is_known_too(server, folder):
    digest = hashlib.sha256(CONTENT).hexdigest()
    fetch(folder, one(server, checksum=f"sha256:{digest}"))
    assert "its sha256" in refused(folder / "b", one(server, checksum="sha256:00"))


def test_a_file_of_another_size_is_not_fetched(server, folder):
    server.files["/a.bin"] = b"a newer version"
    said = refused(folder, one(server))
    assert f"15 bytes, where {len(CONTENT)} were published" in said
    assert server.sent <= 15 and left(folder) == []


def test_a_page_in_the_place_of_a_file_costs_nothing_that_has_come(server, folder):
    server.cut = [1_000_000, 0, 0]
    refused(folder, one(server, size=None))
    server.status = [
        (302, {"Location": "/login"}),
        (200, {"Content-Type": "text/html"}),
    ]
    said = refused(folder, one(server, size=None))
    assert "is a page now, as where a login is needed" in said
    fetch(folder, one(server, size=None))
    assert server.sent == len(CONTENT)


def test_a_server_that_falls_silent_is_asked_again(server, folder, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    server.cut, server.silent = [1_000_000], 60
    fetch(folder, one(server))
    assert server.ranges() == [None, "bytes=1000000-"]


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_no_more_is_kept_than_a_file_can_have(server, folder, size, monkeypatch):
    monkeypatch.setattr(download, "MOST_UNSAID", len(CONTENT))
    server.tells, server.extra = False, b"x" * 10_000_000
    said = refused(folder, one(server, size=size))
    assert f"more than the {len(CONTENT)} bytes" in said and left(folder) == []
    server.tells = True  # what follows is then no part of the answer
    fetch(folder, one(server, size=size))


def test_a_server_that_does_not_tell_the_size_is_read_to_the_end(server, folder):
    server.tells, server.cut = False, [1_000_000]
    fetch(folder, one(server))
    assert (folder / "a.bin").read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


@pytest.mark.parametrize(
    "status, message",
    [
        (404, "does not have it any more; look up where it has moved"),
        (410, "does not have it any more; look up where it has moved"),
        (401, "asks for a login; fetch it by hand"),
        (403, "login is needed; fetch it by hand"),
        (451, "does not send it; try it in a browser"),
    ],
)
def test_what_is_not_served_is_said_at_once(server, folder, status, message):
    server.status = [(status, {})]
    said = refused(folder, one(server))
    assert message in said and str(status) in said and server.url() in said
    assert str(folder) in said and len(server.asked) == 1


def test_what_a_server_says_is_repeated_as_far_as_it_can_be(server, folder):
    words = "\x1b[2Jgone\x07" + "x" * 5000

    def scold(handler):
        handler.send_response(404, words)
        handler.end_headers()

    server.RequestHandlerClass = type("Scold", (Handler,), {"do_GET": scold})
    said = refused(folder, one(server))
    assert said.isprintable() and "(404 [2Jgonexx" in said and len(said) < 500

    def mumble(handler):
        handler.wfile.write(words.encode() + b"\r\n\r\n")

    server.RequestHandlerClass = type("Mumble", (Handler,), {"do_GET": mumble})
    said = refused(folder, one(server))
    assert said.isprintable() and "cannot be fetched" in said and len(said) < 500


def test_a_file_in_chunks_is_joined_and_gone_on_from(server, folder):
    server.tells, server.chunks, server.cut = False, True, [1_000_000]
    fetch(folder, one(server, size=None))
    assert (folder / "a.bin").read_bytes() == CONTENT
    start = int(server.ranges()[1].removeprefix("bytes=").removesuffix("-"))
    assert 900_000 < start < 1_000_000 and len(server.asked) == 2


def test_a_busy_server_is_asked_again(server, folder):
    server.status = [(503, {}), (429, {})]
    fetch(folder, one(server))
    assert len(server.asked) == 3


def test_a_server_that_stays_busy_or_is_away_ends_in_a_sentence(server, folder):
    server.status = [(503, {})] * 3
    assert "the server says 503" in refused(folder, one(server))
    away = one(server, url="http://127.0.0.1:9/a.bin")
    assert "cannot be fetched (" in refused(folder, away)


def test_redirects_are_followed_and_keep_the_range(server, folder):
    item = one(server, url=server.url("/moved/a.bin"))
    server.cut = [1_000_000]
    server.status = [(302, {"Location": server.url()})]
    server.files["/moved/a.bin"] = CONTENT
    folder.mkdir()
    (folder / "a.bin.part").write_bytes(CONTENT[:1000])
    fetch(folder, item)
    paths = [path for path, _ in server.asked]
    assert paths[:2] == ["/moved/a.bin", "/a.bin"]
    assert server.ranges()[:2] == ["bytes=1000-"] * 2
    assert (folder / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://a", "/loop/a.bin"]
)
def test_redirects_lead_to_nothing_but_http(server, folder, target):
    server.status = [(302, {"Location": target})] * 50
    said = refused(folder, one(server, url=server.url("/loop/a.bin")))
    assert said.endswith((".", ")")) and left(folder) == []


def test_a_file_that_is_there_is_verified_once(server, folder, monkeypatch):
    folder.mkdir()
    (folder / "a.bin").write_bytes(CONTENT)
    fetch(folder, one(server))
    monkeypatch.setattr(download, "_fault", None)  # nothing is read again
    fetch(folder, one(server))
    assert not server.asked


def test_a_file_that_was_changed_since_is_noticed_and_left_alone(server, folder):
    fetch(folder, one(server))
    (folder / "a.bin").write_bytes(CONTENT[::-1])
    assert "a.bin is not the published file: its md5 is" in refused(folder, one(server))
    (folder / "a.bin").write_bytes(b"mine")
    said = refused(folder, one(server))
    assert "a.bin is not the published file: it has 4 bytes" in said
    assert (folder / "a.bin").read_bytes() == b"mine"


def test_a_folder_in_the_place_of_a_file_is_named(server, folder):
    (folder / "a.bin").mkdir(parents=True)
    assert "it is no file; fetch the rest of it as it was begun, delete" in refused(
        folder, one(server)
    )


def test_a_mark_that_is_no_mark_is_not_believed(server, folder):
    fetch(folder, one(server))
    for junk in (b"", b"\xff", b"[]", b'{"size": 3072000}'):
        (folder / "a.bin.verified").write_bytes(junk)
        fetch(folder, one(server))
        assert json.loads((folder / "a.bin.verified").read_bytes())["checksum"] == MD5


def test_nothing_begins_where_there_is_no_room(server, folder, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Free(3_000_000))
    said = refused(folder, one(server))
    assert "needs 0.0 GB more and has 0.0 GB free" in said and not server.asked
    (folder / "a.bin.part").write_bytes(CONTENT[:100_000])
    fetch(folder, one(server))  # for the rest there is


def test_a_size_that_only_the_server_knows_must_fit_too(server, folder, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Free(3_000_000))
    assert "make room" in refused(folder, one(server, size=None))
    assert len(server.asked) == 1 and not (folder / "a.bin").exists()
    about = one(server, size=None, about=2**40)
    assert "needs 1099.5 GB more" in refused(folder, about)
    assert len(server.asked) == 1


class Free:
    def __init__(self, free):
        self.free = free


def test_a_disk_that_fills_meanwhile_keeps_what_has_come(server, folder, monkeypatch):
    sync = os.fsync

    def full(file):
        if str(getattr(file, "name", "")).endswith(".bin.part"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = refused(folder, one(server))
    assert f"{folder / 'a.bin.part'} cannot be written" in said
    assert "No space left" in said and atomic.FULL in said
    assert (folder / "a.bin.part").read_bytes() == CONTENT
    fetch(folder, one(server))
    assert server.sent == len(CONTENT)


def test_a_disk_that_is_really_full_keeps_what_has_come(server, tmp_path, monkeypatch):
    with disks.mounted(tmp_path / "disk") as disk:
        disk.fill(pages=300)  # a third of the file
        assert "make room" in refused(disk.path, one(server)) and not server.asked
        with monkeypatch.context() as patch:
            patch.setattr(download.shutil, "disk_usage", lambda path: Free(2**60))
            said = refused(disk.path, one(server))
        assert "a.bin.part cannot be written or read (No space left" in said
        disk.make_room()
        fetch(disk.path, one(server))
        assert (disk.path / "a.bin").read_bytes() == CONTENT
        start = int(server.ranges()[-1].removeprefix("bytes=").removesuffix("-"))
        assert 100 * disks.PAGE < start < 300 * disks.PAGE


def test_two_downloads_into_one_folder_do_not_mix(server, folder, tmp_path):
    folder.mkdir()
    script = (
        "from data_pipeline import locks; import sys\n"
        f"locks.lock({str(folder / 'download.lock')!r})\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"locked\n"
        said = refused(folder, one(server))
    assert f"is being downloaded into by process {process.pid}" in said
    fetch(folder, one(server))
    assert not locks.holds(folder / "download.lock")


def test_only_the_parts_that_are_wanted_are_fetched(server, folder):
    names = ("a.bin", "b.bin", "c.bin")
    server.files = dict.fromkeys(("/a.bin", "/b.bin", "/c.bin"), CONTENT)
    items = [
        one(server, part=part, url=server.url(f"/{name}"), needed=needed)
        for part, name, needed in zip(
            ("S1", "S2", "splits"), names, [lambda c: True] * 2 + [lambda c: c.strict]
        )
    ]
    fetch(folder, *items, download_parts=("S2",))
    assert [path for path, _ in server.asked] == ["/b.bin"]
    fetch(folder, *items)
    assert [path for path, _ in server.asked] == ["/b.bin", "/a.bin"]
    fetch(folder, *items, strict=True)
    assert [path for path, _ in server.asked][2:] == ["/c.bin"]


@pytest.fixture
def packed(server):
    """A compressed tar that is to be made a plain one."""
    content = gzip.compress(CONTENT[:100_000]) + gzip.compress(CONTENT[100_000:])
    server.files["/a.tar.gz"] = content
    digest = hashlib.md5(content).hexdigest()
    return one(
        server,
        url=server.url("/a.tar.gz"),
        checksum=f"md5:{digest}",
        size=len(content),
        tar=len(CONTENT),
    )


def test_a_compressed_tar_becomes_a_plain_one(server, folder, packed, monkeypatch):
    fetch(folder, packed)
    assert (folder / "a.tar").read_bytes() == CONTENT
    monkeypatch.setattr(download, "_decompress", None)  # nothing is done again
    fetch(folder, packed)
    (folder / "a.tar.gz").unlink()  # to have the room
    fetch(folder, packed)
    assert len(server.asked) == 1


def test_a_tar_that_was_cut_off_or_changed_is_made_again(folder, packed):
    fetch(folder, packed)
    (folder / "a.tar").write_bytes(b"short")
    (folder / "a.tar.part").write_bytes(b"of a process that was killed")
    fetch(folder, packed)
    assert (folder / "a.tar").read_bytes() == CONTENT
    assert not (folder / "a.tar.part").exists()


def test_a_tar_is_made_only_where_there_is_room(server, folder, packed, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Free(3_000_000))
    assert "make room" in refused(folder, packed) and not server.asked


@pytest.mark.parametrize(
    "damage", [lambda x: x[:-1000], lambda x: x[:-4] + b"0000", lambda x: b"no" + x]
)
def test_what_cannot_be_decompressed_leaves_no_tar(server, folder, packed, damage):
    content = damage(server.files["/a.tar.gz"])
    server.files["/a.tar.gz"] = content
    changes = {"size": len(content), "tar": 1, "url": packed.url}
    checksum = f"md5:{hashlib.md5(content).hexdigest()}"
    said = refused(folder, one(server, checksum=checksum, **changes))
    assert "cannot be decompressed" in said
    assert left(folder) == ["a.tar.gz", "a.tar.gz.verified"]


def test_what_was_fetched_is_built_as_it_is_told(server, tmp_path, monkeypatch, capsys):
    whole = builds.false_archive(tmp_path)
    folder = tmp_path / "fetched"
    pairs, _ = prepare.open_archive(whole).find_pairs()
    served = {n: b"" for n in ("train.csv", "val.csv", "test.csv")}
    lines = [f"{pair.images['s2']},{pair.images['s1']}\n" for pair in pairs]
    served["train.csv"] = "".join(lines).encode()
    for name, top in [("S1", "BigEarthNet-S1-v1.0"), ("S2", "BigEarthNet-v1.0")]:
        tar = packing.pack(tmp_path / "archive" / top, tmp_path / "a.tar")
        served[f"BigEarthNet-{name}-v1.0.tar.gz"] = gzip.compress(tar.read_bytes())
    items = []
    for item in bigearthnet_v1.DOWNLOADS:
        content = served[item.file]
        server.files[f"/{item.file}"] = content
        changes = {"size": len(content), "tar": item.tar and 1_000_000}
        changes["checksum"] = f"md5:{hashlib.md5(content).hexdigest()}"
        changes["url"] = server.url(f"/{item.file}")
        items.append(dataclasses.replace(item, **changes))
    monkeypatch.setattr(bigearthnet_v1, "DOWNLOADS", tuple(items))

    prepare.prepare(config(folder))
    told = capsys.readouterr().out
    told = dict(re.findall(r"--config\.(\w+)=(\S+)", told))
    assert told == {"source": str(folder), "splits": str(folder)}
    for name, changes in {"a": {}, "b": told}.items():
        built = whole.copy_and_resolve_references()
        built.update(changes)
        built.out = str(tmp_path / name)
        built.splits = told["splits"]
        prepare.prepare(built)
        assert sorted(builds.ids(built, "train")) == [pair.name for pair in pairs]


ARCHIVES = [n for n in prepare.ARCHIVES if hasattr(prepare.reader(n), "DOWNLOADS")]


@pytest.mark.parametrize("archive", ARCHIVES)
def test_what_archives_list_is_complete_and_fetched_to_places_of_its_own(archive):
    items = prepare.reader(archive).DOWNLOADS
    files = [item.file for item in items]
    assert len(set(files)) == len(files)
    lengths = {"md5": 32, "sha256": 64}
    for item in items:
        method, _, digest = item.checksum.partition(":")
        assert re.fullmatch(rf"[0-9a-f]{{{lengths[method]}}}", digest)
        assert re.match(r"https://|ftp://", item.url)
        assert re.fullmatch(r"[\w.-]+", item.file)
        assert not (item.size and item.about)
        assert not item.tar or item.file.endswith(".tar.gz")
    assert len({item.checksum for item in items}) == len(items)


@pytest.mark.parametrize(
    "name, changes, parts",
    [
        ("prepare_bigearthnet", {}, ["splits"] * 3 + ["S1", "S2"]),
        ("prepare_bigearthnet", {"splits": "LISTS"}, ["S1", "S2"]),
        ("prepare_bigearthnet_v2", {}, ["metadata", "maps", "S1", "S2"]),
        (
            "prepare_bigearthnet_v2",
            {"read.snow_and_clouds": True, "read.metadata": "F", "read.maps": False},
            ["snow_and_clouds", "S1", "S2"],
        ),
        ("prepare_sen12ms", {}, ["maps", "S1", "S2"] * 4),
        ("prepare_ssl4eo", {}, ["S1"] * 10 + ["L2A"] * 12),
        ("prepare_ssl4eo", {"read.level": "L1C"}, ["S1"] * 10 + ["L1C"] * 12),
        ("prepare_ssl4eo", {"download_parts": ("L1C",)}, ["L1C"] * 12),
    ],
)
def test_what_a_config_reads_is_fetched(
    folder, monkeypatch, capsys, name, changes, parts
):
    changed = {"source": "", "download": str(folder)} | changes
    loaded = bad_configs.load(name, changed)
    fetched = []
    monkeypatch.setattr(download, "_check_served", lambda *args: None)
    monkeypatch.setattr(download, "_check_room", lambda *args: None)
    monkeypatch.setattr(download, "_fetch", lambda folder, item: fetched.append(item))
    monkeypatch.setattr(download, "_decompress", lambda *args: None)
    launch.task_of(loaded).run(loaded, "unused")
    assert [item.part for item in fetched] == parts
    told = capsys.readouterr().out
    assert f"{folder} has the {len(parts)} files" in told
    if name == "prepare_ssl4eo":
        assert told.count(" | tar -xzf - -C ") == len(set(parts))
    if "splits" in parts:
        assert f"--config.splits={folder}\n" in told


def test_pieces_are_joined_without_the_notes_beside_them(folder, capsys):
    """The command that unpacks SSL4EO-S12 names pieces by a pattern."""
    folder.mkdir()
    archive = importlib.import_module("data_pipeline.archives.ssl4eo")
    items = [item for item in archive.DOWNLOADS if item.part == "S1"]
    for item in items:
        for suffix in ("", ".verified", ".part", ".part.etag"):
            (folder / f"{item.file}{suffix}").touch()
    pattern = re.search(r"cat \{folder\}/(\S+)", items[0].unpack)[1]
    found = sorted(path.name for path in folder.glob(pattern))
    assert found == [item.file for item in items]


def test_files_that_are_not_served_by_http_are_fetched_by_hand_and_verified(folder):
    loaded = bad_configs.load(
        "prepare_sen12ms",
        {"source": "", "download": str(folder), "download_parts": ("maps",)},
    )
    with pytest.raises(InputError) as caught:
        prepare.prepare(loaded)
    said = str(caught.value)
    assert said.count("ftp://") == 4 and "_lc.tar.gz" in said and "_s1" not in said
    assert f"`wget --continue --directory-prefix={folder} ftp://" in said
    (folder / "ROIs1970_fall_lc.tar.gz").write_bytes(b"short")
    with pytest.raises(InputError, match="fall_lc.tar.gz is not the published file"):
        prepare.prepare(loaded)


def test_a_killed_process_is_gone_on_from_by_the_same_command(server, folder):
    server.cut, server.silent = [1_000_000], 60
    script = (
        "import sys; from data_pipeline import download\n"
        "from tests.test_download import MD5, config\n"
        f"item = download.Download('S1', {server.url()!r}, MD5, {len(CONTENT)})\n"
        f"download.fetch(config({str(folder)!r}), [item])"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=processes.ROOT)
    part = folder / "a.bin.part"
    here = lambda: part.exists() and part.stat().st_size >= 900_000
    processes.wait_for(process, here, timeout=60)
    process.kill()
    process.wait()
    have = part.stat().st_size
    fetch(folder, one(server))
    assert server.ranges() == [None, f"bytes={have}-"]
    assert (folder / "a.bin").read_bytes() == CONTENT
