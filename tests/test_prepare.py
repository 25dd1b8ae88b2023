"""Building a dataset: splits, bad pairs, restarts, and what is refused."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from configs import prepare_pairs, prepare_sample
from data_pipeline import record_format, sources
from data_pipeline.archives import bigearthnet_v1
from data_pipeline.building import plan, prepare
from data_pipeline.dataset_card import SPLITS
from data_pipeline.errors import InputError
from tests import builds, geotiffs, shared_data


@pytest.fixture
def config(tmp_path):
    return builds.false_archive(tmp_path)


def test_records_hold_every_pair_in_order(config):
    prepare.prepare(config)
    archive = bigearthnet_v1.open_archive(config)
    pairs, _ = archive.find_pairs()
    opened = record_format.Records(config.out, "train")
    assert builds.ids(config, "train") == [pair.name for pair in pairs]
    for got, pair in zip(opened, pairs, strict=True):
        want = archive.read_pair(pair)
        np.testing.assert_array_equal(got["s2_20m"], want["s2_20m"])
        np.testing.assert_array_equal(got["s1_10m"], want["s1_10m"])


def test_finished_dataset_holds_nothing_of_the_build(config):
    prepare.prepare(config)
    left = builds.files(config)
    assert not [name for name in left if "build" in name or "part" in name]
    assert "skipped.csv" not in left


def test_processes_write_the_same_shards_as_one(config):
    prepare.prepare(config)
    first = {p.name: p.read_bytes() for p in builds.out_files(config)}
    shutil.rmtree(config.out)
    config.workers = 2
    prepare.prepare(config)
    assert {p.name: p.read_bytes() for p in builds.out_files(config)} == first


def test_tiles_are_held_out_for_validation(config):
    config.holdout_tiles = ("33UUP",)
    prepare.prepare(config)
    held_out = builds.ids(config, "validation")
    assert [name.split("_")[3] for name in held_out] == ["0", "3"]
    assert len(builds.ids(config, "train")) == 4


def write_lists(config, path, train, val, test):
    path.mkdir()
    for name, columns in (("train", train), ("val", val), ("test", test)):
        lines = [builds.s2_folder(config, column).name for column in columns]
        (path / f"{name}.csv").write_text("".join(line + "\n" for line in lines))
    config.splits = str(path)


def test_lists_decide_the_split_and_the_rest_is_counted(config, tmp_path, capsys):
    write_lists(config, tmp_path / "lists", [5, 1], [2], [0])
    prepare.prepare(config)
    got = {s: [n.split("_")[3] for n in builds.ids(config, s)] for s in SPLITS}
    assert got == {"train": ["1", "5"], "validation": ["2"], "test": ["0"]}
    said = capsys.readouterr().out
    assert "of 6 pairs wrote 2 in train, 1 in validation, 1 in test" in said
    assert "skipped 0; 2 are in no list" in said


def test_listed_pair_that_is_not_there_is_counted_as_skipped(config, tmp_path, capsys):
    write_lists(config, tmp_path / "lists", [5, 1], [2], [0])
    with (tmp_path / "lists" / "val.csv").open("a") as file:
        file.write("S2A_GONE,S1A_GONE\n")
    prepare.prepare(config)
    assert "of 7 pairs wrote 2 in train, 1 in validation, 1 in test; skipped 1" in (
        capsys.readouterr().out
    )


def test_listed_partner_other_than_the_archive_says_is_skipped(config, tmp_path):
    write_lists(config, tmp_path / "lists", [5], [2], [0])
    name = builds.s2_folder(config, 1).name
    (tmp_path / "lists" / "test.csv").write_text(f"{name},S1A_OTHER\n")
    prepare.prepare(config)
    ((s2_name, _, reason),) = builds.skipped(config)
    assert s2_name == name and reason == "test.csv pairs it with S1A_OTHER"


def test_bad_pair_is_skipped_listed_and_counted(config, capsys):
    builds.break_pair(config, 3)
    prepare.prepare(config)
    ((s2_name, s1_name, reason),) = builds.skipped(config)
    assert s2_name == builds.s2_folder(config, 3).name and "_3_7" in s1_name
    assert "B02.tif is not a TIFF" in reason
    assert "of 6 pairs wrote 5 in train; skipped 1" in capsys.readouterr().out
    assert len(builds.ids(config, "train")) == 5


def test_patch_without_partner_is_skipped_and_counted(config, capsys):
    shutil.rmtree(builds.s2_folder(config, 3))
    prepare.prepare(config)
    assert "of 6 pairs wrote 5 in train; skipped 1" in capsys.readouterr().out


def test_split_whose_pairs_are_all_bad_is_left_out(config):
    config.holdout_tiles = ("33UUP",)
    builds.break_pair(config, 0)
    builds.break_pair(config, 3)
    prepare.prepare(config)
    assert len(builds.ids(config, "train")) == 4
    with pytest.raises(InputError, match="'validation' .* holds no records"):
        record_format.Records(config.out, "validation")


def test_only_bad_pairs_are_an_error(config):
    for column in range(6):
        builds.break_pair(config, column)
    with pytest.raises(InputError, match="All 6 pairs that were looked at are bad"):
        prepare.prepare(config)
    assert not pathlib.Path(config.out).exists()
    config.check_values = False
    with pytest.raises(InputError, match="All 6 pairs are bad.*is not a TIFF"):
        prepare.prepare(config)


@pytest.mark.parametrize("workers", [0, 1])
def test_strict_stops_at_a_bad_pair(config, workers):
    builds.break_pair(config, 3)
    config.strict, config.workers = True, workers
    with pytest.raises(InputError, match="B02.tif is not a TIFF"):
        prepare.prepare(config)
    assert "card.json" not in builds.files(config)


def test_strict_stops_at_a_patch_without_partner(config):
    shutil.rmtree(builds.s2_folder(config, 3))
    config.strict = True
    with pytest.raises(InputError, match="is not in .* strict=False"):
        prepare.prepare(config)


@pytest.fixture
def stopped(config):
    """The same build, stopped by a bad pair in the second of three shards."""
    good = builds.s2_folder(config, 3) / f"{builds.s2_folder(config, 3).name}_B02.tif"
    content = good.read_bytes()
    builds.break_pair(config, 3)
    config.strict = True
    with pytest.raises(InputError):
        prepare.prepare(config)
    good.write_bytes(content)
    return config


def test_restart_finishes_without_rewriting_a_finished_shard(stopped):
    name = record_format.shard_name("bigearthnet_v1", "train", 0, 3)
    first = pathlib.Path(stopped.out) / name
    before = first.stat()
    prepare.prepare(stopped)
    after = first.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(builds.ids(stopped, "train")) == 6


def test_restart_writes_over_a_half_written_shard(stopped):
    assert [name for name in builds.files(stopped) if name.endswith(".part")]
    prepare.prepare(stopped)
    assert not [name for name in builds.files(stopped) if name.endswith(".part")]
    assert len(builds.ids(stopped, "train")) == 6


def test_strict_restart_does_not_accept_what_a_lenient_run_skipped(config):
    config.check_values = False
    for column in range(6):
        builds.break_pair(config, column)
    with pytest.raises(InputError, match="All 6"):
        prepare.prepare(config)
    config.strict = True
    with pytest.raises(InputError, match="^[^ ]*B02.tif is not a TIFF"):
        prepare.prepare(config)


def test_restart_writes_a_shard_that_went_missing(stopped):
    name = record_format.shard_name("bigearthnet_v1", "train", 0, 3)
    (pathlib.Path(stopped.out) / name).unlink()
    prepare.prepare(stopped)
    assert len(builds.ids(stopped, "train")) == 6


OTHER = {
    "archive": "sen12ms",
    "source": "other",
    "splits": "list.csv",
    "exclude": ("list.csv",),
    "holdout_tiles": ("33UUP",),
    "holdout_share": 0.5,
    "pairs_per_shard": 3,
    "compression": "none",
}


@pytest.mark.parametrize("option", OTHER)
def test_restart_with_other_options_is_refused(stopped, tmp_path, option, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").write_text("s2_name,split\nS2A_1,train\n")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    stopped[option] = OTHER[option]
    with pytest.raises(InputError, match=f"begun with {option}=.*, not {option}="):
        prepare.prepare(stopped)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


@pytest.mark.parametrize(
    "option, other",
    [
        ("name", "mine"),
        ("s1_unit", "linear"),
        ("s2_level", "L1C"),
        ("s2_offset", "1000"),
        ("size", 8),
        ("classes", ("a",)),
    ],
)
def test_restart_with_other_settings_of_the_reader_is_refused(tmp_path, option, other):
    geotiffs.write_pairs(tmp_path / "pairs", 3)
    config = prepare_pairs.get_config()
    config.source, config.out = str(tmp_path / "pairs"), str(tmp_path / "out")
    config.read.s2_offset = "0"
    config.pairs_per_shard, config.workers = 1, 0
    config.strict, config.check_values = True, False
    (tmp_path / "pairs" / "s2" / "p2.tif").write_bytes(b"")
    with pytest.raises(InputError, match="p2.tif is damaged"):
        prepare.prepare(config)
    config.read[option] = other
    with pytest.raises(InputError, match=rf"begun with read\.{option}=.*not read\."):
        prepare.prepare(config)


@pytest.mark.parametrize("content", ["", '{"archive": "big', "[]", "{}", "7"])
def test_restart_with_a_half_written_plan_is_refused(stopped, content):
    (pathlib.Path(stopped.out) / "_build" / "plan.json").write_text(content)
    with pytest.raises(InputError, match="plan.json cannot be read .*; delete .*/out"):
        prepare.prepare(stopped)


@pytest.mark.journey
@pytest.mark.parametrize("content", ["", '{"count": 2, "by', "[]", "{}", "7"])
@pytest.mark.parametrize("strict", [False, True])
def test_restart_writes_anew_what_has_a_half_written_result(stopped, content, strict):
    (result,) = (pathlib.Path(stopped.out) / "_build").glob("*-result.json")
    result.write_text(content)
    stopped.strict = strict
    with pytest.raises(InputError, match="result.json cannot be read .* was deleted"):
        prepare.prepare(stopped)
    prepare.prepare(stopped)
    assert len(builds.ids(stopped, "train")) == 6


def test_restart_of_a_build_that_wrote_records_otherwise_is_refused(stopped):
    path = pathlib.Path(stopped.out) / "_build" / "plan.json"
    begun = json.loads(path.read_text())
    begun.pop("record_format", None)  # as a version of before wrote it
    path.write_text(json.dumps(begun))
    with pytest.raises(InputError, match="in the format None, and this version"):
        prepare.prepare(stopped)


def test_restart_on_a_changed_archive_is_refused(stopped):
    shared_data.write_pair(pathlib.Path(stopped.source), 9)
    with pytest.raises(InputError, match="begun with pairs="):
        prepare.prepare(stopped)


def test_complete_dataset_is_not_built_again(config):
    prepare.prepare(config)
    with pytest.raises(InputError, match="holds a complete dataset"):
        prepare.prepare(config)


def test_folder_with_other_files_is_refused(config, tmp_path):
    config.out = str(tmp_path)
    with pytest.raises(InputError, match="holds other files"):
        prepare.prepare(config)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"source": ""}, "Pass source=DIR"),
        ({"out": ""}, "Pass source=DIR"),
        ({"source": "nowhere"}, "nowhere has neither a folder BigEarthNet-v1.0"),
        ({"holdout_tiles": ("29SND",)}, r"\['29SND'\] .*\['33UUP', '35VPK'\]"),
        ({"splits": "x", "holdout_tiles": ("33UUP",)}, "2 ways to split"),
        ({"splits": "nowhere"}, "nowhere is missing"),
        ({"pairs_per_shard": 0}, "pairs_per_shard is 0"),
        ({"workers": -1}, "workers is -1; .* at least 0"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_written(
    config, tmp_path, change, reason
):
    config.update(change)
    with pytest.raises(InputError, match=reason):
        prepare.prepare(config)
    assert not (tmp_path / "out").exists()


def test_pair_in_two_lists_is_refused(config, tmp_path):
    write_lists(config, tmp_path / "lists", [5, 1], [2], [1])
    with pytest.raises(InputError, match="listed in train.csv and again in test.csv"):
        prepare.prepare(config)


def test_second_build_into_a_folder_is_refused(config):
    with plan.lock(pathlib.Path(config.out)):
        with pytest.raises(InputError, match="Another build is writing"):
            prepare.prepare(config)
    prepare.prepare(config)  # once the other one has let go


def test_sample_is_what_its_config_builds_from_the_real_pairs(tmp_path):
    config = prepare_sample.get_config()
    config.source, config.out = shared_data.bigearthnet_v1(), str(tmp_path / "out")
    prepare.prepare(config)
    for built in builds.out_files(config):
        kept = sources.SAMPLE / built.name
        if built.suffix == ".json":
            assert json.loads(kept.read_text()) == json.loads(built.read_text())
        elif built.suffix == ".npz":  # zlib may pack them otherwise
            got, want = np.load(built), np.load(kept)
            assert got.files == want.files
            for name in want.files:
                np.testing.assert_array_equal(got[name], want[name])
        elif built.suffix != ".png":  # drawn otherwise by another matplotlib
            assert kept.read_bytes() == built.read_bytes()
