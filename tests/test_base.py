"""What all archives share: missing files are faults of an archive and cost a pair,
what cannot be read stops a build, and names of images tell when they were taken."""

import pathlib

import pytest

from data_pipeline.archives import base, rasters, tars, tiff
from data_pipeline.errors import InputError


@pytest.mark.parametrize(
    "name, time",
    [
        ("S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48", "2017-06-13T16:50:43"),
        ("S2B_MSIL2A_20170924T93020_69_24", "2017-09-24T09:30:20"),
        ("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57", "2017-06-13T10:10:31"),
        ("S2B_MSIL2A_20180204T94161_57_38", ""),  # counts 61 seconds
        ("ROIs1158_spring_s2_1_p30", ""),
    ],
)
def test_time_of_acquisition_is_read_from_the_name(name, time):
    assert base.acquired(name) == time


def unreadable(path: pathlib.Path) -> pathlib.Path:
    """Makes a file that is there and that nobody can open, root included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path)  # a loop
    return path


READERS = {
    "any file": base.read_file,
    "GeoTIFF by our parser": tiff.read_file,
    "GeoTIFF by rasterio": rasters.read,
    "file of a patch": lambda path: tars.reader(str(pathlib.Path(path).parent))("a"),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_missing_file_costs_a_pair_and_a_failing_disk_the_build(tmp_path, read):
    path = tmp_path / "a"
    with pytest.raises(
        InputError, match="a cannot be read .*; unpack or write it again"
    ):
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
        base.read_file(str(tmp_path / "a" / "b"))
    assert not base.exists(str(tmp_path / "a" / "b"))
    assert base.folders(str(tmp_path / "a")) == []


def test_what_is_there_and_what_is_not_is_told_for_sure(tmp_path):
    assert base.exists(str(tmp_path)) and not base.exists(str(tmp_path / "gone"))
    with pytest.raises(OSError, match="symbolic links"):
        base.exists(str(unreadable(tmp_path / "a")))


def test_folders_are_listed_by_name_or_not_at_all(tmp_path):
    for name in "cab":
        (tmp_path / "x" / name).mkdir(parents=True)
    (tmp_path / "x" / "file").write_text("")
    (tmp_path / "x" / "link").symlink_to(tmp_path)
    names = [entry.name for entry in base.folders(str(tmp_path / "x"))]
    assert names == ["a", "b", "c", "link"]
    assert base.folders(str(tmp_path / "gone")) == []
    with pytest.raises(OSError, match="symbolic links"):
        base.folders(str(unreadable(tmp_path / "y")))
