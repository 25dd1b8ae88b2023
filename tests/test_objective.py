"""The objective: what counts, what does not, and what is refused before a run."""

import jax
import numpy as np
import pytest
from flax import nnx

from data_pipeline import layout, sensors, synthetic
from data_pipeline.errors import InputError
from fusmae_jax import build
from tests import tiny

CHANGES = {
    "mask.mode": dict(mask=dict(mode="checkerboard")),
    "loss.normalize": dict(loss=dict(normalize="band")),
    "Mask ratio 1.0": dict(mask=dict(ratio=1.0)),
    r"Crop scale \(0.5, 0.2\)": dict(view=dict(crop_scale=(0.5, 0.2))),
}


def objective(size=24, **changes):
    config = tiny.config()
    config.update(changes)
    config.data.size = size
    return build.objective(config)


@pytest.fixture(scope="module")
def fields():
    scenes = synthetic.Scenes(
        4, size=24, fields=tuple(layout.native(24, sensors.SENSORS).shapes)
    )
    records = [scenes[i] for i in range(4)]
    return {name: np.stack([r[name] for r in records]) for name in records[0]}


def scorer(objective, **changes):
    """A compiled (fields, draw, weight) -> (loss, parts); `changes` are the model's."""
    graphdef, params = nnx.split(tiny.model(**changes))

    @jax.jit
    def score(params, *args):
        return objective.loss(nnx.merge(graphdef, params), (), *args)[:2]

    return lambda *args: score(params, *args)


def redrawn(objective, fields, draw):
    """All patches, as a tiny model predicts them."""
    graphdef, params = nnx.split(tiny.model())
    redraw = lambda params: objective.redraw(nnx.merge(graphdef, params), fields, draw)
    return jax.jit(redraw)(params)


def error(objective, outcome, s):
    """The mean squared error of the hidden patches of one sensor."""
    target, _, _ = objective.target(s, outcome.patches[s])
    hidden = np.asarray(outcome.hidden[s]) == 1.0
    return np.square(np.asarray(outcome.predicted[s] - target)[hidden]).mean()


@pytest.mark.journey
@pytest.mark.parametrize("mode", ["independent", "consistent"])
def test_the_loss_is_the_same_whether_or_not_visible_patches_are_redrawn(
    key, fields, mode
):
    goal = objective(mask=dict(mode=mode))
    draw = goal.draw(key, 4)
    _, parts = scorer(goal)(fields, draw)
    outcome = redrawn(goal, fields, draw)
    for s in sensors.SENSORS:
        want = error(goal, outcome, s)
        np.testing.assert_allclose(parts[f"loss_{s}"], want, rtol=1e-5)


def test_the_loss_is_the_weighted_sum_of_plain_errors_on_hidden_patches(key, fields):
    goal = objective(loss=dict(weight_s1=0.5, weight_s2=3.0, normalize="none"))
    draw = goal.draw(key, 4)
    loss, parts = scorer(goal)(fields, draw)
    want = 0.5 * parts["loss_s1"] + 3.0 * parts["loss_s2"]
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    assert set(parts) == {"loss_s1", "loss_s2"}
    outcome = redrawn(goal, fields, draw)
    for s in sensors.SENSORS:
        hidden = np.asarray(outcome.hidden[s]) == 1.0
        np.testing.assert_array_equal(hidden.sum(axis=1), 12)
        error = np.asarray(outcome.predicted[s] - outcome.patches[s])[hidden]
        np.testing.assert_allclose(parts[f"loss_{s}"], (error**2).mean(), rtol=1e-5)


@pytest.fixture(scope="module")
def usual():
    """The objective as it comes, and its scorer, of four weighted pairs."""
    goal = objective()
    return goal, scorer(goal)


def test_bfloat16_stays_near_float32(key, fields, usual):
    goal, score = usual
    draw, weight = goal.draw_fixed(key, np.arange(4)), np.ones(4, np.float32)
    full, _ = score(fields, draw, weight)
    low, _ = scorer(goal, dtype="bfloat16")(fields, draw, weight)
    assert low != full and low.dtype == full.dtype == np.float32
    np.testing.assert_allclose(low, full, rtol=2e-2)


def test_padding_does_not_count(key, fields, usual):
    goal, score = usual
    draw = goal.draw_fixed(key, np.arange(4))
    weight = np.array([1.0, 1.0, 1.0, 0.0], np.float32)
    padded, _ = score(fields, draw, weight)
    other = {name: x.copy() for name, x in fields.items()}
    for x in other.values():
        x[3] = x[0][::-1]
    still, _ = score(other, draw, weight)
    assert padded == still
    whole, _ = score(fields, draw, np.ones(4, np.float32))
    assert abs(whole - padded) > 1e-4


def test_padding_leaves_the_mean_over_the_others(key, fields, usual):
    goal, score = usual
    draw = goal.draw_fixed(key, np.arange(4))
    weight = np.array([1.0, 1.0, 1.0, 0.0], np.float32)
    padded, _ = score(fields, draw, weight)
    three = {name: x[:3] for name, x in fields.items()}
    want, _ = score(three, jax.tree.map(lambda x: x[:3], draw))
    np.testing.assert_allclose(padded, want, rtol=1e-5)


def test_a_constant_scene_has_finite_loss_and_gradients(key, fields):
    goal = objective()
    graphdef, params = nnx.split(tiny.model())
    flat = {name: np.full_like(x, x[0, 0, 0, 0]) for name, x in fields.items()}
    draw = goal.draw(key, 4)

    @jax.jit
    @jax.value_and_grad
    def step(params):
        return goal.loss(nnx.merge(graphdef, params), (), flat, draw)[0]

    loss, grads = step(params)
    assert np.isfinite(loss)
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))


def test_a_draw_depends_on_its_place_and_not_on_the_batch(key):
    goal = objective()
    few, many = goal.draw(key, 3), goal.draw(key, 8)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:3]), few, many)


def test_views_and_masks_of_both_sensors_are_drawn_apart(key):
    draw = objective().draw(key, 64)
    rows = np.concatenate(
        [draw.view.box[:, 1:2], draw.noise["s1"][:, :1], draw.noise["s2"][:, :1]],
        axis=1,
    )
    correlation = np.corrcoef(rows.T) - np.eye(3)
    assert np.abs(correlation).max() < 0.5  # 4 standard errors


def test_consistent_masks_show_both_sensors_the_same_patches(key):
    noise = objective(mask=dict(mode="consistent")).draw(key, 4).noise
    np.testing.assert_array_equal(noise["s1"], noise["s2"])


def test_fixed_draws_see_the_plain_middle_under_the_keys_own_masks(key):
    goal = objective(48)
    pairs = np.arange(4)
    first, again = (goal.draw_fixed(key, pairs) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    np.testing.assert_array_equal(first.view.box, [[0.25, 0.25, 0.5, 0.5]] * 4)
    assert not first.view.turn.any()
    other = goal.draw_fixed(jax.random.key(1), pairs)
    assert (first.noise["s1"] != other.noise["s1"]).any()


def test_fixed_masks_belong_to_pairs_whatever_the_batch_they_come_in(key):
    goal = objective(48)
    whole = goal.draw_fixed(key, np.arange(6)).noise
    part = goal.draw_fixed(key, np.arange(4, 6)).noise
    for s in sensors.SENSORS:
        np.testing.assert_array_equal(part[s], whole[s][4:])
        assert len({tuple(row) for row in np.asarray(whole[s])}) == 6


def test_a_scene_smaller_than_the_image_is_seen_whole(key):
    box = objective(12).draw_fixed(key, np.arange(1)).view.box
    np.testing.assert_array_equal(box, [[0.0, 0.0, 1.0, 1.0]])


@pytest.mark.parametrize("message", CHANGES)
def test_what_cannot_work_is_refused_at_once_by_name(message):
    with pytest.raises(InputError, match=message):
        objective(**CHANGES[message])


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"dtype": "bfloat16"}, ""),
        ({"dtype": "bfloat16", "dim": 36}, "not bfloat16 and 18;"),
        ({"dtype": "float32"}, "not float32 and 16 and 8;"),
        ({"dtype": "float32", "attention": "xla"}, ""),
    ],
)
def test_a_gpu_that_cannot_use_cudnn_is_no_secret(changes, said):
    config = tiny.config()
    config.model.update(changes)
    assert not build.objective(config, platform="cpu").advice()  # nothing to choose
    advice = build.objective(config, platform="gpu").advice()
    assert (said in advice) if said else not advice
