"""Figures: the right bands in the right colours, and files that are whole."""

import matplotlib.image
import numpy as np
import pytest

from data_pipeline import sensors
from fusmae_jax import figures


def pixels(sensor, seed=0, side=8):
    rng = np.random.default_rng(seed)
    mean, std = np.array([(b.mean, b.std) for b in sensor.bands]).T
    return rng.normal(mean, std, (side, side, len(mean))).astype(np.float32)


def sample(name="pair 7", contract=sensors.SENSORS):
    hidden = np.zeros((8, 8), bool)
    hidden[:4] = True
    images = {
        s: dict(
            scene=pixels(sensor, 0, 12),
            target=pixels(sensor, 1),
            prediction=pixels(sensor, 2),
            hidden=hidden,
        )
        for s, sensor in contract.items()
    }
    return dict(name=name, box=(0.25, 0.0, 0.5, 0.75)) | images


def shown(ax):
    return np.asarray(ax.images[0].get_array())


def test_true_colour_is_red_green_blue():
    x = np.arange(12.0).reshape(1, 1, 12)
    got = figures.true_color(x, sensors.S2)
    want = [sensors.S2.band_names.index(name) for name in ("B04", "B03", "B02")]
    np.testing.assert_array_equal(got[0, 0], want)


def test_true_colour_finds_bands_by_name():
    some = sensors.S2.select(("B02", "B08", "B04", "B03"))
    got = figures.true_color(np.arange(4.0).reshape(1, 1, 4), some)
    np.testing.assert_array_equal(got[0, 0], [2, 3, 0])


def test_false_colour_is_vv_vh_and_their_ratio():
    swapped = sensors.S1.select(("VH", "VV"))
    got = figures.false_color(np.array([[[-20.0, -12.0]]]), swapped)
    np.testing.assert_array_equal(got[0, 0], [-12.0, -20.0, 8.0])


@pytest.mark.parametrize(
    "sensor, color",
    [
        (sensors.S2.select(("B08", "B04")), figures.true_color),
        (sensors.S1.select(("VH",)), figures.false_color),
    ],
)
def test_without_the_bands_for_colour_the_first_is_grey(sensor, color):
    x = pixels(sensor)
    np.testing.assert_array_equal(color(x, sensor), x[..., :1].repeat(3, axis=-1))


def test_true_colour_is_stretched_as_another_picture_asks_and_keeps_hues():
    like = np.linspace(0.0, 1000.0, 101)[:, None, None].repeat(12, axis=-1)
    shades = np.array([[[0.0, 200.0, 400.0, 800.0] + [0.0] * 8]])
    got = figures.picture(shades, like, sensors.S2)[0, 0]
    names = sensors.S2.band_names
    blue, green, red = (shades[0, 0, names.index(b)] for b in ("B02", "B03", "B04"))
    want = (np.array([red, green, blue]) - 20.0) / 960.0  # the middle 96 percent
    np.testing.assert_allclose(got, np.clip(want, 0.0, 1.0))


def test_false_colour_has_limits_of_its_own():
    got = figures.picture(np.array([[[-10.0, -17.0]]]), None, sensors.S1)
    np.testing.assert_allclose(got[0, 0], 0.5)
    alone = figures.picture(np.array([[[-27.0]]]), None, sensors.S1.select(("VH",)))
    np.testing.assert_array_equal(alone[0, 0], 0.0)


def test_a_constant_image_can_be_drawn():
    flat = np.full((4, 4, 12), 7.0, np.float32)
    np.testing.assert_array_equal(figures.picture(flat, flat, sensors.S2), 0.0)


def test_a_reconstruction_draws_eight_panels_of_every_pair():
    fig = figures.reconstruction_figure(
        [sample("pair 7"), sample("pair 8")], sensors.SENSORS, note="a note"
    )
    assert len(fig.axes) == 16
    titles = [ax.get_title() for ax in fig.axes[:8]]
    want = [f"{s}\n{c}" for s in ("Sentinel-2", "Sentinel-1") for c in figures.COLUMNS]
    assert titles == want
    assert [fig.axes[i].get_ylabel() for i in (0, 8)] == ["pair 7", "pair 8"]
    assert fig.get_supxlabel() == "a note"


def test_panels_share_the_targets_colours_and_hidden_pixels_are_grey():
    one = sample()
    fig = figures.reconstruction_figure([one], sensors.SENSORS, note="")
    for start, sensor in ((0, sensors.S2), (4, sensors.S1)):
        images = one[sensor.name]
        scene, masked, prediction, target = map(shown, fig.axes[start : start + 4])
        for got, name in ((scene, "scene"), (prediction, "prediction")):
            want = figures.picture(images[name], images["target"], sensor)
            np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(masked[:4], figures.GREY)
        np.testing.assert_array_equal(masked[4:], target[4:])


def test_the_frame_marks_the_box_on_the_scene():
    fig = figures.reconstruction_figure([sample()], sensors.SENSORS, note="")
    for start in (0, 4):
        (frame,) = fig.axes[start].patches
        # The box (0.25, 0, 0.5, 0.75) of 12 pixels, whose edges lie at -0.5.
        assert frame.get_xy() == (-0.5, 2.5)
        assert (frame.get_width(), frame.get_height()) == (9.0, 6.0)


@pytest.mark.parametrize("covers", [(), ("water", "forest")])
def test_whole_scenes_are_drawn_with_their_land_cover_where_it_is_known(covers):
    scenes = [
        {"name": name, "land_cover": np.eye(8, dtype=np.uint8)}
        | {s: pixels(sensor) for s, sensor in sensors.SENSORS.items()}
        for name in ("one", "two", "three")
    ]
    fig = figures.scene_figure(scenes, covers=covers)
    drawn = [ax for ax in fig.axes if ax.images]
    assert len(drawn) == 3 * (3 if covers else 2)
    assert [ax.get_title() for ax in fig.axes[:3]] == ["one", "two", "three"]
    labels = [t.get_text() for ax in fig.axes for t in ax.get_yticklabels()]
    assert labels == list(covers)


def test_single_bands_can_be_drawn():
    contract = {
        "s1": sensors.S1.select(("VH",)),
        "s2": sensors.S2.select(("B08",)),
    }
    fig = figures.reconstruction_figure([sample(contract=contract)], contract, note="")
    for ax in fig.axes:
        picture = shown(ax)
        np.testing.assert_array_equal(picture, picture[..., :1].repeat(3, axis=-1))


def test_saving_replaces_the_file_whole_and_returns_its_pixels(tmp_path):
    path = tmp_path / "figures" / "loss.png"
    for count in (1, 2):
        rows = [{"step": i, "loss_s1": 1.0 / (i + 1)} for i in range(count)]
        got = figures.save(figures.loss_figure(rows), path)
    np.testing.assert_array_equal(
        got, np.rint(matplotlib.image.imread(path)[..., :3] * 255)
    )
    assert got.dtype == np.uint8 and got.shape == (480, 840, 3)
    assert [p.name for p in path.parent.iterdir()] == ["loss.png"]


def test_the_loss_figure_draws_training_and_held_out_losses_by_step():
    rows = [
        {"step": 1, "loss_s1": 3.0, "loss_s2": 4.0},
        {"step": 2, "eval_loss_s1": 2.5, "eval_loss_s2": 3.5},
        {"step": 2, "loss_s1": 2.0, "loss_s2": 3.0},
    ]
    lines = {
        line.get_label(): line.get_xydata().tolist()
        for line in figures.loss_figure(rows).axes[0].get_lines()
    }
    assert lines == {
        "Sentinel-1, training": [[1, 3.0], [2, 2.0]],
        "Sentinel-2, training": [[1, 4.0], [2, 3.0]],
        "Sentinel-1, held out": [[2, 2.5]],
        "Sentinel-2, held out": [[2, 3.5]],
    }


def test_the_loss_figure_does_without_held_out_losses_and_without_any():
    some = figures.loss_figure([{"step": 1, "loss_s1": 3.0, "loss_s2": 4.0}])
    assert len(some.axes[0].get_lines()) == 2
    assert not figures.loss_figure([]).axes[0].get_lines()
