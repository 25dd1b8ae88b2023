"""A path means the same to the project as to the libraries that it hands it to."""

import pytest

from configs import reconstruct as reconstruction
from data_pipeline import record_format, sources
from data_pipeline.building import prepare
from data_pipeline.errors import InputError
from fusmae_jax import reconstruct
from fusmae_jax.evaluation import evaluate
from fusmae_jax.training import pretrain
from tests import bad_configs, builds, geotiffs, judging, tiny


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory; the current one is another, where nothing may appear."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    yield home
    assert not any(elsewhere.iterdir())


def test_a_dataset_is_built_and_read_at_home(home):
    config = builds.false_archive(home)
    names = [f"S2A_MSIL2A_20170701T93031_{column}_7" for column in range(6)]
    lists = [f"{name},train" for name in names[:5]] + [f"{names[5]},test"]
    (home / "lists.csv").write_text("\n".join(["s2_name,split", *lists]))
    (home / "cloudy.csv").write_text(f"s2_name,split\n{names[1]},test\n")
    config.source, config.out, config.scratch = "~/archive", "~/out", "~/scratch"
    config.splits, config.exclude = "~/lists.csv", ("~/cloudy.csv:test",)
    prepare.prepare(config)
    assert config.out == "~/out"  # the caller's config stays as it is
    data = tiny.config().data
    data.update(source="records", dir="~/out")
    assert len(sources.open_split(data, "train")) == 4
    assert len(record_format.Records("~/out", "test")) == 1
    assert sources.describe(data).name == "bigearthnet_v1"


@pytest.mark.parametrize(
    "name, field",
    [("prepare_ssl4eo", "void_ids"), ("prepare_bigearthnet_v2", "metadata")],
)
def test_a_file_that_a_setting_names_is_looked_for_at_home(home, name, field):
    for folder in ("BigEarthNet-S1", "BigEarthNet-S2"):
        (home / folder).mkdir()
    changes = {"source": "~", "out": "~/out", f"read.{field}": "~/mine.parquet"}
    with pytest.raises(InputError, match=f"^{home}/mine.parquet cannot be read"):
        prepare.prepare(bad_configs.load(name, changes))


def test_the_rows_of_a_csv_may_name_files_at_home(home):
    geotiffs.write_pairs(home / "images")
    rows = [
        {"s1": f"~/images/s1/{name}", "s2": f"~/images/s2/{name}", "id": name}
        for name in sorted(path.name for path in (home / "images" / "s1").iterdir())
    ]
    changes = {"source": geotiffs.write_csv(home / "pairs.csv", rows), "out": "~/out"}
    changes |= {"workers": 0, "read.s2_offset": "0"}
    prepare.prepare(bad_configs.load("prepare_pairs", changes))
    assert len(record_format.Records(home / "out", "train")) == len(rows)


@pytest.mark.journey
def test_a_run_is_written_continued_and_judged_at_home(home):
    pretrain.run(tiny.config(), "~/run")
    assert (home / "run" / "checkpoints" / "6").is_dir()
    config = reconstruction.get_config()
    config.checkpoint = "~/run"
    config.data.update(source="synthetic", size=24, count=40)
    config.pairs = config.draws = config.shown = 1
    reconstruct.run(config, "~/again")
    assert (home / "again" / "scores.json").exists()
    judged = judging.config("~/run", cache="~/cache", sensors=("both",))
    evaluate.run(judged, "~/scores")
    assert (home / "scores" / "scores.csv").exists() and any(home.glob("cache/*"))


@pytest.mark.parametrize(
    "name, field",
    [
        *(("prepare_bigearthnet", name) for name in ("source", "out", "scratch")),
        ("prepare_bigearthnet", "splits"),
        ("prepare_bigearthnet_v2", "read.metadata"),
        ("prepare_ssl4eo", "read.void_ids"),
        *(("pretrain_base", name) for name in ("data.dir", "data.eval_dir")),
        *(("probe_bigearthnet", name) for name in ("data.dir", "data.eval_dir")),
        *(("probe_bigearthnet", name) for name in ("checkpoint", "cache")),
        ("reconstruct", "checkpoint"),
    ],
)
def test_an_object_store_is_refused_in_a_sentence(name, field):
    with pytest.raises(InputError, match=f"^{field} is 'gs://b/x'; .*mount"):
        bad_configs.check(name, {field: "gs://b/x"})


@pytest.mark.parametrize("other", ["out", "scratch"])
def test_folders_that_must_differ_are_compared_as_paths(home, other):
    changes = {"source": "~/a", "out": "~/b", other: str(home / "b" / ".." / "a")}
    with pytest.raises(InputError, match="must be different"):
        bad_configs.check("prepare_bigearthnet", changes)


def test_a_dataset_that_is_named_twice_in_two_ways_is_refused(home):
    named = f"~/a,{home}/a"
    with pytest.raises(InputError, match="name each dataset once"):
        bad_configs.check("pretrain_base", {"data.dir": named})
