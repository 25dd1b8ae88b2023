"""Whole scenes as an encoder sees them: read part by part, and mapped row by row.

A scene is what files of one or both sensors show of one place: a GeoTIFF, or a folder
with a file for each band, such as a Sentinel-2 product. They come onto one grid of 10 m
as the pairs of `prepare_pairs` do with `read.align`. Memory is bounded by a row of
windows, however large the scene is.
"""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline import offsets, sensors
from data_pipeline.archives import (
    band_folders,
    grids,
    pair_survey,
    pair_tiles,
    rasters,
)
from data_pipeline.archives.grids import Grid, Window
from data_pipeline.archives.pair_survey import Settings
from data_pipeline.config_fields import Field, choice, location, several, text, whole
from data_pipeline.errors import InputError
from fusmae_jax import maps, pretrained
from fusmae_jax.evaluation import encoder, features
from fusmae_jax.inputs import SENSORS
from fusmae_jax.pretrained import Model
from fusmae_jax.training import sharding
from fusmae_jax.training.progress import Progress
from fusmae_jax.windows import Blend, Cover

log = logging.getLogger("fusmae_jax")

# What a config may say of a scene.
FIELDS: dict[str, Field] = {
    "s1": location(meaning="Sentinel-1 of the scene, a GeoTIFF or a folder of bands."),
    "s2": location(
        meaning="Sentinel-2 of the scene, likewise, or a product NAME.SAFE."
    ),
    **{
        f"{s}_bands": several(
            text(filled=True),
            twice=True,
            meaning=f"Bands of {s}'s file, in its order; () reads their descriptions.",
        )
        for s in SENSORS
    },
    "s1_unit": choice(*(u.name for u in sensors.S1.units), meaning="Unit of s1."),
    "s2_unit": choice(*(u.name for u in sensors.S2.units), meaning="Unit of s2."),
    "s2_offset": choice(
        *offsets.CHOICES,
        meaning="What was added to each DN of s2, as since 2022; auto asks the pixels, "
        "then the name and tags.",
    ),
    "stride": whole(
        0,
        meaning="Patches from one window over a scene to the next; fewer are slower "
        "and leave less of a seam, 0 for a quarter of a window.",
    ),
}
_LOOKED_AT = 512  # side of the windows that are looked at for the offset


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """The images of one place.

    Attributes:
        paths: of each sensor that is there, {sensor: path}.
        grid: onto which they come.
        contract: the sensors as the model takes them.
        settings: how to understand the files.
        offset: that is taken out of Sentinel-2's DN.
    """

    paths: Mapping[str, str]
    grid: Grid
    contract: Mapping[str, sensors.Sensor]
    settings: Settings
    offset: int

    def read(self, window: Window) -> dict[str, np.ndarray]:
        """What the scene shows in a window, {sensor: [height, width, C]} float32.

        In the contract's bands and units, NaN where nothing was measured. A band that
        the files lack is the mean of the training data.

        Raises:
            InputError: a file is damaged, or its values are not in its unit.
            OSError: a file cannot be read.
        """
        own, target = self._own, self.grid.part(window)
        found = {}
        for s, path in self.paths.items():
            read = lambda part, path=path: band_folders.read(path, part)
            raster, _ = rasters.read_onto(read, own[path], target)
            bands = pair_survey.band_names(
                path, raster, sensors.PRODUCTS[s], self.settings
            )
            known = [i for i, band in enumerate(bands) if band in _known(s)]
            image, unit = pair_survey.measured(s, raster, self.settings)
            found[s] = pretrained.to_model(
                np.moveaxis(image[known], 0, -1)[None],
                self.contract[s],
                [bands[i] for i in known],
                unit,
                self.offset if unit == self.contract[s].units[0].name else 0,
            )[0]
        return found

    @property
    def _own(self) -> dict[str, Grid]:
        return pair_tiles.grids_of(_row(self.paths), self.settings.cut)[1]


def _known(sensor: str) -> tuple[str, ...]:
    return sensors.known_bands(sensor)


def _row(paths: Mapping[str, str]) -> dict:
    return {"mask": "", pair_tiles.AT: ()} | {s: paths.get(s, "") for s in SENSORS}


def open_scene(config, contract: Mapping[str, sensors.Sensor]) -> Scene:
    """The scene that a config's `FIELDS` describe, as a model with `contract` takes it.

    Raises:
        InputError: a file is not there or damaged, has no coordinates or bands that the
            model knows, is in another unit, or both show different places.
    """
    paths = {s: config[s] for s in SENSORS if config[s]}
    settings = Settings(
        bands={s: tuple(map(sensors.canonical, config[f"{s}_bands"])) for s in SENSORS},
        unit={s: config[f"{s}_unit"] for s in SENSORS},
        offset={"s2": config.s2_offset},
        cut=pair_tiles.Cut(tile=_LOOKED_AT, align=True),
    )
    target, own = pair_tiles.grids_of(_row(paths), settings.cut)
    for path, grid in own.items():
        if not grids.overlap(grid, target):
            raise InputError(
                f"{path} shows nothing of the ground of "
                f"{next(p for p in own if p != path)}; give scenes of one place."
            )
        if grids.offset(grid, target) is None:
            log.info("%s is warped to %s, at the nearest pixel.", path, target.text)
    offset = _offset(paths["s2"], settings) if "s2" in paths else 0
    scene = Scene(paths, target, contract, settings, offset)
    _check(scene)
    return scene


def _offset(path: str, settings: Settings) -> int:
    """What was added to each DN of a Sentinel-2 scene.

    Raises:
        InputError: nothing tells it.
    """
    given = settings.offset["s2"]
    if given != "auto":
        return int(given)
    if settings.unit["s2"] != sensors.S2.units[0].name:
        return 0  # reflectance is never guessed to carry it
    proven = pair_survey.proven_by_scene(path, settings)
    if proven is not None:
        return proven
    raster = band_folders.read(path, Window(0, 0, 1, 1))
    said = offsets.said(pair_survey.says(path, raster))
    if said is None:
        raise InputError(f"{path} {offsets.unknown(pair_survey.LACKING, 's2_offset')}")
    return said


def _check(scene: Scene) -> None:
    """Refuses a scene that cannot be read, before hours are spent on it."""
    height, width = scene.grid.shape
    middle = Window(
        max(height - _LOOKED_AT, 0) // 2,
        max(width - _LOOKED_AT, 0) // 2,
        min(height, _LOOKED_AT),
        min(width, _LOOKED_AT),
    )
    scene.read(middle)
    for s, path in scene.paths.items():
        raster = band_folders.read(path, Window(0, 0, 1, 1))
        bands = pair_survey.band_names(
            path, raster, sensors.PRODUCTS[s], scene.settings
        )
        lacking = [b for b in scene.contract[s].band_names if b not in bands]
        if lacking:
            log.warning(
                "%s has no %s, which count as the mean of the training data.",
                *(path, ", ".join(lacking)),
            )
        sensor = scene.contract[s]
        level = pair_survey.told_level(path, raster, bands) if sensor.offsets else ""
        if level and level != scene.contract[s].level:
            log.warning(
                "%s is %s, and the model learnt from %s: expect other brightness.",
                *(path, level, scene.contract[s].level),
            )


def cover(scene: Scene, model: Model, stride: int) -> Cover:
    """The windows over a scene; what is left of a patch at its edges is one, too."""
    p = model.patch_size
    shape = tuple(-(-n // p) for n in scene.grid.shape)
    return Cover(shape, model.encoder.side, stride)


def patch_grid(grid: Grid, p: int, shape: tuple[int, int]) -> Grid:
    """The grid of a scene's patches, whose edges are edges of its pixels."""
    matrix = grid.matrix.copy()
    matrix[:, :2] *= p
    return Grid(tuple(shape), grid.crs, tuple(matrix.ravel().tolist()))


def map_scene(
    config,
    model: Model,
    scene: Scene,
    step: Callable,
    width: int,
    *,
    title: str,
    key: Mapping = {},
    depth: int = 0,
    to_pixels: Callable[[np.ndarray], np.ndarray] | None = None,
) -> maps.Rows:
    """Maps a whole scene in `config.out`, from the row at which it was stopped.

    Args:
        config: with `out`, `stride` and `FIELDS`.
        model, scene, step, width: see `map_rows`.
        title: of the progress.
        key: what decides the map beside the encoder and the scene.
        depth: numbers of each place of the map; 0 for `width`.
        to_pixels: makes of rows of patches [h, w, width] rows of pixels, [h * P, w * P,
            depth], for a map of these; None for one of patches.

    Raises:
        InputError: the folder holds something else, or the scene is damaged.
    """
    stride = config.stride or max(model.encoder.side // 4, 1)
    windows, p = cover(scene, model, stride), model.patch_size
    height, columns = scene.grid.shape if to_pixels else windows.shape
    each = p if to_pixels else 1  # rows of the map for one of patches
    decisive = _key(config, model, scene, stride) | dict(key)
    shape = height, columns, depth or width
    rows = maps.Rows(pathlib.Path(config.out), shape, decisive)
    area = columns * (p / each * 0.01) ** 2  # km2 of a row
    total, done = round(height * area), round(rows.done * area)
    with Progress(title, total, "km2", done=done) as bar:
        if rows.done < height:
            first = rows.done // each
            for row, part in map_rows(scene, model, windows, step, width, first):
                part = to_pixels(part) if to_pixels else part
                part = part[: height - row * each, :columns]
                rows.add(row * each, part)
                bar.update(len(part) * area)
    return rows


def _key(config, model: Model, scene: Scene, stride: int) -> dict:
    """Everything that decides what an encoder says of a scene."""
    return {
        "version": features.VERSION,
        "parameters": encoder.digest(model.params),
        "grid": [scene.grid.text, *scene.grid.shape],
        "stride": stride,
        "s2_offset": scene.offset,
        **{f"{s}_unit": config[f"{s}_unit"] for s in SENSORS},
        **{f"{s}_bands": list(config[f"{s}_bands"]) for s in SENSORS},
        **{s: _file(config[s]) for s in SENSORS},
    }


def _file(path: str) -> list:
    """What tells a file or folder from another, or from itself once changed."""
    if not path:
        return []
    status = os.stat(path)
    return [os.path.basename(path), status.st_size, status.st_mtime_ns]


def map_rows(
    scene: Scene,
    model: Model,
    windows: Cover,
    step: Callable,
    width: int,
    first: int = 0,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields rows of a map of a scene, from north to south, as they are finished.

    Args:
        scene: what is mapped.
        model: what encodes it.
        windows: over it, see `cover`.
        step: see `Model.windows`; says of each window the values that are mapped,
            [side, side, width], and of which patches there are any, [side, side] bool.
        width: numbers of each patch.
        first: row of patches to begin with. What comes is the same as if the rows
            before had been asked for too.

    Returns:
        An iterator over the row at which each part begins, and the part, [rows,
        columns, width] float32, NaN where nothing was measured.
    """
    rows, columns = windows.starts
    rows = [row for row in rows if row + windows.side > first or row == rows[-1]]
    jobs = [(row, column) for row in rows for column in columns]
    blend = Blend(windows, width, windows.side)
    blend.skip(rows[0])
    parts = _parts(scene, model.patch_size, windows, rows)
    done = first
    for (corner, following), said in zip(
        zip(jobs, [*jobs[1:], (windows.shape[0], 0)]),
        model.windows(parts, step),
        strict=True,
    ):
        blend.add(corner, *said)
        if following[0] > corner[0]:
            part = blend.finish(following[0])
            part = part[max(done - corner[0], 0) :]
            if len(part):
                yield done, part
                done += len(part)


def _parts(
    scene: Scene, p: int, windows: Cover, rows: list[int]
) -> Iterator[dict[str, np.ndarray]]:
    """Pixels of each window, of which only new rows are read."""
    width, side = scene.grid.shape[1], windows.side * p
    kept, end = {}, rows[0] * p
    for row in rows:
        top, bottom = row * p, min(row * p + side, scene.grid.shape[0])
        if bottom > end:
            fresh = scene.read(Window(end, 0, bottom - end, width))
            kept = {
                s: np.concatenate([kept[s], x]) if s in kept else x
                for s, x in fresh.items()
            }
            end = bottom
        kept = {s: x[len(x) - (bottom - top) :] for s, x in kept.items()}
        for column in windows.starts[1]:
            area = np.s_[:, column * p : column * p + side]
            yield {s: x[area] for s, x in kept.items()}


def to_pixels(part: np.ndarray, p: int) -> np.ndarray:
    """Pixels [P * h, P * w, C] of rows of patches [h, w, P * P * C]."""
    h, w, _ = part.shape
    pixels = part.reshape(h, w, p, p, -1).transpose(0, 2, 1, 3, 4)
    return pixels.reshape(h * p, w * p, -1)


def dense(model: Model):
    """The compiled step for `map_rows` of features, see `pretrained.Features.dense`."""

    def step(params, pixels):
        said = model.say(params, pixels)
        tokens = [
            jnp.where(said.known[s][..., None], said.tokens[s], 0) for s in SENSORS
        ]
        count = sum(said.known[s].astype(jnp.float32) for s in SENSORS)
        return sum(tokens) / jnp.maximum(count, 1)[..., None], count > 0

    return jax.jit(step, out_shardings=sharding.rows(model.mesh))
