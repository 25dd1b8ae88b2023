"""An evaluation remembers what it found, and what it was."""

import json
import shutil

import numpy as np
import pytest

from data_pipeline.errors import InputError
from fusmae_jax.evaluation import evaluate, gallery, neighbours, results, tasks
from tests import judging, teacher, tiny


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Figures have tests of their own."""
    monkeypatch.setattr(gallery, "draw", lambda *a, **k: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the small method, while it is known."""
    with teacher.known():
        yield judging.trained(tmp_path_factory, "teacher")


def config(trained, /, **changes):
    options = dict(
        methods=("knn", "probe"),
        baselines=("statistics",),
        fractions=(0.5, 1.0),
        repeats=(2, 1),
        sensors=("s1", "both"),
    )
    return judging.config(trained, **options | changes)


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """An evaluation that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("session") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "draw", lambda *a, **k: None)
        evaluate.run(config(trained), workdir)
    return workdir


def settings(rows):
    return [(r.task, r.encoder, r.sensors, r.fraction, r.subset_seed) for r in rows]


def test_every_setting_is_judged_once(whole):
    found = settings(results.read(whole))
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 3
    subsets = {(f, seed) for *_, f, seed in found}
    assert subsets == {(0.5, 0), (0.5, 1), (1.0, 0)}


@pytest.mark.journey
def test_a_killed_evaluation_goes_on_to_the_same_scores(
    trained, whole, tmp_path, monkeypatch, lines
):
    predict, calls = neighbours.predict, []

    def killed(*args, **kw):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return predict(*args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(neighbours, "predict", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(config(trained), tmp_path / "cut")
    assert len(results.read(tmp_path / "cut")) == 3
    lines.clear()
    counted = lambda *a, **k: calls.append(1) or predict(*a, **k)
    monkeypatch.setattr(neighbours, "predict", counted)
    evaluate.run(config(trained), tmp_path / "cut")
    assert "3 settings were judged before." in lines
    assert len(calls) == 4 + 12 - 3
    for name in ("scores.json", "scores.csv"):
        assert (tmp_path / "cut" / name).read_text() == (whole / name).read_text()
    with (
        np.load(whole / "predictions.npz") as want,
        np.load(tmp_path / "cut" / "predictions.npz") as found,
    ):
        assert sorted(want) == sorted(found)
        for key in want:
            np.testing.assert_array_equal(found[key], want[key])


def test_a_finished_evaluation_is_not_repeated(trained, whole, monkeypatch):
    before = (whole / "scores.json").read_text()
    monkeypatch.setattr(tasks.neighbours, "predict", None)
    monkeypatch.setattr(tasks.linear_probe, "fit", None)
    evaluate.run(config(trained), whole)
    assert (whole / "scores.json").read_text() == before


@pytest.mark.journey
def test_what_is_done_may_grow(trained, tmp_path, monkeypatch):
    few = dict(fractions=(1.0,), repeats=(1,), sensors=("s1",))
    small = config(trained, methods=("knn",), **few)
    evaluate.run(small, tmp_path)
    first = results.read(tmp_path)
    more = config(trained, methods=("knn", "retrieval"), batch_size=8)
    evaluate.run(more, tmp_path)
    rows = results.read(tmp_path)
    assert [repr(r) for r in rows[:2]] == [repr(r) for r in first]
    assert len(set(settings(rows))) == len(rows) == 12 + 2 + 2


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"probe__epochs": 3}, r"probe.epochs \(2 there, 3 now\)"),
        ({"features__pool": "global"}, r"features.pool \('mean' there, 'global' now\)"),
        ({"data__seed": 1}, r"data.seed \(0 there, 1 now\)"),
        ({"knn__k": 3, "bootstrap": 10}, r"bootstrap .*, knn.k \(5 there, 3 now\)"),
    ],
)
def test_another_evaluation_is_refused_with_both_values(trained, whole, changes, match):
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=match):
        evaluate.run(config(trained, **changes), whole)
    assert before == {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}


def test_a_global_token_that_nothing_has_taught_is_told(
    trained, whole, lines, monkeypatch
):
    monkeypatch.setattr(teacher.Encoder, "summarizes", False)
    with pytest.raises(InputError):
        evaluate.run(config(trained, features__pool="global"), whole)
    assert "Nothing has taught this encoder's global token" in " ".join(lines)
    # As of Fus-MAE, unless its decoders are given the token.
    assert not tiny.objective().encoder().summarizes


def test_another_encoder_in_the_same_directory_is_refused(trained, whole):
    with pytest.raises(InputError, match=r"dataset.parameters \('\w+' there"):
        evaluate.run(config(trained, step=judging.STEPS[0]), whole)


def test_a_copied_run_is_the_same_encoder(trained, whole, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    workdir = shutil.copytree(whole, tmp_path / "out")
    evaluate.run(config(copy), workdir)
    assert len(results.read(workdir)) == len(results.read(whole))


def test_a_directory_of_a_pretraining_is_refused(trained):
    before = (trained / "config.json").read_bytes()
    with pytest.raises(InputError, match="holds another run"):
        evaluate.run(config(trained), trained)
    assert (trained / "config.json").read_bytes() == before


def test_predictions_are_packed_with_their_pairs(whole):
    rows = results.read(whole)
    with np.load(whole / "predictions.npz") as found:
        assert found["labels"].shape == (16, 10)
        assert found["ids"][3] == "synthetic-000003"
        assert found["classes"][-1] == "water"
        keys = {results.prediction_key(row) for row in rows}
        assert keys | {"ids", "classes", "labels"} == set(found)
        assert "knn/both/0.5/1" in keys
        assert "probe/s1/1/0/image statistics" in keys
        for key in keys:
            assert found[key].shape == (16, 10) and found[key].dtype == np.float32
            assert np.isfinite(found[key]).all()


def test_scores_are_those_of_the_predictions(whole):
    metrics = pytest.importorskip("sklearn.metrics", reason="checks against it")
    with np.load(whole / "predictions.npz") as found:
        for row in results.read(whole):
            want = metrics.average_precision_score(
                found["labels"], found[results.prediction_key(row)], average="micro"
            )
            got = row.scores.overall["map_micro"]
            assert got.value == pytest.approx(want, abs=1e-6)


def test_a_report_says_what_it_is_of(whole, trained):
    meta = json.loads((whole / "scores.json").read_text())["meta"]
    assert meta["dataset"] == "synthetic" and meta["split"] == "test"
    assert meta["checkpoint"] == str(trained) and meta["step"] == judging.STEPS[-1]
    assert meta["config"]["knn"]["k"] == 5


@pytest.mark.journey
def test_an_evaluation_computes_as_its_run_did_and_says_so(tmp_path_factory, tmp_path):
    run, found = judging.trained(tmp_path_factory), []
    for dtype in ("float32", "bfloat16"):
        copy, workdir = tmp_path / f"run {dtype}", tmp_path / dtype
        described = json.loads((shutil.copytree(run, copy) / "config.json").read_text())
        described["config"]["model"]["dtype"] = dtype
        (copy / "config.json").write_text(json.dumps(described))
        evaluate.run(config(copy, methods=("knn",)), workdir)
        meta = json.loads((workdir / "scores.json").read_text())["meta"]
        assert meta["dtype"] == dtype
        assert json.loads((workdir / "config.json").read_text())["dtype"] == dtype
        with np.load(workdir / "predictions.npz") as said:
            found.append(said["knn/both/1/0"])
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"methods": ()}, r"methods is \(\); .* at least 1"),
        ({"methods": ("svm",)}, r"methods is \('svm',\)"),
        ({"baselines": ("dino",)}, r"baselines is \('dino',\)"),
        ({"normalize": "none"}, "normalize is 'none'"),
        ({"fractions": (0.1,)}, r"fractions \(0.1,\) and repeats \(2, 1\)"),
        ({"fractions": (0.0, 1.0)}, r"fractions is \(0.0, 1.0\)"),
        ({"fractions": (), "repeats": ()}, "fractions"),
        ({"repeats": (1, 0)}, "repeats is .* at least 1"),
        ({"sensors": ("s3",)}, r"sensors is \('s3',\)"),
        ({"features__pool": "max"}, "features.pool is 'max'"),
        ({"features__blocks": 9}, "features.blocks is 9; this encoder has 1"),
        ({"features__view": "corner"}, "features.view is 'corner'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"bootstrap": -1}, "bootstrap is -1"),
        ({"knn__k": 0}, "knn.k is 0"),
        ({"knn__temperature": 0.0}, "knn.temperature is 0.0"),
        ({"probe__learning_rates": ()}, "probe.learning_rates is"),
        ({"probe__norm": "group"}, "probe.norm is 'group'"),
        ({"probe__epochs": 0}, "probe.epochs is 0"),
        ({"retrieval__ks": (1, 0)}, r"retrieval.ks is \(1, 0\)"),
        ({"methods": ("retrieval",), "retrieval__ks": (16,)}, "be no more than 15;"),
        ({"checkpoint": ""}, "checkpoint="),
        ({"step": 4}, "no checkpoint of step 4"),
        ({"labels": "crops"}, "no labels 'crops'"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    trained, tmp_path, changes, match
):
    cache = sorted(trained.rglob("*"))
    with pytest.raises(InputError, match=match) as caught:
        evaluate.run(config(trained, **changes), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() and cache == sorted(trained.rglob("*"))
