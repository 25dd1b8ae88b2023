"""The card: everything said once, adding up, the same for the same archive."""

import dataclasses
import hashlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from data_pipeline import dataset_card, layout, sensors
from data_pipeline.building import card
from data_pipeline.building.statistics import Tally
from tests import fakes

LONG = "Land principally occupied by agriculture, with significant areas of nature"
DESCRIPTION = dataset_card.Description(
    name="small",
    title="Small pairs for a test.",
    source="https://example.org/small",
    licence="Terms\nof use",
    layout=layout.native(12, sensors.SENSORS),
    sensors=sensors.SENSORS,
    classes={"labels": ("lake", LONG)},
    maps={"land_cover": ("a | b", "wood")},
)
SKIPPED = [
    fakes.skip("p_7", "q_7", "/data/x/p_7/p_7_B01.tif is cut short; unpack it again."),
    fakes.skip("p_3", "q_3", "/data/x/p_3/p_3_B8A.tif is cut short; unpack it again."),
    fakes.skip("p_9", "", "no patch in /data/x/S1 names it"),
    fakes.skip("p_1", "q_1", "q_1, band VV, is 3 x 3 px, where it should be 12 x 12."),
    fakes.skip("p_2", "q_2", "q_2, band VH, is 5 x 5 px, where it should be 12 x 12."),
    fakes.skip("p_4", "q_4", "p_4 is labelled ['a'] and q_4 ['b', 'c']; choose."),
    fakes.skip("p_5", "q_5", "p_5 is labelled ['c'] and q_5 []; choose."),
]


def report(pairs: int, seed: int = 0, contract=sensors.SENSORS) -> card.SplitReport:
    """A split whose pixels are distributed as the contract says."""
    rng, tally = np.random.default_rng(seed), Tally(DESCRIPTION)
    for i in range(pairs):
        record = {"labels": [0, 1] if i == 0 else [1]}
        record["land_cover"] = rng.integers(0, 2, (12, 12)).astype(np.uint8)
        for grid in DESCRIPTION.layout.grids:
            sensor = contract[grid.sensor].select(grid.bands)
            mean, std = np.array([(b.mean, b.std) for b in sensor.bands]).T
            shape = DESCRIPTION.layout.shapes[grid.field]
            values = np.clip(rng.normal(mean, std, shape), *sensor.valid_range)
            record[grid.field] = values.astype(sensor.dtype)
        tally.add(record)
    return card.SplitReport(pairs, 1000 * pairs, tally)


def made(skipped=(), **changes) -> dict:
    content = {
        "description": DESCRIPTION,
        "splits": {"test": report(2, 1), "train": report(30)},
        "skipped": skipped,
        "unlisted": 4,
        "checksums": {"b": "2" * 64, "a": "1" * 64},
        "build": {"pairs_per_shard": 256, "compression": "zstd:3"},
    }
    return card.make(**content | changes)


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    lines = text.split(f"# {heading}", 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def test_the_card_describes_the_dataset_to_whoever_opens_it(tmp_path):
    card.write(tmp_path, made())
    assert dataset_card.read_description(tmp_path) == DESCRIPTION
    assert {path.name for path in tmp_path.iterdir()} == {"card.json", "card.md"}


def test_the_folder_is_a_dataset_only_once_all_is_written(tmp_path, monkeypatch):
    def fail(content):
        raise OSError("disk full")

    monkeypatch.setattr(card, "text", fail)
    with pytest.raises(OSError, match="disk full"):
        card.write(tmp_path, made())
    assert not (tmp_path / dataset_card.CARD_FILE).exists()


def test_the_same_archive_gives_the_same_bytes(tmp_path):
    for folder, skipped in (("one", SKIPPED), ("two", SKIPPED[::-1])):
        (tmp_path / folder).mkdir()
        card.write(tmp_path / folder, made(skipped))
    for name in ("card.json", "card.md"):
        one, two = (tmp_path / folder / name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_the_totals_add_up():
    pairs = made(SKIPPED)["pairs"]
    assert pairs == {"found": 43, "written": 32, "skipped": 7, "unlisted": 4}
    assert sum(row["count"] for row in made(SKIPPED)["skipped"]) == 7


def test_splits_come_in_their_usual_order_with_what_they_hold():
    splits = made()["splits"]
    assert list(splits) == ["train", "test"]
    assert splits["train"]["pairs"] == 30 and splits["train"]["bytes"] == 30000
    assert splits["train"]["classes"]["labels"] == {"lake": 1, LONG: 30, "": 0}
    assert sum(splits["test"]["maps"]["land_cover"].values()) == 2 * 144


def test_like_reasons_count_once_with_an_example_and_without_folders():
    rows = card.reasons(SKIPPED)
    assert [(row["count"], row["example"]["s2_name"]) for row in rows] == [
        (2, "p_1"),
        (2, "p_3"),
        (2, "p_4"),
        (1, "p_9"),
    ]
    reason = rows[1]["example"]["reason"]
    assert reason == "p_3_B8A.tif is cut short; unpack it again."
    assert rows[3]["example"]["reason"] == "no patch in S1 names it"


@pytest.mark.parametrize(
    "reason, want",
    [
        ("cannot read '/home/me/a b.tif': gone", "cannot read 'a b.tif': gone"),
        (r"C:\data\p.tif is torn", "p.tif is torn"),
        ("data/x/p.tif (../data/y.tif) is torn", "p.tif (y.tif) is torn"),
        ("Transitional woodland/shrub is 3/4 of it", None),
        ("see https://example.org/a/b", None),
        ("it is not in /data/S2.", "it is not in S2."),
    ],
)
def test_reasons_lose_folders_and_keep_words(reason, want):
    (row,) = card.reasons([fakes.skip("p", "q", reason)])
    assert row["example"]["reason"] == (want or reason)


def test_rare_reasons_are_counted_together():
    words = [letter * times for letter in "abcdefghij" for times in (3, 4, 5)]
    many = [fakes.skip("p", "q", f"{word} is wrong") for word in words]
    rows = card.reasons(many)
    assert len(rows) == card.REASONS + 1
    assert rows[-1] == {"count": 10, "kinds": 10}
    skipped = table(card.text(made(many)), "What was skipped")
    assert skipped[-1] == ["10", "10 other reasons", ""]


def test_statistics_like_the_published_ones_pass():
    assert made(splits={"train": report(300)})["differing"] == []


@pytest.mark.parametrize(
    "change, shift, ratio",
    [
        (lambda b: {"mean": b.mean - b.std}, -1.0, 1.0),
        (lambda b: {"std": b.std / 4}, 0.0, 0.25),
        (lambda b: {"std": b.std * 2.5}, 0.0, 2.5),
    ],
)
def test_bands_far_from_the_published_statistics_are_marked(change, shift, ratio):
    bands = [
        dataclasses.replace(b, **change(b)) if b.name == "VH" else b
        for b in sensors.S1.bands
    ]
    real = sensors.SENSORS | {"s1": dataclasses.replace(sensors.S1, bands=tuple(bands))}
    content = made(splits={"train": report(300, contract=real)})
    (row,) = content["differing"]
    assert (row["sensor"], row["band"]) == ("s1", "VH")
    assert row["shift"] == pytest.approx(shift, abs=0.05)
    assert row["ratio"] == pytest.approx(ratio, rel=0.05)
    text = card.text(content)
    marks = {row[0]: row[-1] for row in table(text, "Sentinel-1, dB")[2:]}
    assert marks == {"VV": "", "VH": "`differs`"}
    assert "**Bands marked `differs`**" in text


def test_the_text_says_what_the_numbers_are():
    content = made(SKIPPED)
    text = card.text(content)
    assert text.startswith("# small\n\nSmall pairs for a test.\n")
    assert table(text, "Pairs")[2:] == [
        ["`train`", "30", "30 kB"],
        ["`test`", "2", "2 kB"],
    ]
    assert "Of 43 pairs found, 32 were written, 7 skipped, and 4 left out" in text
    fields = table(text, "Sensors")
    assert fields[4] == [
        *("`s2_20m`", "B05 B06 B07 B8A B11 B12", "20 m", "20 m", "6 x 6 x 6", "uint16")
    ]
    (vv,) = (row for row in table(text, "Sentinel-1, dB") if row[0] == "VV")
    measured = content["splits"]["train"]["sensors"]["s1"]["VV"]
    assert vv[1:3] == [f"{measured['mean']:.2f}", "-12.62"]
    assert vv[5] == f"{measured['min']:.2f}"
    assert vv[9] == f"{measured['percentiles']['50']:.2f}"
    assert vv[13] == f"{measured['max']:.2f}"
    header, rule, *rows = table(text, "`labels`")
    assert header == ["Class", "train", "test"]
    assert rule == ["-----", "----:", "---:"]  # numbers to the right
    assert rows == [["lake", "1", "1"], [LONG, "30", "2"]]
    assert "```text\nTerms\nof use\n```" in text


def test_tables_survive_names_with_bars_and_resampled_bands_say_so():
    contract = {"s1": sensors.S1, "s2": sensors.S2}
    resampled = dataclasses.replace(DESCRIPTION, layout=layout.resampled(12, contract))
    content = made(splits={"train": report(3)})
    text = card.text(content | {"description": resampled.describe()})
    assert table(text, "`land_cover`")[2][0] == r"a \| b"
    assert len({len(row) for row in table(text, "`land_cover`")}) == 1
    row = table(text, "Sensors")[3]
    assert row[2:5] == ["10 m, 20 m, 60 m", "10 m", "12 x 12 x 12"]


def test_pairs_without_any_class_are_mentioned_only_if_there_are_some():
    some = report(3)
    some.tally._classes["labels"][-1] = 2
    for splits, last in (({"train": some}, "*none of them*"), ({}, LONG)):
        text = card.text(made(splits=splits or {"train": report(3)}))
        assert table(text, "`labels`")[-1][0] == last


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="there is no sha256sum")
def test_the_checksums_can_be_checked_from_the_card(tmp_path):
    (tmp_path / "shard").write_bytes(b"records")
    sums = {"shard": hashlib.sha256(b"records").hexdigest()}
    card.write(tmp_path, made(checksums=sums))
    command = ("sha256sum", "--check", card.TEXT_FILE)
    check = lambda: subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert check().returncode == 0
    (tmp_path / "shard").write_bytes(b"rec0rds")
    assert check().returncode == 1


@pytest.mark.parametrize(
    "count, want",
    [(0, "0 B"), (999, "999 B"), (3_704_965, "3.7 MB"), (7e13, "70.0 TB")],
)
def test_sizes_are_in_words(count, want):
    assert card._size(count) == want


def test_what_is_listed_without_order_is_sorted():
    content = made()
    assert list(content["files"]) == ["a", "b"]
    assert list(content["build"]) == ["compression", "pairs_per_shard"]
