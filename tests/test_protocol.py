"""A method is one file: what trains, saves, resumes and judges knows the protocol."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipeline.errors import InputError
from fusmae_jax import build
from fusmae_jax.evaluation import encoder, evaluate
from fusmae_jax.training import metrics, pretrain, train
from tests import judging, teacher, tiny


@pytest.fixture(scope="module", autouse=True)
def method():
    with teacher.known():
        yield


def config(**changes):
    c = tiny.config()
    c.method = "teacher"
    c.judge.update(every=1, train_pairs=16, eval_pairs=8)
    c.update(changes)
    return c


def losses(workdir):
    rows = metrics.read_metrics(workdir)
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, pretrain.run(config(), workdir)


def test_it_trains_scores_and_judges_a_method_that_predicts_no_images(whole):
    workdir, state = whole
    rows = metrics.read_metrics(workdir)
    assert [r["step"] for r in rows if "eval_loss" in r] == [3, 6]
    assert [r["step"] for r in rows if "probe_both" in r] == [3, 6]
    assert all("teacher_norm" in r for r in rows if "loss" in r)
    assert {p.name for p in (workdir / "figures").iterdir()} == {"loss.png"}
    assert not (workdir / "scores.json").exists()


def test_a_finished_run_launched_again_trains_no_more(whole):
    workdir, state = whole
    before = losses(workdir)
    again = pretrain.run(config(), workdir)
    assert int(again.step) == 6 and losses(workdir) == before
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)


def test_what_gradients_do_not_train_follows_the_parameters(whole):
    _, state = whole
    begun = build.objective(config()).init_extra(state.params)
    assert jax.tree.structure(state.extra) == jax.tree.structure(begun)
    for x, y in zip(*map(jax.tree.leaves, (state.extra["teacher"], state.params))):
        assert 0.0 < np.abs(x - y).max() < 1e-2
    assert np.abs(state.extra["center"]).max() > 0.0


@pytest.mark.journey
@pytest.mark.parametrize("fsdp", [1, 4])
def test_it_resumes_exactly_on_any_layout(whole, tmp_path, fsdp):
    shutil.copytree(whole[0], tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "6")  # as if killed at step 5
    resumed = pretrain.run(config(fsdp=fsdp), tmp_path / "cut")
    want, got = losses(whole[0]), losses(tmp_path / "cut")
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)
    for x, y in zip(*map(jax.tree.leaves, (resumed.extra, whole[1].extra))):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_a_step_left_out_leaves_the_teacher_too(whole):
    state, objective = whole[1], build.objective(config())
    grads, tx = jax.tree.map(jnp.ones_like, state.params), optax.sgd(0.1)
    state = dataclasses.replace(state, opt_state=tx.init(state.params))
    after = functools.partial(
        objective.after, aux=jnp.ones(teacher.WIDTH), step=state.step
    )

    @jax.jit
    def moved(good):
        extra = train.advance(state, grads, tx, good, after).extra
        parts = zip(*map(jax.tree.leaves, (extra, state.extra)))
        return jnp.array([jnp.abs(x - y).max() for x, y in parts])

    assert not moved(False).any()
    assert (moved(True) > 0.0).all()


def test_parts_of_a_batch_may_not_change_where_the_loss_is_no_mean(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    with pytest.raises(InputError, match=r"differs in accumulate \(1 there, 2 now\)"):
        pretrain.run(config(accumulate=2), tmp_path / "run")


def test_its_encoder_is_judged_by_what_judges_all(whole, tmp_path):
    c = judging.config(whole[0])
    c.methods = ("knn", "probe", "retrieval")
    rows = evaluate.run(c, tmp_path / "scores")
    assert {row.task for row in rows} == {"knn", "probe", "retrieval"}
    restored = encoder.restore(str(whole[0]), pretrain.sharding.make_mesh(1))
    assert restored.objective.encoder().name == "student"
    (width,) = {r.feature_dim for r in rows if r.encoder == "student"}
    assert width == teacher.WIDTH


def test_what_is_kept_may_be_the_teacher(whole, monkeypatch):
    workdir, state = whole
    mesh = pretrain.sharding.make_mesh(1)
    student = encoder.restore(workdir, mesh).params
    jax.tree.map(np.testing.assert_array_equal, student, state.params)
    monkeypatch.setattr(teacher.Objective, "kept", "extra/teacher")
    taught = encoder.restore(workdir, mesh)
    jax.tree.map(np.testing.assert_array_equal, taught.params, state.extra["teacher"])
    kept = train.kept(state, taught.objective)
    assert encoder.digest(kept) == encoder.digest(taught.params)


def test_a_method_may_know_how_long_its_run_lasts(tmp_path, monkeypatch):
    told = []
    lasting = lambda self, steps: told.append(steps) or self
    monkeypatch.setattr(teacher.Objective, "lasting", lasting)
    pretrain.open_run(config(), pretrain.sharding.make_mesh(1))
    assert told == [6]


def test_an_unknown_method_is_refused_with_those_there_are(tmp_path):
    c = config(method="teecher")
    with pytest.raises(InputError, match="method is 'teecher'.*did you mean 'teacher'"):
        pretrain.run(c, tmp_path / "run")


def test_a_run_from_before_there_were_methods_is_fus_mae(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_text())
    del saved["config"]["method"]
    path.write_text(json.dumps(saved))
    with pytest.raises(InputError, match="does not hold the model"):
        encoder.restore(str(tmp_path / "run"), pretrain.sharding.make_mesh(1))
