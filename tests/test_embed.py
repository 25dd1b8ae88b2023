"""Maps of whole scenes, and tables of pairs."""

import json
import pathlib

import jax
import numpy as np
import pytest
import rasterio
from pyarrow import parquet

from configs import embed as embed_config
from data_pipeline import record_format
from data_pipeline.archives.grids import Window
from data_pipeline.building import preview
from data_pipeline.errors import InputError
from fusmae_jax import embed, maps, pretrained, scenes
from tests import judging
from tests.geotiffs import GRID, S1_BANDS, S2_BANDS, s1_image, s2_image, write
from tests.test_pair_tiles import at, build, nearest

PATCH, SIDE, STRIDE = 6, 4, 2
SCENE = 60  # pixels: 10 patches, of which 4 are a window


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return judging.trained(tmp_path_factory)


@pytest.fixture(scope="module")
def model(run):
    return pretrained.load(run, batch_size=8)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch, model):
    """Compiles once: tests ask for the same run."""
    monkeypatch.setattr(pretrained, "load", lambda *args, **options: model)


def write_scene(folder, side: int = SCENE, **profile) -> dict[str, np.ndarray]:
    images = {"s1": s1_image(0, side), "s2": s2_image(0, side)}
    write(folder / "s1.tif", images["s1"], S1_BANDS, **profile)
    write(folder / "s2.tif", images["s2"], S2_BANDS, **profile)
    return {s: np.moveaxis(x, 0, -1) for s, x in images.items()}


def config(run, out, folder=None, sensors=("s1", "s2"), **changes):
    c = embed_config.get_config()
    c.checkpoint, c.out, c.s2_offset, c.stride = str(run), str(out), "0", STRIDE
    for s in sensors if folder else ():
        c[s] = str(folder / f"{s}.tif")
    c.update_from_flattened_dict({k.replace("__", "."): x for k, x in changes.items()})
    return c


def read(out: pathlib.Path) -> np.ndarray:
    """The map, [H, W, D]."""
    with rasterio.open(out / embed.MAP) as file:
        return np.moveaxis(file.read(), 0, -1)


@pytest.mark.parametrize("sensors", [("s1", "s2"), ("s1",), ("s2",)])
def test_a_map_is_what_the_encoder_says_of_the_scene(run, model, tmp_path, sensors):
    images = write_scene(tmp_path)
    embed.run(config(run, tmp_path / "out", tmp_path, sensors), None)
    expected = model.encode(**{s: images[s] for s in sensors}, stride=STRIDE).dense
    np.testing.assert_allclose(read(tmp_path / "out"), expected, rtol=1e-3, atol=1e-3)
    with rasterio.open(tmp_path / "out" / embed.MAP) as file:
        assert file.crs == "EPSG:32633" and file.tags()["PATCH_SIZE"] == "6"
        assert file.transform == GRID @ rasterio.Affine.scale(PATCH)
        assert file.bounds == (500000, 4999400, 500600, 5000000)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.descriptions[:2] == ("feature 0", "feature 1")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {embed.MAP, embed.PICTURE, embed.ITEM}
    item = json.loads((tmp_path / "out" / embed.ITEM).read_text())
    assert item["properties"]["emb:dimensions"] == model.width
    assert item["properties"]["proj:transform"][0] == 60
    assert 14.9 < item["bbox"][0] < item["bbox"][2] < 15.1  # the zone's meridian


def test_a_scene_that_ends_within_a_patch_is_mapped_to_its_end(run, model, tmp_path):
    images = write_scene(tmp_path, 64)
    embed.run(config(run, tmp_path / "out", tmp_path), None)
    filled = {s: np.full((66, 66, x.shape[-1]), np.nan) for s, x in images.items()}
    for s, x in images.items():
        filled[s][:64, :64] = x
    expected = model.encode(**filled, stride=STRIDE).dense
    assert expected.shape[:2] == (11, 11)
    np.testing.assert_allclose(read(tmp_path / "out"), expected, rtol=1e-3, atol=1e-3)


def test_a_scene_smaller_than_a_window_is_mapped(run, model, tmp_path):
    images = write_scene(tmp_path, 2 * PATCH)
    embed.run(config(run, tmp_path / "out", tmp_path), None)
    expected = model.encode(**images).dense
    np.testing.assert_allclose(read(tmp_path / "out"), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_was_not_measured_stays_missing(run, tmp_path):
    images = write_scene(tmp_path)
    images["s2"][:24] = 0
    images["s1"][:18] = np.nan
    for s, bands in (("s1", S1_BANDS), ("s2", S2_BANDS)):
        write(tmp_path / f"{s}.tif", np.moveaxis(images[s], -1, 0), bands)
    embed.run(config(run, tmp_path / "out", tmp_path), None)
    missing = np.isnan(read(tmp_path / "out")).all(axis=-1)
    assert missing[:3].all() and not missing[3:].any()
    picture = rasterio.open(tmp_path / "out" / embed.PICTURE).read(4)
    np.testing.assert_array_equal(picture == 0, missing)


def test_bytes_with_a_scale_are_nearly_the_same(run, tmp_path):
    images = write_scene(tmp_path)
    images["s2"][:, :12], images["s1"][:, :12] = 0, np.nan
    for s, bands in (("s1", S1_BANDS), ("s2", S2_BANDS)):
        write(tmp_path / f"{s}.tif", np.moveaxis(images[s], -1, 0), bands)
    embed.run(config(run, tmp_path / "a", tmp_path), None)
    embed.run(config(run, tmp_path / "b", tmp_path, dtype="int8"), None)
    exact = read(tmp_path / "a")
    with rasterio.open(tmp_path / "b" / embed.MAP) as file:
        stored, scales = np.moveaxis(file.read(), 0, -1), np.array(file.scales)
        assert file.dtypes[0] == "int8" and file.nodata == -128
    np.testing.assert_array_equal(stored == -128, np.isnan(exact))
    greatest = np.nanmax(np.abs(exact), axis=(0, 1))
    np.testing.assert_allclose(scales, greatest / 127, rtol=1e-4)
    apart = np.abs(stored * scales - exact)[:, 2:]
    assert (apart <= scales * 0.51).all()


def test_radar_in_degrees_comes_onto_the_optical_grid(run, model, tmp_path):
    images = write_scene(tmp_path)
    image = s1_image(3, 90)
    step = 10 / 111320
    where = rasterio.Affine(step * 1.3, 0, 14.9995, 0, -step, 45.15373)
    write(tmp_path / "s1.tif", image, S1_BANDS, crs="EPSG:4326", transform=where)
    embed.run(config(run, tmp_path / "out", tmp_path), None)
    scene = scenes.open_scene(config(run, "", tmp_path), model.contract)
    expected = np.moveaxis(nearest(image, where, "EPSG:4326", scene.grid), 0, -1)
    found = scene.read(Window(0, 0, SCENE, SCENE))["s1"]
    assert np.isclose(found, expected, atol=1e-3, equal_nan=True).mean() > 0.999
    dense = model.encode(found, images["s2"], stride=STRIDE).dense
    np.testing.assert_allclose(read(tmp_path / "out"), dense, rtol=1e-3, atol=1e-3)


def test_a_stopped_map_goes_on_and_is_the_same_byte_for_byte(
    run, tmp_path, monkeypatch
):
    write_scene(tmp_path, 90)
    embed.run(config(run, tmp_path / "whole", tmp_path), None)
    add = maps.Rows.add
    for rows in (4, 8):  # killed twice

        def until(self, first, part, rows=rows):
            if first >= rows:
                raise KeyboardInterrupt
            add(self, first, part)

        monkeypatch.setattr(maps.Rows, "add", until)
        with pytest.raises(KeyboardInterrupt):
            embed.run(config(run, tmp_path / "out", tmp_path), None)
    with pytest.raises(InputError, match="unfinished map of other stride"):
        embed.run(config(run, tmp_path / "out", tmp_path, stride=1), None)
    begun = []
    monkeypatch.setattr(
        maps.Rows, "add", lambda self, i, part: (begun.append(i), add(self, i, part))
    )
    embed.run(config(run, tmp_path / "out", tmp_path), None)
    assert begun[0] >= 8
    for name in (embed.MAP, embed.PICTURE):
        one, two = (tmp_path / folder / name for folder in ("whole", "out"))
        assert one.read_bytes() == two.read_bytes()


def test_rows_are_the_same_from_wherever_they_begin(model, run, tmp_path):
    write_scene(tmp_path, 90)
    scene = scenes.open_scene(config(run, "", tmp_path), model.contract)
    cover = scenes.cover(scene, model, 3)

    step = scenes.dense(model)

    def mapped(first):
        found = scenes.map_rows(scene, model, cover, step, model.width, first)
        starts, parts = zip(*found)
        assert starts[0] == first
        assert [*starts[1:], 15] == [s + len(x) for s, x in zip(starts, parts)]
        return np.concatenate(parts)

    whole = mapped(0)
    for first in (1, 3, 7, 14):
        np.testing.assert_array_equal(mapped(first), whole[first:])


def test_an_unfinished_map_that_is_damaged_is_refused(run, tmp_path):
    write_scene(tmp_path)
    (tmp_path / "out" / maps.PARTS).mkdir(parents=True)
    (tmp_path / "out" / maps.PARTS / "rows.json").write_text('{"key": ')
    with pytest.raises(InputError, match="rows.json cannot be read .* delete"):
        embed.run(config(run, tmp_path / "out", tmp_path), None)


def test_the_step_of_a_map_is_lowered_for_gpus_and_tpus(model):
    pixels = {
        s: jax.ShapeDtypeStruct((8, 24, 24, len(sensor.bands)), np.float32)
        for s, sensor in model.contract.items()
    }
    step = scenes.dense(model)
    lowered = step.trace(model.params, pixels).lower(lowering_platforms=("cuda", "tpu"))
    assert "stablehlo" in lowered.as_text()


def test_an_offset_is_found_by_pixels_names_or_not_at_all(run, model, tmp_path):
    rng = np.random.default_rng(0)
    bright = rng.integers(1500, 6000, (12, SCENE, SCENE), np.uint16)

    def offset(name, image, **changes):
        write(tmp_path / f"{name}.tif", image, S2_BANDS)
        c = config(run, "", s2=str(tmp_path / f"{name}.tif"), **changes)
        return scenes.open_scene(c, model.contract).offset

    named = "S2A_MSIL2A_20230101T101031_N0509_R0_T33UUP_1"
    assert offset(named, bright, s2_offset="auto") == 1000
    dark = bright.copy()
    dark[:, :20] = 300
    assert offset(named, dark, s2_offset="auto") == 0
    assert offset("mine", bright, s2_offset="1000") == 1000
    with pytest.raises(InputError, match="pass s2_offset=1000 when"):
        offset("mine", bright, s2_offset="auto")


def test_only_some_bands_are_enough_and_said(run, model, tmp_path, lines):
    image = s2_image(0, SCENE)[1:4]
    write(tmp_path / "s2.tif", image, S2_BANDS[1:4])
    embed.run(config(run, tmp_path / "out", tmp_path, ("s2",)), None)
    bands = {"s2": S2_BANDS[1:4]}
    expected = model.encode(s2=np.moveaxis(image, 0, -1), bands=bands, stride=STRIDE)
    np.testing.assert_allclose(
        read(tmp_path / "out"), expected.dense, rtol=1e-3, atol=1e-3
    )
    assert any("has no B01, B05" in line for line in lines)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_cannot_be_mapped_is_refused_and_nothing_written(run, tmp_path):
    def refused(message, sensors=("s1", "s2"), **changes):
        with pytest.raises(InputError, match=message) as caught:
            embed.run(config(run, tmp_path / "out", tmp_path, sensors, **changes), None)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    write_scene(tmp_path)
    refused("Name a run directory", checkpoint="")
    with pytest.raises(InputError, match="Say where the result goes"):
        embed.run(config(run, "", tmp_path), None)
    refused("cannot be DN, as", s2_unit="DN", s2=str(tmp_path / "s1.tif"),
            s2_bands=("B02", "B03"))  # fmt: skip
    refused("a scene, and config.data a dataset", data__source="sample")
    refused("none as Sentinel-1 has them", s1_bands=("A", "B"))
    refused("stride from 1 to 4", stride=5)
    refused("cannot be linear", s1_unit="linear")
    write(tmp_path / "s1.tif", s1_image(0, SCENE), S1_BANDS, transform=at(0, 900))
    refused("s1.tif shows nothing of the ground of .*s2.tif")
    write(tmp_path / "s1.tif", s1_image(0, SCENE), S1_BANDS, crs=None)
    refused("no coordinates")
    (tmp_path / "s1.tif").write_bytes(b"II*\0nothing")
    refused("damaged or no GeoTIFF")
    (tmp_path / "s1.tif").unlink()
    refused("cannot be read")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not overwritten"):
        embed.run(config(run, tmp_path / "out", tmp_path, ("s2",)), None)


def test_a_tile_that_is_damaged_in_mid_file_stops_the_map_and_says_so(run, tmp_path):
    side = 160
    form = dict(tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    write(tmp_path / "s2.tif", s2_image(0, side), S2_BANDS, **form)
    content = bytearray((tmp_path / "s2.tif").read_bytes())
    content[-30_000:-20_000] = bytes(10_000)
    (tmp_path / "s2.tif").write_bytes(content)
    with pytest.raises(InputError, match="s2.tif is damaged"):
        embed.run(config(run, tmp_path / "out", tmp_path, ("s2",)), None)
    assert not (tmp_path / "out" / embed.MAP).exists()


def test_a_dataset_becomes_a_table(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr(preview, "draw", lambda *args: None)
    write_scene(tmp_path / "in" / "x", 48)
    for s in ("s1", "s2"):
        (tmp_path / "in" / s).mkdir()
        (tmp_path / "in" / "x" / f"{s}.tif").rename(tmp_path / "in" / s / "scene.tif")
    build(tmp_path / "in", tmp_path / "data", tile=24)
    c = config(run, tmp_path / "out", data__dir=str(tmp_path / "data"))
    embed.run(c, None)
    table = parquet.read_table(tmp_path / "out" / embed.TABLE_FILE)
    records = record_format.Records(tmp_path / "data", "train")
    assert table["id"].to_pylist() == [records[i]["id"] for i in range(4)]
    expected = model.encode(
        np.stack([records[i]["s1_10m"] for i in range(4)]).astype(np.float32),
        np.stack([records[i]["s2_10m"] for i in range(4)]),
    )
    found = np.stack(table["features"].to_numpy())
    np.testing.assert_allclose(found, expected.pooled, atol=1e-4)
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["primary_column"] == "geometry"
    points = np.frombuffer(table["geometry"].to_pylist()[3][13:]).reshape(5, 2)
    x, y = rasterio.warp.transform("EPSG:4326", "EPSG:32633", *points.T)
    np.testing.assert_allclose(x, [500240, 500240, 500480, 500480, 500240], atol=0.01)
    np.testing.assert_allclose(
        y, [4999760, 4999520, 4999520, 4999760, 4999760], atol=0.01
    )
    with pytest.raises(InputError, match="not overwritten"):
        embed.run(c, None)


def test_where_windows_begin_does_not_matter_if_each_patch_begins_one(model):
    """How much it matters elsewhere, for a trained encoder, docs/use.md says."""
    rng = np.random.default_rng(0)
    s1 = rng.normal((-12.0, -19.0), 3.0, (72, 72, 2)).astype(np.float32)
    said = [model.encode(s1=s1[k:, k:], stride=1).dense for k in (0, PATCH)]
    inner = np.s_[SIDE:-SIDE, SIDE:-SIDE]
    np.testing.assert_allclose(said[0][1:, 1:][inner], said[1][inner], atol=1e-5)
