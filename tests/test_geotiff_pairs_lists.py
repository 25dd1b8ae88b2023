"""Which files of users make pairs: by name in a folder, or by a CSV."""

import numpy as np
import pytest

from data_pipeline.errors import InputError
from tests.geotiffs import (
    S1_BANDS,
    S2_BANDS,
    open_archive,
    s1_image,
    s2_image,
    write,
    write_csv,
    write_pairs,
)


def test_a_csv_says_what_belongs_together(tmp_path):
    write_pairs(tmp_path / "images", 3)
    absolute = str(tmp_path / "images" / "s2" / "p1.tif")
    both = [
        dict(s1="images/s1/p2.tif", s2="images/s2/p0.tif", id="x", split="train"),
        dict(s1="images/s1/p0.tif", s2=absolute, id="", split="test"),
    ]
    both[0] |= dict(tile="T1", labels="water; forest", acquired_s1="2020-01-02")
    both[1] |= dict(tile="T2", labels="", acquired_s1="")
    archive = open_archive(write_csv(tmp_path / "pairs.csv", both))

    pairs, _ = archive.find_pairs()
    records = [archive.read_pair(pair) for pair in pairs]

    assert [(p.name, p.images["s1"], p.tile, p.split) for p in pairs] == [
        ("p1", "p0", "T2", "test"),
        ("x", "p2", "T1", "train"),
    ]
    assert archive.description.classes == {"labels": ("forest", "water")}
    assert [record["labels"] for record in records] == [[], [0, 1]]
    assert records[1]["acquired_s1"] == "2020-01-02"
    np.testing.assert_array_equal(records[1]["s2_10m"], np.moveaxis(s2_image(0), 0, -1))


def test_files_without_partner_and_double_names_are_listed(tmp_path):
    write_pairs(tmp_path, 1)
    write(tmp_path / "s1" / "only1.tif", s1_image(0), S1_BANDS)
    write(tmp_path / "s2" / "only2.TIFF", s2_image(0), S2_BANDS)
    for name in ("twice.tif", "twice.tiff"):
        write(tmp_path / "s2" / name, s2_image(0), S2_BANDS)
    write(tmp_path / "s1" / "twice.tif", s1_image(0), S1_BANDS)
    (tmp_path / "s1" / "readme.txt").write_text("")

    pairs, skipped = open_archive(tmp_path).find_pairs()

    assert [pair.name for pair in pairs] == ["p0"]
    assert [s.names for s in skipped] == [
        ("", "only1"),
        ("only2", ""),
        ("twice", "twice"),
    ]
    assert skipped[1].reason == f"its partner {tmp_path}/s1/only2.* is missing"
    assert "s2/twice.tif', " in skipped[2].reason
    assert "s2/twice.tiff' stand for one pair" in skipped[2].reason


def test_of_pairs_with_one_id_the_first_stays(tmp_path):
    write_pairs(tmp_path)
    rows = [dict(s1=f"s1/p{i}.tif", s2=f"s2/p{i}.tif", id="x") for i in range(2)]
    pairs, skipped = open_archive(write_csv(tmp_path / "p.csv", rows)).find_pairs()
    assert [pair.images["s1"] for pair in pairs] == ["p0"]
    assert [skip.images["s1"] for skip in skipped] == ["p1"]


def test_a_source_without_pairs_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no folder s1 or s2"):
        open_archive(tmp_path)
    for sensor in ("s1", "s2"):
        (tmp_path / sensor).mkdir()
    with pytest.raises(InputError, match="has no pairs"):
        open_archive(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("s1,s3\na,b\n", "it needs s1 and s2"),
        ("s1,s2,label\na,b,c\n", r"columns \['s1', 's2', 'label'\]"),
        ("s1,s2\na\n", "Row 1 .* another number of fields than the 2"),
        ("s1,s2\na,b\na,b,c\n", "Row 2 .* another number of fields"),
        ("s1,s2,split\na,b,dev\n", "split='dev'.*train, validation, test"),
        ("s1,s2\n,\n", "Row 1 .*s1=''"),
        ("s1,s2\n", "has no pairs"),
        ("", "it needs s1 and s2"),
        ("s1,s2\na,b\n", "a cannot be read"),
        ('s1,s2\n"a,b\n', "cannot be read as a CSV"),
        ("s1,s2\n\xff\xfe", "cannot be read as a CSV"),
    ],
)
def test_a_csv_that_cannot_be_meant_is_refused(tmp_path, text, message):
    path = tmp_path / "pairs.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        open_archive(path)


def test_a_csv_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="gone.csv cannot be read"):
        open_archive(tmp_path / "gone.csv")
