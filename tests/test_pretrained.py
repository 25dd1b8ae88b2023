"""A pretrained encoder takes arrays of any number, size, bands and sensors."""

import doctest

import jax
import numpy as np
import pytest

from data_pipeline import sensors
from data_pipeline.errors import InputError
from fusmae_jax import inputs, pretrained, windows
from fusmae_jax.evaluation import features
from tests import judging

SIZE, PATCH = 24, 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return judging.trained(tmp_path_factory)


@pytest.fixture(scope="module")
def model(run):
    return pretrained.load(run, batch_size=8)


def images(count=3, height=SIZE, width=SIZE, seed=0) -> dict[str, np.ndarray]:
    """Pixels in dB and DN, [B, H, W, C]."""
    rng = np.random.default_rng(seed)
    s1 = rng.normal((-12.0, -19.0), 3.0, (count, height, width, 2))
    s2 = rng.integers(100, 6000, (count, height, width, 12))
    return {"s1": s1.astype(np.float32), "s2": s2.astype(np.uint16)}


def same(found, expected, atol=2e-5):
    """Features are alike, and unknown in the same places."""
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("there", [("s1", "s2"), ("s1",), ("s2",)])
def test_features_are_what_the_encoder_says_of_such_images(model, there):
    given = images()
    found = model.encode(**{s: given[s] for s in there})

    shown = {s: pretrained.normalized(x, model.contract[s]) for s, x in given.items()}
    present = {s: np.full(3, s in there) for s in given}
    say = jax.jit(model.encoder.__call__)
    encoded = say(model.params, shown, None if len(there) == 2 else present)
    pooled = features.pool(encoded, present, "mean")
    np.testing.assert_allclose(found.pooled, pooled, atol=2e-5)
    np.testing.assert_allclose(found.summary, encoded.summary, atol=2e-5)
    for s in given:
        if s in there:
            tokens = np.reshape(encoded.tokens[s], (3, 4, 4, -1))
            np.testing.assert_allclose(found.sensors[s], tokens, atol=2e-5)
            mean = encoded.tokens[s].mean(axis=1)
            np.testing.assert_allclose(found.pooled_sensor(s), mean, atol=2e-5)
        else:
            assert np.isnan(found.sensors[s]).all()
    dense = np.nanmean([found.sensors[s] for s in there], axis=0)
    np.testing.assert_allclose(found.dense, dense, atol=2e-5)
    assert found.pooled.dtype == found.dense.dtype == np.float32


def test_a_single_image_has_no_batch_axis(model):
    given = images(1)
    found = model.encode(given["s1"][0], given["s2"][0])
    same(found, jax.tree.map(lambda x: x[0], model.encode(**given)))
    assert found.dense.shape == (4, 4, model.width)


def test_images_that_lack_different_sensors_are_as_if_encoded_alone(model):
    given = images(4)
    mixed = {s: x.astype(np.float32) for s, x in given.items()}
    mixed["s1"][1], mixed["s2"][2] = np.nan, np.nan
    mixed["s1"][3], mixed["s2"][3] = np.nan, np.nan
    found = model.encode(**mixed)
    alone = (("s1", "s2"), ("s2",), ("s1",))
    for i, there in enumerate(alone):
        expected = model.encode(**{s: given[s][i] for s in there})
        same(jax.tree.map(lambda x, i=i: x[i], found), expected)
    assert np.isnan(found.pooled[3]).all() and np.isnan(found.summary[3]).all()


def test_missing_pixels_are_not_seen_however_they_are_marked(model):
    given = images()
    given["s2"][:, :PATCH] = 0  # which is how Sentinel-2 says it
    found = model.encode(**given)
    assert np.isnan(found.sensors["s2"][:, 0]).all()
    assert not np.isnan(found.dense).any()  # radar was measured there
    marked = given["s2"].astype(np.float32)
    marked[:, :PATCH, :, 3] = np.nan  # one band is enough
    same(model.encode(given["s1"], marked), found)
    masked = np.ma.masked_array(given["s2"], given["s2"] == 0)
    masked.data[:, :PATCH] = 65000
    same(model.encode(given["s1"], masked), found)


def test_bands_go_by_name(model):
    given, names = images(), sensors.S2.band_names
    order = np.random.default_rng(0).permutation(12)
    found = model.encode(
        given["s1"][..., ::-1],
        given["s2"][..., order],
        bands={"s1": ("vh", "vv"), "s2": [names[i] for i in order]},
    )
    same(found, model.encode(**given))


def test_absent_bands_count_as_the_mean_and_others_are_overlooked(model):
    given = images()
    chosen = ("B04", "B03", "B02", "B10")
    at = [sensors.S2.band_names.index(name) for name in chosen[:3]]
    some = np.concatenate([given["s2"][..., at], given["s2"][..., :1]], axis=-1)
    found = model.encode(s2=some, bands={"s2": chosen})
    means = np.array([band.mean for band in model.contract["s2"].bands])
    filled = np.broadcast_to(means, given["s2"].shape).astype(np.float32)
    filled[..., at] = given["s2"][..., at]
    same(found, model.encode(s2=filled))


def test_units_are_converted(model):
    given = images()
    linear = 10 ** (given["s1"] / 10)
    reflectance = given["s2"] / 10000
    expected = model.encode(**given)
    units = {"s1": "linear", "s2": "reflectance"}
    same(model.encode(linear, reflectance, units=units), expected, 1e-4)
    units = {"s1": "amplitude"}
    same(model.encode(linear**0.5, given["s2"], units=units), expected, 1e-4)
    offset = given["s2"] + 1000
    same(model.encode(given["s1"], offset, offset=1000), expected)
    with pytest.warns(UserWarning, match="No DN .* pass offset=1000"):
        model.encode(given["s1"], offset)


def test_small_images_are_filled_up_with_missing_pixels(model):
    given = images(2, 2 * PATCH, 3 * PATCH)
    found = model.encode(**given)
    assert found.dense.shape == (2, 2, 3, model.width)
    whole = {s: np.full((2, SIZE, SIZE, x.shape[-1]), np.nan) for s, x in given.items()}
    for s, x in given.items():
        whole[s][:, : 2 * PATCH, : 3 * PATCH] = x
    expected = model.encode(**whole)
    np.testing.assert_allclose(found.dense, expected.dense[:, :2, :3], atol=2e-5)
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=2e-5)


def test_large_images_are_covered_by_windows(model):
    given = images(2, 2 * SIZE, SIZE)
    found = model.encode(**given, stride=SIZE // PATCH)  # side by side
    parts = [
        model.encode(**{s: x[:, row : row + SIZE] for s, x in given.items()})
        for row in (0, SIZE)
    ]
    dense = np.concatenate([part.dense for part in parts], axis=1)
    np.testing.assert_allclose(found.dense, dense, atol=2e-5)
    pooled = np.mean([part.pooled for part in parts], axis=0)
    np.testing.assert_allclose(found.pooled, pooled, atol=2e-5)
    summary = np.mean([part.summary for part in parts], axis=0)
    np.testing.assert_allclose(found.summary, summary, atol=2e-5)


def test_what_is_near_nothing_measured_is_not_changed_by_it(model):
    """A window of which only a part was measured says nothing of the rest."""
    given = images(1, 2 * SIZE, 2 * SIZE)
    holes = {s: x.astype(np.float32) for s, x in given.items()}
    for x in holes.values():
        x[:, SIZE:] = np.nan
    found = model.encode(**holes, stride=SIZE // PATCH)
    assert np.isnan(found.dense[:, 4:]).all()
    upper = {s: x[:, :SIZE] for s, x in given.items()}
    expected = model.encode(**upper, stride=SIZE // PATCH)
    np.testing.assert_allclose(found.dense[:, :4], expected.dense, atol=2e-5)


def test_one_program_serves_any_number_and_size_of_images(model):
    model.encode(**images(1))
    before = model._step._cache_size()
    model.encode(**images(11))
    model.encode(**images(2, 3 * PATCH, 7 * PATCH))
    model.encode(s1=images(1)["s1"][0])
    assert model._step._cache_size() == before == 1


def test_a_checkpoint_and_devices_can_be_chosen(run, model):
    given = images(2)
    other = pretrained.load(run, step=2, devices=jax.devices()[:1])
    assert other.mesh.size == 1
    pairs = zip(*map(jax.tree.leaves, (other.params, model.params)))
    assert not any(np.array_equal(*pair) for pair in pairs)
    one = pretrained.load(run, devices=jax.devices()[:1], batch_size=2)
    same(one.encode(**given), model.encode(**given))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: dict(s1=None, s2=None), "Neither s1 nor s2"),
        (lambda x: dict(s1=x["s1"][:1]), "have the shapes"),
        (lambda x: dict(s1=x["s1"][0, 0], s2=None), "have the shapes"),
        (lambda x: dict(s1=x["s1"][:, 1:], s2=x["s2"][:, 1:]), "23 x 24 px are no"),
        (lambda x: dict(s1=x["s1"][:0], s2=x["s2"][:0]), "no whole number"),
        (lambda x: dict(s2=np.moveaxis(x["s2"], -1, 1), s1=None), "24 bands in its la"),
        (lambda x: dict(s2=x["s2"][..., :3]), "3 bands in its last axis, and 12"),
        (lambda x: dict(bands={"s1": ("VV", "VV")}), "2 different names"),
        (lambda x: dict(bands={"s1": ("VV", "X")}), r"has no band \['X'\]"),
        (lambda x: dict(bands={"s1": ("HH", "HV")}), "takes VV, VH of Sentinel-1"),
        (lambda x: dict(s2=None, bands={"s2": ("B02",)}), "Bands or units of 's2'"),
        (lambda x: dict(units={"s1": "dBm"}), "'dBm' is unknown"),
        (lambda x: dict(s2=x["s2"] / 1e4), "cannot be DN"),
        (lambda x: dict(offset=500), "An offset of 500"),
        (lambda x: dict(stride=9), "a stride from 1 to 4"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(model, change, message):
    given = images()
    with pytest.raises(InputError, match=message):
        model.encode(**given | change(given))


def test_the_example_does_what_it_says(model):
    (example,) = doctest.DocTestFinder().find(
        pretrained.Model.encode, "encode", globs={"model": model, "np": np}
    )
    found = doctest.DocTestRunner().run(example)
    assert found.attempted == 7 and not found.failed


@pytest.mark.parametrize("shape", [(4, 4), (1, 3), (9, 5), (21, 4)])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_every_patch_is_covered_and_a_constant_stays_one(shape, stride):
    cover = windows.Cover(shape, 4, stride)
    blend = windows.Blend(cover, 2)
    for corner in cover.corners:
        assert all(0 <= at and (at + 4 <= n or at == 0) for at, n in zip(corner, shape))
        blend.add(corner, np.full((4, 4, 2), 3.0), np.ones((4, 4), bool))
    found = blend.finish(shape[0])
    assert found.shape == (*shape, 2)
    np.testing.assert_allclose(found, 3.0, rtol=1e-6)
    assert len(set(cover.corners)) == len(cover.corners)


def test_windows_half_a_window_apart_take_over_without_a_step():
    cover = windows.Cover((20, 4), 4, 2)
    total = np.zeros(20)
    for row, _ in cover.corners:
        total[row : row + 4] += cover.weight[:, 1]
    assert np.ptp(total[2:-2]) < 1e-6


def test_normalized_undoes_native_units():
    pixels = images()["s2"].astype(np.float32)
    there = pretrained.normalized(pixels, sensors.S2)
    np.testing.assert_allclose(
        inputs.native_units(there, sensors.S2), pixels, rtol=1e-4
    )
