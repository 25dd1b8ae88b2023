"""What builds leave in a scratch folder: nothing, and to each other what they read."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from data_pipeline.archives import tars
from data_pipeline.errors import InputError
from tests import shared_data
from tests.packing import compress, open_archive, pack, records, write_tar


def clean(scratch, *paths) -> None:
    for path in paths:
        tars.clean(path, str(scratch))


def test_clean_removes_what_index_wrote_and_nothing_else(tmp_path):
    plain = write_tar(tmp_path / "x.tar", [("t/a/a_1.tif", b"x")])
    packed = shutil.copy(plain, tmp_path / "y.tar")
    packed = str(compress(pathlib.Path(packed), ".gz"))
    for name in ("mine.index.json", "mine.plain.tar", "x.tar.plain.tar"):
        (tmp_path / name).write_text("of somebody else")
    before = set(tmp_path.iterdir())
    for path in (plain, packed):
        tars.index(path, str(tmp_path))  # scratch is the source, of all folders
    clean(tmp_path, plain, packed)
    assert set(tmp_path.iterdir()) == before
    for path in (plain, packed):
        tars.index(path, str(tmp_path / "scratch"))
    clean(tmp_path / "scratch", plain)
    assert len(list((tmp_path / "scratch").iterdir())) == 2  # of the other tar
    clean(tmp_path / "scratch", packed)
    clean(tmp_path / "scratch", packed)  # and again, where there is nothing
    assert set(tmp_path.iterdir()) == before


OTHER_BUILD = """
import sys
from data_pipeline.archives import tars
where, _ = tars.index(*sys.argv[1:])
print("ready", flush=True)
input()
print(tars.reader(where["a"])("a_1.tif"), flush=True)
input()
tars.clean(*sys.argv[1:])
"""


@pytest.fixture
def shared(tmp_path):
    """A compressed tar, a scratch folder, and another build that reads it there."""
    path = write_tar(tmp_path / "x.tar", [("t/a/a_1.tif", b"x")])
    path = str(compress(pathlib.Path(path), ".gz"))
    where = path, str(tmp_path / "scratch")
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_BUILD, *where],
        cwd=pathlib.Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as other:
        assert other.stdout.readline() == "ready\n"
        yield *where, other
        other.kill()


def tell(other: subprocess.Popen) -> None:
    other.stdin.write("\n")
    other.stdin.flush()


def test_builds_that_share_a_folder_leave_each_other_what_they_read(shared):
    path, scratch, other = shared
    where, _ = tars.index(path, scratch)
    tars.clean(path, scratch)
    assert len(os.listdir(scratch)) == 2  # the other build reads them
    tell(other)
    assert other.stdout.readline() == "b'x'\n"
    where, _ = tars.index(path, scratch)
    tell(other)
    assert other.wait() == 0  # it is done, and has left what this one reads
    assert tars.reader(where["a"])("a_1.tif") == b"x"
    tars.clean(path, scratch)
    assert not os.path.exists(scratch)


def test_a_tar_that_another_build_reads_is_not_replaced(shared):
    path, scratch, other = shared
    os.utime(path, (1, 1))  # as if it were another
    with pytest.raises(InputError, match="Another build reads .*x.tar.gz.plain.tar"):
        tars.index(path, scratch)
    other.kill()
    other.wait()
    where, _ = tars.index(path, scratch)  # a killed build holds nothing
    assert tars.reader(where["a"])("a_1.tif") == b"x"


def test_the_archive_cleans_up_after_its_tars_and_leaves_folders_alone(tmp_path):
    s2, s1 = shared_data.write_pair(tmp_path / "in", 1)
    (tmp_path / "out-scratch").mkdir()
    archive = open_archive(tmp_path / "in", tmp_path)
    archive.find_pairs()
    archive.clean()
    assert (tmp_path / "out-scratch").exists()  # two folders need none
    compress(pack(s2.parent, tmp_path / "in" / f"{s2.parent.name}.tar"), ".gz")
    shutil.rmtree(s2.parent)
    before = sorted(tmp_path.rglob("*"))
    records(archive)
    assert len(os.listdir(tmp_path / "out-scratch")) == 2
    archive.clean()
    assert sorted(tmp_path.rglob("*")) == [
        path for path in before if path.name != "out-scratch"
    ]
