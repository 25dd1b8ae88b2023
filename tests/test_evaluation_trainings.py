"""Recipes of fine-tuning and dense probing are refused before any work."""

import json

import numpy as np
import pytest

from configs import probe_bigearthnet
from data_pipeline import safe_io
from data_pipeline.errors import InputError
from fusmae_jax.evaluation import checks, encoder, evaluate, results, tasks
from fusmae_jax.training import metrics, sharding
from tests import judging, teacher, tiny


@pytest.fixture(scope="module", autouse=True)
def method():
    with teacher.known():
        yield


def config(methods=("finetune", "dense"), baselines=("supervised",), **fields):
    c = probe_bigearthnet.get_config()
    c.checkpoint, c.data.dir = "run", "DIR"
    c.methods, c.baselines = methods, baselines
    for name, value in fields.items():
        part, field = name.split("__")
        c[part][field] = value
    return c


@pytest.mark.parametrize(
    "fields, match",
    [
        (dict(finetune__base_lr=()), r"finetune.base_lr is \(\)"),
        (dict(scratch__base_lr=()), r"scratch.base_lr is \(\)"),
        (dict(dense__heads=()), r"dense.heads is \(\)"),
        (dict(finetune__batch_size=6), "finetune.batch_size=6 does not .* 4 devices"),
        (dict(dense__batch_size=6), "dense.batch_size=6 does not .* 4 devices"),
        (dict(finetune__epochs=0), "finetune.epochs is 0"),
        (dict(dense__heads=("conv",)), "'conv'"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_opened(fields, match):
    with pytest.raises(InputError, match=match):
        c = config(**fields)
        checks.check_config(c)
        checks.check_devices(c)


def test_a_recipe_of_a_task_that_is_not_wanted_is_not_looked_at():
    checks.check_devices(config(("knn",), (), dense__batch_size=6))


def test_more_blocks_than_there_are_is_said_before_anything_is_opened():
    with pytest.raises(InputError, match="dense.blocks is 9; this encoder has 3"):
        evaluate.check_depth(config(dense__blocks=9), 3)


@pytest.mark.journey
def test_an_encoder_of_one_block_has_one_output_in_every_task(tmp_path):
    pretraining = tiny.config()
    pretraining.model.depth = 1  # the XAttnEncoder, and nothing behind it
    shallow = judging.write_run(tmp_path / "run", pretraining)

    def judge(workdir, **changes):
        c = judging.config(
            shallow, methods=("knn", "dense"), sensors=("both",), **changes
        )
        c.data.count = 40
        c.dense.update(heads=("linear",), epochs=1, batch_size=8)
        c.dense.learning_rates = (1e-3,)
        return evaluate.run(c, workdir)

    found = judge(tmp_path / "out")
    assert [row.task for row in found] == ["knn", "dense"]
    for field in ("features", "dense"):
        with pytest.raises(InputError, match=f"{field}.blocks is 2; .* has 0 blocks"):
            judge(tmp_path / field, **{f"{field}__blocks": 2})
        assert not (tmp_path / field).exists()


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Both tasks on a few scenes, with a rival, of one head and sensor set."""
    workdir = tmp_path_factory.mktemp("w") / "w"
    run = judging.trained(tmp_path_factory, "teacher")
    c = judging.config(
        run,
        methods=("finetune", "dense"),
        baselines=("supervised",),
        sensors=("s1",),
        fractions=(1.0,),
        repeats=(1,),
        finetune__epochs=2,
        finetune__warmup_epochs=0,
        finetune__batch_size=8,
        finetune__base_lr=(1e-3, 1e30),
        dense__epochs=2,
        dense__batch_size=8,
        dense__heads=("linear",),
        dense__learning_rates=(1e-3, 1e-2),
    )
    evaluate.run(c, workdir)
    return c, workdir


def test_both_tasks_leave_their_rows_figures_and_no_checkpoints(judged):
    _, workdir = judged
    rows = results.read(workdir)
    assert [(r.task, r.encoder) for r in rows] == [
        ("finetune", "student"),
        ("finetune", "supervised from scratch"),
        ("dense", "student"),
    ]
    assert "miou" in rows[-1].scores.overall and rows[-1].features.startswith("linear")
    assert not any((workdir / "training").iterdir())
    names = {path.name for path in (workdir / "figures").iterdir()}
    assert {"finetune_sensors.png", "dense_confusion.png"} <= names
    assert set(results.read_predictions(workdir)) == {
        "finetune/s1/1/0",
        "finetune/s1/1/0/supervised from scratch",
    }


def test_what_was_learnt_on_the_pretrained_encoder_is_kept(judged):
    kept = {path.stem: path for path in (judged[1] / "heads").iterdir()}
    tuned = "finetune-student-s1-1-0-linear"
    assert set(kept) == {tuned, "dense-student-s1-1-0-linear"}
    arrays = safe_io.read_arrays(kept[tuned])
    facts = json.loads(str(arrays.pop("facts")))
    row = results.read(judged[1])[0]
    assert facts["score"] == row.chosen["validation"] and len(facts["parameters"]) == 16
    assert {x.dtype for x in arrays.values()} == {np.dtype("float32")}
    assert arrays["kernel"].shape == (1, teacher.WIDTH, len(facts["classes"]))
    found = encoder.restore(judged[0].checkpoint, sharding.make_mesh())
    bands = arrays["encoder/embed/s1/kernel"]  # which the training changed
    given = found.encoder_params["embed"]["s1"]["kernel"]
    assert bands.shape == given.shape and np.abs(bands - given).max() > 1e-6


def test_a_learning_rate_that_diverges_is_left_out(judged):
    row = results.read(judged[1])[0]
    assert row.chosen["base_lr"] == 1e-3 and 0.0 <= row.chosen["validation"] <= 1.0


def test_an_evaluation_that_is_done_does_nothing_again(judged, monkeypatch):
    c, workdir = judged
    before = (workdir / "scores.json").read_bytes()
    saved = json.loads((workdir / "config.json").read_text())
    del saved["config"]["dense"]["encoders"]  # as in one of before there was this
    (workdir / "config.json").write_text(json.dumps(saved))
    monkeypatch.setattr(tasks.FineTuning, "_tune", None)
    monkeypatch.setattr(tasks.dense, "fit", None)
    evaluate.run(c, workdir)
    assert (workdir / "scores.json").read_bytes() == before


@pytest.mark.journey
def test_a_single_rate_that_diverges_stops_with_a_sentence(judged, tmp_path):
    c = judged[0].copy_and_resolve_references()
    c.finetune.base_lr, c.methods, c.baselines = (1e30,), ("finetune",), ()
    with pytest.raises(metrics.Diverged, match="lower learning rates"):
        evaluate.run(c, tmp_path / "w")
