"""The run directory: says what the run is, and takes no other."""

import importlib.metadata
import json

import jax
import pytest

from data_pipeline import sensors
from data_pipeline.errors import InputError
from fusmae_jax import build
from fusmae_jax.training import run_directory
from tests import tiny

DATA = dict(name="synthetic", count=24, size=24, seed=0)


def claim(workdir, config, data):
    run_directory.open_workdir(workdir, config, build.contract(config), data)


def content(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def changed(**fields):
    config = tiny.config()
    config.update_from_flattened_dict(fields)
    return config


def test_a_new_directory_says_what_the_run_is(tmp_path):
    workdir = tmp_path / "runs" / "one"
    claim(workdir, tiny.config(), DATA)
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["config"]["model"]["dim"] == 32
    assert next(iter(saved["contract"]["s2"]["bands"])) == "B01"
    assert saved["contract"]["s1"]["unit"] == sensors.S1.unit
    assert saved["data"] == DATA
    assert saved["devices"] == jax.device_count()
    assert saved["versions"]["jax"] == importlib.metadata.version("jax")
    assert not list(workdir.rglob("*.part"))


def test_the_contract_holds_the_bands_in_use(tmp_path):
    config = tiny.config()
    config.bands.s2 = ("B8A", "B04")
    claim(tmp_path, config, DATA)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert list(saved["contract"]["s2"]["bands"]) == ["B8A", "B04"]


def test_the_same_run_may_go_on(tmp_path):
    claim(tmp_path, tiny.config(), DATA)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    before = content(tmp_path)
    claim(tmp_path, tiny.config(), DATA)
    assert content(tmp_path) == before


@pytest.mark.parametrize("field", run_directory.FREE)
def test_how_a_run_is_carried_out_may_change(tmp_path, field):
    claim(tmp_path, tiny.config(), DATA)
    config = tiny.config()
    old = run_directory.flatten(config.to_dict())[field]
    new = {str: "x", bool: True, int: 7}[type(old)]
    config.update_from_flattened_dict({field: new})
    claim(tmp_path, config, DATA)


@pytest.mark.parametrize("field", ["data.dir", "data.eval_dir"])
def test_a_run_goes_on_when_its_datasets_have_moved(tmp_path, field):
    claim(tmp_path, changed(**{field: "/here"}), DATA)
    claim(tmp_path, changed(**{field: "/there"}), DATA)


@pytest.mark.parametrize(
    "field, old, new",
    [
        ("seed", "0", 1),
        ("batch_size", "8", 16),
        ("model.dim", "32", 64),
        ("model.dtype", "'float32'", "bfloat16"),
        ("mask.mode", "'independent'", "consistent"),
        ("bands.s1", r"\['VV', 'VH'\]", ("VH", "VV")),
        ("view.crop_scale", r"\[0.2, 1.0\]", (0.3, 1.0)),
        ("optim.b2", "0.95", 0.999),
        ("data.split", "'train'", "test"),
    ],
)
def test_another_run_is_refused_with_both_values(tmp_path, field, old, new):
    claim(tmp_path, tiny.config(), DATA)
    before = content(tmp_path)
    shown = repr(list(new) if isinstance(new, tuple) else new)
    shown = shown.replace("[", r"\[").replace("]", r"\]")
    message = rf"{field} \({old} there, {shown} now\)"
    with pytest.raises(InputError, match=message):
        claim(tmp_path, changed(**{field: new}), DATA)
    assert content(tmp_path) == before


def test_a_field_that_no_longer_exists_is_no_difference(tmp_path):
    claim(tmp_path, tiny.config(), DATA)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    saved["config"]["data"]["no_longer"] = "skip"
    path.write_text(json.dumps(saved))
    claim(tmp_path, tiny.config(), DATA)
    saved["config"]["data"]["seed"] = 7
    path.write_text(json.dumps(saved))
    with pytest.raises(InputError, match="differs in data.seed "):
        claim(tmp_path, tiny.config(), DATA)


def test_a_field_that_only_one_of_the_runs_has_is_a_difference():
    assert run_directory.differences({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}) == [
        "a.c (None there, 2 now)"
    ]


def test_another_dataset_is_refused(tmp_path):
    claim(tmp_path, tiny.config(), DATA)
    before = content(tmp_path)
    with pytest.raises(InputError, match=r"dataset.count \(24 there, 25 now\)"):
        claim(tmp_path, tiny.config(), DATA | {"count": 25})
    assert content(tmp_path) == before


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not empty and holds no run"):
        claim(tmp_path, tiny.config(), DATA)
    assert list(content(tmp_path)) == [str(tmp_path / "thesis.tex")]


def test_a_file_is_no_directory(tmp_path):
    path = tmp_path / "run"
    path.write_text("x")
    with pytest.raises(InputError, match="run is a file; choose another --workdir"):
        claim(path, tiny.config(), DATA)
    assert path.read_text() == "x"
    with pytest.raises(InputError, match="run/one cannot be written .Not a directory"):
        claim(path / "one", tiny.config(), DATA)


def test_a_start_that_was_killed_while_writing_can_be_repeated(tmp_path):
    (tmp_path / "config.json.0123.part").write_text('{"config": {"se')
    (tmp_path / run_directory.LOCK).write_text("process 1")
    claim(tmp_path, tiny.config(), DATA)
    assert run_directory.load(tmp_path)[0].seed == 0
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", run_directory.LOCK}


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    claim(tmp_path, tiny.config(), DATA)
    (tmp_path / "figures").mkdir()
    (tmp_path / "places.npy.0123.part").write_text("half")
    (tmp_path / "figures" / "loss.png.0123.part").write_text("half")
    (tmp_path / "figures" / "loss.png").write_text("whole")
    claim(tmp_path, tiny.config(), DATA)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"config.json", run_directory.LOCK, "figures/loss.png"}


def test_another_host_may_look_while_host_0_writes(tmp_path, monkeypatch):
    (tmp_path / "config.json.0123.part").write_text('{"config": {"se')
    (tmp_path / run_directory.LOCK).write_text("process 1")
    before = content(tmp_path)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    claim(tmp_path, tiny.config(), DATA)
    assert content(tmp_path) == before


def test_a_saved_config_comes_back_as_it_was(tmp_path):
    config = changed(**{"bands.s2": ("B8A", "B04"), "optim.base_lr": 1.7e-5})
    claim(tmp_path, config, DATA)
    loaded, contract = run_directory.load(tmp_path)
    assert contract == build.contract(config)
    assert run_directory.differences(loaded.to_dict(), config.to_dict()) == []
    assert loaded.optim.peak_lr == config.optim.peak_lr
    assert tuple(loaded.bands.s2) == ("B8A", "B04")
    claim(tmp_path, loaded, DATA)


def test_a_directory_without_a_run_has_no_config(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        run_directory.load(tmp_path)


def test_bands_that_meant_something_else_are_refused(tmp_path):
    claim(tmp_path, tiny.config(), DATA)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    saved["contract"]["s1"]["bands"]["VV"]["mean"] = -9.0
    path.write_text(json.dumps(saved))
    message = r"s1\.bands\.VV\.mean \(-9\.0 there, -12\.6"
    with pytest.raises(InputError, match=message):
        claim(tmp_path, tiny.config(), DATA)


def test_an_object_store_is_refused():
    with pytest.raises(InputError, match="gs://bucket/run .* mount it"):
        claim("gs://bucket/run", tiny.config(), DATA)
