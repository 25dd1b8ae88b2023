"""Every field of every config has a meaning, and --explain prints it."""

import contextlib
import importlib
import io
import re

import pytest

import launch
from data_pipeline import config_fields
from tests.test_configs import CONFIGS

# ml_collections loads a config file so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def table(name):
    """A config as it comes, and what its fields may hold."""
    config = importlib.import_module(f"configs.{name}").get_config()
    return config, launch.task_of(config).fields(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_means_something_said_in_a_sentence(name):
    _, rows = table(name)
    for field, row in rows.items():
        assert re.fullmatch(r"[A-Z<].{8,300}\.", row.meaning), field


@pytest.fixture
def explain(parse, capsys, monkeypatch):
    """What a command line with --explain prints."""

    def call(name, *arguments, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        launch.main(parse(f"--config={name}", "--explain", *arguments))
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_of_every_config_is_explained(explain, name):
    told = explain(name)
    config, rows = table(name)
    assert max(map(len, told.splitlines())) <= 80
    groups = re.split(r"\n\n(?=[\w.]+:)", told)
    told = {"": groups[0], **{group.partition(":")[0]: group for group in groups[1:]}}
    for field, row in rows.items():
        place, _, key = field.rpartition(".")
        if field in config_fields.groups(rows):
            continue
        if not config_fields.find(config, field)[0]:
            assert f"\n  {key} " not in told[place]
            continue
        assert len(re.findall(rf"^  {key} ", told[place], re.M)) == 1, field
        said = " ".join(told[place].split())
        for word in row.meaning.split():
            assert word in said


def test_what_is_passed_is_explained_even_if_it_could_not_run(explain):
    passed = "--config.optim.base_lr=0.5", "--config.mask.ratio=7.0"
    told = explain("quickstart", *passed)
    assert re.search(r"\n  base_lr  +0\.5  +Learning rate", told)
    assert re.search(r"\n  ratio  +7\.0  +Share of patches hidden\. ", told)
    assert re.search(r"\n  peak_lr  +0\.03125 ", told)  # which follows


def test_values_and_meanings_stand_in_columns_however_wide_the_terminal_is(explain):
    for columns in (60, 100, 200):
        lines = explain("pretrain_base", columns=columns).splitlines()
        assert 0.8 * columns < max(map(len, lines)) <= columns
        values = [re.match(r"  \w+ +", line) for line in lines]
        assert len({value.end() for value in values if value}) == 1


def test_a_long_value_is_wrapped_and_whole():
    value = " ".join(["word"] * 30)
    rows = {"a": config_fields.text(), "b.c": config_fields.whole(0)}
    told = config_fields.explain({"a": value, "b": {"c": 1}}, rows, 70)
    assert told.count("word") == 30 and "\n\nb:\n  c  1 " in told


def test_a_notebook_is_told_too(parse):
    """What it has for an output cannot be told what to do with unknown signs."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        launch.main(parse("--config=quickstart", "--explain"))
    assert "batch_size" in told.getvalue()
