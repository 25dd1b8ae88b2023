"""Held-out pairs: what is drawn of them is right, and drawn without disturbing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline import sources
from fusmae_jax import build, heldout, losses, metrics, patches, sharding, views
from tests import tiny


@pytest.fixture(scope="module")
def held():
    """Held-out pairs, and parameters of a model."""
    config, mesh = tiny.config(), sharding.make_mesh()
    source = sources.open_split(config.data, "validation")
    objective = build.objective(config, layout=source.description.layout)
    graphdef, params = tiny.nnx.split(tiny.model())
    made = heldout.HeldOut(graphdef, objective, mesh, source, seed=0, count=2)
    return made, jax.device_put(params, sharding.whole(mesh))


def test_pictures_are_targets_and_predictions_in_native_units(held):
    held_out, params = held
    outcome = held_out.score(params, rows=2)[1]
    drawn = jax.device_get(held_out.pictures(outcome, 1))
    for s, sensor in held_out.objective.contract.items():
        seen, hidden = outcome.patches[s], np.asarray(outcome.hidden[s])[..., None] == 1
        _, mean, std = losses.normalize_patches(seen, "patch", sensor.families)
        made = losses.restore_patches(outcome.predicted[s], mean, std)
        for name, x in (("target", seen), ("prediction", np.where(hidden, made, seen))):
            want = views.native_units(patches.unpatchify(jnp.array(x), 6), sensor)
            assert drawn[s][name].shape == (1, 24, 24, len(sensor.bands))
            np.testing.assert_allclose(drawn[s][name], want[:1], rtol=1e-4, atol=1e-3)
        assert drawn[s]["hidden"].dtype == bool and drawn[s]["hidden"].mean() == 0.75


def test_scenes_are_whole_and_in_native_units(held):
    held_out, _ = held
    seen = held_out.scenes(2)
    for i, name in enumerate(seen.names):
        pair = held_out.source[i]
        assert name == pair["id"]
        want = pair["s1_10m"].astype(np.float32)
        np.testing.assert_allclose(seen.images["s1"][i], want, rtol=1e-4, atol=1e-4)
        assert seen.images["s2"][i].shape == (24, 24, 12)


def test_losses_are_on_disk_when_asked_for_though_the_picture_is_not(
    held, tmp_path, monkeypatch
):
    held_out, params = held
    may_draw = heldout.concurrent.futures.Future()
    drawn = lambda *a: may_draw.result(60) and np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(heldout.figures, "save", drawn)
    with metrics.MetricWriter(tmp_path) as writer:
        scoring = heldout.Evaluation(held_out, writer, tmp_path, 1)
        scoring.start(3, params)
        scoring.collect()
        assert not (tmp_path / "metrics.jsonl").exists()
        scoring.write_losses(3)
        (row,) = metrics.read_metrics(tmp_path)
        may_draw.set_result(True)
        scoring.collect(wait=True)
    assert row["step"] == 3 and row["eval_loss"] > 0.0
    assert metrics.read_metrics(tmp_path) == [row]


def test_computing_something_in_the_background_is_an_error(
    held, tmp_path, monkeypatch
):
    held_out, params = held
    computes = lambda self, seen, drawn, note: jnp.square(drawn["s1"]["target"])
    monkeypatch.setattr(heldout.HeldOut, "figure", computes)
    with metrics.MetricWriter(tmp_path) as writer:
        scoring = heldout.Evaluation(held_out, writer, tmp_path, 1)
        scoring.start(3, params)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-dev"):
            scoring.collect(wait=True)
