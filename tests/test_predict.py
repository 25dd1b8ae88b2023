"""From masks to the class of every pixel of a scene that was never seen."""

import pathlib

import jax
import numpy as np
import pytest
import rasterio
from flax import nnx

from configs import dense_pairs, prepare_pairs
from configs import predict as predict_config
from data_pipeline.building import prepare, preview
from data_pipeline.errors import InputError
from fusmae_jax import maps, predict, pretrained, scenes
from fusmae_jax.evaluation import dense_task, evaluate, gallery, heads
from tests import judging, teacher, tiny
from tests.geotiffs import GRID, S1_BANDS, S2_BANDS, write

SIDE, PATCH, TILE = 96, 6, 24

# Pictures are read back, which have no coordinates.
pytestmark = pytest.mark.filterwarnings(
    "ignore::rasterio.errors.NotGeoreferencedWarning"
)


def write_scene(root: pathlib.Path, name: str, seed: int, side: int = SIDE):
    """A scene of bright and dark ground, and its mask [H, W], 1 where it is dark."""
    rng = np.random.default_rng(seed)
    dark = np.kron(rng.random((8, 8)) < 0.4, np.ones((side // 8,) * 2, bool))
    s2 = rng.normal(np.where(dark, 600, 2500), 80, (12, side, side)).astype(np.uint16)
    means = np.array([-12.0, -19.0])[:, None, None] - 8 * dark
    s1 = rng.normal(means, 1.0, (2, side, side)).astype(np.float32)
    where = dict(transform=GRID @ rasterio.Affine.translation(0, 1000 * seed))
    write(root / "s1" / f"{name}.tif", s1, S1_BANDS, **where)
    write(root / "s2" / f"{name}.tif", s2, S2_BANDS, **where)
    write(root / "mask" / f"{name}.tif", dark[None].astype(np.uint8), **where)
    return dark


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A run, an evaluation that trained heads for it, and a scene of its own."""
    root = tmp_path_factory.mktemp("predict")
    for i in range(4):
        write_scene(root / "in", f"scene{i}", i)
    c = prepare_pairs.get_config()
    c.source, c.out, c.workers = str(root / "in"), str(root / "data"), 0
    c.holdout_share = 0.5
    c.read.update(s2_offset="0", tile=TILE, mask_classes=("dry", "flooded"))
    with pytest.MonkeyPatch.context() as patch, teacher.known():
        for module in (preview, gallery):  # pictures have tests of their own
            patch.setattr(module, "draw", lambda *args, **options: None)
        prepare.prepare(c)
        trained = tiny.config()
        trained.update(method="teacher")
        run = judging.write_run(root / "run", trained)
        c = dense_pairs.get_config()
        c.checkpoint, c.data.dir = str(run), str(root / "data")
        c.data.update(val_split="train", test_split="validation")
        c.baselines, c.sensors, c.bootstrap, c.batch_size = (), ("s2", "both"), 10, 16
        c.dense.update(heads=("linear",), epochs=4, batch_size=16)
        c.dense.learning_rates = (0.1,)
        evaluate.run(c, root / "judged")
        dark = write_scene(root, "new", 9)
        yield root, run, dark


def config(root, out, sensors=("s1", "s2"), **changes):
    c = predict_config.get_config()
    c.checkpoint, c.evaluation = str(root / "run"), str(root / "judged")
    c.out, c.s2_offset, c.stride = str(out), "0", 2
    for s in sensors:
        c[s] = str(root / s / "new.tif")
    c.update_from_flattened_dict(changes)
    return c


@pytest.mark.parametrize("sensors", [("s1", "s2"), ("s2",)])
def test_a_scene_never_seen_is_told_apart(found, tmp_path, capsys, sensors):
    root, _, dark = found
    predict.run(config(root, tmp_path / "out", sensors), None)
    with rasterio.open(tmp_path / "out" / predict.MAP) as file:
        classes = file.read(1)
        assert file.transform == GRID @ rasterio.Affine.translation(0, 9000)
        assert file.tags()["CLASS_1"] == "flooded" and file.nodata == 255
        assert len({file.colormap(1)[i] for i in range(2)}) == 2
        assert file.shape == (SIDE, SIDE)
    assert (classes == dark).mean() > 0.95
    said = capsys.readouterr().out
    assert f"{(classes == 1).mean():6.1%}  flooded" in said
    assert "0.0%  not measured" in said
    picture = rasterio.open(tmp_path / "out" / predict.PICTURE).read()
    assert len(np.unique(picture[:, classes == 1], axis=1).T) == 1


def test_a_window_is_what_its_head_says(found):
    root, run, _ = found
    model = pretrained.load(run, batch_size=8)
    head = predict.load_head(str(root / "judged"), model, "both")
    scene = scenes.open_scene(config(root, ""), model.contract)
    cover = scenes.cover(scene, model, TILE // PATCH)  # windows side by side
    step = predict.logits_step(model, head)
    parts = [x for _, x in scenes.map_rows(scene, model, cover, step, 72)]
    classes = predict._classes(np.concatenate(parts), PATCH)

    @jax.jit
    def say(pixels):
        images = {
            s: pretrained.normalized(x, model.contract[s]) for s, x in pixels.items()
        }
        x = dense_task.tokens(model.encoder, model.params, images, None, 1)
        return heads.resize(head.module(x), TILE).argmax(-1)

    window = scenes.Window(48, 24, TILE, TILE)
    expected = say({s: x[None] for s, x in scene.read(window).items()})[0]
    np.testing.assert_array_equal(classes[48:72, 24:48], expected)


def test_the_step_of_a_class_map_is_lowered_for_gpus_and_tpus(found):
    root, run, _ = found
    model = pretrained.load(run, batch_size=8)
    head = predict.load_head(str(root / "judged"), model, "both")
    pixels = {
        s: jax.ShapeDtypeStruct((8, TILE, TILE, len(sensor.bands)), np.float32)
        for s, sensor in model.contract.items()
    }
    step = predict.logits_step(model, head)
    lowered = step.trace(model.params, pixels).lower(lowering_platforms=("cuda", "tpu"))
    assert "stablehlo" in lowered.as_text()


def test_what_was_not_measured_has_no_class(found, tmp_path):
    root, _, _ = found
    for s, bands in (("s1", S1_BANDS), ("s2", S2_BANDS)):
        with rasterio.open(root / s / "new.tif") as file:
            image, grid = file.read(), file.transform
        image[:, :24] = 0 if s == "s2" else np.nan
        write(tmp_path / s / "new.tif", image, bands, transform=grid)
    c = config(root, tmp_path / "out")
    c.s1, c.s2 = (str(tmp_path / s / "new.tif") for s in ("s1", "s2"))
    predict.run(c, None)
    classes = rasterio.open(tmp_path / "out" / predict.MAP).read(1)
    assert (classes[:24] == 255).all() and (classes[24:] < 2).all()


def test_a_stopped_map_goes_on(found, tmp_path, monkeypatch):
    root, _, _ = found
    predict.run(config(root, tmp_path / "whole"), None)
    add = maps.Rows.add

    def until(self, first, part):
        if first >= 48:
            raise KeyboardInterrupt
        add(self, first, part)

    monkeypatch.setattr(maps.Rows, "add", until)
    with pytest.raises(KeyboardInterrupt):
        predict.run(config(root, tmp_path / "out"), None)
    monkeypatch.setattr(maps.Rows, "add", add)
    predict.run(config(root, tmp_path / "out"), None)
    one, two = ((tmp_path / x / predict.MAP).read_bytes() for x in ("whole", "out"))
    assert one == two


def test_what_does_not_fit_is_refused(found, tmp_path):
    root, run, _ = found

    def refused(message, sensors=("s1", "s2"), **changes):
        with pytest.raises(InputError, match=message):
            predict.run(config(root, tmp_path / "out", sensors, **changes), None)
        assert not (tmp_path / "out").exists()

    refused("None of the 2 heads .* shown S1", ("s1",))
    refused("None of the 2 heads", head="upsample")
    refused("holds no run", evaluation=str(tmp_path))
    refused("trained on this encoder", step=judging.STEPS[0])
    refused("--config.evaluation=DIR", evaluation="")
    refused("Name a scene", ())
    path = next((root / "judged" / "heads").glob("*.npz"))
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:100])
        refused("is no head")
        model = pretrained.load(run)
        path.write_bytes(whole)
        head = predict.load_head(str(root / "judged"), model, "both")
        assert head.facts["classes"] == ["dry", "flooded"]
        assert isinstance(head.module, nnx.Module)
    finally:
        path.write_bytes(whole)
