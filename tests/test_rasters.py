"""GeoTIFFs of many bands: against tifffile, and damaged ones."""

import pathlib
import sys
import warnings

import numpy as np
import pytest
import rasterio
import tifffile

from data_pipeline.archives import rasters
from data_pipeline.errors import InputError
from tests import shared_data

IMAGE = np.random.default_rng(0).integers(0, 9000, (3, 40, 50), np.uint16)
IO = pathlib.Path("/proc/self/io")
PLANES = dict(planarconfig="separate", photometric="minisblack")


def write(path: pathlib.Path, image: np.ndarray, **profile) -> None:
    """Writes [C, H, W] with coordinates, descriptions and tags."""
    profile = {
        **dict(driver="GTiff", dtype=image.dtype, crs="EPSG:32633"),
        **dict(zip(("count", "height", "width"), image.shape)),
        **dict(transform=rasterio.Affine(10, 0, 500000, 0, -10, 5000000)),
    } | profile
    with rasterio.open(path, "w", **profile) as file:
        file.write(image)
        file.set_band_description(1, "B02")
        file.update_tags(PRODUCT="of the file")
        file.update_tags(3, PRODUCT="of a band", LOOK="right")


@pytest.mark.parametrize(
    "form",
    [
        {},
        dict(compression="zlib"),
        dict(tile=(16, 16)),
        dict(tile=(16, 16), compression="zlib", predictor=True),
        dict(rowsperstrip=7, byteorder=">"),
        dict(bigtiff=True),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_pixels_survive_any_form_of_the_file(tmp_path, form, dtype):
    image = IMAGE.astype(dtype)
    if form.get("predictor") and dtype == np.float32:
        form = form | {"predictor": False}
    tifffile.imwrite(tmp_path / "a.tif", image, **PLANES, **form)

    raster = rasters.read(str(tmp_path / "a.tif"))

    assert raster.pixels.dtype == dtype
    np.testing.assert_array_equal(raster.pixels, image)


@pytest.mark.skipif(not IO.exists(), reason="only Linux counts what is read")
def test_a_file_is_read_once(tmp_path):
    image = np.zeros((3, 1000, 1000), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, **PLANES)
    rasters.read(str(tmp_path / "a.tif"))  # which imports what it needs

    read = lambda: int(IO.read_text().split()[1])  # bytes, of the disk or its cache
    before = read()
    rasters.read(str(tmp_path / "a.tif"))
    assert image.nbytes < read() - before < 1.2 * image.nbytes


def test_what_the_file_says_of_itself_is_read(tmp_path):
    write(tmp_path / "a.tif", IMAGE, nodata=7)

    raster = rasters.read(str(tmp_path / "a.tif"))

    assert raster.bands == ("B02", "", "")
    assert raster.tags["PRODUCT"] == "of the file" and raster.tags["LOOK"] == "right"
    assert raster.nodata == 7
    np.testing.assert_array_equal(raster.missing, IMAGE == 7)
    assert raster.grid.crs == "EPSG:32633" and raster.grid.shape == (40, 50)
    assert raster.grid.transform == (10, 0, 500000, 0, -10, 5000000)
    np.testing.assert_array_equal(raster.pixels, IMAGE)


def test_a_file_without_coordinates_is_read_without_a_warning(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE[0])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raster = rasters.read(str(tmp_path / "a.tif"))

    assert raster.pixels.shape == (1, 40, 50)
    assert (raster.grid.crs, raster.grid.transform) == ("", None)
    assert raster.nodata is None and raster.missing is None and raster.scaling is None


def test_real_files_equal_tifffile():
    root = pathlib.Path(shared_data.bigearthnet_v1())
    for path in sorted(root.glob("*/*/*.tif"))[::25]:
        (pixels,) = rasters.read(str(path)).pixels
        np.testing.assert_array_equal(pixels, tifffile.imread(path))


@pytest.mark.parametrize(
    "form", [{}, dict(bigtiff=True, tile=(16, 16), compression="zlib")]
)
def test_a_file_cut_short_anywhere_is_refused(tmp_path, form):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, **PLANES, **form)
    whole = path.read_bytes()
    for length in (0, 3, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="a.tif is damaged or no GeoTIFF .*unpack"):
            rasters.read(str(path))


def test_a_file_whose_metadata_are_cut_off_is_refused(tmp_path, caplog):
    path = tmp_path / "a.tif"
    write(path, IMAGE, nodata=7)
    whole = path.read_bytes()
    at = whole.index(b"<GDALMetadata>")
    path.write_bytes(whole[: at + 20])

    with pytest.raises(InputError, match="a.tif is damaged or no GeoTIFF .*IO error"):
        rasters.read(str(path))
    assert not caplog.records


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + bytes(99), b"<VRTDataset>"])
def test_another_format_is_refused(tmp_path, content):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(InputError, match="a.tif is damaged or no GeoTIFF"):
        rasters.read(str(path))


@pytest.mark.parametrize("path", ["gone.tif", ".", "/vsicurl/http://localhost/a.tif"])
def test_only_files_are_opened(path):
    with pytest.raises(InputError, match="cannot be read"):
        rasters.read(path)


def test_without_rasterio_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[archives\]'"):
        rasters.read("a.tif")
