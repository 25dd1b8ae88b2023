"""Missing files are faults of an archive; what cannot be read stops a build."""

import pathlib

import pytest

from data_pipeline.archives import files, geotiff, rasters, tars
from data_pipeline.errors import InputError


def unreadable(path: pathlib.Path) -> pathlib.Path:
    """Makes a file that is there and that nobody can open, root included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path)  # a loop
    return path


READERS = {
    "any file": files.read,
    "GeoTIFF by our parser": geotiff.read_file,
    "GeoTIFF by rasterio": rasters.read,
    "file of a patch": lambda path: tars.reader(str(pathlib.Path(path).parent))("a"),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_missing_file_costs_a_pair_and_a_failing_disk_the_build(tmp_path, read):
    path = tmp_path / "a"
    with pytest.raises(InputError, match="a cannot be read .*; unpack it again"):
        read(str(path))
    path.mkdir()
    with pytest.raises(InputError, match="a cannot be read .*Is a directory"):
        read(str(path))
    path.rmdir()
    with pytest.raises(OSError, match="symbolic links"):
        read(str(unreadable(path)))


def test_a_path_through_a_file_leads_to_no_file(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match="Not a directory"):
        files.read(str(tmp_path / "a" / "b"))
    assert not files.exists(str(tmp_path / "a" / "b"))
    assert files.folders(str(tmp_path / "a")) == []


def test_what_is_there_and_what_is_not_is_told_for_sure(tmp_path):
    assert files.exists(str(tmp_path)) and not files.exists(str(tmp_path / "gone"))
    with pytest.raises(OSError, match="symbolic links"):
        files.exists(str(unreadable(tmp_path / "a")))


def test_folders_are_listed_by_name_or_not_at_all(tmp_path):
    for name in "cab":
        (tmp_path / "x" / name).mkdir(parents=True)
    (tmp_path / "x" / "file").write_text("")
    (tmp_path / "x" / "link").symlink_to(tmp_path)
    names = [entry.name for entry in files.folders(str(tmp_path / "x"))]
    assert names == ["a", "b", "c", "link"]
    assert files.folders(str(tmp_path / "gone")) == []
    with pytest.raises(OSError, match="symbolic links"):
        files.folders(str(unreadable(tmp_path / "y")))
