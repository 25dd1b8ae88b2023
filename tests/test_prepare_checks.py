"""What a build checks: values, space, ids, sums, and the archive itself."""

import pathlib
import shutil

import pytest

from data_pipeline import dataset_card
from data_pipeline.building import prepare, shard_jobs
from data_pipeline.errors import InputError
from tests import builds, fakes, shared_data


@pytest.fixture
def config(tmp_path):
    return builds.false_archive(tmp_path)


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
    assert "card.json" not in builds.files(config)


class Linear(fakes.Archive):
    """An archive whose radar is linear power."""

    def read_pair(self, pair):
        record = super().read_pair(pair)
        return record | {"s1_10m": 10 ** (record["s1_10m"] / 10)}


def test_values_that_cannot_be_true_are_refused_unless_told(config, monkeypatch):
    with pytest.raises(InputError, match="Sentinel-1 .* median of 0"):
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
    card = dataset_card.read_card(config.out)
    counts = card["pairs"]
    assert counts == {"found": 7, "written": 5, "skipped": 2, "unlisted": 0}
    assert len(builds.skipped(config)) == 2
    assert "of 7 pairs wrote 5 in train; skipped 2." in capsys.readouterr().out


def test_list_of_skipped_pairs_does_not_outlive_its_cause(config):
    config.check_values = False
    for column in range(6):
        builds.break_pair(config, column)
    with pytest.raises(InputError, match="All 6"):
        prepare.prepare(config)
    assert len(builds.skipped(config)) == 6
    shutil.rmtree(pathlib.Path(config.source))
    for column in range(6):
        tile = "33UUP" if column % 3 == 0 else "35VPK"
        shared_data.write_pair(pathlib.Path(config.source), column, tile=tile)
    prepare.prepare(config)
    assert "skipped.csv" not in builds.files(config)


def test_shard_that_a_beam_runner_loses_is_named_and_written_by_the_next_run(
    config, monkeypatch
):
    def lose_one(work, runner, options):
        for shard in work[:1] + work[2:]:
            shard_jobs.build(shard)

    built_of(fakes.Archive(), config, monkeypatch)
    whole = {path.name: path.read_bytes() for path in builds.out_files(config)}
    shutil.rmtree(config.out)
    monkeypatch.setattr(shard_jobs, "run_beam", lose_one)
    config.runner = "FlinkRunner"
    with pytest.raises(InputError, match="00001-of-00003 was lost on the way"):
        built_of(fakes.Archive(), config, monkeypatch)
    assert "card.json" not in builds.files(config)
    config.runner = ""
    built_of(fakes.Archive(), config, monkeypatch)
    assert {p.name: p.read_bytes() for p in builds.out_files(config)} == whole


def test_list_that_names_nothing_is_warned_of(config, tmp_path, lines):
    here = builds.s2_folder(config, 2).name
    for name, text in (("snow.csv", here), ("other.csv", "S2_ELSEWHERE")):
        (tmp_path / name).write_text(text + "\n")
    config.exclude = tuple(str(tmp_path / name) for name in ("snow.csv", "other.csv"))
    prepare.prepare(config)
    (line,) = lines
    assert "other.csv names no image that is here" in line
    assert len(builds.skipped(config)) == 1


def test_archive_of_another_form_is_said(config, monkeypatch):
    with pytest.raises(InputError, match="holds no pair of this archive"):
        built_of(fakes.Archive(count=0), config, monkeypatch)
