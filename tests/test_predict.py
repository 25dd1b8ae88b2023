"""From masks to the class of every pixel of a scene that was never seen."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import rasterio
from flax import nnx
from pyarrow import parquet

from configs import dense_pairs, finetune_pairs, prepare_pairs
from configs import predict as predict_config
from data_pipeline import sources, synthetic
from data_pipeline.building import prepare, preview
from data_pipeline.errors import InputError
from fusmae_jax import maps, predict, pretrained, scenes
from fusmae_jax.evaluation import (
    dense_task,
    encoder,
    evaluate,
    features,
    gallery,
    heads,
)
from fusmae_jax.evaluation.store import Store
from fusmae_jax.training import run_directory, sharding
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
        c.dense.update(heads=("linear",), epochs=4, least_steps=0)
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


def windows_of(model):
    """Shapes of what a step of a map is given."""
    return {
        s: jax.ShapeDtypeStruct((8, TILE, TILE, len(sensor.bands)), np.float32)
        for s, sensor in model.contract.items()
    }


def load_head(folder, model):
    return predict.load_head(str(folder), model.params, ("both",), heads.HEADS)


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
    head = load_head(root / "judged", model)
    module = head.module(model)
    scene = scenes.open_scene(config(root, ""), model.contract)
    cover = scenes.cover(scene, model, TILE // PATCH)  # windows side by side
    step = predict.logits_step(model, head)
    parts = [x for _, x in scenes.map_rows(scene, model, cover, step, 72)]
    classes = predict._classes(np.concatenate(parts), PATCH, probable=True)

    @jax.jit
    def say(pixels):
        images = {
            s: pretrained.normalized(x, model.contract[s]) for s, x in pixels.items()
        }
        x = dense_task.tokens(model.encoder, model.params, images, None, 1)
        return heads.resize(module(x), TILE)

    window = scenes.Window(48, 24, TILE, TILE)
    logits = say({s: x[None] for s, x in scene.read(window).items()})[0]
    found = classes[48:72, 24:48]
    np.testing.assert_array_equal(found[..., 0], logits.argmax(-1))
    np.testing.assert_allclose(found[..., 1:], jax.nn.softmax(logits), atol=1e-5)


def test_the_step_of_a_class_map_is_lowered_for_gpus_and_tpus(found):
    root, run, _ = found
    model = pretrained.load(run, batch_size=8)
    head = load_head(root / "judged", model)
    step, pixels = predict.logits_step(model, head), windows_of(model)
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
    c = dict(probabilities=True)
    predict.run(config(root, tmp_path / "whole", **c), None)
    add = maps.Rows.add

    def until(self, first, part):
        if first >= 48:
            raise KeyboardInterrupt
        add(self, first, part)

    monkeypatch.setattr(maps.Rows, "add", until)
    with pytest.raises(KeyboardInterrupt):
        predict.run(config(root, tmp_path / "out", **c), None)
    monkeypatch.setattr(maps.Rows, "add", add)
    with pytest.raises(InputError, match="unfinished map of other probabilities"):
        predict.run(config(root, tmp_path / "out"), None)
    predict.run(config(root, tmp_path / "out", **c), None)
    for name in (predict.MAP, predict.PROBABILITIES):
        one, two = ((tmp_path / x / name).read_bytes() for x in ("whole", "out"))
        assert one == two
    with rasterio.open(tmp_path / "out" / predict.PROBABILITIES) as file:
        shares = file.read()
        assert file.descriptions == ("dry", "flooded") and file.dtypes[0] == "float32"
    classes = rasterio.open(tmp_path / "out" / predict.MAP).read(1)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=2e-3)
    sure = np.abs(shares[0] - 0.5) > 1e-3
    np.testing.assert_array_equal((shares.argmax(axis=0) == classes)[sure], True)


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
    refused("evaluation=DIR", evaluation="")
    refused("Name a scene", ())
    refused("None of the 2 heads .* is of probe; evaluate it so in a new", head="probe")
    dataset = {"data.dir": str(root / "data")}
    refused("heads .* of probe or finetune; evaluate it so in a new", (), **dataset)
    path = next((root / "judged" / "heads").glob("*.npz"))
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:100])
        refused("is no head")
        model = pretrained.load(run)
        path.write_bytes(whole)
        head = load_head(root / "judged", model)
        assert head.facts["classes"] == ["dry", "flooded"]
        assert isinstance(head.module(model), nnx.Module)
    finally:
        path.write_bytes(whole)


def test_an_encoder_that_was_fine_tuned_on_masks_maps_a_scene(found, tmp_path, capsys):
    root, run, dark = found
    c = finetune_pairs.get_config()
    c.checkpoint, c.data.dir = str(run), str(root / "data")
    c.data.update(val_split="train", test_split="validation")
    c.sensors, c.bootstrap, c.batch_size = ("both",), 10, 16
    c.dense.update(epochs=4, least_steps=0, learning_rates=(0.1,))
    c.finetune.update(epochs=8, least_steps=0, warmup_epochs=0, batch_size=16)
    c.finetune.base_lr = (0.2,)
    c.scratch.base_lr = (0.2,)
    rows = evaluate.run(c, tmp_path / "judged")
    frozen, tuned = "linear head on tokens", "linear head, fine-tuned"
    assert {(r.task, r.encoder, r.features) for r in rows} == {
        *(("dense", "student", x) for x in (frozen, tuned)),
        ("dense", "supervised from scratch", tuned),
    }
    said = capsys.readouterr().out
    assert f"dense  100 %   student, {tuned}" in said and f"student, {frozen}" in said
    kept = {path.stem: path for path in (tmp_path / "judged" / "heads").iterdir()}
    assert set(kept) == {f"dense-student-both-1-0-linear{x}" for x in ("", "-tuned")}
    kept["dense-student-both-1-0-linear"].unlink()  # which may have done better
    given = config(root, tmp_path / "out", evaluation=str(tmp_path / "judged"))
    predict.run(given, None)
    classes = rasterio.open(tmp_path / "out" / predict.MAP).read(1)
    assert (classes == dark).mean() > 0.95
    model = pretrained.load(run, batch_size=8)
    head = load_head(tmp_path / "judged", model)
    params = head.encoder_params(model.params)
    assert encoder.digest(params) != encoder.digest(model.params)
    head.encoder.popitem()
    with pytest.raises(InputError, match="another head than it says"):
        head.encoder_params(model.params)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run, and evaluations that learnt classes of made-up pairs from it.

    {name: (its config, its directory)}, of several classes a pair, and of one.
    """
    root, found = tmp_path_factory.mktemp("labelled"), {}
    with teacher.known(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "draw", lambda *args, **options: None)
        run = judging.trained(tmp_path_factory, "teacher")
        several = judging.config(run, methods=("probe", "finetune"), normalize="data")
        several.finetune.update(epochs=2, warmup_epochs=0, batch_size=16)
        several.finetune.base_lr, several.sensors = (0.2,), ("s2", "both")
        several.features.view = "tiles"
        one = judging.config(run, methods=("probe",), single_label=True)
        one.update(sensors=("s1",), fractions=(0.5, 1.0), repeats=(2, 1))
        one.data.source, one.probe.norm = "patterns", "layer"
        one.features.update(pool="sensors", view="whole")
        for name, c in (("several", several), ("one", one)):
            evaluate.run(c, root / name)
            found[name] = c, root / name
        yield found


def pairs_config(judged, out, **changes):
    c, workdir = judged
    found = predict_config.get_config()
    found.checkpoint, found.evaluation = c.checkpoint, str(workdir)
    found.out, found.split, found.batch_size = str(out), "test", 8
    found.data.update({k: c.data[k] for k in ("source", "dir", "count", "size")})
    found.update_from_flattened_dict(changes)
    return found


def probabilities(out) -> tuple[list[str], np.ndarray]:
    """Ids and probabilities [N, C] of a table."""
    table = parquet.read_table(out / predict.TABLE_FILE)
    columns = [x for x in table.column_names if x.startswith("p_")]
    return table["id"].to_pylist(), np.stack([table[x] for x in columns], axis=1)


@pytest.mark.parametrize(
    "name, head, key",
    [
        ("several", "probe", "probe/both/1/0"),
        ("several", "finetune", "finetune/both/1/0"),
        ("one", "auto", "probe/s1/1/0"),  # all labels, not the half of them
    ],
)
def test_a_table_has_the_probabilities_of_the_evaluation(
    labelled, tmp_path, name, head, key
):
    judged = labelled[name]
    predict.run(pairs_config(judged, tmp_path / "out", head=head), None)
    ids, found = probabilities(tmp_path / "out")
    with np.load(judged[1] / "predictions.npz") as saved:
        assert ids == saved["ids"].tolist()
        np.testing.assert_allclose(found, saved[key], rtol=0, atol=1e-5)
        assert np.ptp(saved[key], axis=0).max() > 0.01  # of which a constant is none
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {predict.TABLE_FILE}
    with pytest.raises(InputError, match="not overwritten"):
        predict.run(pairs_config(judged, tmp_path / "out", head=head), None)


def test_a_kept_probe_is_a_logistic_regression_on_features(labelled, tmp_path):
    sk = pytest.importorskip("sklearn.linear_model", reason="test extra")
    _, workdir = judged = labelled["one"]
    predict.run(pairs_config(judged, tmp_path / "out"), None)
    (path,) = (workdir / "heads").glob("probe-student-s1-1-*.npz")
    with np.load(path, allow_pickle=False) as kept:
        facts = json.loads(str(kept["facts"]))
        model = sk.LogisticRegression()
        model.coef_, model.intercept_ = kept["kernel"][0].T, kept["bias"][0]
    model.classes_ = np.arange(len(facts["classes"]))
    x = features_of(judged, facts)
    x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    _, found = probabilities(tmp_path / "out")
    np.testing.assert_allclose(found, model.predict_proba(x), rtol=0, atol=1e-4)


def features_of(judged, facts) -> np.ndarray:
    """Features of the test pairs, [N, D]."""
    c, _ = judged
    found = encoder.restore(c.checkpoint, sharding.make_mesh())
    source = sources.open_split(c.data, "test")
    net = found.look_at(source.description, "run")
    recipe = features.Recipe(**facts["features"])
    shown = (facts["sensors"],)
    given = (net, found.encoder_params, recipe, found.mesh, shown)
    return features.take(features.Extractor(*given), source, batch_size=8)[shown[0]]


def test_a_scene_has_what_a_probe_says_of_its_windows(labelled, tmp_path):
    c, workdir = labelled["several"]
    write_scene(tmp_path, "new", 9, 64)
    side = TILE // PATCH
    scene = dict(evaluation=str(workdir), checkpoint=c.checkpoint, stride=side)
    given = config(tmp_path, tmp_path / "out", ("s2",), **scene)
    predict.run(given, None)
    with rasterio.open(tmp_path / "out" / predict.PROBABILITIES) as file:
        found = np.moveaxis(file.read(), 0, -1)
        assert file.transform == GRID @ rasterio.Affine.translation(
            0, 9000
        ) @ rasterio.Affine.scale(PATCH)
        assert list(file.descriptions) == [x.name for x in synthetic.LAND_COVERS]
    assert found.shape[:2] == (11, 11)
    contract = run_directory.load(workdir)[1]
    model = pretrained.load(c.checkpoint, batch_size=8, statistics=contract)
    kinds = predict.OF_PAIRS
    head = predict.load_head(str(workdir), model.params, ("s2",), kinds)
    params = head.encoder_params(model.params)
    tuned = dataclasses.replace(model, params=params)
    scene = scenes.open_scene(given, model.contract)
    image = scene.read(scenes.Window(24, 0, TILE, TILE))["s2"]
    said = head.probe.predict(tuned.encode(s2=image).pooled[None])[0]
    # Of the second row of windows nothing else is shown, as the third begins later.
    np.testing.assert_allclose(found[4:7, :4], np.tile(said, (3, 4, 1)), atol=1e-3)
    step, platforms = predict.window_step(tuned, head), ("cuda", "tpu")
    lowered = step.trace(params, windows_of(tuned)).lower(lowering_platforms=platforms)
    assert "stablehlo" in lowered.as_text()


def test_of_several_heads_the_one_that_fits_best_is_taken(tmp_path):
    kept, params = Store.__new__(Store), {"kernel": np.ones(3, np.float32)}
    kept.workdir, parameters = tmp_path, encoder.digest(params)
    for name, head, sensors, fraction, score in (
        ("a", "probe", "both", 1.0, 0.9),
        ("b", "probe", "both", 0.1, 0.99),
        ("c", "finetune", "both", 1.0, 0.95),
        ("d", "linear", "both", 1.0, 0.2),
        ("e", "upsample", "both", 1.0, 0.3),
        ("f", "finetune", "s1", 1.0, 1.0),
    ):
        facts = dict(head=head, sensors=sensors, fraction=fraction, score=score)
        kept.keep_head(name, {}, facts | {"parameters": parameters}, params)

    def taken(shown, kinds):
        found = predict.load_head(str(tmp_path), params, shown, kinds)
        np.testing.assert_array_equal(found.encoder["kernel"], params["kernel"])
        return found.path.stem

    anything = (*heads.HEADS, *predict.OF_PAIRS)
    assert taken(("both",), anything) == "e"  # for a map, classes of pixels
    assert taken(("both", "s2", "s1"), predict.OF_PAIRS) == "c"  # all there is shown
    assert taken(("s1",), predict.OF_PAIRS) == "f"
    assert taken(("both",), ("probe",)) == "a"  # of most labels
    with pytest.raises(InputError, match="None of the 6 heads .* shown S2, and is of"):
        taken(("s2",), anything)
    params["kernel"] = 2 * params["kernel"]
    with pytest.raises(InputError, match="was trained on this encoder"):
        taken(("both",), anything)


def test_pairs_at_another_scale_than_a_scene_are_told(caplog):
    with caplog.at_level("WARNING", "fusmae_jax"):
        predict.check_scale({}, 24)  # of before
        predict.check_scale({"scene_size": 36, "features": {"view": "tiles"}}, 24)
        assert not caplog.text
        predict.check_scale({"scene_size": 36, "features": {"view": "whole"}}, 24)
        predict.check_scale({"scene_size": 12}, 24)
    assert caplog.text.count("expect less") == 2
