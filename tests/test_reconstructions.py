"""Other autoencoders: losses against NumPy, and what absent sensors are to them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from data_pipeline import synthetic
from data_pipeline.errors import InputError
from fusmae_jax import build
from fusmae_jax.evaluation import encoder
from fusmae_jax.inputs import SENSORS
from tests import plain, tiny

BATCH, SIDE, KEEP = 4, 4, 4
HEADS = 2


def objective(method, **changes):
    config = tiny.config(method)
    config.update_from_flattened_dict(changes)
    return build.objective(config)


@pytest.fixture(scope="module")
def fields():
    scenes = synthetic.Scenes(BATCH, size=24)
    records = [scenes[i] for i in range(BATCH)]
    names = [name for name in records[0] if name.startswith(SENSORS)]
    return {name: np.stack([r[name] for r in records]) for name in names}


def scored(goal, params, fields, draw):
    """The loss, its parts, and what was redrawn."""

    @jax.jit
    def score(params):
        model = nnx.merge(goal.abstract[0], params)
        return goal.loss(model, (), fields, draw)[:2], goal.redraw(model, fields, draw)

    (loss, parts), outcome = score(params)
    return float(loss), {k: float(x) for k, x in parts.items()}, outcome


def seen(goal, fields, draw):
    """Patches of the images in NumPy, {sensor: [B, N, E]}."""
    images = jax.device_get(goal.inputs.images(fields, draw.view))
    return {
        s: np.stack([plain.cut(image, 6) for image in np.float64(x)])
        for s, x in images.items()
    }


def mae_loss(goal, params, fields, draw):
    """The errors of a masked autoencoder by sensor, as its paper has them."""
    p, patches = plain.named(params), seen(goal, fields, draw)
    read, errors = goal.sensors, {s: [] for s in goal.sensors}
    kernel = np.concatenate([p[f"encoder/embed/{s}/kernel"] for s in read])
    bias = sum(p[f"encoder/embed/{s}/bias"] for s in read)
    for i in range(BATCH):
        shown = np.argsort(draw.noise["s1"][i])[:KEEP]
        stacked = np.concatenate([patches[s][i] for s in read], axis=1)
        x = stacked @ kernel + bias + plain.positions(SIDE, 32)
        x = plain.blocks(x[shown], p, "encoder/blocks", 2, HEADS)
        x = plain.norm(x, p, "encoder/norm")
        y = np.tile(p["decoder/mask_token"], (SIDE**2, 1))
        y[shown] = plain.affine(x, p, "decoder/bridge")
        y = y + plain.positions(SIDE, 16)
        y = plain.norm(
            plain.blocks(y, p, "decoder/blocks", 1, HEADS), p, "decoder/norm"
        )
        hidden = np.setdiff1d(np.arange(SIDE**2), shown)
        for s in read:
            target = plain.normalized(patches[s][i])
            error = plain.affine(y, p, f"predict/{s}") - target
            errors[s].append(np.square(error[hidden]).mean())
    return {f"loss_{s}": np.mean(x) for s, x in errors.items()}


def shaken(goal, seed=0, scale=0.3):
    """Parameters none of which is zero, so large that attention tells tokens apart."""
    rng = np.random.default_rng(seed)
    made = nnx.split(goal.init(nnx.Rngs(seed)))[1]
    return jax.tree.map(lambda x: x + np.float32(rng.normal(0, scale, x.shape)), made)


@pytest.mark.parametrize("sensors", ["both", "s2"])
def test_the_loss_of_mae_is_that_of_its_paper(key, fields, sensors):
    goal = objective("mae", **{"model.sensors": sensors})
    params, draw = shaken(goal), goal.draw(key, BATCH)
    loss, parts, outcome = scored(goal, params, fields, draw)
    want = mae_loss(goal, params, fields, draw)
    assert parts.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5)
    np.testing.assert_allclose(loss, sum(want.values()), rtol=1e-5)
    for s in goal.sensors:
        np.testing.assert_array_equal(outcome.hidden[s].sum(axis=1), SIDE**2 - KEEP)


def multimae_loss(goal, params, fields, draw):
    """The errors of MultiMAE by sensor: of each sample, then over those that have any.

    `draw.noise` is the order in which patches are shown, the K least of both sensors.
    """
    p, patches = plain.named(params), seen(goal, fields, draw)
    errors, n = {s: [] for s in SENSORS}, SIDE**2
    for i in range(BATCH):
        order = np.concatenate([draw.noise[s][i] for s in SENSORS])
        shown = order <= np.sort(order)[goal.num_shown - 1]
        tokens = np.concatenate(
            [
                plain.affine(patches[s][i], p, f"encoder/embed/{s}")
                + plain.positions(SIDE, 32)
                for s in SENSORS
            ]
        )
        x = np.concatenate([tokens[shown], p["encoder/global_token"][None]])
        x = plain.blocks(x, p, "encoder/blocks", 2, HEADS)
        x = plain.norm(x, p, "encoder/norm")
        for j, s in enumerate(SENSORS):
            q = plain.within(p, f"decoders/{s}/")
            y = plain.affine(x, q, "bridge")
            slots = np.tile(q["mask_token"], (2 * n, 1))
            slots[shown] = y[:-1]
            slots += np.concatenate(
                [plain.positions(SIDE, 16) + q[f"sensors/{other}"] for other in SENSORS]
            )
            context = np.concatenate([slots[shown], y[-1:]])
            here = slice(j * n, (j + 1) * n)
            query = plain.norm(slots[here], q, "query_norm")
            context = plain.norm(context, q, "context_norm")
            y = plain.attend(query, context, q, "attn", HEADS)
            y = y + plain.perceptron(plain.norm(y, q, "norm"), q, "mlp")
            y = plain.affine(plain.blocks(y, q, "blocks", 1, HEADS), q, "predict")
            hidden = ~shown[here]
            error = np.square(y - plain.normalized(patches[s][i]))[hidden]
            if hidden.any():
                errors[s].append(error.mean())
    return {f"loss_{s}": np.mean(x) for s, x in errors.items()}


@pytest.mark.parametrize("ratio", [0.75, 0.25])
def test_the_loss_of_multimae_is_that_of_its_paper(key, fields, ratio):
    goal = objective("multimae", **{"mask.ratio": ratio, "mask.alpha": 0.05})
    params, draw = shaken(goal), goal.draw(key, BATCH)
    loss, parts, outcome = scored(goal, params, fields, draw)
    want = multimae_loss(goal, params, fields, draw)
    for name, value in want.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5)
    np.testing.assert_allclose(loss, sum(want.values()), rtol=1e-5)
    counts = np.stack([outcome.hidden[s].sum(axis=1) for s in SENSORS])
    np.testing.assert_array_equal(counts.sum(axis=0), 2 * SIDE**2 - goal.num_shown)
    # Shares that are this uneven show a sensor whole if there is room for it.
    assert counts.min() == (SIDE**2 - 2 * KEEP if ratio == 0.75 else 0)
    assert goal.separable == (ratio == 0.75)


def test_sensors_share_what_is_shown_as_dirichlet_says(key):
    for alpha, deviation in ((1.0, 12**-0.5), (20.0, 0.5 * 41**-0.5)):
        goal = objective("multimae", **{"mask.alpha": alpha})
        noise = np.concatenate([*goal.draw(key, 4096).noise.values()], axis=1)
        shown = np.argsort(np.argsort(noise, axis=1), axis=1) < goal.num_shown
        counts = shown[:, : SIDE**2].sum(axis=1)
        share = counts / goal.num_shown
        assert abs(share.mean() - 0.5) < 0.02
        # Rounded to eighths, which adds the variance of rounding.
        want = np.sqrt(deviation**2 + 1 / (12 * goal.num_shown**2))
        assert share.std() == pytest.approx(want, abs=0.02)
        places = shown[:, : SIDE**2].mean(axis=0)
        assert np.abs(places - places.mean()).max() < 0.04  # any place as often


def test_a_draw_of_shares_belongs_to_its_place_in_the_batch(key):
    goal = objective("multimae")
    few, many = goal.draw(key, 3).noise, goal.draw(key, 8).noise
    for s in SENSORS:
        np.testing.assert_array_equal(few[s], many[s][:3])


def test_multimae_shows_of_what_was_measured_first(fields, key):
    goal = objective("multimae")
    goal = dataclasses.replace(
        goal, inputs=dataclasses.replace(goal.inputs, missing=True)
    )
    holes = {name: np.float32(x) for name, x in fields.items()}
    holes["s1_10m"][0] = np.nan
    draw = goal.draw_fixed(key, np.arange(BATCH))
    loss, parts, outcome = scored(goal, shaken(goal), holes, draw)
    assert np.isfinite([loss, *parts.values()]).all()
    hidden = {s: np.asarray(x) for s, x in outcome.hidden.items()}
    assert hidden["s1"][0].all() and hidden["s2"][0].sum() == SIDE**2 - goal.num_shown
    # A pair without radar has no error of it, the others as they have alone.
    rest = {name: x[1:] for name, x in holes.items()}
    part = jax.tree.map(lambda x: x[1:], draw)
    _, alone, _ = scored(goal, shaken(goal), rest, part)
    np.testing.assert_allclose(parts["loss_s1"], alone["loss_s1"], rtol=1e-5)


@pytest.mark.parametrize("method", ["mae", "multimae"])
def test_it_learns_one_batch_without_collapsing(key, fields, method):
    goal = objective(method, **{"loss.normalize": "none"})
    params, draw = nnx.split(goal.init(nnx.Rngs(0)))[1], goal.draw(key, BATCH)
    tx = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        def loss(params):
            return goal.loss(nnx.merge(goal.abstract[0], params), (), fields, draw)[0]

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, value, grads

    state, losses = tx.init(params), []
    for _ in range(60):
        params, state, value, grads = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    # All is learnt, but what stands for absent sensors, of which there was none.
    for path, grad in plain.named(grads).items():
        assert np.abs(grad).max() > 0.0 or "absent" in path, path
    judged, here = goal.encoder(), {s: np.ones(BATCH, bool) for s in SENSORS}
    images = goal.inputs.images(fields, draw.view)
    summary = judged(goal.encoder_params(params), images, here).summary
    assert np.std(summary, axis=0).mean() > 1e-2


def said(goal, images, present):
    """What an encoder says of images, in one program."""
    judged = goal.encoder()
    params = goal.encoder_params(shaken(goal))
    call = jax.jit(lambda images, present: judged(params, images, present))
    return judged, call(images, judged.present(images, present))


@pytest.mark.parametrize("method", ["mae", "multimae"])
def test_what_stands_for_an_absent_sensor_is_not_read(fields, key, method):
    goal = objective(method)
    images = goal.inputs.images(fields, goal.draw(key, BATCH).view)
    absent = np.arange(BATCH) % 2 == 0
    present = {"s1": ~absent, "s2": np.ones(BATCH, bool)}
    _, found = said(goal, images, present)
    other = jnp.where(absent[:, None, None, None], jnp.nan, images["s1"])
    _, again = said(goal, images | {"s1": other}, present)
    np.testing.assert_array_equal(found.summary, again.summary)
    np.testing.assert_array_equal(found.tokens["s2"], again.tokens["s2"])
    assert np.isfinite(found.summary).all()
    _, both = said(goal, images, None)
    assert (
        np.abs(both.tokens["s2"] - found.tokens["s2"]).max(axis=(1, 2)) > 0
    ).tolist() == (absent.tolist())


def test_tokens_of_stacked_sensors_are_the_same_of_both(fields, key):
    goal = objective("mae")
    images = goal.inputs.images(fields, goal.draw(key, BATCH).view)
    judged, found = said(goal, images, None)
    np.testing.assert_array_equal(found.tokens["s1"], found.tokens["s2"])
    want = found.tokens["s1"].mean(axis=1)
    np.testing.assert_allclose(found.summary, want, atol=1e-5)
    assert not judged.summarizes and not judged.knows_one_sensor
    dropping = objective("mae", **{"mask.drop_sensor": 0.5})
    assert dropping.encoder().knows_one_sensor


def test_mae_reads_a_patch_that_is_measured_in_part_and_overlooks_others(fields, key):
    goal = objective("mae")
    goal = dataclasses.replace(
        goal, inputs=dataclasses.replace(goal.inputs, missing=True)
    )
    images = goal.inputs.images(fields, goal.draw(key, BATCH).view)
    images = {s: np.array(x) for s, x in images.items()}
    images["s1"][:, :6], images["s2"][:, :6, :12] = np.nan, np.nan  # patches 0 and 1
    images["s1"][0, 20, 20] = np.nan
    judged, found = said(goal, images, None)
    here = judged.present(images, None)
    assert not here["s1"][:, :4].any() and here["s2"][:, 2:].all()
    assert np.isfinite(found.summary).all()
    # Of what nothing was measured nobody sees where it stands.
    want = found.tokens["s2"][:, 2:].mean(axis=1)
    np.testing.assert_allclose(found.summary, want, atol=1e-5)


def test_an_encoder_of_one_sensor_has_nothing_to_say_of_the_other(fields, key):
    goal = objective("mae", **{"model.sensors": "s2"})
    images = goal.inputs.images(fields, goal.draw(key, BATCH).view)
    judged, found = said(goal, images, None)
    assert judged.name == "MAE, Sentinel-2" and judged.knows_one_sensor
    assert not np.abs(found.tokens["s1"]).any()
    here = judged.present(images, None)
    assert not here["s1"].any() and here["s2"].all()
    _, again = said(goal, images | {"s1": images["s1"] + 1.0}, None)
    np.testing.assert_array_equal(found.tokens["s2"], again.tokens["s2"])


def test_an_encoder_of_one_sensor_is_not_judged_by_another(fields, key):
    judged = objective("mae", **{"model.sensors": "s2"}).encoder()
    encoder.check_sensors("sensors", ("s2",), judged)
    for wanted in (("s1",), ("both",), ("s1", "s2", "both")):
        with pytest.raises(InputError, match=r"reads Sentinel-2 alone; .*\('s2',\)"):
            encoder.check_sensors("sensors", wanted, judged)
    encoder.check_sensors("sensors", ("s1", "both"), objective("mae").encoder())


@pytest.mark.parametrize("method", ["mae", "multimae"])
def test_fine_tuning_knows_the_layers_and_may_leave_branches_out(fields, key, method):
    goal = objective(method)
    judged, images = goal.encoder(), goal.inputs.images(fields, goal.draw(key, 4).view)
    params = goal.encoder_params(shaken(goal))
    layers = {path: judged.layer_of(path) for path in plain.named(params)}
    assert set(layers.values()) == set(range(judged.depth + 2))
    assert layers["embed/s2/kernel"] == 0 and layers["norm/scale"] == judged.depth + 1

    @jax.jit
    def say(branches):
        kw = dict(branches=branches, remat="full")
        return [judged(params, images, **kw).summary, judged(params, images).summary]

    branches = np.ones((judged.depth, 2, BATCH), np.float32)
    one, plainly = say(branches)
    np.testing.assert_allclose(one, plainly, atol=1e-5)
    branches[:, :, 0] = 0.0
    left, _ = say(branches)
    assert (np.abs(left - plainly).max(axis=1) > 1e-3).tolist() == [True] + 3 * [False]
