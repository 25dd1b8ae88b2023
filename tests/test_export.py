"""What is exported says of images what the encoder said of them, wherever it runs."""

import ast
import dataclasses
import importlib.util
import json
import shutil
import sys

import jax
import jax.export
import numpy as np
import pytest
import yaml

from configs import export as shipped
from data_pipeline import layout as layouts
from data_pipeline import record_format, sensors, sources
from data_pipeline.errors import InputError
from fusmae_jax import build, inputs, pretrained
from fusmae_jax.export import card, export, weights
from tests import judging, teacher, tiny

REASON = "the extra `export` is not installed"
safetensors = pytest.importorskip("safetensors.numpy", reason=REASON)
pytest.importorskip("flatbuffers", reason=REASON)

SIZE, BATCH = 24, 5
FORMATS = ("safetensors", "stablehlo")
IN_TORCH = ("fusmae", "mae", "multimae")  # `torch_module.ENCODERS`, without PyTorch


def config(checkpoint, out, **changes):
    c = shipped.get_config()
    c.checkpoint, c.out = str(checkpoint), str(out)
    c.update(changes)
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return judging.trained(tmp_path_factory)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of the small method, while it is known."""
    with teacher.known():
        yield judging.trained(tmp_path_factory, "teacher")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "tiny"
    export.run(config(run, out, formats=FORMATS[:1], license="cc-by-4.0"), "unused")
    return out


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason=REASON)


@pytest.fixture(scope="module")
def in_torch(run, torch, tmp_path_factory):
    """An export with a PyTorch module."""
    out = tmp_path_factory.mktemp("in_torch") / "tiny"
    export.run(config(run, out, formats=("safetensors", "torch")), "unused")
    return out


@pytest.fixture(scope="module")
def model(run):
    return pretrained.load(run, batch_size=8)


@pytest.fixture
def copy(exported, tmp_path):
    """An export that may be damaged."""
    for name in (weights.CONFIG, weights.WEIGHTS):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    return tmp_path


def samples() -> dict[str, np.ndarray]:
    """Corners of real pairs, at 10 m, with every kind of hole; DN as floats."""
    records = record_format.Records(sources.SAMPLE, "validation")
    pairs = [records[i] for i in range(BATCH)]
    s1 = np.stack([pair["s1_10m"] for pair in pairs]).astype(np.float32)
    grids = [x for x in records.description.layout.grids if x.sensor == "s2"]
    bands = {}
    for grid in grids:
        stored = np.stack([pair[grid.field] for pair in pairs]).astype(np.float32)
        times = grid.gsd // 10
        stored = stored.repeat(times, axis=1).repeat(times, axis=2)
        bands |= {name: stored[..., i] for i, name in enumerate(grid.bands)}
    names = records.description.sensors["s2"].band_names
    s2 = np.stack([bands[name] for name in names], axis=-1)
    s1, s2 = s1[:, :SIZE, :SIZE], s2[:, :SIZE, :SIZE]
    s1[0, :7], s2[0, :, 3:10, 4] = np.nan, np.nan
    s2[0, 18:, 18:] = 0
    s1[1], s2[2] = np.nan, np.nan
    s1[3], s2[3] = np.nan, np.nan
    return {"s1": s1, "s2": s2}


def native() -> dict[str, np.ndarray]:
    """Corners of real pairs on the grids on which they are stored, with holes."""
    records = record_format.Records(sources.SAMPLE, "validation")
    fields = {}
    for grid in records.description.layout.grids:
        pixels = np.stack([records[i][grid.field] for i in range(BATCH)])
        fields[grid.field] = pixels[:, : SIZE * 10 // grid.gsd, : SIZE * 10 // grid.gsd]
    fields["s1_10m"][0, :7] = np.nan
    fields["s2_10m"][1, 8:15, :9] = fields["s2_20m"][2, :5] = 65535
    fields["s2_60m"][3, 2, 1] = 65535
    return fields


def same(found, expected, atol=1e-4):
    """Features are alike, and unknown in the same places."""
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=atol, rtol=0)


def test_jax_loads_an_export_as_it_loads_the_run(exported, model):
    loaded = pretrained.load(exported, batch_size=8)
    assert loaded.contract == model.contract and loaded.size == SIZE
    given = samples()
    same(loaded.encode(**given), model.encode(**given), 0.0)


def say_in_torch(model, given, there=("s1", "s2")) -> pretrained.Features:
    """What a PyTorch module says of images [B, H, W, C]."""
    import torch

    images = {s: torch.tensor(np.moveaxis(given[s], -1, 1)) for s in there}
    with torch.no_grad():
        return pretrained.Features(**jax.tree.map(np.asarray, model(**images)))


def torch_file(folder):
    """The file in a folder, imported."""
    spec = importlib.util.spec_from_file_location("there", folder / "fusmae_torch.py")
    there = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(there)
    return there


def load_torch(folder):
    """The module that the file in a folder makes of it, by nothing of this project."""
    return torch_file(folder).load(folder)


@pytest.mark.parametrize("there", [("s1", "s2"), ("s1",), ("s2",)])
def test_the_torch_file_agrees_on_real_pairs_with_holes(in_torch, model, there):
    given = samples()
    found = say_in_torch(load_torch(in_torch), given, there)
    same(found, model.encode(**{s: given[s] for s in there}))
    assert np.isnan(found.sensors["s1"][0, 0]).all()
    assert not np.isnan(found.pooled[4]).any() and np.isnan(found.pooled[3]).all()


def test_the_torch_file_agrees_on_random_pixels_dark_and_infinite_ones_too(
    in_torch, model
):
    rng = np.random.default_rng(0)
    s1 = rng.normal((-12.0, -19.0), 3.0, (3, SIZE, SIZE, 2)).astype(np.float32)
    s2 = rng.integers(100, 6000, (3, SIZE, SIZE, 12)).astype(np.float32)
    s2[0, 0, :9], s2[0, 1, :9, 0], s2[1, 3, 4, 5] = -20.0, 0.0, np.inf
    s1[1, 7:14, :20] = 0.0
    given = {"s1": s1, "s2": s2}
    same(say_in_torch(load_torch(in_torch), given), model.encode(**given))


def test_the_torch_file_takes_bands_by_name_on_grids_of_their_own(
    torch, in_torch, model
):
    pairs = native()
    layout = layouts.native(SIZE, sensors.SENSORS)
    config_, contract = weights.read(in_torch / weights.CONFIG)
    seen = build.inputs(config_, contract, layout, missing=True)
    whole = inputs.fixed_view(BATCH, (0.0, 0.0, 1.0, 1.0))
    images = jax.jit(seen.images)(pairs, whole)
    expected = jax.jit(model.encoder)(
        model.params, images, model.encoder.present(images, None)
    )
    bands = {
        s: {
            name: torch.tensor(np.where(x == 65535, np.nan, x))
            for grid in layout.of(s)
            for name, x in zip(
                grid.bands, np.moveaxis(pairs[grid.field].astype(np.float32), -1, 0)
            )
        }
        for s in ("s1", "s2")
    }
    with torch.no_grad():
        found = load_torch(in_torch)(**bands)
    for s in ("s1", "s2"):
        there = found["sensors"][s].flatten(1, 2).numpy()
        known = ~np.isnan(there[..., 0])
        assert 0.8 < known.mean() < 1.0
        np.testing.assert_allclose(
            there[known], np.asarray(expected.tokens[s])[known], atol=1e-4
        )


def test_the_torch_file_takes_other_units_offsets_and_some_of_the_bands(
    torch, in_torch, model
):
    there = load_torch(in_torch)
    given, names = samples(), model.contract["s2"].band_names
    channel = lambda name: given["s2"][..., names.index(name)]
    units = {"s1": "linear", "s2": "reflectance"}
    with torch.no_grad():
        found = there(
            s1=torch.tensor(np.moveaxis(10 ** (given["s1"] / 10), -1, 1)),
            s2=torch.tensor(np.moveaxis(given["s2"] / 1e4, -1, 1)),
            units=units,
        )
        same(pretrained.Features(**found), model.encode(**given), 1e-3)
        raised = {
            name: torch.tensor(np.where(x > 0, x + 1000, x))
            for name in ("B8A", "B04")
            for x in [channel(name)]
        }
        found = there(s2=raised, offset=1000)
    some = np.stack([channel("B04"), channel("B8A")], axis=-1)
    expected = model.encode(s2=some, bands={"s2": ("B04", "B8A")})
    same(pretrained.Features(**found), expected)


@pytest.mark.journey
@pytest.mark.parametrize(
    "method, changes",
    [
        ("fusmae", dict(fuse_early=False)),
        ("fusmae", dict(depth=1)),
        ("mae", {}),
        ("multimae", {}),
    ],
)
def test_the_torch_file_knows_every_variant(torch, method, changes, tmp_path_factory):
    config_ = tiny.config(method)
    config_.model.update(changes)
    config_.bands.s1, config_.bands.s2 = ("VH",), ("B04", "B03", "B8A")
    folder = tmp_path_factory.mktemp("variant")
    judging.write_run(folder / "run", config_)
    export.run(
        config(folder / "run", folder / "out", formats=("safetensors", "torch")),
        "unused",
    )
    given = samples()
    given = {"s1": given["s1"][..., 1:], "s2": given["s2"][..., [3, 2, 8]]}
    found = say_in_torch(load_torch(folder / "out"), given)
    same(found, pretrained.load(folder / "run", batch_size=8).encode(**given))


@pytest.mark.journey
def test_an_encoder_of_one_sensor_is_exported_and_says_so(
    torch, tmp_path_factory, tmp_path
):
    config_ = tiny.config("mae")
    config_.model.sensors = "s2"
    run = judging.write_run(tmp_path_factory.mktemp("alone") / "run", config_)
    export.run(
        config(run, tmp_path, formats=("safetensors", "torch", "stablehlo")), "unused"
    )
    model, given = pretrained.load(tmp_path, batch_size=8), samples()
    expected = model.encode(s2=given["s2"])
    assert np.isnan(expected.sensors["s1"]).all()
    same(say_in_torch(load_torch(tmp_path), given), expected)
    same(in_jax(tmp_path, given), expected)
    assert "It reads Sentinel-2 alone" in (tmp_path / "README.md").read_text()
    for wrong in (given, {"s1": given["s1"]}):
        with pytest.raises(InputError, match="s1 is given, and .* Sentinel-2 alone; g"):
            model.encode(**wrong)


def test_feature_maps_are_those_of_the_encoder_and_of_its_blocks(
    torch, tmp_path_factory
):
    config_ = tiny.config()
    config_.model.depth = 3
    folder = tmp_path_factory.mktemp("maps")
    judging.write_run(folder / "run", config_)
    export.run(
        config(folder / "run", folder / "out", formats=("safetensors", "torch")),
        "unused",
    )
    model = pretrained.load(folder / "run", batch_size=8)
    given, bands = samples(), {"s1": ("VH",), "s2": ("B8A", "B04")}
    at = lambda s: [model.contract[s].band_names.index(name) for name in bands[s]]
    given = {s: x[..., at(s)] for s, x in given.items()}
    image = np.concatenate(list(given.values()), axis=-1)[..., [1, 0, 2]]
    image, names = torch.tensor(np.moveaxis(image, -1, 1)), ("B8A", "VH", "B04")
    there = torch_file(folder / "out")
    encoder = there.load(folder / "out")
    maps = there.FeatureMaps(encoder, names, blocks=(1, 0))
    with torch.no_grad():
        found, said = maps(image), maps.features(image)
        (last,) = there.FeatureMaps(encoder, names)(image)
    expected = model.encode(**given, bands=bands)
    same(pretrained.Features(**said), expected)
    dense = np.nan_to_num(np.moveaxis(expected.dense, -1, 1))
    np.testing.assert_allclose(last, dense, atol=1e-4)
    assert not last[3].any()  # where nothing was measured
    assert maps.out_channels == [32, 32]
    sum(x.square().sum() for x in maps(image)).backward()
    grads = [x.grad for x in encoder.parameters() if x.grad is not None]
    assert len(grads) > 30 and all(torch.isfinite(grad).all() for grad in grads)
    np.testing.assert_array_equal(found[0], last)  # behind the last block
    assert found[1].shape == (BATCH, 32, 4, 4) and (found[1] - last).abs().max() > 0.1
    with pytest.raises(ValueError, match=r"image is \[5, 2, 24, 24\]; pass \[B, 3, H"):
        maps(image[:, :2])
    with pytest.raises(ValueError, match="no band B10; pass some of VV, VH, B01"):
        there.FeatureMaps(encoder, ("B04", "B10"))
    with pytest.raises(ValueError, match="no block 2; ask for some of 0 to 1"):
        there.FeatureMaps(encoder, names, blocks=(2,))(image)


def test_the_torch_file_needs_nothing_but_torch_and_safetensors(in_torch):
    tree = ast.parse((in_torch / "fusmae_torch.py").read_text())
    imports = [x for x in ast.walk(tree) if isinstance(x, ast.Import)]
    sources = [x.module for x in ast.walk(tree) if isinstance(x, ast.ImportFrom)]
    names = {name.name for x in imports for name in x.names} | set(sources)
    others = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert others == {"torch", "safetensors"}


def test_the_torch_file_refuses_what_does_not_fit(torch, in_torch, copy):
    model = load_torch(in_torch)
    with pytest.raises(ValueError, match="Neither s1 nor s2 is given"):
        model()
    with pytest.raises(ValueError, match=r"s2 is \[1, 2, 24, 24\]; pass \[B, 12, 24"):
        model(s2=torch.zeros(1, 2, 24, 24))
    with pytest.raises(ValueError, match="s1 in 'DN' is unknown; use dB or linear or"):
        model(s1=torch.zeros(1, 2, 24, 24), units={"s1": "DN"})
    with pytest.raises(ValueError, match="no band B10; pass some of B01, B02"):
        model(s2={"B10": torch.zeros(1, 24, 24)})
    with pytest.raises(ValueError, match=r"B04 is \[1, 48, 48\]; pass \[B, 24, 24\]"):
        model(s2={"B04": torch.zeros(1, 48, 48)})
    shutil.copy(in_torch / "fusmae_torch.py", copy)
    said = json.loads((copy / weights.CONFIG).read_text())
    for change, message in (
        ({"format": 2}, "has format 2, and this file reads 1; take the fusmae_torch"),
        (
            {"method": "other"},
            "known of the method 'other', but of .*; load it with fus",
        ),
    ):
        (copy / weights.CONFIG).write_text(json.dumps(said | change))
        with pytest.raises(ValueError, match=message):
            load_torch(copy)


def test_the_torch_file_learns_where_pixels_are_missing(torch, in_torch):
    model = load_torch(in_torch)
    images = {s: torch.tensor(np.moveaxis(x, -1, 1)) for s, x in samples().items()}
    model(**images)["pooled"].nan_to_num().square().sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) > 30 and all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.journey
@pytest.mark.parametrize("method", IN_TORCH)
def test_onnx_agrees_on_real_pairs_with_holes_in_batches_of_any_size(
    tmp_path_factory, tmp_path, method
):
    pytest.importorskip("onnxscript", reason=REASON)
    runtime = pytest.importorskip("onnxruntime", reason=REASON)
    run = judging.trained(tmp_path_factory, method)
    model = pretrained.load(run, batch_size=8)
    export.run(config(run, tmp_path, formats=("onnx",)), "unused")
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"model.onnx", "config.json", "README.md", "item.json"}
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    said = session.get_modelmeta().custom_metadata_map[weights.CONFIG]
    assert json.loads(said) == json.loads((tmp_path / weights.CONFIG).read_text())
    for there, count in ((("s1", "s2"), BATCH), (("s1",), 1), (("s2",), 3)):
        given = {s: x[-count:] for s, x in samples().items()}
        expected = model.encode(**{s: given[s] for s in there})
        for s in given.keys() - set(there):
            given[s][:] = np.nan
        images = {s: np.moveaxis(x, -1, 1).copy() for s, x in given.items()}
        *found, s1, s2 = session.run(export.ONNX_OUTPUTS, images)
        same(pretrained.Features(*found, {"s1": s1, "s2": s2}), expected)


def in_jax(folder, given):
    """What the program in a folder says of images [B, H, W, C]."""
    content = bytearray((folder / "model.stablehlo").read_bytes())
    tensors = safetensors.load_file(folder / weights.WEIGHTS)
    program = jax.jit(jax.export.deserialize(content).call)
    return pretrained.Features(**jax.device_get(program(tensors, **given)))


@pytest.mark.parametrize(
    "method",
    ["teacher", *(pytest.param(x, marks=pytest.mark.journey) for x in build.METHODS)],
)
def test_stablehlo_agrees_on_real_pairs_with_holes_in_batches_of_any_size(
    tmp_path_factory, tmp_path, method
):
    with teacher.known():
        run = judging.trained(tmp_path_factory, method)
        export.run(config(run, tmp_path, formats=FORMATS), "unused")
        model = pretrained.load(run, batch_size=8)
        again = pretrained.load(tmp_path, batch_size=8)
    content = bytearray((tmp_path / "model.stablehlo").read_bytes())
    program = jax.export.deserialize(content)
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    if method == "fusmae":  # the other has fewer parameters than it has instructions
        assert len(content) < (tmp_path / weights.WEIGHTS).stat().st_size
    for there, count in ((("s1", "s2"), BATCH), (("s2",), 1), (("s1",), 2)):
        given = {s: x[-count:] for s, x in samples().items()}
        expected = model.encode(**{s: given[s] for s in there})
        same(again.encode(**{s: given[s] for s in there}), expected, 0.0)
        for s in given.keys() - set(there):
            given[s][:] = np.nan
        same(in_jax(tmp_path, given), expected)


def test_what_is_not_installed_is_named_before_anything_is_read(tmp_path, monkeypatch):
    lacks = lambda name: None if name == "onnx" else name
    monkeypatch.setattr(export.importlib.util, "find_spec", lacks)
    with pytest.raises(InputError, match="onnx is not installed; run pip install"):
        export.run(config("nowhere", tmp_path), "unused")


def test_the_step_is_the_one_that_was_chosen(small, tmp_path):
    export.run(config(small, tmp_path, step=2, formats=("safetensors",)), "unused")
    assert json.loads((tmp_path / weights.CONFIG).read_text())["step"] == 2
    found = safetensors.load_file(tmp_path / weights.WEIGHTS)
    wanted = weights.named(pretrained.load(small, step=2).params)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(x, wanted[name]) for name, x in found.items())


def test_other_methods_are_exported_too(small, tmp_path):
    export.run(config(small, tmp_path, formats=("safetensors",)), "unused")
    expected = pretrained.load(small).encode(**samples())
    same(pretrained.load(tmp_path).encode(**samples()), expected, 0.0)


def test_torch_is_refused_of_methods_that_it_does_not_know(torch, small, tmp_path):
    from fusmae_jax.export import torch_module

    assert tuple(torch_module.ENCODERS) == IN_TORCH
    asked = config(small, tmp_path, formats=("safetensors", "torch"))
    with pytest.raises(InputError, match="method is teacher; pass formats"):
        export.run(asked, "unused")
    assert not any(tmp_path.iterdir())


def test_the_config_says_what_others_need_and_nothing_of_the_disk(exported, run):
    said = json.loads((exported / weights.CONFIG).read_text())
    assert said["format"] == weights.FORMAT and said["method"] == "fusmae"
    assert said["model"]["dim"] == 32 and said["model"]["image_size"] == SIZE
    band = said["contract"]["s2"]["bands"]["B8A"]
    assert band["mean"] > 0 and band["std"] > 0
    assert said["pixels"]["s2"] == {"zero_is_missing": True, "least": 1}
    assert said["pixels"]["s1"] == {"zero_is_missing": True, "least": None}
    assert "data" not in said["training"] and str(run) not in json.dumps(said)


def test_the_card_has_a_header_and_says_what_the_model_takes(exported):
    _, header, page = (exported / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["license"] == "cc-by-4.0"
    assert header["library_name"] == "fusmae_jax" and "sentinel-1" in header["tags"]
    for part in ("| s2 | Sentinel-2 L2A | B8A |", "24 x 24 pixels", "6 steps", "1000"):
        assert part in page, part
    assert "pretrained.load" in page and "took no sensor away" in page


def test_the_item_of_a_catalogue_names_bands_shapes_and_files(exported):
    item = json.loads((exported / card.ITEM).read_text())
    said = item["properties"]
    assert [band["name"] for band in said["bands"]][:3] == ["VV", "VH", "B01"]
    s2 = said["mlm:input"][1]
    assert s2["input"]["shape"] == [-1, 12, SIZE, SIZE]
    assert s2["input"]["dim_order"] == ["batch", "bands", "height", "width"]
    assert len(s2["value_scaling"]) == len(s2["bands"]) == 12
    shapes = {x["name"]: x["result"]["shape"] for x in said["mlm:output"]}
    assert shapes["pooled"] == [-1, 32] and shapes["dense_s1"][-1] == 32
    for asset in item["assets"].values():
        assert (exported / asset["href"]).exists()


def test_the_card_says_of_which_sensor_there_was_nothing(exported):
    encoder = pretrained.load(exported).encoder
    seen = encoder.inputs
    nothing = dataclasses.replace(seen.contract["s1"], source=build.LACKING)
    seen = dataclasses.replace(seen, contract=seen.contract | {"s1": nothing})
    encoder = dataclasses.replace(encoder, inputs=seen)
    said = json.loads((exported / weights.CONFIG).read_text())
    said["data"] = {"parts": [{"name": "a", "count": 1200}, {"name": "b", "count": 1}]}
    page = card.make(said, encoder, ("safetensors",), (), 'no: "one"', "x")
    page = " ".join(page.split())
    assert "had nothing of Sentinel-1" in page and "took no sensor away" not in page
    assert "on a (1,200 pairs) and b (1 pairs)." in page
    assert "onnxruntime" not in page
    license = page.partition("license: ")[2].partition(" library_name")[0]
    assert yaml.safe_load(license) == 'no: "one"'


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(format=2), "has format 2 and this version reads 1; update"),
        (lambda c: c.update(method="other"), "of the method 'other', and this version"),
        (lambda c: c.update(method=["os"]), r"of the method .*os.*, and this version"),
        (lambda c: c.pop("contract"), "describes no encoder .*copy the export again"),
        (lambda c: c.pop("training"), "describes no encoder .*copy the export again"),
        (lambda c: c.update(model=3), "describes no encoder .*copy the export again"),
        (lambda c: c["model"].update(dim=30), "Width 30"),
        (lambda c: c["model"].update(image_size=6 * 10**5), "images of 600000 px"),
        (lambda c: c["model"].update(dim=64), r"has absent/s1 as \[32\], where .*\[64"),
        (lambda c: c["model"].update(depth=3), "has blocks/1/.* as nothing, where"),
        (lambda c: c["model"].update(depth=1), "where config.json describes nothing"),
        (lambda c: c["model"].update(depth=10**9), "depth 1000000000 and dim"),
        (lambda c: c["model"].update(dim=4 * 10**9), "has, .* tensors of .* at most"),
        (lambda c: c["training"]["bands"].update(s1=["VH", "VV"]), "and its contract"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_a_sentence(copy, change, message):
    said = json.loads((copy / weights.CONFIG).read_text())
    change(said)
    (copy / weights.CONFIG).write_text(json.dumps(said))
    with pytest.raises(InputError, match=message) as error:
        pretrained.load(copy)
    assert "\n" not in str(error.value)


def test_damaged_files_are_refused_in_a_sentence(copy):
    path = copy / weights.WEIGHTS
    tensors = safetensors.load_file(path)
    safetensors.save_file(tensors | {"norm/bias": np.zeros(32, np.float16)}, path)
    with pytest.raises(InputError, match=r"norm/bias as F16, where config.json descr"):
        pretrained.load(copy)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="model.safetensors cannot be read"):
        pretrained.load(copy)
    with pytest.raises(InputError, match="one step alone; leave out step=2"):
        pretrained.load(copy, step=2)
    path.unlink()
    with pytest.raises(InputError, match="model.safetensors cannot be read"):
        pretrained.load(copy)
    (copy / weights.CONFIG).write_text("{")
    with pytest.raises(InputError, match="config.json cannot be read"):
        pretrained.load(copy)


def test_nothing_is_overwritten_and_nothing_half_written_is_left(
    small, tmp_path, monkeypatch
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(InputError, match="full is there already and not an empty fo"):
        export.run(config(small, tmp_path / "full"), "unused")

    def fail(*args, **options):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(weights, "save", fail)
    with pytest.raises(InputError, match="out cannot be .*make room.*another out"):
        export.run(config(small, tmp_path / "out", formats=FORMATS), "unused")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
