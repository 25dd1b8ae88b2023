"""Pixels that were not measured are never shown, asked for or counted."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx
from matplotlib import image

from data_pipeline import dataset_card, layout, sensors, sources, synthetic
from data_pipeline.building import preview
from data_pipeline.errors import InputError
from fusmae_jax import figures, inputs, patches, reconstruct
from fusmae_jax.evaluation import (
    classifier,
    dense_task,
    encoder,
    evaluate,
    features,
    finetune,
)
from fusmae_jax.inputs import SENSORS
from fusmae_jax.objectives.protocol import Encoded
from fusmae_jax.training import metrics, pretrain, sharding
from tests import datasets, judging, tiny

SIZE, PATCH, BATCH = 24, 6, 4
WHOLE = (0.0, 0.0, 1.0, 1.0)
GRIDS = layout.native(SIZE, sensors.SENSORS)
PINK = np.divide(preview.MISSING_COLOR, 255)
RESERVED = {field: sensors.MISSING[dtype] for field, dtype in GRIDS.dtypes.items()}


@pytest.fixture(scope="module")
def full():
    """Stored pixels of scenes without a hole."""
    scenes = synthetic.Scenes(BATCH, size=SIZE, fields=tuple(GRIDS.shapes))
    pairs = [scenes[i] for i in range(BATCH)]
    return {name: np.stack([pair[name] for pair in pairs]) for name in pairs[0]}


def missing(fields, sensor, rows, columns, samples=slice(None)):
    """The same with a hole in all bands of a sensor, in pixels of 10 m."""
    fields = dict(fields)
    for grid in GRIDS.of(sensor):
        cut = lambda x, k=grid.gsd // sensors.FINEST_GSD: slice(
            x.start // k, x.stop // k
        )
        fields[grid.field] = fields[grid.field].copy()
        hole = samples, cut(rows), cut(columns)
        fields[grid.field][hole] = RESERVED[grid.field]
    return fields


def holes(fields):
    """Of S1 a patch and half of another in all pairs; all of S2 in one pair."""
    fields = missing(fields, "s1", slice(6, 12), slice(0, 9))
    return missing(fields, "s2", slice(0, SIZE), slice(0, SIZE), slice(1, 2))


def spoilt(fields, seed=1):
    """Other values under the holes, in all bands but the first of each grid."""
    rng, other = np.random.default_rng(seed), {}
    for field, x in fields.items():
        value = rng.integers(1, 9000, x.shape).astype(x.dtype)
        hole = sensors.is_missing(x)
        hole[..., 0] = False
        other[field] = np.where(hole, value, x) if x.shape[-1] > 1 else x
    return other


def objective(missing=True, **changes):
    found = tiny.objective(**changes)
    object.__setattr__(
        found, "inputs", inputs.Inputs(sensors.SENSORS, SIZE, SIZE, missing=missing)
    )
    return found


def score(goal, fields, draw, **changes):
    """Loss, its parts, and the gradient."""
    graphdef, params = nnx.split(tiny.model(**changes))

    @jax.jit
    def run(params, fields):
        loss = lambda p: goal.loss(nnx.merge(graphdef, p), (), fields, draw)[:2]
        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, parts), grad = run(params, fields)
    return loss, parts, grad


def redraw(goal, fields, draw):
    graphdef, params = nnx.split(tiny.model())
    run = jax.jit(lambda p, f: goal.redraw(nnx.merge(graphdef, p), f, draw))
    return jax.tree.map(np.asarray, run(params, fields))


def trees_equal(a, b, **close):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if close:
            np.testing.assert_allclose(x, y, **close)
        else:
            np.testing.assert_array_equal(x, y)


def finite(tree):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


# What images show of holes


def see(fields, view=None, **changes):
    changes = dict(missing=True) | changes
    seen = inputs.Inputs(sensors.SENSORS, SIZE, SIZE, **changes)
    view = view or inputs.fixed_view(len(next(iter(fields.values()))), WHOLE)
    return jax.tree.map(np.asarray, jax.jit(seen.images)(fields, view))


@pytest.mark.parametrize("sensor", SENSORS)
def test_missing_pixels_are_nan_in_every_band_and_all_others_as_measured(full, sensor):
    got = see(missing(full, sensor, slice(6, 18), slice(0, 6)))[sensor]
    want = see(full, missing=False)[sensor]
    bad = np.zeros(want.shape, bool)
    bad[:, 6:18, :6] = True
    np.testing.assert_array_equal(np.isnan(got), bad)
    finest = [
        sensors.SENSORS[sensor].band_names.index(x)
        for x in ("VV", "B02")
        if x in sensors.SENSORS[sensor].band_names
    ]
    got, want, bad = (x[..., finest] for x in (got, want, bad))
    np.testing.assert_allclose(got[~bad], want[~bad], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("resampling", inputs.RESAMPLING)
def test_a_hole_draws_what_is_around_it_nowhere(full, key, resampling):
    """Every band is constant, and far from its mean: so is all that is measured."""
    flat = {field: np.full_like(x, 4) for field, x in full.items()}
    view = inputs.draw_views(key, BATCH)
    got = see(holes(flat), view, resampling=resampling)
    want = see(flat, view, resampling=resampling)
    for s in SENSORS:
        there = ~np.isnan(got[s])
        assert 0.1 < there.mean() < 1.0
        np.testing.assert_allclose(got[s][there], want[s][there], rtol=1e-4, atol=1e-4)


def test_a_pixel_is_missing_if_more_than_half_of_it_is_on_some_grid(full):
    fields = {field: x.copy() for field, x in full.items()}
    fields["s2_20m"][:, 3, 3] = RESERVED["s2_20m"]
    bad = np.isnan(see(fields)["s2"]).any(axis=-1)
    # Pixels in the middle of two of 20 m have 3/4 of the nearer and 1/4 of the other.
    want = np.zeros(bad.shape, bool)
    want[:, 6:8, 6:8] = True
    np.testing.assert_array_equal(bad, want)


def test_other_values_under_a_hole_change_no_image(full):
    trees_equal(see(holes(full)), see(spoilt(holes(full))))


def test_without_a_hole_images_are_those_of_data_without_any(full, key):
    view = inputs.draw_views(key, BATCH)
    for how in inputs.RESAMPLING:
        got = see(full, view, resampling=how)
        want = see(full, view, resampling=how, missing=False)
        trees_equal(got, want, rtol=1e-4, atol=1e-5)


def test_values_that_are_reserved_are_no_fault_and_infinite_ones_are(full):
    fields = {k: jnp.asarray(v) for k, v in holes(full).items()}
    assert inputs.invalid_pixels(fields) > 0
    assert inputs.invalid_pixels(fields, missing=True) == 0
    fields["s1_10m"] = fields["s1_10m"].at[0, 0, 0, 0].set(jnp.inf)
    assert inputs.invalid_pixels(fields, missing=True) == 1


# Who says that there are holes


def count_missing(folder, split="train", missing=7):
    path = folder / dataset_card.CARD_FILE
    card = json.loads(path.read_text())
    card["splits"][split] = {"sensors": {"s1": {"VV": {"missing": missing}}}}
    path.write_text(json.dumps(card))


def data(**changes):
    known = dict(source="records", dir="", eval_dir="", split="train")
    return ml_collections.ConfigDict(known | changes)


def test_the_cards_of_all_datasets_and_splits_say_whether_pixels_are_missing(tmp_path):
    one, two = (datasets.write(tmp_path / name) for name in ("one", "two"))
    both = f"{one},{two}"
    assert not sources.has_missing(data(dir=both))
    count_missing(two, "test", 0)
    assert not sources.has_missing(data(dir=both))
    count_missing(two, "test")
    assert sources.has_missing(data(dir=both))
    assert not sources.has_missing(data(dir=str(one)))
    assert sources.has_missing(data(dir=str(one), eval_dir=str(two)))
    assert not sources.has_missing(data(source="synthetic"))
    assert not sources.has_missing(data(source="sample"))


def test_a_card_that_counts_otherwise_is_refused(tmp_path):
    folder = datasets.write(tmp_path / "one")
    count_missing(folder, missing="many")
    with pytest.raises(InputError, match="does not count pixels"):
        sources.has_missing(data(dir=str(folder)))


# The network


def trained():
    graphdef, params = nnx.split(tiny.model())
    rng = np.random.default_rng(7)
    shift = lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.05, x.dtype)
    return nnx.merge(graphdef, jax.tree.map(shift, params))


def images(batch=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        s: jnp.asarray(rng.normal(size=(batch, 16, PATCH**2 * c)), jnp.float32)
        for s, c in tiny.BANDS.items()
    }


def test_an_absent_patch_is_as_one_that_was_never_given():
    """Neither the fusion nor a block attends to it."""
    model, pixels = trained(), images()
    ids = {s: jnp.tile(jnp.arange(16), (3, 1)) for s in SENSORS}
    there = {s: jnp.ones((3, 16), bool) for s in SENSORS}
    there["s2"] = there["s2"].at[:, 10:].set(False)
    pixels["s2"] = pixels["s2"].at[:, 10:].set(jnp.nan)
    got = tiny.call(model.encoder, pixels, ids, there)
    few = {s: x[:, :10] if s == "s2" else x for s, x in pixels.items()}
    ids = {s: x[:, :10] if s == "s2" else x for s, x in ids.items()}
    want = tiny.call(model.encoder, few, ids)
    close = dict(rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.tokens["s1"], want.tokens["s1"], **close)
    np.testing.assert_allclose(got.tokens["s2"][:, :10], want.tokens["s2"], **close)
    np.testing.assert_allclose(got.summary, want.summary, **close)
    fused = tiny.call(model.fuse, got.tokens, there)
    alone = tiny.call(model.fuse, want.tokens)
    np.testing.assert_allclose(fused["s1"], alone["s1"], **close)
    assert finite(got) and finite(fused)


def test_a_sensor_without_any_patch_is_an_absent_sensor():
    model, pixels = trained(), images()
    ids = {s: jnp.tile(jnp.arange(16), (3, 1)) for s in SENSORS}
    here = {"s1": jnp.ones(3, bool), "s2": jnp.zeros(3, bool)}
    by_patch = {s: jnp.repeat(x[:, None], 16, axis=1) for s, x in here.items()}
    whole = tiny.call(model.encoder, pixels, ids, here)
    parts = tiny.call(model.encoder, pixels, ids, by_patch)
    trees_equal(parts, whole, rtol=1e-5, atol=1e-5)
    fused = (tiny.call(model.fuse, whole.tokens, x) for x in (here, by_patch))
    trees_equal(*fused, rtol=1e-5, atol=1e-5)


# The loss


@pytest.mark.journey
@pytest.mark.parametrize(
    "normalize, drop_sensor", [("none", 0.0), ("patch", 0.5), ("group", 0.0)]
)
def test_without_a_hole_the_loss_is_that_of_data_without_any(
    full, key, normalize, drop_sensor
):
    changes = dict(normalize=normalize, drop_sensor=drop_sensor)
    draw = objective(**changes).draw(key, BATCH)
    got, want = (score(objective(x, **changes), full, draw) for x in (True, False))
    trees_equal(got, want, rtol=2e-3, atol=2e-5)


@pytest.mark.journey
@pytest.mark.parametrize("normalize", patches.NORMALIZATIONS)
def test_other_values_under_a_hole_change_neither_loss_nor_gradient(
    full, key, normalize
):
    goal, fields = objective(normalize=normalize), holes(full)
    draw = goal.draw(key, BATCH)
    other = spoilt(fields)
    assert any((fields[k] != other[k]).any() for k in fields if k.startswith("s2"))
    got, want = score(goal, other, draw), score(goal, fields, draw)
    trees_equal(got, want)
    assert finite(got)
    # While measured pixels do count.
    changed = dict(fields, s1_10m=fields["s1_10m"] + np.float16(0.5))
    assert score(goal, changed, draw)[0] != want[0]


def plain_error(goal, outcome, s):
    """Loops over hidden patches and their measured pixels."""
    families, squares = np.array(sensors.SENSORS[s].families), []
    for b in range(BATCH):
        for n in range(16):
            seen = outcome.patches[s][b, n].reshape(PATCH**2, -1)
            guess = outcome.predicted[s][b, n].reshape(seen.shape)
            there = ~np.isnan(seen).any(axis=1)
            if outcome.hidden[s][b, n] != 1.0 or not there.any():
                continue
            x, y = seen[there].astype(np.float64), guess[there]
            groups = {"none": [], "patch": [families == families]}.get(
                goal.normalize, [families == f for f in set(families)]
            )
            for group in groups:
                part = x[:, group]
                x[:, group] = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
            squares.extend(np.square(x - y).ravel())
    return np.mean(squares)


@pytest.mark.journey
@pytest.mark.parametrize(
    "normalize, mode",
    [("none", "independent"), ("patch", "consistent"), ("group", "independent")],
)
def test_the_loss_is_the_mean_over_measured_pixels_of_hidden_patches(
    full, key, normalize, mode
):
    goal, fields = objective(normalize=normalize, mask_mode=mode), holes(full)
    draw = goal.draw_fixed(key, np.arange(BATCH))
    _, parts, _ = score(goal, fields, draw)
    outcome = redraw(goal, fields, draw)
    for s in SENSORS:
        want = plain_error(goal, outcome, s)
        np.testing.assert_allclose(parts[f"loss_{s}"], want, rtol=1e-4)


@pytest.mark.journey
@pytest.mark.parametrize("mode", patches.MASK_MODES)
def test_patches_without_a_measured_pixel_are_shown_last(full, key, mode):
    goal = objective(mask_mode=mode)
    # 8 of 16 patches are left of S1, of which 4 are shown; 2 of S2.
    fields = missing(full, "s1", slice(0, 12), slice(0, SIZE))
    fields = missing(fields, "s2", slice(0, SIZE), slice(0, SIZE), slice(1, 2))
    if mode == "independent":
        fields = missing(fields, "s2", slice(6, SIZE), slice(0, SIZE), slice(2, 3))
    for seed in range(5):
        draw = goal.draw_fixed(jax.random.key(seed), np.arange(BATCH))
        outcome = redraw(goal, fields, draw)
        for s in SENSORS:
            shown = outcome.hidden[s] == 0.0
            there = ~np.isnan(outcome.patches[s]).all(axis=-1)
            assert (shown.sum(axis=1) == 4).all()
            most = np.minimum(4, there.sum(axis=1))
            np.testing.assert_array_equal((shown & there).sum(axis=1), most)
        if mode == "consistent":
            np.testing.assert_array_equal(*outcome.hidden.values())


def nothing(fields, *names):
    for s in names:
        fields = missing(fields, s, slice(0, SIZE), slice(0, SIZE))
    return fields


@pytest.mark.journey
@pytest.mark.parametrize(
    "normalize, names, drop_sensor",
    [
        ("none", ("s1",), 0.0),
        ("patch", ("s1", "s2"), 1.0),
        ("group", ("s1",), 1.0),
        ("patch", ("s1", "s2"), 0.0),
    ],
)
def test_a_sensor_that_is_missing_in_a_whole_batch_costs_nothing(
    full, key, normalize, names, drop_sensor
):
    goal = objective(normalize=normalize, drop_sensor=drop_sensor)
    found = score(goal, nothing(full, *names), goal.draw(key, BATCH))
    assert finite(found)
    assert all(found[1][f"loss_{s}"] == 0.0 for s in names)


@pytest.mark.journey
@pytest.mark.parametrize("normalize", patches.NORMALIZATIONS)
def test_the_floor_is_of_measured_pixels_and_pictures_leave_holes(full, key, normalize):
    goal = objective(normalize=normalize)
    floor = jax.jit(goal.floor)
    weight = np.ones(BATCH, np.float32)
    fields = holes(full)
    got = floor(fields, weight)
    trees_equal(got, floor(spoilt(fields), weight))
    assert finite(got) and finite(floor(nothing(full, "s1"), weight))
    without = jax.jit(objective(False, normalize=normalize).floor)(full, weight)
    trees_equal(floor(full, weight), without, rtol=1e-3)
    outcome = redraw(goal, fields, goal.draw_fixed(key, np.arange(BATCH)))
    seen = see(fields)
    for s, drawn in jax.jit(goal.pictures)(outcome).items():
        for name in ("target", "prediction"):
            np.testing.assert_array_equal(np.isnan(drawn[name]), np.isnan(seen[s]))


def test_the_floor_of_a_scene_without_detail_is_none_beside_holes_too(full):
    flat = holes({field: np.full_like(x, 4) for field, x in full.items()})
    goal = objective(normalize="none")
    found = jax.jit(goal.floor)(flat, np.ones(BATCH, np.float32))
    trees_equal(found, {s: 0.0 for s in found}, atol=1e-6)


def test_pairs_count_by_what_was_measured_so_that_parts_are_no_mean_of_the_whole():
    assert not objective().separable and objective(False).separable


# Features


def judged(missing=True, **changes):
    goal = objective(missing, **changes)
    return goal.encoder(), goal.encoder().init(nnx.Rngs(0))


def take(net, params, fields, sensor_set="both", **recipe):
    mesh = sharding.make_mesh()
    recipe = features.Recipe(**recipe)
    taker = features.Extractor(net, params, recipe, mesh, (sensor_set,))
    fields = sharding.to_devices(fields, mesh)
    return np.asarray(taker(fields)[sensor_set])


@pytest.mark.journey
@pytest.mark.parametrize("pool", features.POOLS)
@pytest.mark.parametrize("sensor_set", encoder.SENSOR_SETS)
def test_features_are_finite_and_blind_to_what_stands_in_holes(full, pool, sensor_set):
    net, params = judged()
    fields = holes(full)
    got = take(net, params, fields, sensor_set, pool=pool)
    np.testing.assert_array_equal(
        got, take(net, params, spoilt(fields), sensor_set, pool=pool)
    )
    assert np.isfinite(got).all()
    plain, _ = judged(False)
    np.testing.assert_allclose(
        take(net, params, full, sensor_set, pool=pool),
        take(plain, params, full, sensor_set, pool=pool),
        rtol=1e-3,
        atol=1e-4,
    )


def test_a_mean_of_tokens_is_of_those_that_are_there():
    rng = np.random.default_rng(0)
    tokens = {s: rng.normal(size=(2, 16, 8)).astype(np.float32) for s in SENSORS}
    here = {s: rng.random((2, 16)) < 0.5 for s in SENSORS}
    here["s2"][1] = False
    encoded = Encoded(tokens, np.zeros((2, 8), np.float32))
    got = jax.jit(features.pool, static_argnums=2)(encoded, here, "mean")
    apart = jax.jit(features.pool, static_argnums=2)(encoded, here, "sensors")
    for b in range(2):
        kept = [tokens[s][b][here[s][b]] for s in SENSORS]
        np.testing.assert_allclose(got[b], np.concatenate(kept).mean(0), rtol=1e-5)
        want = [x.mean(0) if len(x) else np.zeros(8) for x in kept]
        np.testing.assert_allclose(apart[b], np.concatenate(want), rtol=1e-5)


def test_views_count_by_the_tokens_behind_them(full):
    net, params = judged()
    seen = inputs.Inputs(sensors.SENSORS, SIZE, 2 * SIZE, missing=True)
    object.__setattr__(net, "inputs", seen)
    big = {k: np.tile(x, (1, 2, 2, 1)) for k, x in full.items()}
    for field, x in big.items():
        x[:, : x.shape[1] // 2] = RESERVED[field]  # two of four tiles
        x[:, :, : x.shape[1] // 4] = RESERVED[field]  # and half of one of the others
    got = take(net, params, big, view="tiles")
    recipe, mesh = features.Recipe(view="tiles"), sharding.make_mesh()
    taker = features.Extractor(net, params, recipe, mesh, ("both",))
    fields = sharding.to_devices(big, mesh)
    left, right = (
        taker.step(params, fields, None, jnp.array([0.5, x, 0.5, 0.5]))
        for x in (0.0, 0.5)
    )
    np.testing.assert_array_equal(left[1], 16)
    np.testing.assert_array_equal(right[1], 32)
    want = (np.asarray(left[0]) + 2 * np.asarray(right[0])) / 3
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "sensor_set", ["s1", "s2", pytest.param("both", marks=pytest.mark.journey)]
)
def test_a_pair_of_which_nothing_is_left_has_finite_features(full, sensor_set):
    net, params = judged()
    fields = nothing(full, *SENSORS)
    assert not take(net, params, fields, sensor_set).any()
    assert np.isfinite(take(net, params, fields, sensor_set, pool="global")).all()
    bare = encoder.Statistics(net.inputs, PATCH)
    assert not take(bare, nnx.State({}), fields, sensor_set).any()


def test_statistics_are_of_measured_pixels(full):
    bare = encoder.Statistics(judged()[0].inputs, PATCH)
    fields = holes(full)
    got, seen = take(bare, nnx.State({}), fields), see(fields)
    for b in range(BATCH):
        want = []
        for s in SENSORS:
            x = seen[s][b][~np.isnan(seen[s][b]).any(axis=-1)].astype(np.float64)
            stats = [x.mean(0), x.std(0)] if len(x) else [np.zeros(x.shape[1])] * 7
            stats += [*np.percentile(x, encoder.PERCENTILES, axis=0)] if len(x) else []
            want += stats
        np.testing.assert_allclose(got[b], np.concatenate(want), rtol=1e-3, atol=1e-4)


def test_dense_features_are_zeros_where_no_sensor_is(full):
    net, params = judged()
    fields = missing(full, "s1", slice(0, 12), slice(0, SIZE))
    fields = missing(fields, "s2", slice(6, 18), slice(0, SIZE))
    shown = see(fields)

    @jax.jit
    def maps(images, here):
        return dense_task.tokens(net, params, images, here, 1)

    both = np.asarray(maps(shown, None))
    np.testing.assert_array_equal((both == 0.0).all(axis=(0, 2, 3)), [0, 1, 0, 0])
    alone = encoder.present("s1", BATCH, sharding.make_mesh())
    alone = np.asarray(maps(shown, jax.device_get(alone)))
    np.testing.assert_array_equal((alone == 0.0).all(axis=(0, 2, 3)), [1, 1, 0, 0])
    assert np.isfinite(both).all() and np.isfinite(alone).all()
    bare = encoder.Statistics(net.inputs, PATCH)
    assert finite(dense_task.tokens(bare, nnx.State({}), shown, None, 1))


@pytest.mark.journey
def test_fine_tuning_on_holes_stays_finite_and_blind_to_what_stands_in_them(full, key):
    net, params = judged()
    recipe = finetune.Recipe(2, BATCH, 1e-3, warmup_epochs=0, mixup=0.8)
    mesh = sharding.make_mesh()
    goal = classifier.Labels(net, recipe, "labels", 3, single=False)
    tuner = finetune.Finetuner(goal, params, mesh)

    def step(fields):
        labels = np.eye(BATCH, 3, dtype=np.uint8)
        fields = sharding.to_devices(dict(fields, labels=labels), mesh)
        state = tuner._init(params, key)
        state, loss = tuner.step(state, key, None, fields, np.float32(1e-3))
        return jax.device_get((state.params, loss))

    fields = nothing(holes(full), "s2")
    got = step(fields)
    assert finite(got)
    trees_equal(got, step(spoilt(fields)))


# Pictures, and what a reconstruction is held against


def test_missing_pixels_have_a_colour_of_their_own_in_every_panel():
    rng, images = np.random.default_rng(0), {}
    for s, sensor in sensors.SENSORS.items():
        image = rng.normal(1000.0, 200.0, (8, 8, len(sensor.bands)))
        hole = image.copy()
        hole[:2] = np.nan
        hidden = np.zeros((8, 8), bool)
        hidden[:4] = True
        images[s] = dict(scene=hole, target=hole, prediction=hole, hidden=hidden)
    sample = dict(name="pair", box=WHOLE) | images
    fig = figures.reconstruction_figure([sample], sensors.SENSORS, note="")
    for i, ax in enumerate(fig.axes):
        drawn = np.asarray(ax.images[0].get_array())
        own = (drawn == PINK).all(axis=-1)
        assert own[:2].all() and not own[2:].any()
        if figures.COLUMNS[i % 4] == "masked":
            np.testing.assert_array_equal(drawn[2:4], figures.GREY)
    for image in images.values():  # a scene of which nothing is left
        for name in ("scene", "target", "prediction"):
            image[name] = np.full_like(image[name], np.nan)
    fig = figures.reconstruction_figure([sample], sensors.SENSORS, note="")
    drawn = np.asarray(fig.axes[3].images[0].get_array())
    np.testing.assert_array_equal(drawn, np.broadcast_to(PINK, drawn.shape))


@pytest.mark.parametrize("predict", reconstruct.PREDICTORS.values())
def test_simple_predictors_fill_from_measured_pixels_alone(predict):
    rng = np.random.default_rng(0)
    seen, hidden = rng.normal(size=(9, 8)).astype(np.float32), np.arange(9) == 4
    seen[1] = np.nan  # a neighbour
    seen[3, :2] = np.nan  # both bands of a pixel of another
    filled = predict(seen, hidden, 2)[hidden].reshape(4, 2)
    assert np.isfinite(filled).all()
    known = seen[~hidden].reshape(-1, 2)
    known = known[~np.isnan(known).any(axis=1)]
    assert (known.min(0) <= filled).all() and (filled <= known.max(0)).all()
    if predict is reconstruct.visible_mean:
        np.testing.assert_allclose(filled, np.tile(known.mean(0), (4, 1)), rtol=1e-5)
    nothing = predict(np.where(hidden[:, None], seen, np.nan), hidden, 2)
    np.testing.assert_array_equal(nothing[hidden], 0.0)


def test_errors_of_reconstructions_are_of_measured_pixels(full, key):
    goal = objective(normalize="none")
    outcome = redraw(goal, holes(full), goal.draw_fixed(key, np.arange(BATCH)))
    found = reconstruct.compare(outcome, goal)
    assert finite(found)
    for s, pairs in (("s1", BATCH), ("s2", BATCH - 1)):
        assert {len(by_sensor[s]) for by_sensor in found.values()} == {pairs}
    # Of one pair what is asked for is known.
    outcome.hidden["s1"] = outcome.hidden["s1"] * (np.arange(BATCH) == 0)[:, None]
    want = plain_error(goal, outcome, "s1")
    np.testing.assert_allclose(found["Fus-MAE"]["s1"][0], want, rtol=1e-4)


# From end to end


@pytest.fixture
def holed(monkeypatch):
    """Procedural scenes with holes; a third lack a whole sensor, some of them both."""
    whole = synthetic.Scenes.__getitem__

    def with_holes(self, index):
        pair = whole(self, index)
        lacking = {1: ("s2",), 2: SENSORS}.get(index % 6, ())
        for grid in GRIDS.grids:
            if grid.field in pair:
                x = pair[grid.field]
                rows = slice(None) if grid.sensor in lacking else slice(len(x) // 4)
                x[rows] = RESERVED[grid.field]
        return pair

    monkeypatch.setattr(synthetic.Scenes, "__getitem__", with_holes)
    monkeypatch.setattr(sources, "has_missing", lambda data: True)


@pytest.mark.journey
def test_a_run_on_pairs_with_holes_trains_judges_and_draws(holed, tmp_path):
    config = tiny.config()
    config.epochs, config.mask.drop_sensor = 1, 0.25
    config.judge.update(every=1, train_pairs=20, eval_pairs=16)
    state = pretrain.run(config, tmp_path)
    assert finite(state.params) and int(state.skipped) == 0
    rows = metrics.read_metrics(tmp_path)
    numbers = {k: v for row in rows for k, v in row.items() if "loss" in k}
    assert {"loss_s1", "eval_loss_s2"} <= numbers.keys()
    assert None not in numbers.values() and any("probe_both" in row for row in rows)
    assert all(row.get("invalid_pixels", 0) == 0 for row in rows)
    found = json.loads((tmp_path / "scores.json").read_text())
    assert finite(found["mean_squared_error"])
    drawn = image.imread(tmp_path / "figures" / "reconstruction.png")[..., :3]
    assert (np.abs(drawn - PINK).max(axis=-1) < 0.01).mean() > 0.02


@pytest.mark.journey
def test_every_task_has_scores_of_pairs_with_holes(holed, tmp_path_factory):
    trained = judging.trained(tmp_path_factory)
    methods = ("knn", "probe", "retrieval", "dense", "finetune")
    config = judging.config(trained, methods=methods, sensors=("s1",))
    config.data.count = 40
    config.dense.update(epochs=1, batch_size=16)
    config.finetune.update(epochs=1, batch_size=16, warmup_epochs=0)
    rows = evaluate.run(config, tmp_path_factory.mktemp("missing") / "out")
    assert {row.task for row in rows} == {*methods}
    for row in rows:
        assert finite([score.value for score in row.scores.overall.values()])


@pytest.fixture(scope="module", params=SENSORS)
def alone(request, tmp_path_factory):
    """A sensor, and a folder of pairs that hold nothing of the other."""
    folder, other = tmp_path_factory.mktemp("alone"), datasets.description()
    kept = {request.param: other.sensors[request.param]}
    described = dataclasses.replace(
        other, sensors=kept, layout=layout.native(other.layout.size, kept)
    )
    for split, count in (("train", 16), ("validation", 8), ("test", 8)):
        datasets.write(
            folder / split, (count,), split=split, prefix=split, described=described
        )
    return request.param, folder


@pytest.mark.journey
def test_pairs_of_one_sensor_train_are_judged_and_drawn(alone, tmp_path, lines):
    name, folder = alone
    (other,) = set(SENSORS) - {name}
    config = tiny.config()
    config.epochs, config.batch_size, config.eval_pairs = 1, 8, 8
    config.data.update(source="records", dir=str(folder / "train"))
    config.data.update(eval_dir=str(folder / "validation"))
    config.judge.update(every=1, train_pairs=16, eval_pairs=8)
    run = tmp_path / "run"
    state = pretrain.run(config, run)
    assert finite(state.params) and int(state.skipped) == 0
    rows = metrics.read_metrics(run)
    losses = [row for row in rows if "loss" in row]
    assert all(row[f"loss_{other}"] == 0.0 < row[f"loss_{name}"] for row in losses)
    judged = {key for row in rows for key in row if key.startswith(("knn", "probe"))}
    assert judged == {f"knn_{name}", f"probe_{name}"}
    error = json.loads((run / "scores.json").read_text())["mean_squared_error"]
    assert all(row[other] is None and row[name] > 0.0 for row in error.values())
    assert sum("Statistics that normalise" in line for line in lines) == 1
