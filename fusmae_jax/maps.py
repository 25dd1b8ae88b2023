"""Maps of scenes on disk: rows as they come, then a GeoTIFF for the cloud (COG).

H and W are rows and columns of the map, D the numbers of each of its pixels.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline import atomic, safe_io
from data_pipeline.archives.grids import Grid
from data_pipeline.errors import InputError

PARTS = "_parts"  # folder of what is not finished
DTYPES = ("float16", "int8")
NODATA = -128  # of int8; of float16 it is NaN

_BLOCK_BYTES = 1 << 25  # of a map, at a time
_STEPS = 127  # of int8 on either side of 0


class Rows:
    """A map that is written row by row, and goes on where it was stopped.

    Attributes:
        done: rows that are finished.
        values: the map so far, [H, W, D] float16, in a file.
    """

    def __init__(self, folder: pathlib.Path, shape: Sequence[int], key: Mapping):
        """Begins in `folder`, or goes on.

        Args:
            folder: of the result.
            shape: of the map.
            key: everything that decides it.

        Raises:
            InputError: the folder holds another map, finished or not, or cannot be
                written.
        """
        self._parts = folder / PARTS
        self._state = self._parts / "rows.json"
        key = json.loads(json.dumps(key))
        if folder.exists() and any(folder.iterdir()) and not self._state.exists():
            raise InputError(
                f"{folder} holds something already, which is not overwritten; pass "
                "another out=DIR."
            )
        self.done = 0
        if self._state.exists():
            try:
                state = safe_io.read_json(self._state)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{self._state} cannot be read ({error}); delete {folder}, or pass "
                    "another out=DIR."
                ) from error
            if state["key"] != key:
                old = state["key"]
                changed = [k for k in key | old if old.get(k) != key.get(k)]
                raise InputError(
                    f"{folder} has an unfinished map of other {', '.join(changed)}; "
                    "delete it, or pass another out=DIR."
                )
            self.done = state["done"]
        self._key = key
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            self.values = np.memmap(
                self._parts / "rows.bin",
                np.float16,
                "r+" if self.done else "w+",
                shape=tuple(shape),
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder} cannot be written ({error}); see to it, or pass another "
                "out=DIR."
            ) from error

    def add(self, first: int, rows: np.ndarray) -> None:
        """Writes finished rows [h, W, D], which are on the disk then."""
        self.values[first : first + len(rows)] = rows
        self.values.flush()
        self.done = first + len(rows)
        state = {"key": self._key, "done": self.done}
        atomic.write_whole(self._state, json.dumps(state))

    def remove(self) -> None:
        """Removes what only the making of the map needs."""
        shutil.rmtree(self._parts)


def blocks(values: np.ndarray) -> list[slice]:
    """Rows of a map [H, W, D] that fit into memory together, one part after another."""
    each = max(_BLOCK_BYTES // (4 * values[0].size), 1)
    return [slice(i, i + each) for i in range(0, len(values), each)]


def write(
    path: pathlib.Path,
    values: np.ndarray,
    grid: Grid,
    *,
    dtype: str,
    bands: Sequence[str],
    tags: Mapping[str, str],
    colors: np.ndarray | None = None,
) -> None:
    """Writes a map as a Cloud-Optimized GeoTIFF.

    Args:
        path: of the file.
        values: [H, W, D], NaN where nothing is known.
        grid: of the map.
        dtype: "float16", in 32 bits, of which compression makes 16 again, as GDAL
            knows no shorter ones before 3.11, NaN is nodata; "int8", a band's values
            divided by the scale that the file says, so that the greatest is 127; or
            "uint8", as they are, 255 is nodata.
        bands: description of each of the D.
        tags: of the file.
        colors: of the values of "uint8", [n, 3], from 0 to 255.
    """
    import rasterio.shutil

    part, copy = path.with_suffix(".part.tif"), path.with_suffix(".copy.tif")
    _write_rows(part, values, grid, dtype, bands, tags, colors)
    depth = values.shape[-1]
    side = next(n for n in (512, 256, 128, 64) if 4 * depth * n**2 < 2**26 or n == 64)
    rasterio.shutil.copy(
        part,
        copy,
        driver="COG",
        COMPRESS="DEFLATE",
        PREDICTOR="YES",
        BLOCKSIZE=side,
        OVERVIEW_RESAMPLING="NEAREST" if dtype == "uint8" else "AVERAGE",
        BIGTIFF="IF_SAFER",
    )
    part.unlink()
    copy.replace(path)


def _write_rows(path, values, grid, dtype, bands, tags, colors) -> None:
    """Writes the same as a plain GeoTIFF, which can be done part after part."""
    import rasterio

    height, width, depth = values.shape
    kind = {"float16": "float32"}.get(dtype, dtype)
    scales = _scales(values) if dtype == "int8" else np.ones(depth, np.float32)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        **dict(count=depth, height=height, width=width, dtype=kind),
        crs=grid.crs,
        transform=rasterio.Affine(*grid.transform),
        nodata={"float16": np.nan, "int8": NODATA, "uint8": 255}[dtype],
        BIGTIFF="IF_SAFER",
        INTERLEAVE="BAND",
    ) as file:
        for rows in blocks(values):
            block = np.moveaxis(np.asarray(values[rows], np.float32), -1, 0)
            if dtype == "int8":
                block = np.rint(block / scales[:, None, None])
                block = np.where(np.isnan(block), NODATA, block)
            elif dtype == "uint8":
                block = np.where(np.isnan(block), 255, block)
            window = ((rows.start, rows.start + block.shape[1]), (0, width))
            file.write(block.astype(kind), window=window)
        file.descriptions = tuple(bands)
        if dtype == "int8":
            file.scales = tuple(scales.tolist())
        file.update_tags(**tags)
        if colors is not None:
            known = {i: (*map(int, color[:3]), 255) for i, color in enumerate(colors)}
            file.write_colormap(1, known)


def _scales(values: np.ndarray) -> np.ndarray:
    """What a step of int8 is worth in each band, [D]."""
    greatest = np.zeros(values.shape[-1], np.float32)
    for rows in blocks(values):
        block = np.abs(np.asarray(values[rows], np.float32))
        greatest = np.fmax(greatest, np.fmax.reduce(block, axis=(0, 1)))
    return np.where(greatest > 0, greatest / _STEPS, 1).astype(np.float32)


def false_colour(values: np.ndarray, sample: int = 20_000) -> np.ndarray:
    """A picture of a map, [H, W, 4] uint8: its three principal components.

    Each is stretched from its 2nd to its 98th percentile; what is not known is
    transparent.
    """
    flat = values.reshape(-1, values.shape[-1])
    known = np.concatenate([~np.isnan(values[b, :, 0]).ravel() for b in blocks(values)])
    places = np.flatnonzero(known)
    picture = np.zeros((len(flat), 4), np.uint8)
    if not len(places):
        return picture.reshape(*values.shape[:2], 4)
    chosen = places[:: max(len(places) // sample, 1)]
    seen = np.asarray(flat[chosen], np.float32)
    mean = seen.mean(axis=0)
    # Of the covariances, which are few: an SVD of all that is seen takes seconds.
    _, axes = np.linalg.eigh((seen - mean).T @ (seen - mean))
    axes = axes.T[::-1][:3]
    axes = axes * np.sign(axes[:3].sum(axis=1, keepdims=True) + 1e-12)
    low, high = np.percentile((seen - mean) @ axes.T, (2, 98), axis=0)
    stretch = np.where(high > low, high - low, 1)
    for rows in blocks(values):
        there = slice(rows.start * values.shape[1], rows.stop * values.shape[1])
        block = (np.asarray(flat[there], np.float32) - mean) @ axes.T
        block = np.clip((block - low) / stretch, 0, 1)
        count = block.shape[1]
        block = np.nan_to_num(255 * block).astype(np.uint8)
        picture[there, :count] = block
        picture[there, 3] = np.where(known[there], 255, 0)
    return picture.reshape(*values.shape[:2], 4)
