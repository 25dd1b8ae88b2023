"""Users' own pairs of GeoTIFFs, written with rasterio."""

import csv
import pathlib

import numpy as np
import rasterio

from configs import prepare_pairs
from data_pipeline import sensors
from data_pipeline.archives import geotiff_pairs

S1_BANDS = ("VV", "VH")
S2_BANDS = sensors.S2.band_names
SIDE = 16
GRID = rasterio.Affine(10, 0, 500000, 0, -10, 5000000)


def s1_image(seed: int, side: int = SIDE) -> np.ndarray:
    """Backscatter [2, H, W] in dB, VV first."""
    mean = np.array([-12.0, -19.0])[:, None, None]
    noise = np.random.default_rng(seed).normal(0, 2, (2, side, side))
    return (mean + noise).astype(np.float32)


def s2_image(seed: int, side: int = SIDE) -> np.ndarray:
    """DN [12, H, W] in canonical order."""
    rng = np.random.default_rng(seed)
    return rng.integers(100, 6000, (12, side, side), np.uint16)


def write(path: pathlib.Path, image: np.ndarray, bands=(), tags=None, **profile):
    """Writes [C, H, W] as one GeoTIFF whose bands have descriptions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        **dict(driver="GTiff", dtype=image.dtype, crs="EPSG:32633", transform=GRID),
        **dict(zip(("count", "height", "width"), image.shape)),
    } | profile
    with rasterio.open(path, "w", **profile) as file:
        file.write(image)
        for index, band in enumerate(bands, start=1):
            file.set_band_description(index, band)
        file.update_tags(**(tags or {}))


def write_pairs(root: pathlib.Path, count: int = 2) -> None:
    for i in range(count):
        write(root / "s1" / f"p{i}.tif", s1_image(i), S1_BANDS)
        write(root / "s2" / f"p{i}.tif", s2_image(i), S2_BANDS)


def write_csv(path: pathlib.Path, rows: list[dict]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def open_archive(source, **read):
    config = prepare_pairs.get_config()
    config.source = str(source)
    config.read.s2_offset = "0"
    config.read.update(read)
    return geotiff_pairs.open_archive(config)


def only_record(source, **read) -> dict:
    archive = open_archive(source, **read)
    (pair,), skipped = archive.find_pairs()
    assert not skipped
    return archive.read_pair(pair)
