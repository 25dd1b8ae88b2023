"""Held-out pairs: what is drawn of them is right, and drawn without disturbing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from data_pipeline import sources, synthetic
from fusmae_jax import build, inputs, patches, reconstruct
from fusmae_jax.training import heldout, metrics, sharding
from tests import tiny


@pytest.fixture(scope="module")
def held():
    """Held-out pairs, and parameters of a model."""
    config, mesh = tiny.config(), sharding.make_mesh()
    source = sources.open_split(config.data, "validation")
    seen = build.inputs(config, layout=source.description.layout)
    objective = build.objective(config, seen)
    _, params = tiny.nnx.split(tiny.model())
    made = heldout.HeldOut(objective, mesh, source, seed=0, count=2)
    return made, jax.device_put(params, sharding.whole(mesh))


@pytest.mark.journey
def test_pictures_are_targets_and_predictions_in_native_units(held):
    held_out, params = held
    outcome = held_out.redraw(params)
    drawn = jax.device_get(held_out.pictures(outcome, 1))
    for s, sensor in held_out.objective.inputs.contract.items():
        seen, hidden = outcome.patches[s], np.asarray(outcome.hidden[s])[..., None] == 1
        _, mean, std = patches.normalize_patches(seen, "patch", sensor.families)
        made = patches.restore_patches(outcome.predicted[s], mean, std)
        for name, x in (("target", seen), ("prediction", np.where(hidden, made, seen))):
            want = inputs.native_units(patches.unpatchify(jnp.array(x), 6), sensor)
            assert drawn[s][name].shape == (1, 24, 24, len(sensor.bands))
            np.testing.assert_allclose(drawn[s][name], want[:1], rtol=1e-4, atol=1e-3)
        assert drawn[s]["hidden"].dtype == bool and drawn[s]["hidden"].mean() == 0.75


@pytest.mark.journey
def test_a_score_is_the_error_of_the_hidden_patches_alone(held):
    held_out, params = held
    outcome, score = held_out.redraw(params), held_out.score(params)
    for s, sensor in held_out.objective.inputs.contract.items():
        seen, _, _ = patches.normalize_patches(
            outcome.patches[s], "patch", sensor.families
        )
        error = np.square(outcome.predicted[s] - seen).mean(axis=-1)[:2]
        hidden = np.asarray(outcome.hidden[s])[:2]
        assert hidden.mean() == 0.75
        want = (error * hidden).sum() / hidden.sum()
        np.testing.assert_allclose(score[f"loss_{s}"], want, rtol=1e-5)
    # Visible patches are not drawn where nobody asks for them.
    ask = lambda step: step.lower(params, (), *held_out._parts[0], 0, 0).cost_analysis()
    score, redraw = held_out._score, held_out._redraw
    assert ask(score)["flops"] < 0.97 * ask(redraw)["flops"]


@pytest.mark.parametrize("how", patches.NORMALIZATIONS)
def test_the_floor_is_what_a_mean_of_5_x_5_pixels_takes_away(held, how):
    held_out, _ = held
    objective = dataclasses.replace(held_out.objective, normalize=how)
    fields = jax.tree.map(np.array, held_out._parts[0][0])
    ramp = np.linspace(-20, 0, fields["s1_10m"].shape[1], dtype=np.float32)
    noise = np.random.default_rng(0).normal(size=fields["s1_10m"].shape)
    fields["s1_10m"] = (ramp[None, :, None, None] + noise).astype(np.float32)
    weight = jnp.ones(len(fields["s1_10m"]))
    got = jax.jit(objective.floor)(fields, weight)
    # The same by SciPy, pixel by pixel.
    bands = objective.inputs.contract["s1"].bands
    means, stds = np.array([(band.mean, band.std) for band in bands]).T
    image = (fields["s1_10m"] - means) / stds
    window = np.ones((5, 5))
    count = ndimage.convolve(np.ones((24, 24)), window, mode="constant")
    image = np.moveaxis(image, -1, 1)
    mean = np.stack(
        [[ndimage.convolve(x, window, mode="constant") for x in pair] for pair in image]
    )
    rest = np.square(image - mean / count) * count / (count - 1)
    if how != "none":  # by patches of 6 x 6 pixels
        parts = image.reshape(len(image), 2, 4, 6, 4, 6)
        axes = (1, 3, 5) if how == "patch" else (3, 5)  # VV and VH: two families
        variance = parts.var(axis=axes, keepdims=True) + 1e-6
        rest = rest.reshape(parts.shape) / variance
    np.testing.assert_allclose(got["floor_s1"], rest.mean(), rtol=1e-3)
    if how == "none":  # what was put in, where the ramp hardly counts
        np.testing.assert_allclose(got["floor_s1"], (1 / stds**2).mean(), rtol=0.1)


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


def test_computing_something_in_the_background_is_an_error(held, tmp_path, monkeypatch):
    held_out, params = held
    computes = lambda self, seen, drawn, note: jnp.square(drawn["s1"]["target"])
    monkeypatch.setattr(heldout.HeldOut, "figure", computes)
    with metrics.MetricWriter(tmp_path) as writer:
        scoring = heldout.Evaluation(held_out, writer, tmp_path, 1)
        scoring.start(3, params)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-dev"):
            scoring.collect(wait=True)


def test_held_out_pairs_are_spread_over_the_split_and_all_are_compared(
    tmp_path, monkeypatch
):
    config, mesh = tiny.config(), sharding.make_mesh()
    source = synthetic.Scenes(21, size=24)
    seen = build.inputs(config, layout=source.description.layout)
    objective = build.objective(config, seen)
    _, params = tiny.nnx.split(tiny.model())
    monkeypatch.setattr(heldout, "PAIRS_AT_ONCE", 4)
    kw = dict(seed=0, count=11)
    made = heldout.HeldOut(objective, mesh, source, **kw)
    names = [made.source[i]["id"] for i in range(len(made.source))]
    assert names == [source[i]["id"] for i in range(0, 21, 2)]
    params = jax.device_put(params, sharding.whole(mesh))
    kw = dict(step=1, draws=2, shown=3)
    reconstruct.report(made, params, tmp_path, **kw)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["pairs"] == 11 and scores["draws"] == 2
    rows = [
        made.score(params, index=i, draw=draw) for i in range(3) for draw in range(2)
    ]
    want = heldout.average(rows)
    for s, error in scores["mean_squared_error"]["Fus-MAE"].items():
        np.testing.assert_allclose(error, want[f"eval_loss_{s}"], rtol=1e-5)
    # One program for scores and one for what is drawn, whatever asks for them.
    assert made._score._cache_size() == made._redraw._cache_size() == 1


@pytest.mark.parametrize("hide", [pytest.param("s1", marks=pytest.mark.journey), "s2"])
def test_a_sensor_that_is_hidden_whole_is_drawn_from_the_other_alone(hide, tmp_path):
    config, mesh = tiny.config(), sharding.make_mesh()
    source = synthetic.Scenes(4, size=24)
    seen = build.inputs(config, layout=source.description.layout)
    objective = reconstruct.chosen_mask(build.objective(config, seen), hide, 0.25)
    assert objective.mask_ratio == 0.25
    _, params = tiny.nnx.split(tiny.model())
    params = jax.device_put(params, sharding.whole(mesh))

    class Other:
        """The same scenes with other pixels of the hidden sensor."""

        description, fields = source.description, source.fields

        def __len__(self):
            return len(source)

        def __getitem__(self, i):
            changed = {k: x[::-1] for k, x in source[i].items() if k.startswith(hide)}
            return source[i] | changed

        def fingerprint(self):
            return {}

    drawn = []
    for data in (Other(), source):
        made = heldout.HeldOut(objective, mesh, data, seed=0, count=4)
        drawn.append(jax.device_get(made.redraw(params)))
    one, two = drawn
    other = {"s1": "s2", "s2": "s1"}[hide]
    np.testing.assert_array_equal(one.predicted[hide], two.predicted[hide])
    np.testing.assert_array_equal(one.predicted[other], two.predicted[other])
    assert (one.hidden[hide] == 1).all() and one.hidden[other].mean() == 0.25
    reconstruct.report(made, params, tmp_path, step=1, draws=1, shown=2)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["hide"] == hide and scores["mask_ratio"] == 0.25
    # Nothing of it is visible, so simple predictors say the mean of the data.
    simple = scores["mean_squared_error"]
    for name in ("nearest visible patch", "inverse distance"):
        assert simple[name][hide] == simple["mean of visible pixels"][hide]
