"""Whole scenes cut into tiles, and images of other grids warped onto one."""

import pickle

import numpy as np
import pytest
import rasterio
from rasterio import warp

from configs import prepare_pairs
from data_pipeline import ground, record_format, sensors
from data_pipeline.archives import base, grids, rasters
from data_pipeline.building import prepare
from data_pipeline.errors import InputError
from tests.geotiffs import (
    GRID,
    S1_BANDS,
    S2_BANDS,
    only_record,
    open_archive,
    s1_image,
    s2_image,
    write,
    write_csv,
)

TILE = 16
SCENE = 40  # holds two tiles each way, and half of a third


def at(row: int, column: int) -> rasterio.Affine:
    """The tests' grid from that pixel on."""
    return GRID @ rasterio.Affine.translation(column, row)


def write_scene(root, side: int = SCENE, s1=GRID, s2=GRID, name="scene", **profile):
    s1_pixels, s2_pixels = s1_image(0, side), s2_image(0, side)
    write(root / "s1" / f"{name}.tif", s1_pixels, S1_BANDS, transform=s1)
    write(root / "s2" / f"{name}.tif", s2_pixels, S2_BANDS, transform=s2, **profile)
    return s1_pixels, s2_pixels


def records(root, **read) -> dict[str, dict]:
    archive = open_archive(root, **read)
    pairs, skipped = archive.find_pairs()
    assert not skipped and pairs == sorted(pairs)
    return {pair.name: archive.read_pair(pair) for pair in pairs}


def build(root, out, **settings):
    config = prepare_pairs.get_config()
    config.unlock()
    config.source, config.out, config.workers = str(root), str(out), 0
    config.read.s2_offset = "0"
    for key, value in settings.items():
        field = config if key in config else config.read
        field[key] = value
    prepare.prepare(config)


def last(image) -> np.ndarray:
    return np.moveaxis(image, 0, -1)


def test_tiles_are_what_the_scene_shows_there(tmp_path):
    s1, s2 = write_scene(tmp_path)
    found = records(tmp_path, tile=TILE)
    assert list(found) == [
        f"scene_{row:05d}_{column:05d}" for row in (0, 16) for column in (0, 16)
    ]
    for name, record in found.items():
        row, column = map(int, name.split("_")[1:])
        part = np.s_[:, row : row + TILE, column : column + TILE]
        np.testing.assert_array_equal(record["s2_10m"], last(s2[part]))
        np.testing.assert_array_equal(
            record["s1_10m"], last(s1[part]).astype(np.float16)
        )
        x, y = 500000 + 10 * column, 5000000 - 10 * row
        assert record["place"] == f"EPSG:32633 10 0 {x} 0 -10 {y}"
        assert record["id_s1"] == name
    assert len({ground.of(record["place"]) for record in found.values()}) == 4


@pytest.mark.parametrize(
    "length, side, stride, fill, starts",
    [
        (40, 16, 16, False, [0, 16]),
        (40, 16, 16, True, [0, 16, 32]),
        (40, 16, 8, False, [0, 8, 16, 24]),
        (40, 16, 8, True, [0, 8, 16, 24]),
        (40, 16, 30, False, [0]),
        (50, 16, 30, True, [0, 30]),
        (10, 16, 16, False, []),
        (10, 16, 16, True, [0]),
        (32, 16, 16, True, [0, 16]),
        (33, 16, 16, True, [0, 16, 32]),
    ],
)
def test_tiles_cover_a_scene(length, side, stride, fill, starts):
    found = grids.tiles((length, side), side, stride, fill)
    assert found == [(start, 0) for start in starts]


def test_what_lies_beyond_the_scene_is_missing(tmp_path):
    _, s2 = write_scene(tmp_path)
    found = records(tmp_path, tile=TILE, edges="fill")
    assert len(found) == 9
    corner = found["scene_00032_00032"]["s2_10m"]
    np.testing.assert_array_equal(corner[:8, :8], last(s2[:, 32:, 32:]))
    missing = sensors.is_missing(corner[..., 0])
    assert not missing[:8, :8].any() and missing.sum() == TILE**2 - 64


def test_tiles_beyond_the_swath_are_left_out_and_no_fault(tmp_path, capsys):
    _, s2 = write_scene(tmp_path / "in")
    s2[:, :, 20:] = 0
    write(tmp_path / "in" / "s2" / "scene.tif", s2, S2_BANDS)
    build(tmp_path / "in", tmp_path / "out", tile=TILE, strict=True)
    assert "of 4 pairs wrote 2 in train; skipped 2" in capsys.readouterr().out
    assert "75.0% of the pixels" in (tmp_path / "out" / "skipped.csv").read_text()
    # Of images that are no tiles, as many would be a fault.
    write_scene(tmp_path / "single", TILE, name="a")
    write(tmp_path / "single" / "s1" / "b.tif", s1_image(0, TILE), S1_BANDS)
    write(tmp_path / "single" / "s2" / "b.tif", s2[:, :TILE, 8:24], S2_BANDS)
    s2[:, :, 12:] = 0
    write(tmp_path / "single" / "s2" / "b.tif", s2[:, :TILE, 8:24], S2_BANDS)
    with pytest.raises(InputError, match="most_skipped"):
        build(tmp_path / "single", tmp_path / "other")


def test_tiles_of_one_grid_are_held_out_together(tmp_path):
    write_scene(tmp_path, name="S2A_MSIL2A_20200101T101031_N0213_R0_T33UUP_1")
    write_scene(tmp_path, name="S2A_MSIL2A_20200601T101031_N0214_R0_T33UUP_1")
    write_scene(tmp_path, s1=at(0, 500), s2=at(0, 500), name="east")
    pairs, _ = open_archive(tmp_path, tile=TILE).find_pairs()
    names = {}
    for pair in pairs:
        names.setdefault(pair.tile, []).append(pair.name)
    assert sorted(map(len, names.values())) == [4, 8]


def test_the_tile_of_a_list_says_what_is_held_out_together(tmp_path):
    write_scene(tmp_path)
    row = dict(s1="s1/scene.tif", s2="s2/scene.tif", tile="33UUP")
    source = write_csv(tmp_path / "pairs.csv", [row])
    pairs, _ = open_archive(source, tile=TILE).find_pairs()
    assert {pair.tile for pair in pairs} == {"33UUP"}


def test_bands_of_a_folder_are_cut_at_their_own_resolutions(tmp_path):
    rng = np.random.default_rng(0)
    whole = {}
    for band in sensors.S2.bands:
        factor = band.gsd // 10
        image = rng.integers(100, 6000, (60 // factor,) * 2, np.uint16)
        transform = GRID @ rasterio.Affine.scale(factor)
        path = tmp_path / "s2" / "scene" / f"{band.name}.tif"
        write(path, image[None], transform=transform)
        whole[band.name] = np.kron(image, np.ones((factor, factor), np.uint16))
    found = records(tmp_path, tile=TILE, stride=13)
    assert len(found) == 16
    record = found["scene_00013_00026"]["s2_10m"]  # neither is whole at 60 m
    expected = np.stack(list(whole.values()), -1)[13 : 13 + TILE, 26 : 26 + TILE]
    np.testing.assert_array_equal(record, expected)


def test_masks_of_a_product_are_not_taken_for_bands(tmp_path):
    product = tmp_path / "s2" / "a.SAFE" / "GRANULE" / "L2A"
    for i, band in enumerate(S2_BANDS):
        image = s2_image(0)[i : i + 1]
        write(product / "IMG_DATA" / f"T33_{band}_10m.tif", image)
        write(product / "QI_DATA" / f"MSK_DETFOO_{band}.tif", np.ones_like(image))
    record = only_record(tmp_path)
    np.testing.assert_array_equal(record["s2_10m"], last(s2_image(0)))


@pytest.mark.parametrize("ending", ["tif", "png"])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_masks_are_cut_with_their_images(tmp_path, ending, align):
    write_scene(tmp_path)
    mask = np.random.default_rng(1).integers(0, 2, (1, SCENE, SCENE), np.uint8)
    where = {} if ending == "tif" else dict(driver="PNG", crs=None, transform=None)
    write(tmp_path / "mask" / f"scene.{ending}", mask, **where)
    found = records(tmp_path, tile=TILE, align=align)
    np.testing.assert_array_equal(
        found["scene_00016_00000"]["mask"], mask[0, 16:32, :TILE]
    )


def test_images_on_one_lattice_are_cut_to_what_sentinel_2_shows(tmp_path):
    s1, s2 = write_scene(tmp_path, s1=at(-3, 5))
    with pytest.raises(InputError, match="align=True"):
        open_archive(tmp_path)
    record = only_record(tmp_path, align=True)
    np.testing.assert_array_equal(record["s2_10m"], last(s2))
    expected = last(s1)[3:, :-5].astype(np.float16)
    np.testing.assert_array_equal(record["s1_10m"][:-3, 5:], expected)
    missing = sensors.is_missing(record["s1_10m"][..., 0])
    assert missing[-3:].all() and missing[:, :5].all()
    assert not record["remarks"]  # nothing had to be warped


def nearest(image, transform, crs, target: grids.Grid) -> np.ndarray:
    """Pixels of an image at the centres of another grid's, one by one."""
    rows, columns = np.indices(target.shape) + 0.5
    x, y = target.matrix @ np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
    x, y = warp.transform(target.crs, crs, x, y)
    columns, rows = ~transform @ (np.array(x), np.array(y))
    found = np.full((len(image), rows.size), np.nan)
    inside = (0 <= rows) & (rows < image.shape[1])
    inside &= (0 <= columns) & (columns < image.shape[2])
    at = np.floor([rows, columns]).astype(int)[:, inside]
    found[:, inside] = image[:, *at]
    return found.reshape(len(image), *target.shape)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32634"])
def test_radar_of_another_projection_is_warped_onto_the_optical_grid(tmp_path, crs):
    image = s1_image(0, 3 * SCENE)
    bounds = warp.transform_bounds("EPSG:32633", crs, *(500000, 4999600, 500400, 5e6))
    left, bottom, right, top = bounds
    # A little narrower than the optical image, so that a rim of it has no radar.
    step = (right - left) / 45, (top - bottom) / 40
    transform = rasterio.Affine(step[0], 0, left, 0, -step[1], top)
    image = image[:, :40, :44]
    write(tmp_path / "s1" / "a.tif", image, S1_BANDS, transform=transform, crs=crs)
    write(tmp_path / "s2" / "a.tif", s2_image(0, SCENE), S2_BANDS)
    record = only_record(tmp_path, align=True)
    target = grids.Grid((SCENE, SCENE), "EPSG:32633", tuple(GRID)[:6])
    expected = nearest(image, transform, crs, target).astype(np.float16)
    same = np.isclose(record["s1_10m"], last(expected), equal_nan=True)
    assert same.mean() > 0.999  # a centre may lie on the edge of two pixels
    assert 0 < sensors.is_missing(record["s1_10m"]).mean() < 0.1
    assert record["remarks"] == ["had an image warped onto another grid, at the "
                                 "nearest of its pixels"]  # fmt: skip


def test_tiles_of_a_warped_scene_are_parts_of_the_scene_warped_whole(tmp_path):
    image = s1_image(0, 2 * SCENE)
    bounds = warp.transform_bounds(
        "EPSG:32633", "EPSG:4326", *(499903, 4999502, 500503, 5000102)
    )
    left, bottom, right, top = bounds
    step = (right - left) / (2 * SCENE), (top - bottom) / (2 * SCENE)
    transform = rasterio.Affine(step[0], 0, left, 0, -step[1], top)
    where = dict(transform=transform, crs="EPSG:4326")
    write(tmp_path / "s1" / "a.tif", image, S1_BANDS, **where)
    write(tmp_path / "s2" / "a.tif", s2_image(0, SCENE), S2_BANDS)
    whole = only_record(tmp_path, align=True)
    for name, record in records(tmp_path, align=True, tile=TILE).items():
        row, column = map(int, name.split("_")[1:])
        for field in ("s1_10m", "s2_10m"):
            part = whole[field][row : row + TILE, column : column + TILE]
            np.testing.assert_array_equal(record[field], part)


def test_optics_in_degrees_are_warped_into_utm(tmp_path):
    """As the chips of Sen1Floods11 are: 512 px of 10 m at the equator, in degrees."""
    step = 10 / 111320
    transform = rasterio.Affine(step, 0, 30.0, 0, -step, 45.0)
    where = dict(crs="EPSG:4326", transform=transform)
    for i, name in enumerate(("a", "b")):
        write(tmp_path / "s1" / f"{name}.tif", s1_image(i, 64), S1_BANDS, **where)
        write(tmp_path / "s2" / f"{name}.tif", s2_image(i, 64), S2_BANDS, **where)
    with pytest.raises(InputError, match="EPSG:4326.*align=True"):
        open_archive(tmp_path)
    found = records(tmp_path, align=True)
    assert len(found) == 2
    for i, record in enumerate(found.values()):
        assert record["s2_10m"].shape == (45, 45, 12)  # 64 cos(45 degrees)
        crs, *numbers = record["place"].split()
        target = grids.Grid((45, 45), crs, tuple(map(float, numbers)))
        assert crs == "EPSG:32636" and grids.pixel_size(target) == (10, 10)
        expected = nearest(s2_image(i, 64), transform, "EPSG:4326", target)
        missing = np.isnan(expected)
        assert missing.mean() < 0.1
        expected = np.where(missing, sensors.MISSING["uint16"], expected)
        assert (record["s2_10m"] == last(expected)).mean() > 0.999


def test_pixels_are_judged_on_the_ground(tmp_path):
    """10 units of Web Mercator are 5 m at 60 degrees north."""
    x, y = (v[0] for v in warp.transform("EPSG:4326", "EPSG:3857", [25], [60]))
    web = rasterio.Affine(10, 0, x, 0, -10, y)
    where = dict(crs="EPSG:3857", transform=web)
    write(tmp_path / "s2" / "a.tif", s2_image(0, 32), S2_BANDS, **where)
    with pytest.raises(InputError, match="5.0.. x 5.0.. m on the ground"):
        open_archive(tmp_path)
    assert only_record(tmp_path, align=True)["s2_10m"].shape == (16, 16, 12)
    # The European equal-area grid is one of 10 m, as near as anybody needs.
    europe = rasterio.Affine(10, 0, 4000000, 0, -10, 3000000)
    assert np.allclose(
        grids.pixel_size(grids.Grid((9, 9), "EPSG:3035", tuple(europe)[:6])), 10, 0.01
    )


def test_masks_are_warped_to_classes_that_were_there(tmp_path):
    write(tmp_path / "s2" / "a.tif", s2_image(0, SCENE), S2_BANDS)
    half = rasterio.Affine(5, 0, 500000, 0, -5, 5000000)
    mask = np.random.default_rng(0).choice([3, 9], (1, 2 * SCENE, 2 * SCENE))
    mask = np.repeat(np.repeat(mask[:, ::2, ::2], 2, 1), 2, 2).astype(np.uint8)
    write(tmp_path / "mask" / "a.tif", mask, transform=half)
    record = only_record(tmp_path, align=True, mask_classes=("3=dry", "9=wet"))
    np.testing.assert_array_equal(record["mask"], mask[0, ::2, ::2] == 9)


def test_a_tile_that_proves_nothing_goes_by_its_scene(tmp_path):
    """Dark water anywhere in a scene proves that its offset was taken off."""
    image = np.random.default_rng(0).integers(1500, 6000, (12, 96, 96), np.uint16)
    image[:, :48, :48] = 300
    name = "S2A_MSIL2A_20230101T101031_N0509_R0_T33UUP_1"
    write(tmp_path / "s2" / f"{name}.tif", image, S2_BANDS)
    found = records(tmp_path, tile=48, s2_offset="auto")
    bright = found[f"{name}_00048_00048"]
    np.testing.assert_array_equal(bright["s2_10m"], last(image[:, 48:, 48:]))
    # And where nothing in the scene does, the name counts.
    write(tmp_path / "s2" / f"{name}.tif", image[:, 48:, 48:], S2_BANDS)
    record = only_record(tmp_path, s2_offset="auto")
    np.testing.assert_array_equal(record["s2_10m"], last(image[:, 48:, 48:]) - 1000)


@pytest.mark.parametrize(
    "read, message",
    [
        (dict(stride=8), "read.tile"),
        (dict(edges="fill"), "read.tile"),
        (dict(tile=16, size=32), "leave read.size=0"),
        (dict(tile=64), "40 x 40 px hold no tile of read.tile=64"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, read, message):
    write_scene(tmp_path)
    with pytest.raises(InputError, match=message):
        open_archive(tmp_path, **read)


def test_labels_of_a_scene_are_not_given_to_its_tiles(tmp_path):
    write_scene(tmp_path)
    row = dict(s1="s1/scene.tif", s2="s2/scene.tif", labels="water")
    source = write_csv(tmp_path / "pairs.csv", [row])
    with pytest.raises(InputError, match="has labels, .* which of its tiles"):
        open_archive(source, tile=TILE)


def test_scenes_that_cannot_be_cut_are_skipped_with_the_reason(tmp_path):
    write_scene(tmp_path)
    write_scene(tmp_path, s1=at(1, 0), name="shifted")
    write(tmp_path / "s1" / "short.tif", s1_image(0, 32), S1_BANDS)
    write(tmp_path / "s2" / "short.tif", s2_image(0, SCENE), S2_BANDS)
    archive = open_archive(tmp_path, tile=TILE)
    pairs, skipped = archive.find_pairs()
    assert {pair.name[:5] for pair in pairs} == {"scene"}
    reasons = {image.name: image.reason for image in skipped}
    assert "align=True" in reasons["shifted"] and "32 x 32 px" in reasons["short"]
    assert len(pickle.dumps(archive)) < 10_000


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_cannot_be_aligned_is_refused_in_a_sentence(tmp_path):
    write_scene(tmp_path)
    write(tmp_path / "s1" / "scene.tif", s1_image(0, SCENE), S1_BANDS, crs=None)
    with pytest.raises(InputError, match="no coordinates, without which"):
        open_archive(tmp_path, align=True)
    coarse = rasterio.Affine(100, 0, 500000, 0, -100, 5000000)
    write_scene(tmp_path, s1=coarse)
    with pytest.raises(InputError, match="pixels of 100 x 100 m, .* resample"):
        open_archive(tmp_path, align=True)


def test_pairs_far_apart_are_missing_and_left_out(tmp_path):
    write_scene(tmp_path, s1=at(5000, 5000))
    record = only_record(tmp_path, align=True)
    assert sensors.is_missing(record["s1_10m"]).all()


def test_a_build_of_tiles_is_the_same_however_it_is_cut_into_jobs(tmp_path):
    for i, name in enumerate(("a", "b")):
        write_scene(tmp_path / "in", s1=at(1, 2), s2=at(100 * i, 0), name=name)
    settings = dict(tile=TILE, align=True, most_missing=1.0)
    build(tmp_path / "in", tmp_path / "one", **settings)
    build(tmp_path / "in", tmp_path / "two", workers=2, **settings)
    one, two = (
        [record_format.Records(tmp_path / name, "train")[i]["s1_10m"] for i in range(8)]
        for name in ("one", "two")
    )
    np.testing.assert_array_equal(one, two)


def test_scenes_may_be_larger_than_a_file_that_is_read_whole(tmp_path, monkeypatch):
    s1, _ = write_scene(tmp_path)
    monkeypatch.setattr(base, "MOST_BYTES", 8000)  # the files have 13 and 38 kB
    with pytest.raises(InputError, match="into tiles, by read.tile"):
        open_archive(tmp_path)
    record = records(tmp_path, tile=TILE)["scene_00000_00000"]
    expected = last(s1[:, :TILE, :TILE]).astype(np.float16)
    np.testing.assert_array_equal(record["s1_10m"], expected)


def test_a_window_beyond_the_image_is_padded(tmp_path):
    image = s2_image(0)
    write(tmp_path / "a.tif", image, S2_BANDS)
    for window in (
        grids.Window(-3, -5, 12, 12),
        grids.Window(10, 12, 12, 12),
        grids.Window(-2, -2, 30, 30),
        grids.Window(40, 0, 4, 4),
        grids.Window(-9, 3, 4, 4),
    ):
        raster = rasters.read(str(tmp_path / "a.tif"), window=window)
        rows = np.arange(window.height)[:, None] + window.top
        columns = np.arange(window.width) + window.left
        inside = (0 <= rows) & (rows < 16) & (0 <= columns) & (columns < 16)
        missing = np.zeros((1, *inside.shape), bool)
        missing = missing if raster.missing is None else raster.missing
        np.testing.assert_array_equal(missing, np.broadcast_to(~inside, missing.shape))
        expected = image[:, rows % 16, columns % 16] * inside
        np.testing.assert_array_equal(raster.pixels, expected)
