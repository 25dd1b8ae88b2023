"""Whole scenes as the model reconstructs them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
from flax import nnx

from configs import reconstruct_scene as shipped
from data_pipeline.errors import InputError
from fusmae_jax import reconstruct_scene, scenes, streams
from fusmae_jax.evaluation import encoder as encoders
from fusmae_jax.pretrained import Model
from fusmae_jax.training import sharding
from tests import judging, teacher, tiny
from tests.geotiffs import GRID
from tests.test_predict import write_scene

SIZE, PATCH, SIDE = 24, 6, 54  # of an image, a patch, and a scene: two windows and more

# Pictures are read back, which have no coordinates.
pytestmark = [
    pytest.mark.journey,
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Runs with targets of either kind, and a scene with a hole."""
    root = tmp_path_factory.mktemp("scenes")
    for normalize in ("none", "patch"):
        config = tiny.config()
        config.loss.normalize, config.mask.drop_sensor = normalize, 0.5
        judging.write_run(root / normalize, config)
    write_scene(root, "new", 0, side=SIDE + 2)  # and no whole number of patches
    with rasterio.open(root / "s2" / "new.tif", "r+") as file:
        pixels = file.read()
        pixels[:, 3:9, 5:20] = 0
        file.write(pixels)
    return root


def config(root, out, given=("s1", "s2"), run="none", **changes):
    c = shipped.get_config()
    c.checkpoint, c.out, c.s2_offset = str(root / run), str(out), "0"
    c.stride, c.batch_size = SIZE // PATCH, 4
    for s in given:
        c[s] = str(root / s / "new.tif")
    c.update_from_flattened_dict(changes)
    return c


def read(path):
    with rasterio.open(path) as file:
        return np.moveaxis(file.read(), 0, -1), file.profile | file.tags(), file


@functools.cache
def expected(root, hide):
    """What the objective says of the scene's first window, in native units."""
    mesh = sharding.make_mesh()
    found = encoders.restore(root / "none", mesh)
    objective = reconstruct_scene._objective(found, config(root, "", hide=hide))
    scene = scenes.open_scene(config(root, ""), found.contract)
    window = scene.read(scenes.Window(0, 0, SIZE, SIZE))
    pixels = {f"{s}_10m": x[None] for s, x in window.items()}

    @jax.jit
    def redraw(params):
        masks = objective.draw_fixed(
            streams.key(0, "held_out"), jnp.zeros(1, jnp.int32)
        )
        network = nnx.merge(objective.abstract[0], params)
        return objective.pictures(objective.redraw(network, pixels, masks))

    return jax.tree.map(lambda x: np.asarray(x[0]), redraw(found.params)), window


def test_hidden_patches_are_predicted_and_others_stay(root, tmp_path, capsys):
    reconstruct_scene.run(config(root, tmp_path / "out"), None)
    found, window = expected(root, "patches")
    for s, unit in (("s1", "dB"), ("s2", "DN (reflectance x 10000)")):
        values, said, _ = read(tmp_path / "out" / f"{s}.tif")
        assert said["UNIT"] == unit and said["HIDDEN"] == "patches"
        assert said["transform"] == GRID and values.shape[:2] == (SIDE + 2,) * 2
        # Windows do not overlap but for the last ones, and hide the same patches.
        part, hidden = values[:SIZE, :SIZE], found[s]["hidden"]
        assert 0.5 < hidden.mean() < 0.9
        np.testing.assert_allclose(part, found[s]["prediction"], rtol=2e-3)
        shown = ~hidden & np.isfinite(part[..., 0])
        np.testing.assert_allclose(part[shown], window[s][shown], rtol=2e-3)
        picture = rasterio.open(tmp_path / "out" / f"{s}.png").read()
        assert picture.shape[1] == SIDE + 2 and picture.shape[2] > 2 * SIDE
    hole = np.isnan(values[..., 0])
    assert hole[3:9, 5:20].all() and hole.sum() == 6 * 15
    said = capsys.readouterr().out
    assert said.count("root mean square error") == 2 and " B8A " in said


@pytest.mark.parametrize("given", [("s1",), ("s1", "s2")])
def test_a_sensor_is_drawn_from_the_other_alone(root, tmp_path, capsys, given):
    reconstruct_scene.run(config(root, tmp_path / "out", given, hide="s2"), None)
    assert {x.name for x in (tmp_path / "out").iterdir()} == {"s2.tif", "s2.png"}
    values, _, _ = read(tmp_path / "out" / "s2.tif")
    assert np.isfinite(values).all()
    prediction = expected(root, "s2")[0]["s2"]["prediction"]
    np.testing.assert_allclose(values[:SIZE, :SIZE], prediction, rtol=2e-3, atol=0.5)
    assert ("root mean square error" in capsys.readouterr().out) == (len(given) == 2)


def test_the_printed_error_is_that_of_the_map(root, tmp_path, capsys):
    reconstruct_scene.run(config(root, tmp_path / "out", hide="s1", stride=2), None)
    lines = capsys.readouterr().out.splitlines()
    vh = next(line for line in lines if line.lstrip().startswith("VH")).split()
    values, _, _ = read(tmp_path / "out" / "s1.tif")
    measured, _, _ = read(root / "s1" / "new.tif")
    error = np.sqrt(np.mean((values[..., 1] - measured[..., 1]) ** 2))
    assert float(vh[1]) == pytest.approx(error, rel=1e-3)
    assert float(vh[2]) == pytest.approx(measured[..., 1].std(), rel=1e-3)


def test_a_stopped_one_goes_on_to_the_same_bytes(root, tmp_path, monkeypatch):
    reconstruct_scene.run(config(root, tmp_path / "whole", stride=2), None)
    add, calls = reconstruct_scene.maps.Rows.add, []

    def dies(rows, first, part):
        calls.append(first)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(rows, first, part)

    with monkeypatch.context() as patch:
        patch.setattr(reconstruct_scene.maps.Rows, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            reconstruct_scene.run(config(root, tmp_path / "part", stride=2), None)
    with pytest.raises(InputError, match="unfinished map of other .*hide"):
        reconstruct_scene.run(
            config(root, tmp_path / "part", stride=2, hide="s1"), None
        )
    reconstruct_scene.run(config(root, tmp_path / "part", stride=2), None)
    for name in ("s1.tif", "s2.tif", "s1.png", "s2.png"):
        both = [(tmp_path / x / name).read_bytes() for x in ("whole", "part")]
        assert both[0] == both[1], name


def test_mean_and_contrast_that_nothing_tells_are_not_made_up(root, tmp_path):
    asked = config(root, tmp_path / "out", ("s1",), run="patch", hide="s2")
    with pytest.raises(InputError, match="loss.normalize is patch, which nothing but"):
        reconstruct_scene.run(asked, None)
    assert not (tmp_path / "out").exists()


def test_the_step_is_lowered_for_gpus_and_tpus(root):
    mesh = sharding.make_mesh()
    found = encoders.restore(root / "none", mesh)
    objective = reconstruct_scene._objective(found, config(root, "", hide="s2"))
    model = Model(objective.encoder(), found.encoder_params, mesh, 8)
    step = reconstruct_scene.reconstruction_step(model, objective, ("s2",))
    pixels = {
        s: jax.ShapeDtypeStruct((8, SIZE, SIZE, len(x.bands)), jnp.float32)
        for s, x in found.contract.items()
    }
    lowered = step.trace(found.params, pixels).lower(lowering_platforms=("cuda", "tpu"))
    assert "stablehlo" in lowered.as_text()


def test_a_method_that_reconstructs_nothing_is_refused(root, tmp_path):
    with teacher.known():
        trained = tiny.config()
        trained.update(method="teacher")
        judging.write_run(tmp_path / "run", trained)
        asked = config(root, tmp_path / "out")
        asked.checkpoint = str(tmp_path / "run")
        with pytest.raises(InputError, match="method teacher reconstructs nothing"):
            reconstruct_scene.run(asked, None)
