"""Images as folders with a file for each band."""

import numpy as np
import pytest
import rasterio

from data_pipeline import sensors
from data_pipeline.archives import band_folders
from data_pipeline.errors import InputError
from tests.geotiffs import GRID, S1_BANDS, only_record, s1_image, write, write_csv

SIDE = 24  # whole at 60 m
PRODUCT = "S2A_MSIL2A_20210706T085611_N0300_R007_T33NZA_20210706T153419"


def native(seed: int = 0) -> dict[str, np.ndarray]:
    """DN of each band of Sentinel-2 on its own grid."""
    rng = np.random.default_rng(seed)
    sides = {band.name: SIDE * 10 // band.gsd for band in sensors.S2.bands}
    return {b: rng.integers(100, 6000, (n, n), np.uint16) for b, n in sides.items()}


def write_bands(folder, images, name="{}.tif", **profile):
    for band, image in images.items():
        gsd = 10 * SIDE // len(image)
        grid = rasterio.Affine(gsd, 0, GRID.c, 0, -gsd, GRID.f)
        path = folder / name.format(band, gsd=gsd)
        write(path, image[None], transform=grid, **profile)


def on_finest(images) -> np.ndarray:
    """[H, W, C] in the contract's order, by another way than the reader's."""
    ones = [np.ones((SIDE // len(x),) * 2, x.dtype) for x in images.values()]
    return np.stack(list(map(np.kron, images.values(), ones)), axis=-1)


def test_bands_at_three_resolutions_are_one_image_on_the_finest_grid(tmp_path):
    images = native()
    write_bands(tmp_path / "s2" / "cell" / PRODUCT, images)
    radar = dict(zip(("vv", "vh"), s1_image(0, SIDE)))
    write_bands(tmp_path / "s1" / "cell" / "S1A_rtc", radar)
    record = only_record(tmp_path, s2_offset="auto")
    np.testing.assert_array_equal(record["s2_10m"], on_finest(images))
    np.testing.assert_array_equal(
        record["s1_10m"], np.moveaxis(s1_image(0, SIDE), 0, -1).astype(np.float16)
    )
    assert record["acquired_s2"] == "2021-07-06T08:56:11"
    assert record["id"] == "cell" and record["place"].startswith("EPSG:32633 10 0")


def test_a_product_is_read_at_the_finest_resolution_of_each_band(tmp_path):
    images = native()
    data = tmp_path / f"{PRODUCT}.SAFE" / "GRANULE" / "L2A" / "IMG_DATA"
    name = "R{gsd}m/T33NZA_20210706T085611_{}_{gsd}m.jp2"
    lossless = dict(driver="JP2OpenJPEG", REVERSIBLE="YES", QUALITY="100")
    write_bands(data, images, name, **lossless)
    coarse = {"B02": np.full((12, 12), 7, np.uint16)}  # R20m has B02 too
    write_bands(data, coarse, name, **lossless)
    scene = {"SCL": np.ones((12, 12), np.uint8)}
    write_bands(data, scene, name, **lossless)
    write(tmp_path / "a.tif", s1_image(0, SIDE), S1_BANDS)
    row = dict(s1="a.tif", s2=f"{PRODUCT}.SAFE")
    record = only_record(write_csv(tmp_path / "pairs.csv", [row]), s2_offset="auto")
    np.testing.assert_array_equal(record["s2_10m"], on_finest(images))


def test_what_a_coarse_band_misses_is_missing_below_all_of_its_pixel(tmp_path):
    images = native()
    images["B01"][1, 2] = 65000
    write_bands(tmp_path / "s2" / "a", images, nodata=65000)
    write(tmp_path / "s1" / "a.tif", s1_image(0, SIDE), S1_BANDS)
    missing = sensors.is_missing(only_record(tmp_path)["s2_10m"])
    assert missing[6:12, 12:18].all() and missing.sum() == 36 * 12


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda folder: write_at(folder / "B05.tif", 12, 20.0, east=20), "no part of"),
        (lambda folder: write_at(folder / "B05.tif", 13, 20.0), "13 x 13 px"),
        (
            lambda folder: write(folder / "B03.tif", np.ones((2, 24, 24), np.uint16)),
            "Band B03 of .* has 2 bands",
        ),
    ],
)
def test_bands_that_do_not_go_together_are_refused(tmp_path, change, reason):
    write_bands(tmp_path / "a", native())
    change(tmp_path / "a")
    with pytest.raises(InputError, match=reason):
        band_folders.read(str(tmp_path / "a"))


def write_at(path, side: int, gsd: float, east: float = 0.0) -> None:
    grid = rasterio.Affine(gsd, 0, GRID.c + east, 0, -gsd, GRID.f)
    write(path, np.ones((1, side, side), np.uint16), transform=grid)


def test_a_folder_without_bands_is_refused(tmp_path):
    write(tmp_path / "a" / "thumbnail.tif", np.ones((3, 8, 8), np.uint8))
    with pytest.raises(InputError, match="no file that is called after a band"):
        band_folders.read(str(tmp_path / "a"))
