"""Views: registered crops and turns, resampled as GDAL does, normalised per band."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from data_pipeline import layout
from data_pipeline import sensors
from data_pipeline.errors import InputError
from fusmae_jax import views

pytestmark = pytest.mark.usefixtures("optimized")  # the last digits count

TURNS = np.array(np.unravel_index(range(8), (2, 2, 2))).T.astype(bool)
WHOLE = (0.0, 0.0, 1.0, 1.0)
see = jax.jit(views.see, static_argnames=("sensor", "size", "method"))


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
    out = views.resample(image[None, :, :, None], jnp.array([box]), size, method)
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
    box = views.draw_views(key, 16).box
    view = views.View(box, jnp.array(np.tile(TURNS, (2, 1))))
    fields = ground(axis, scene)
    place = (np.arange(size) + 0.5) / size
    for sensor in sensors.SENSORS.values():
        images = see(fields, view, sensor, size=size, method=method)
        images = np.asarray(views.native_units(images, sensor))
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
                # 2 cm; pixels this far from their mean are good to 1 cm in float32.
                np.testing.assert_allclose(
                    image[inside, i], want[inside], rtol=0, atol=2e-3
                )


@pytest.mark.parametrize("method", views.RESAMPLING)
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


@pytest.mark.parametrize("method", views.RESAMPLING)
def test_the_middle_112_of_120_pixels_come_through_untouched(method):
    image = np.random.default_rng(0).normal(size=(120, 120)).astype(np.float32)
    box = np.asarray(views.fixed_view(1, views.center_box(112, 120)).box)[0]
    got = resample(image, box, 112, method)
    # Equal to the last bit where this was written; 1/30 is not a round number.
    np.testing.assert_allclose(got, image[4:116, 4:116], rtol=0, atol=1e-5)


def test_a_whole_scene_at_its_own_size_comes_through_untouched():
    image = np.random.default_rng(0).normal(size=(24, 24)).astype(np.float32)
    np.testing.assert_array_equal(resample(image, WHOLE, 24), image)


def test_eight_turns_are_the_eight_symmetries_of_a_square():
    image = np.arange(9.0).reshape(3, 3)
    images = jnp.tile(jnp.array(image)[None, :, :, None], (8, 1, 1, 1))
    got = np.asarray(views.turn_images(images, jnp.array(TURNS)))[..., 0]
    for one, turn in zip(got, TURNS):
        np.testing.assert_array_equal(one, turned(image, turn))
    symmetries = [np.rot90(x, k) for x in (image, image.T) for k in range(4)]
    assert {x.tobytes() for x in got} == {
        x.astype(np.float32).tobytes() for x in symmetries
    }


def test_boxes_lie_in_the_scene_with_the_area_and_shape_asked_for(key):
    view = views.draw_views(key, 4096, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3))
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
    box = np.asarray(views.draw_views(key, 20_000, scale=scale).box)
    got = box[:, 2] * box[:, 3], box[:, 3] / box[:, 2]
    assert got[0].min() >= scale[0] - 1e-6
    want = rejected_until_they_fit(scale, (3 / 4, 4 / 3), 20_000)
    for found, wanted in zip(got, want):
        # The few that never fit become squares: less than a hundredth.
        assert stats.ks_2samp(found, wanted).statistic < 0.02


@pytest.mark.parametrize("ratio, shape", [((3 / 4, 4 / 3), 1.0), ((1.5, 2.0), 1.5)])
def test_where_nothing_else_fits_the_crop_is_the_squarest(key, ratio, shape):
    most = 1 / shape
    box = views.draw_views(key, 16, scale=(most - 1e-6, most), ratio=ratio).box
    np.testing.assert_allclose(box[:, 2:], [[1 / shape, 1.0]] * 16, atol=1e-5)


def test_crops_reach_every_corner(key):
    top, left, height, width = np.asarray(views.draw_views(key, 4096).box).T
    for before, after in ((top, 1 - top - height), (left, 1 - left - width)):
        assert abs((before - after).mean()) < 0.01  # over 3 standard errors


def test_a_scale_and_ratio_of_one_see_the_whole_scene(key):
    view = views.draw_views(key, 4, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    np.testing.assert_allclose(view.box, np.tile(WHOLE, (4, 1)), atol=1e-6)


def test_a_view_depends_on_its_place_and_not_on_the_batch(key):
    few, many = views.draw_views(key, 3), views.draw_views(key, 8)
    np.testing.assert_array_equal(few.box, many.box[:3])
    np.testing.assert_array_equal(few.turn, many.turn[:3])


def test_samples_get_views_of_their_own(key):
    view = views.draw_views(key, 128)
    assert len(np.unique(view.box, axis=0)) == 128
    assert len(np.unique(view.turn, axis=0)) == 8


def test_turning_can_be_switched_off(key):
    assert not views.draw_views(key, 128, turn=False).turn.any()


def test_chosen_bands_are_columns_of_all_bands_in_the_order_chosen(key):
    fields, view = noise_fields(), views.draw_views(key, 2)
    every = see(fields, view, sensors.S2, size=12)
    names = ("B8A", "B04", "B01", "B05")
    some = see(fields, view, sensors.S2.select(names), size=12)
    columns = [sensors.S2.band_names.index(name) for name in names]
    np.testing.assert_allclose(some, every[..., columns], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_pixel_becomes_the_mean_of_its_band_and_spreads_nowhere(bad):
    fields, view = noise_fields(), views.fixed_view(2, WHOLE)
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
    assert views.invalid_pixels(fields) == 1 + 6


@pytest.mark.parametrize("sensor", sensors.SENSORS.values(), ids=lambda s: s.name)
def test_native_units_undo_the_normalisation(sensor):
    fields = noise_fields()
    images = see(fields, views.fixed_view(2, WHOLE), sensor, size=12)
    back = views.native_units(images, sensor)
    finest = sensor.grids[0]
    columns = [sensor.band_names.index(name) for name in finest.bands]
    np.testing.assert_allclose(back[..., columns], fields[finest.field], rtol=1e-4)


def test_normalised_bands_have_the_contracts_mean_at_zero_and_deviation_at_one():
    sensor = sensors.S1
    pixels = np.array([[b.mean, b.mean + b.std] for b in sensor.bands], np.float32)
    field = np.broadcast_to(pixels.T[:, None, None], (2, 12, 12, 2))
    images = see({"s1_10m": field}, views.fixed_view(2, WHOLE), sensor, size=12)
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
        views.draw_views(key, 1, **change)


def test_an_unknown_resampling_is_refused():
    with pytest.raises(InputError, match="'nearest'.*linear.*cubic"):
        resample(np.zeros((2, 2), np.float32), WHOLE, 2, "nearest")
