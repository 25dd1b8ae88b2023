"""The TIFF reader against independent readers, and what it refuses."""

import io
import pathlib
import sys

import numpy as np
import pytest
import rasterio
import tifffile

from data_pipeline.archives import tiff
from data_pipeline.errors import InputError
from tests import shared_data

IMAGE = np.random.default_rng(0).integers(0, 65535, (20, 30), np.uint16)


def encode(image, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("rows", [1, 7, 20])
def test_pixels_survive_any_strips_and_byte_order(byteorder, dtype, rows):
    image = IMAGE.astype(dtype)

    got = tiff.read(encode(image, byteorder=byteorder, rowsperstrip=rows), "x.tif")

    assert got.dtype == dtype and got.dtype.isnative
    np.testing.assert_array_equal(got, image)


@pytest.mark.parametrize(
    "form",
    [
        dict(compression="zlib"),
        dict(compression="zlib", predictor=True),
        dict(tile=(16, 16)),
        dict(tile=(16, 16), compression="zlib"),
        dict(bigtiff=True),
        dict(bigtiff=True, byteorder=">"),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_other_layouts_and_types_are_read_by_rasterio(form, dtype):
    image = IMAGE.astype(dtype)
    if dtype == np.float32:  # for which a predictor takes another package to write
        form = {key: value for key, value in form.items() if key != "predictor"}
    got = tiff.read(encode(image, **form), "x.tif")
    assert got.dtype == dtype and got.dtype.isnative
    np.testing.assert_array_equal(got, image)


def test_without_rasterio_what_it_would_read_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    np.testing.assert_array_equal(tiff.read(encode(IMAGE), "x.tif"), IMAGE)
    with pytest.raises(InputError, match=r"x.tif needs rasterio; install it with `pip"):
        tiff.read(encode(IMAGE, compression="zlib"), "x.tif")


def test_overviews_are_no_further_images(tmp_path):
    path, profile = tmp_path / "x.tif", dict(driver="COG", crs="EPSG:32633")
    image = np.random.default_rng(0).integers(1, 9000, (600, 600), np.uint16)
    transform = rasterio.Affine(10, 0, 500000, 0, -10, 5000000)
    with rasterio.open(
        path, "w", count=1, height=600, width=600, dtype="uint16",
        transform=transform, **profile,
    ) as file:  # fmt: skip
        file.write(image, 1)
    with rasterio.open(path) as file:
        assert file.overviews(1)
    np.testing.assert_array_equal(tiff.read_file(str(path)), image)


def real_files() -> list[pathlib.Path]:
    return sorted(pathlib.Path(shared_data.bigearthnet_v1()).glob("*/*/*.tif"))


def test_real_files_equal_tifffile():
    for path in real_files():
        got = tiff.read(path.read_bytes(), path.name)
        want = tifffile.imread(path)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_real_files_equal_rasterio():
    for path in real_files()[::5]:
        with rasterio.open(path) as file:
            want = file.read(1)
        np.testing.assert_array_equal(tiff.read(path.read_bytes(), path.name), want)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "not a TIFF"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a TIFF"),
        (encode(IMAGE)[:-1], "cut short or damaged"),
        (encode(IMAGE)[:6], "cut short or damaged"),
        (encode(IMAGE)[:100], "cut short or damaged"),
        (encode(IMAGE, compression="zlib")[:-1], "damaged"),
        (encode(np.stack([IMAGE] * 3, -1), photometric="rgb"), "has 3 bands"),
        (encode(np.stack([IMAGE] * 2), photometric="minisblack"), "more than one"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_name_and_reason(data, reason):
    with pytest.raises(InputError, match=f"^x.tif .*{reason}"):
        tiff.read(data, "x.tif")


@pytest.mark.parametrize("tag", [256, 257, 258, 259, 273, 277, 279])
@pytest.mark.parametrize("field, value", [("count", 0), ("value", 0), ("type", 99)])
def test_a_tag_without_content_is_an_input_error_or_goes_without(tag, field, value):
    data = bytearray(encode(IMAGE, rowsperstrip=20))
    start = int.from_bytes(data[4:8], "little")
    entries = range(start + 2, start + 2 + 12 * data[start], 12)
    (entry,) = [at for at in entries if data[at : at + 2] == tag.to_bytes(2, "little")]
    at, size = {"type": (2, 2), "count": (4, 4), "value": (8, 4)}[field]
    data[entry + at : entry + at + size] = value.to_bytes(size, "little")
    without = tag in (259, 277) and field != "value"  # which have a default
    if without:
        np.testing.assert_array_equal(tiff.read(bytes(data), "x.tif"), IMAGE)
    else:
        with pytest.raises(InputError, match="^x.tif "):
            tiff.read(bytes(data), "x.tif")


def test_a_file_is_read_by_its_path(tmp_path):
    path = tmp_path / "x.tif"
    path.write_bytes(encode(IMAGE))
    np.testing.assert_array_equal(tiff.read_file(str(path)), IMAGE)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        InputError, match="gone.tif cannot be read .*unpack or write it again"
    ):
        tiff.read_file(str(tmp_path / "gone.tif"))
