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

from configs import pretrain_base
from data_pipeline.errors import InputError
from fusmae_jax import build, pretrained, reconstruct
from fusmae_jax.evaluation import encoder, evaluate
from fusmae_jax.training import metrics, pretrain, train
from tests import judging, peers, teacher, tiny


@pytest.fixture(scope="module", autouse=True)
def known():
    with teacher.known():
        yield


OTHERS = [
    pytest.param(name, marks=pytest.mark.journey)
    for name in build.METHODS
    # Fus-MAE is what most other tests are of; those that compare have test_peers.
    if name not in ("fusmae", *peers.METHODS)
]


def config(method="teacher", **changes):
    c = tiny.config(method if method in pretrain_base.METHODS else "fusmae")
    c.method = method
    c.judge.update(every=1, train_pairs=16, eval_pairs=8)
    c.update(changes)
    return c


def losses(workdir):
    rows = metrics.read_metrics(workdir)
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs a method to its end, once."""

    @functools.cache
    def run(method):
        workdir = tmp_path_factory.mktemp("runs") / method
        return workdir, pretrain.run(config(method), workdir)

    return run


@pytest.fixture(scope="module")
def whole(trained):
    return trained("teacher")


@pytest.mark.parametrize("method", ["teacher", *OTHERS])
def test_a_method_is_trained_scored_and_judged(trained, method):
    workdir, state = trained(method)
    rows = metrics.read_metrics(workdir)
    assert [r["step"] for r in rows if "eval_loss" in r] == [3, 6]
    assert [r["step"] for r in rows if "probe_both" in r] == [3, 6]
    assert all(np.isfinite(loss) for loss in losses(workdir).values())
    drawn = {p.name for p in (workdir / "figures").iterdir()}
    if build.objective(config(method)).redraws:
        name = build.objective(config(method)).encoder().name
        scores = json.loads((workdir / "scores.json").read_text())
        assert set(scores["mean_squared_error"][name]) == {"s1", "s2"}
        assert "reconstruction_0000006.png" in drawn
    else:
        assert all("teacher_norm" in r for r in rows if "loss" in r)
        assert drawn == {"loss.png"} and not (workdir / "scores.json").exists()


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
@pytest.mark.parametrize("method", ["teacher", *OTHERS])
@pytest.mark.parametrize("fsdp", [1, 4])
def test_it_resumes_exactly_on_any_layout(trained, tmp_path, method, fsdp):
    workdir, state = trained(method)
    shutil.copytree(workdir, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "6")  # as if killed at step 5
    resumed = pretrain.run(config(method, fsdp=fsdp), tmp_path / "cut")
    want, got = losses(workdir), losses(tmp_path / "cut")
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)
    for part in ("params", "extra"):
        one, other = (jax.tree.leaves(getattr(x, part)) for x in (resumed, state))
        for x, y in zip(one, other, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("method", ["teacher", *OTHERS])
def test_its_encoder_is_judged_by_what_judges_all(trained, tmp_path, method):
    workdir, _ = trained(method)
    c = judging.config(workdir)
    c.methods = ("knn", "probe", "retrieval")
    rows = evaluate.run(c, tmp_path / "scores")
    assert {row.task for row in rows} == {"knn", "probe", "retrieval"}
    restored = encoder.restore(str(workdir), pretrain.sharding.make_mesh(1))
    judged = restored.objective.encoder()
    (width,) = {r.feature_dim for r in rows if r.encoder == judged.name}
    assert width == judged.width
    assert method != "teacher" or judged.name == "student"


@pytest.mark.parametrize("method", ["teacher", *OTHERS])
def test_it_says_of_arrays_what_it_says_in_training(trained, method):
    """Of any size and either sensor, by what knows the protocol alone."""
    model = pretrained.load(trained(method)[0], batch_size=4)
    rng = np.random.default_rng(0)
    s1 = rng.normal((-12.0, -19.0), 3.0, (2, 30, 24, 2))
    s2 = rng.integers(1, 6000, (2, 30, 24, 12))
    both = model.encode(s1=s1, s2=s2)
    assert both.dense.shape == (2, 5, 4, model.width)
    for given in ({"s1": s1}, {"s2": s2}):
        alone = model.encode(**given)
        assert np.isfinite(alone.dense).all()
        assert np.abs(alone.pooled - both.pooled).max() > 0.0


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


@pytest.mark.journey
def test_a_method_of_one_sensor_is_trained_drawn_and_judged_on_it_alone(tmp_path):
    c = config("mae")
    c.model.sensors = "s2"
    pretrain.run(c, tmp_path / "run")
    rows = metrics.read_metrics(tmp_path / "run")
    assert all({"loss_s2", "loss_s1"} & row.keys() == {"loss_s2"} for row in rows[:1])
    (judged, *_) = [row for row in rows if "probe_s2" in row]
    assert not {"probe_s1", "probe_both"} & judged.keys()
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert set(scores["mean_squared_error"]["MAE, Sentinel-2"]) == {"s2"}
    both = judging.config(tmp_path / "run")
    with pytest.raises(InputError, match=r"reads Sentinel-2 alone; set sens"):
        evaluate.run(both, tmp_path / "scores")
    assert not (tmp_path / "scores").exists()
    found = evaluate.run(
        judging.config(tmp_path / "run", sensors=("s2",)), tmp_path / "scores"
    )
    assert {row.sensors for row in found} == {"s2"}
    objective = build.objective(c)
    with pytest.raises(InputError, match="alone, from which it draws nothing else"):
        reconstruct.chosen_mask(objective, "s1", 0.5)
