"""Judging while pretraining: it says what is learnt, and changes nothing of it."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline import subsets, synthetic
from data_pipeline.errors import InputError
from fusmae_jax.evaluation import encoder, monitor
from fusmae_jax.training import metrics, pretrain, sharding
from tests import tiny

SCORES = {f"{task}_{s}" for task in ("knn", "probe") for s in encoder.SENSOR_SETS}
JUDGED = SCORES | {"effective_rank", "feature_std"}

BLANK = np.zeros((2, 2, 3), np.uint8)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setitem(monitor.QUICK, "epochs", 2)
    # Their own tests look at what a run draws and compares in the end.
    monkeypatch.setattr(pretrain.reconstruct, "report", lambda *a, **k: None)
    monkeypatch.setattr(pretrain.figures, "save", lambda *a: BLANK)


def config(**judging):
    c = tiny.config()
    c.eval_every = 100
    c.judge.update(every=1, train_pairs=20, eval_pairs=16)
    c.judge.update(judging)
    return c


def judged(workdir):
    rows = metrics.read_metrics(workdir)
    return {row["step"]: row for row in rows if "knn_both" in row}


def losses(workdir):
    rows = metrics.read_metrics(workdir)
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two epochs, three steps each, judged after both; and its state."""
    workdir = tmp_path_factory.mktemp("inloop") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(monitor.QUICK, "epochs", 2)
        patch.setattr(pretrain.reconstruct, "report", lambda *a, **k: None)
        patch.setattr(pretrain.figures, "save", lambda *a: BLANK)
        return workdir, pretrain.run(config(), workdir)


@pytest.mark.journey
def test_a_run_is_judged_after_every_epoch(run):
    rows = judged(run[0])
    assert list(rows) == [3, 6]
    for row in rows.values():
        assert row.keys() == JUDGED | {"step"}
        assert all(0.0 <= row[name] <= 1.0 for name in SCORES)
        assert row["effective_rank"] >= 1.0 and row["feature_std"] > 0.0
    assert rows[3] != rows[6]


@pytest.mark.journey
def test_the_run_directory_holds_the_encoder_that_was_judged(run):
    restored = encoder.restore(run[0], sharding.make_mesh(1))
    assert restored.step == 6
    assert encoder.digest(restored.params) == encoder.digest(run[1].params)


@pytest.mark.journey
def test_judging_changes_nothing_of_the_training(run, tmp_path):
    state = pretrain.run(config(every=0), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(run[0])
    assert not judged(tmp_path / "run")
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(run[1]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.journey
def test_resuming_judges_no_epoch_twice(run, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "6")  # as if killed at step 5 or 6
    pretrain.run(config(), workdir)
    steps = [row["step"] for row in metrics.read_metrics(workdir) if "knn_s1" in row]
    assert steps == [3, 6]
    for step, row in judged(workdir).items():
        assert row == pytest.approx(judged(run[0])[step], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("every, steps", [(1, [2, 4, 6, 7]), (2, [4, 7]), (0, [])])
def test_epochs_need_not_end_with_a_step(every, steps):
    """Of 7 pairs in batches of 4, epochs end within the 2nd, 4th, 6th, 7th step."""
    c = config(every=every, train_pairs=3, eval_pairs=1)
    c.batch_size = 4
    judge = make_judge(c, synthetic.Scenes(7, size=24))
    assert [step for step in range(1, 8) if judge.due(step, 99)] == steps
    # What comes out in the end is judged, also where the last epoch is not whole.
    assert judge.due(5, 5) == bool(every)


def make_judge(c, train, held=None):
    held = held or synthetic.Scenes(20, size=24, seed=1)
    return monitor.Monitor(c, tiny.objective(), sharding.make_mesh(1), train, held)


class Writer:
    def __init__(self):
        self.rows = []

    def write_now(self, step, row):
        self.rows.append((step, row))


def test_features_that_have_collapsed_are_told_in_words(lines):
    judge = make_judge(config(eval_pairs=20), synthetic.Scenes(24, size=24))
    _, params = nnx.split(tiny.model())
    writer = Writer()
    judge.run(3, params, writer)
    assert not any("collapsed" in line for line in lines)
    # The last norm gives the same for every token.
    norm = params["encoder"]["norm"]
    norm["scale"][...], norm["bias"][...] = jnp.zeros(32), jnp.ones(32)
    row = judge.run(6, params, writer)
    assert [step for step, _ in writer.rows] == [3, 6]
    assert row["feature_std"] == pytest.approx(0.0, abs=1e-6)
    (said,) = [line for line in lines if "collapsed" in line]
    assert said.startswith("Step 6: ")


def test_pairs_to_judge_on_are_spread_over_the_split():
    source = synthetic.Scenes(10, size=24)
    for count, want in ((4, [0, 3, 6, 9]), (10, range(10)), (99, range(10)), (1, [0])):
        some = subsets.spread(source, count)
        ids = [f"synthetic-{i:06d}" for i in want]
        assert some.index["id"].tolist() == ids


def test_labels_that_the_data_lack_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"judge.labels is 'crops', .*\['labels'\]"):
        pretrain.run(config(labels="crops"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    c = config(train_pairs=0)
    with pytest.raises(InputError, match="judge.train_pairs is 0"):
        pretrain.run(c, tmp_path / "run")


@pytest.mark.journey
def test_an_encoder_that_diverged_is_told_in_a_sentence(lines):
    judge = make_judge(config(), synthetic.Scenes(24, size=24))
    _, params = nnx.split(tiny.model())
    params = jax.tree.map(lambda x: x * np.nan, params)
    assert judge.run(3, params, Writer()) == {}
    assert any("not finite for 16 of 16" in line for line in lines), lines
