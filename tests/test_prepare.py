"""Building a dataset: splits, bad pairs, restarts, and what is refused."""

import csv
import json
import pathlib
import shutil

import numpy as np
import pytest

from configs import prepare_bigearthnet
from configs import prepare_sample
from data_pipeline.archives import bigearthnet_v1
from data_pipeline.building import lists
from data_pipeline.building import plan
from data_pipeline.building import prepare
from data_pipeline.building import splits
from data_pipeline import metadata
from data_pipeline import records
from data_pipeline import shards
from data_pipeline import sources
from data_pipeline.errors import InputError
from tests import fakes
from tests import shared_data


@pytest.fixture
def config(tmp_path):
    """Six pairs on two tiles, to be built in this process in shards of two."""
    for column in range(6):
        tile = "33UUP" if column % 3 == 0 else "35VPK"
        shared_data.write_pair(tmp_path / "archive", column, tile=tile)
    config = prepare_bigearthnet.get_config()
    config.source, config.out = str(tmp_path / "archive"), str(tmp_path / "out")
    config.pairs_per_shard, config.workers = 2, 0
    return config


def s2_folder(config, column):
    archive = pathlib.Path(config.source) / "BigEarthNet-v1.0"
    return archive / f"S2A_MSIL2A_20170701T93031_{column}_7"


def break_pair(config, column):
    folder = s2_folder(config, column)
    (folder / f"{folder.name}_B02.tif").write_bytes(b"not a TIFF")


def ids(config, split):
    opened = records.Records(config.out, split, fields=("id",))
    return [record["id"] for record in opened]


def out_files(config):
    return pathlib.Path(config.out).iterdir()


def files(config):
    return [path.name for path in out_files(config)]


def skipped(config):
    with (pathlib.Path(config.out) / "skipped.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["s2_name", "s1_name", "reason"]
    return rows


def test_records_hold_every_pair_in_order(config):
    prepare.prepare(config)
    archive = bigearthnet_v1.open_archive(config)
    pairs, _ = archive.find_pairs()
    opened = records.Records(config.out, "train")
    assert ids(config, "train") == [pair.s2_name for pair in pairs]
    for got, pair in zip(opened, pairs, strict=True):
        want = archive.read_pair(pair)
        np.testing.assert_array_equal(got["s2_20m"], want["s2_20m"])
        np.testing.assert_array_equal(got["s1_10m"], want["s1_10m"])


def test_finished_dataset_holds_nothing_of_the_build(config):
    prepare.prepare(config)
    assert not [name for name in files(config) if "build" in name or "part" in name]
    assert "skipped.csv" not in files(config)


def test_processes_write_the_same_shards_as_one(config):
    prepare.prepare(config)
    first = {p.name: p.read_bytes() for p in out_files(config)}
    shutil.rmtree(config.out)
    config.workers = 2
    prepare.prepare(config)
    assert {p.name: p.read_bytes() for p in out_files(config)} == first


def test_tiles_are_held_out_for_validation(config):
    config.holdout_tiles = ("33UUP",)
    prepare.prepare(config)
    assert [name.split("_")[3] for name in ids(config, "validation")] == ["0", "3"]
    assert len(ids(config, "train")) == 4


def write_lists(config, path, train, val, test):
    path.mkdir()
    for name, columns in (("train", train), ("val", val), ("test", test)):
        lines = [s2_folder(config, column).name for column in columns]
        (path / f"{name}.csv").write_text("".join(line + "\n" for line in lines))
    config.splits = str(path)


def test_lists_decide_the_split_and_the_rest_is_counted(config, tmp_path, capsys):
    write_lists(config, tmp_path / "lists", [5, 1], [2], [0])
    prepare.prepare(config)
    got = {s: [n.split("_")[3] for n in ids(config, s)] for s in lists.SPLITS}
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
    name = s2_folder(config, 1).name
    (tmp_path / "lists" / "test.csv").write_text(f"{name},S1A_OTHER\n")
    prepare.prepare(config)
    ((s2_name, _, reason),) = skipped(config)
    assert s2_name == name and reason == "test.csv pairs it with S1A_OTHER"


def test_bad_pair_is_skipped_listed_and_counted(config, capsys):
    break_pair(config, 3)
    prepare.prepare(config)
    ((s2_name, s1_name, reason),) = skipped(config)
    assert s2_name == s2_folder(config, 3).name and "_3_7" in s1_name
    assert "B02.tif is not a TIFF" in reason
    assert "of 6 pairs wrote 5 in train; skipped 1" in capsys.readouterr().out
    assert len(ids(config, "train")) == 5


def test_patch_without_partner_is_skipped_and_counted(config, capsys):
    shutil.rmtree(s2_folder(config, 3))
    prepare.prepare(config)
    assert "of 6 pairs wrote 5 in train; skipped 1" in capsys.readouterr().out


def test_split_whose_pairs_are_all_bad_is_left_out(config):
    config.holdout_tiles = ("33UUP",)
    break_pair(config, 0)
    break_pair(config, 3)
    prepare.prepare(config)
    assert len(ids(config, "train")) == 4
    with pytest.raises(InputError, match="'validation' .* holds no records"):
        records.Records(config.out, "validation")


def test_only_bad_pairs_are_an_error(config):
    for column in range(6):
        break_pair(config, column)
    with pytest.raises(InputError, match="All 6 pairs are bad.*is not a TIFF"):
        prepare.prepare(config)


@pytest.mark.parametrize("workers", [0, 1])
def test_strict_stops_at_a_bad_pair(config, workers):
    break_pair(config, 3)
    config.strict, config.workers = True, workers
    with pytest.raises(InputError, match="B02.tif is not a TIFF"):
        prepare.prepare(config)
    assert "card.json" not in files(config)


def test_strict_stops_at_a_patch_without_partner(config):
    shutil.rmtree(s2_folder(config, 3))
    config.strict = True
    with pytest.raises(InputError, match="is not in .*config.strict=False"):
        prepare.prepare(config)


@pytest.fixture
def stopped(config):
    """The same build, stopped by a bad pair in the second of three shards."""
    good = s2_folder(config, 3) / f"{s2_folder(config, 3).name}_B02.tif"
    content = good.read_bytes()
    break_pair(config, 3)
    config.strict = True
    with pytest.raises(InputError):
        prepare.prepare(config)
    good.write_bytes(content)
    return config


def test_restart_finishes_without_rewriting_a_finished_shard(stopped):
    name = shards.shard_name("bigearthnet_v1", "train", 0, 3)
    first = pathlib.Path(stopped.out) / name
    before = first.stat()
    prepare.prepare(stopped)
    after = first.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(ids(stopped, "train")) == 6


def test_restart_writes_over_a_half_written_shard(stopped):
    assert [name for name in files(stopped) if name.endswith(".part")]
    prepare.prepare(stopped)
    assert not [name for name in files(stopped) if name.endswith(".part")]
    assert len(ids(stopped, "train")) == 6


def test_strict_restart_does_not_accept_what_a_lenient_run_skipped(config):
    for column in range(6):
        break_pair(config, column)
    with pytest.raises(InputError, match="All 6"):
        prepare.prepare(config)
    config.strict = True
    with pytest.raises(InputError, match="^[^ ]*B02.tif is not a TIFF"):
        prepare.prepare(config)


def test_restart_with_other_options_is_refused(stopped):
    stopped.pairs_per_shard = 3
    with pytest.raises(InputError, match="pairs_per_shard=2, not pairs_per_shard=3"):
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
        ({"source": ""}, "Pass --config.source"),
        ({"out": ""}, "Pass --config.source"),
        ({"source": "nowhere"}, "nowhere has neither a folder BigEarthNet-v1.0"),
        ({"holdout_tiles": ("29SND",)}, r"\['29SND'\] .*\['33UUP', '35VPK'\]"),
        ({"splits": "x", "holdout_tiles": ("33UUP",)}, "2 ways to split"),
        ({"splits": "nowhere"}, "nowhere is missing"),
        ({"pairs_per_shard": 0}, "pairs_per_shard=0 must be at least 1"),
        ({"workers": -1}, "workers=-1 at least 0"),
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
    for built in out_files(config):
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


def built_of(archive, config, monkeypatch):
    """Builds from an archive that needs no files."""
    monkeypatch.setattr(prepare, "open_archive", lambda config: archive)
    prepare.prepare(config)


class Twins(fakes.Archive):
    """An archive whose pairs have different names and the same id."""

    def read_pair(self, pair):
        return super().read_pair(pair) | {"id": "one"}


def test_records_of_one_id_are_refused(config, monkeypatch):
    with pytest.raises(InputError, match="'one' belongs to 6 records"):
        built_of(Twins(), config, monkeypatch)
    assert "card.json" not in files(config)


class Linear(fakes.Archive):
    """An archive whose radar is linear power."""

    def read_pair(self, pair):
        record = super().read_pair(pair)
        return record | {"s1_10m": 10 ** (record["s1_10m"] / 10)}


def test_values_that_cannot_be_true_are_refused_unless_told(config, monkeypatch):
    with pytest.raises(InputError, match="Sentinel-1 .* linear"):
        built_of(Linear(), config, monkeypatch)
    assert not pathlib.Path(config.out).exists()
    config.check_values = False
    built_of(Linear(), config, monkeypatch)


def test_too_little_disk_space_is_refused_before_pixels_are_written(
    config, monkeypatch
):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"0\.0 GB free, .* needs at least 0\.0 GB"):
        prepare.prepare(config)
    assert not list(pathlib.Path(config.out).glob("*array_record*"))


def test_archive_cleans_up_after_success_only(config, monkeypatch):
    cleaned = []
    monkeypatch.setattr(fakes.Archive, "clean", lambda archive: cleaned.append(1))
    with pytest.raises(InputError):
        built_of(Twins(), config, monkeypatch)
    assert not cleaned
    shutil.rmtree(config.out)
    built_of(fakes.Archive(), config, monkeypatch)
    assert cleaned == [1]


class Offline(fakes.Archive):
    """An archive on a network that is down."""

    def find_pairs(self):
        raise OSError(107, "Transport endpoint is not connected")


def test_archive_that_cannot_be_searched_is_said_in_a_sentence(config, monkeypatch):
    with pytest.raises(InputError, match="cannot be read .*endpoint is not connected"):
        built_of(Offline(), config, monkeypatch)


class Losing(fakes.Archive):
    """An archive that finds two pairs of one name."""

    def find_pairs(self):
        pairs, skipped = super().find_pairs()
        return [*pairs, pairs[0]], skipped


def test_pairs_always_add_up(config, monkeypatch, capsys):
    built_of(Losing(bad=(2,)), config, monkeypatch)
    card = metadata.read_card(config.out)
    counts = card["pairs"]
    assert counts == {"found": 7, "written": 5, "skipped": 2, "unlisted": 0}
    assert len(skipped(config)) == 2
    assert "of 7 pairs wrote 5 in train; skipped 2." in capsys.readouterr().out


def test_pair_that_is_unaccounted_for_is_noticed(config, monkeypatch):
    monkeypatch.setattr(splits, "count", lambda *args: 7)
    with pytest.raises(InputError, match="Of 7 pairs, 6 were written.*not add up"):
        built_of(fakes.Archive(), config, monkeypatch)


def test_list_of_skipped_pairs_does_not_outlive_its_cause(config):
    for column in range(6):
        break_pair(config, column)
    with pytest.raises(InputError, match="All 6"):
        prepare.prepare(config)
    assert len(skipped(config)) == 6
    shutil.rmtree(pathlib.Path(config.source))
    for column in range(6):
        tile = "33UUP" if column % 3 == 0 else "35VPK"
        shared_data.write_pair(pathlib.Path(config.source), column, tile=tile)
    prepare.prepare(config)
    assert "skipped.csv" not in files(config)
