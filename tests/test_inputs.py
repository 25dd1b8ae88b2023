"""Inputs: registered crops and turns, resampled as GDAL does, normalised per band."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from data_pipeline import layout, sensors
from data_pipeline.errors import InputError
from fusmae_jax import inputs
from fusmae_jax.inputs import Inputs

TURNS = np.array(np.unravel_index(range(8), (2, 2, 2))).T.astype(bool)
WHOLE = (0.0, 0.0, 1.0, 1.0)


@functools.partial(jax.jit, static_argnames=("sensor", "size", "method"))
def see(fields, view, sensor, *, size, method="linear"):
    """Images of one sensor."""
    seen = Inputs({sensor.name: sensor}, size, size, resampling=method)
    return seen.images(fields, view)[sensor.name]


def ground(axis, scene=48, batch=16):
    """Fields whose pixels say where their centre lies, in 10 m pixels along `axis`."""
    fields = {}
    for name, (side, _, bands) in layout.native(scene, sensors.SENSORS).shapes.items():
        place = (np.arange(side, dtype=np.float32) + 0.5) * (scene / side)
        place = place.reshape((1, -1, 1, 1) if axis == 0 else (1, 1, -1, 1))
        fields[name] = np.broadcast_to(place, (batch, side, side, bands))
    return fields


def noise_fields(scene=12, batch=2):
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(100.0, 10.0, (batch, *shape)).astype(np.float32)
        for name, shape in layout.native(scene, sensors.SENSORS).shapes.items()
    }


def turned(image, turn):
    rows, columns, transpose = turn
    image = image[::-1] if rows else image
    image = image[:, ::-1] if columns else image
    return image.T if transpose else image


def resample(image, box, size, method="linear"):
    out = inputs.resample(image[None, :, :, None], jnp.array([box]), size, method)
    return np.asarray(out)[0, :, :, 0]


def gdal(image, box, size, method):
    rasterio = pytest.importorskip("rasterio")
    kernel = {"linear": "bilinear", "cubic": "cubic"}[method]
    height, width = image.shape
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            height=height,
            width=width,
            count=1,
            dtype="float32",
            transform=rasterio.Affine(1, 0, 0, 0, -1, height),
        ) as file:
            file.write(image, 1)
        top, left, tall, wide = np.array(box) * (height, width, height, width)
        with memory.open() as file:
            return file.read(
                1,
                window=rasterio.windows.Window(left, top, wide, tall),
                out_shape=(size, size),
                resampling=rasterio.enums.Resampling[kernel],
            )


@pytest.mark.parametrize("method, reach", [("linear", 0.5), ("cubic", 1.5)])
@pytest.mark.parametrize("axis", [0, 1])
def test_every_band_of_both_sensors_shows_the_same_ground(key, axis, method, reach):
    scene = size = 48
    box = inputs.draw_views(key, 16).box
    view = inputs.View(box, jnp.array(np.tile(TURNS, (2, 1))))
    fields = ground(axis, scene)
    place = (np.arange(size) + 0.5) / size
    for sensor in sensors.SENSORS.values():
        images = see(fields, view, sensor, size=size, method=method)
        images = np.asarray(inputs.native_units(images, sensor))
        for image, corner, turn in zip(images, np.asarray(box), view.turn):
            want = scene * (corner[axis] + corner[2 + axis] * place)
            want = np.repeat(want[:, None], size, axis=1)
            want = turned(want if axis == 0 else want.T, turn)
            for i, band in enumerate(sensor.bands):
                # Nearer to the scene's edge a kernel misses some of its pixels, and
                # no method can know how the ramp goes on.
                edge = reach * band.gsd / sensors.FINEST_GSD
                inside = (want >= edge) & (want <= scene - edge)
                assert inside.sum() > size
                # 5 cm; pixels this far from their mean are good to 1 cm in float32,
                # and weights whose sum is 2e-6 off, as with jax 0.12, to 4 cm.
                np.testing.assert_allclose(
                    image[inside, i], want[inside], rtol=0, atol=5e-3
                )


@pytest.mark.journey
@pytest.mark.parametrize("method", inputs.RESAMPLING)
@pytest.mark.parametrize(
    "side, box, size",
    [
        (20, WHOLE, 120),
        (60, WHOLE, 120),
        (120, WHOLE, 112),
        (120, WHOLE, 40),
        (20, (0.1, 0.2, 0.55, 0.7), 112),
        (60, (0.1, 0.2, 0.55, 0.7), 112),
        (120, (0.1, 0.2, 0.55, 0.7), 112),
    ],
)
def test_resampling_equals_gdal(side, box, size, method):
    image = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    got, want = resample(image, box, size, method), gdal(image, box, size, method)
    # At pixel 120 a float32 position is good to 1e-5 of a pixel; 4e-5 is measured,
    # edges included. A shift by a hundredth of a pixel would be 1e-2.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", inputs.RESAMPLING)
def test_the_middle_112_of_120_pixels_come_through_untouched(method):
    image = np.random.default_rng(0).normal(size=(120, 120)).astype(np.float32)
    box = np.asarray(inputs.fixed_view(1, Inputs({}, 112, 120).center).box)[0]
    got = resample(image, box, 112, method)
    # Equal to the last bit where this was written; 1/30 is not a round number.
    np.testing.assert_allclose(got, image[4:116, 4:116], rtol=0, atol=1e-5)


def test_a_whole_scene_at_its_own_size_comes_through_untouched():
    image = np.random.default_rng(0).normal(size=(24, 24)).astype(np.float32)
    np.testing.assert_array_equal(resample(image, WHOLE, 24), image)


def test_eight_turns_are_the_eight_symmetries_of_a_square():
    image = np.arange(9.0).reshape(3, 3)
    images = jnp.tile(jnp.array(image)[None, :, :, None], (8, 1, 1, 1))
    got = np.asarray(inputs.turn_images(images, jnp.array(TURNS)))[..., 0]
    for one, turn in zip(got, TURNS):
        np.testing.assert_array_equal(one, turned(image, turn))
    symmetries = [np.rot90(x, k) for x in (image, image.T) for k in range(4)]
    assert {x.tobytes() for x in got} == {
        x.astype(np.float32).tobytes() for x in symmetries
    }


def test_boxes_lie_in_the_scene_with_the_area_and_shape_asked_for(key):
    view = inputs.draw_views(key, 4096, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3))
    top, left, height, width = np.asarray(view.box).T
    assert min(top.min(), left.min()) >= 0.0
    assert max((top + height).max(), (left + width).max()) <= 1.0 + 1e-6
    area, ratio = height * width, width / height
    assert 0.2 - 1e-6 <= area.min() < 0.21 and 0.97 < area.max() <= 1.0
    assert 0.75 - 1e-6 <= ratio.min() < 0.76 and 1.32 < ratio.max() <= 4 / 3 + 1e-5


def rejected_until_they_fit(scale, ratio, count):
    """Areas and shapes by the loop over samples that everybody writes."""
    rng, kept = np.random.default_rng(0), []
    while len(kept) < count:
        area, aspect = rng.uniform(*scale), np.exp(rng.uniform(*np.log(ratio)))
        if max(area * aspect, area / aspect) <= 1.0:
            kept.append((area, aspect))
    return np.array(kept).T


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.8, 1.0)])
def test_areas_and_shapes_are_drawn_together_until_they_fit(key, scale):
    box = np.asarray(inputs.draw_views(key, 20_000, scale=scale).box)
    got = box[:, 2] * box[:, 3], box[:, 3] / box[:, 2]
    assert got[0].min() >= scale[0] - 1e-6
    want = rejected_until_they_fit(scale, (3 / 4, 4 / 3), 20_000)
    for found, wanted in zip(got, want):
        # The few that never fit become squares: less than a hundredth.
        assert stats.ks_2samp(found, wanted).statistic < 0.02


@pytest.mark.parametrize("ratio, shape", [((3 / 4, 4 / 3), 1.0), ((1.5, 2.0), 1.5)])
def test_where_nothing_else_fits_the_crop_is_the_squarest(key, ratio, shape):
    most = 1 / shape
    box = inputs.draw_views(key, 16, scale=(most - 1e-6, most), ratio=ratio).box
    np.testing.assert_allclose(box[:, 2:], [[1 / shape, 1.0]] * 16, atol=1e-5)


def test_crops_reach_every_corner(key):
    top, left, height, width = np.asarray(inputs.draw_views(key, 4096).box).T
    for before, after in ((top, 1 - top - height), (left, 1 - left - width)):
        assert abs((before - after).mean()) < 0.01  # over 3 standard errors


def test_a_scale_and_ratio_of_one_see_the_whole_scene(key):
    view = inputs.draw_views(key, 4, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    np.testing.assert_allclose(view.box, np.tile(WHOLE, (4, 1)), atol=1e-6)


def test_a_view_depends_on_its_place_and_not_on_the_batch(key):
    few, many = inputs.draw_views(key, 3), inputs.draw_views(key, 8)
    np.testing.assert_array_equal(few.box, many.box[:3])
    np.testing.assert_array_equal(few.turn, many.turn[:3])


def test_samples_get_views_of_their_own(key):
    view = inputs.draw_views(key, 128)
    assert len(np.unique(view.box, axis=0)) == 128
    assert len(np.unique(view.turn, axis=0)) == 8


def test_turning_can_be_switched_off(key):
    assert not inputs.draw_views(key, 128, turn=False).turn.any()


def test_chosen_bands_are_columns_of_all_bands_in_the_order_chosen(key):
    fields, view = noise_fields(), inputs.draw_views(key, 2)
    every = see(fields, view, sensors.S2, size=12)
    names = ("B8A", "B04", "B01", "B05")
    some = see(fields, view, sensors.S2.select(names), size=12)
    columns = [sensors.S2.band_names.index(name) for name in names]
    np.testing.assert_allclose(some, every[..., columns], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_pixel_becomes_the_mean_of_its_band_and_spreads_nowhere(bad):
    fields, view = noise_fields(), inputs.fixed_view(2, WHOLE)
    clean = np.asarray(see(fields, view, sensors.S1, size=12)).copy()
    fields["s1_10m"][1, 3, 4, 0] = bad
    got = see(fields, view, sensors.S1, size=12)
    clean[1, 3, 4, 0] = 0.0
    np.testing.assert_array_equal(got, clean)


def test_bad_pixels_are_counted_in_every_field_of_floats():
    fields = noise_fields()
    fields["s1_10m"][0, 0, 0, 0] = np.nan
    fields["s2_20m"][1, 1, :, 2] = np.inf
    fields["s2_10m"] = fields["s2_10m"].astype(np.uint16)
    fields = {name: jnp.array(x) for name, x in fields.items()}
    assert inputs.invalid_pixels(fields) == 1 + 6


@pytest.mark.parametrize("sensor", sensors.SENSORS.values(), ids=lambda s: s.name)
def test_native_units_undo_the_normalisation(sensor):
    fields = noise_fields()
    images = see(fields, inputs.fixed_view(2, WHOLE), sensor, size=12)
    back = inputs.native_units(images, sensor)
    finest = sensor.grids[0]
    columns = [sensor.band_names.index(name) for name in finest.bands]
    np.testing.assert_allclose(back[..., columns], fields[finest.field], rtol=1e-4)


def test_normalised_bands_have_the_contracts_mean_at_zero_and_deviation_at_one():
    sensor = sensors.S1
    pixels = np.array([[b.mean, b.mean + b.std] for b in sensor.bands], np.float32)
    field = np.broadcast_to(pixels.T[:, None, None], (2, 12, 12, 2))
    images = see({"s1_10m": field}, inputs.fixed_view(2, WHOLE), sensor, size=12)
    np.testing.assert_allclose(images[0], 0.0, atol=1e-6)
    np.testing.assert_allclose(images[1], 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    "change, numbers",
    [
        (dict(scale=(0.0, 1.0)), r"\(0.0, 1.0\)"),
        (dict(scale=(0.2, 1.5)), r"\(0.2, 1.5\)"),
        (dict(scale=(0.8, 0.2)), r"\(0.8, 0.2\)"),
        (dict(ratio=(0.0, 1.0)), r"\(0.0, 1.0\)"),
        (dict(ratio=(1.5, 0.5)), r"\(1.5, 0.5\)"),
        (dict(scale=(0.6, 1.0), ratio=(2.0, 3.0)), "No crop of 0.6 .* at most 0.5"),
    ],
)
def test_impossible_crops_are_refused_with_their_numbers(key, change, numbers):
    with pytest.raises(InputError, match=numbers):
        inputs.draw_views(key, 1, **change)


def test_an_unknown_resampling_is_refused():
    with pytest.raises(InputError, match="'nearest'.*linear.*cubic"):
        resample(np.zeros((2, 2), np.float32), WHOLE, 2, "nearest")


def test_labels_stay_under_their_pixels_at_every_place_and_turn():
    size, side = 36, 24
    truth = np.arange(size**2, dtype=np.int32).reshape(1, size, size)
    places = itertools.product(range(size - side + 1), repeat=2)
    turns = list(itertools.product([False, True], repeat=3))
    found = [(corner, turn) for corner in places for turn in turns]
    corner, turn = (jnp.array(x) for x in zip(*found))
    windows = inputs.Windows(corner, turn)
    s1 = sensors.S1.select(("VV",))
    s1 = dataclasses.replace(
        s1, bands=[dataclasses.replace(s1.bands[0], mean=0.0, std=1.0)]
    )
    fields = {
        f: truth[..., None]
        for f in layout.native(size, sensors.SENSORS).fields({"s1": s1})
    }
    assert len(fields) == 1
    truth = jnp.broadcast_to(truth, (len(turn), size, size))
    fields = {f: jnp.broadcast_to(x, (*truth.shape, 1)) for f, x in fields.items()}
    grids = {"s1": (sensors.Grid("s1", 10, ("VV",)),)}
    seen = Inputs({"s1": s1}, side, size, grids)
    images = jax.jit(seen.images)(fields, seen.window_view(windows))
    labels = seen.cut(truth, windows)
    np.testing.assert_array_equal(jnp.rint(images["s1"][..., 0]), labels)
    # A crop by hand, of the one that is not turned.
    np.testing.assert_array_equal(labels[8 * 13], truth[0, 1:25, :24])


def test_windows_are_drawn_from_all_places_and_turns(key):
    drawn = Inputs({}, 24, 27).draw_windows(key, 2000)
    corners = {*map(tuple, drawn.corner.tolist())}
    assert corners == {*itertools.product(range(4), range(4))}
    assert len({*map(tuple, drawn.turn.tolist())}) == 8
    alone = Inputs({}, 24, 24).draw_windows(key, 5)
    assert not alone.corner.any()


@pytest.mark.parametrize("size", [12, 24, 36, 42, 60])
def test_tiles_leave_no_pixel_of_a_scene_out(size):
    side = min(24, size)
    seen = np.zeros((size, size), int)
    for y, x in Inputs({}, 24, size).corners():
        assert 0 <= min(y, x) and max(y, x) + side <= size
        seen[y : y + side, x : x + side] += 1
    assert seen.min() == 1


def test_boxes_cover_a_scene_pixel_by_pixel():
    assert Inputs({}, 24, 60).boxes("whole") == [(0.0, 0.0, 1.0, 1.0)]
    assert Inputs({}, 24, 60).boxes("center") == [(0.3, 0.3, 0.4, 0.4)]
    for image, scene in ((24, 60), (112, 120), (24, 48), (24, 24), (48, 24), (7, 20)):
        seen = np.zeros((scene, scene), bool)
        boxes = Inputs({}, image, scene).boxes("tiles")
        for top, left, height, width in boxes:
            edges = np.array([top, left, top + height, left + width]) * scene
            np.testing.assert_allclose(edges, edges.round(), atol=1e-9)
            a, b, c, d = edges.round().astype(int)
            assert c - a == d - b == min(image, scene)
            seen[a:c, b:d] = True
        assert seen.all() and len(boxes) == max(1, -(-scene // image)) ** 2
    with pytest.raises(InputError, match="features.view is 'corner'"):
        Inputs({}, 24, 60).boxes("corner")
