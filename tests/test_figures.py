"""Figures: the right bands in the right colours, and files that are whole."""

import matplotlib.image
import numpy as np

from data_pipeline import sensors
from data_pipeline.building import preview
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
            want = preview.picture(images[name], images["target"], sensor)
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
        {"step": 2, "eval_loss_s1": 2.5, "eval_loss_s2": 3.5, "eval_floor_s1": 0.5},
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
        "Sentinel-1, floor (estimate)": [[0, 0.5], [1, 0.5]],
    }


def test_the_loss_figure_does_without_held_out_losses_and_without_any():
    some = figures.loss_figure([{"step": 1, "loss_s1": 3.0, "loss_s2": 4.0}])
    assert len(some.axes[0].get_lines()) == 2
    assert not figures.loss_figure([]).axes[0].get_lines()
