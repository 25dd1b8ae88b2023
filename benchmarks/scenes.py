"""Cutting a whole scene into pairs: rate and memory.

    python -m benchmarks.scenes --folder=DIR [--side=10980] [--tile=120] [--ending=jp2]

Writes, once, a procedural scene as Sentinel-2's products have it, a folder with twelve
bands of their own at 10, 20 and 60 m in JPEG 2000 (or GeoTIFF), and a GeoTIFF of radar
on the same grid, or on a turned one with --warp. Bands of one resolution share their
pixels, as writing JPEG 2000 takes minutes. Then it builds a dataset of its tiles,
as `launch.py --config=configs/prepare_pairs.py` does, and prints what that took.
"""

import argparse
import multiprocessing
import pathlib
import resource
import shutil
import time

import numpy as np
import rasterio

from configs import prepare_pairs
from data_pipeline import sensors
from data_pipeline.building import prepare

BLOCK = 1024  # of pixels that are stored together, as in Sentinel-2's products
PRODUCT = "S2A_MSIL2A_20210706T085611_N0300_R007_T33NZA_20210706T153419.SAFE"
WEST, NORTH = 500000.0, 5000000.0


def fields(side: int, seed: int) -> np.ndarray:
    """Uneven ground, from 0 to 1, [side, side]: waves of many lengths, and noise."""
    rng = np.random.default_rng(seed)
    at, image = np.arange(side, dtype=np.float32), np.zeros((side, side), np.float32)
    for length in (2000, 500, 90, 20):
        x, y = rng.uniform(0, 6, 2)
        image += np.sin(at / length + x) * np.cos(at[:, None] / length + y)
    noise = rng.standard_normal((side, min(side, BLOCK)), np.float32)
    image += 0.3 * np.tile(noise, -(-side // BLOCK))[:, :side]
    return np.clip(image / 10 + 0.5, 0, 1)


def write(path: pathlib.Path, image: np.ndarray, gsd: float, turn: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cos, sin = gsd * np.cos(turn), gsd * np.sin(turn)
    form = {"driver": "GTiff", "tiled": True, "compress": "deflate"}
    if path.suffix == ".jp2":
        form = {"driver": "JP2OpenJPEG", "REVERSIBLE": "YES", "QUALITY": "100"}
    form |= {"blockxsize": BLOCK, "blockysize": BLOCK} if image.size > BLOCK**2 else {}
    with rasterio.open(
        path,
        "w",
        dtype=image.dtype,
        crs="EPSG:32633",
        transform=rasterio.Affine(cos, sin, WEST, sin, -cos, NORTH),
        **dict(zip(("count", "height", "width"), image.shape)),
        **form,
    ) as file:
        file.write(image)


def make(folder: pathlib.Path, side: int, ending: str, warp: bool) -> None:
    """Writes a scene of both sensors unless it is there."""
    product, first = folder / "s2" / PRODUCT / "GRANULE" / "L2A" / "IMG_DATA", {}
    for band in sensors.S2.bands:
        path = product / f"R{band.gsd}m" / f"T33NZA_{band.name}_{band.gsd}m.{ending}"
        if band.gsd in first:
            path.unlink(missing_ok=True)
            path.hardlink_to(first[band.gsd])
        elif not path.exists():
            image = fields(side * 10 // band.gsd, seed=band.gsd) * 6000 + 100
            write(path, image[None].astype(np.uint16), band.gsd)
        first.setdefault(band.gsd, path)
    path = folder / "s1" / PRODUCT.replace(".SAFE", ".tif")
    path.unlink(missing_ok=True)
    image = np.stack([fields(side, 20) * 10 - 17, fields(side, 21) * 10 - 24])
    write(path, image, 10.0, turn=0.1 if warp else 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--side", type=int, default=10980)
    parser.add_argument("--tile", type=int, default=120)
    parser.add_argument("--ending", choices=("jp2", "tif"), default="jp2")
    parser.add_argument("--warp", action="store_true")
    options = parser.parse_args()
    source, out = options.folder / options.ending, options.folder / "records"
    making = multiprocessing.get_context("spawn").Process(
        target=make, args=(source, options.side, options.ending, options.warp)
    )
    making.start()  # elsewhere, as its memory is not what is asked for
    making.join()
    shutil.rmtree(out, ignore_errors=True)
    config = prepare_pairs.get_config()
    config.source, config.out, config.workers = str(source), str(out), 0
    config.read.tile, config.read.align = options.tile, options.warp
    config.read.s1_bands = sensors.S1.band_names
    start = time.perf_counter()
    prepare.prepare(config)
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tiles = (options.side // options.tile) ** 2
    area = tiles * (options.tile / 100) ** 2
    print(
        f"{tiles} tiles of {options.tile} px ({area:,.0f} km2, {options.ending}"
        f"{', radar warped' if options.warp else ''}) in {took:.0f} s: "
        f"{tiles / took:.0f} tiles/s, {area / took:.0f} km2/s, by one process; memory "
        f"at most {peak / 2**20:.2f} GiB."
    )


if __name__ == "__main__":
    main()
