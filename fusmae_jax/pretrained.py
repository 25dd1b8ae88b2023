"""A pretrained encoder in Python: arrays go in, features come out.

    from fusmae_jax import pretrained

    model = pretrained.load("runs/base")
    features = model.encode(s1=s1, s2=s2)  # dB [B, H, W, 2] and DN [B, H, W, 12]
    features.pooled  # [B, D], one vector an image
    features.dense  # [B, H / P, W / P, D], one a patch of P x P pixels

B is the number of images, H and W their height and width in pixels of 10 m, C their
bands, D the width of the encoder, N the patches of a window.
"""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data_pipeline import offsets, sensors
from data_pipeline.errors import InputError
from fusmae_jax import build
from fusmae_jax.evaluation import encoder as encoders
from fusmae_jax.evaluation import loop
from fusmae_jax.export import weights
from fusmae_jax.inputs import SENSORS
from fusmae_jax.objectives.protocol import Encoder
from fusmae_jax.training import sharding
from fusmae_jax.training.progress import Progress
from fusmae_jax.windows import Blend, Cover

BATCH = 32  # windows that are encoded at a time


class Features(NamedTuple):
    """What an encoder says of images; NaN where nothing was measured.

    Without the first axis where a single image was given.

    Attributes:
        pooled: the mean over all patches of all sensors, [B, D].
        summary: the global token, [B, D], the mean over windows where there are more.
        dense: of each patch the mean over the sensors that show it, [B, h, w, D].
        sensors: the patches of each sensor, {sensor: [B, h, w, D]}.
    """

    pooled: np.ndarray
    summary: np.ndarray
    dense: np.ndarray
    sensors: dict[str, np.ndarray]

    def pooled_sensor(self, sensor: str) -> np.ndarray:
        """The mean over the patches of one sensor, [B, D]."""
        return _mean(self.sensors[sensor], axis=(-3, -2))


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """An encoder with its parameters, ready for arrays.

    Attributes:
        encoder: see `objectives.protocol`.
        params: its parameters.
        mesh: the devices, over which windows are split.
        batch_size: windows that are encoded at a time.
    """

    encoder: Encoder
    params: nnx.State
    mesh: Mesh
    batch_size: int = BATCH

    @property
    def contract(self) -> Mapping[str, sensors.Sensor]:
        """The sensors with the bands that it takes, their units and statistics."""
        return self.encoder.inputs.contract

    @property
    def size(self) -> int:
        """Side of the images that it was trained on, in pixels."""
        return self.encoder.inputs.size

    @property
    def patch_size(self) -> int:
        """Side P of a patch in pixels."""
        return self.encoder.patch_size

    @property
    def width(self) -> int:
        """Length D of a feature."""
        return self.encoder.width

    def encode(
        self,
        s1: np.ndarray | None = None,
        s2: np.ndarray | None = None,
        *,
        bands: Mapping[str, Sequence[str]] | None = None,
        units: Mapping[str, str] | None = None,
        offset: int = 0,
        stride: int = 0,
    ) -> Features:
        """Features of images of any number and size.

        The first call compiles, later ones do not. Images that are larger than the
        model's are covered by overlapping windows, whose words blend; smaller ones are
        filled up with missing pixels.

        Args:
            s1: Sentinel-1 backscatter, [B, H, W, C] or of a single image [H, W, C];
                None for none.
            s2: Sentinel-2, likewise, of the same places on the same 10 m grid.
            bands: names of the bands of each array, in their order, {sensor: names};
                by default those of `contract`. Some may be absent, and count as the
                mean of the training data; the model overlooks others than its own.
            units: of the pixels, {sensor: unit}: "dB" (the default), "linear" or
                "amplitude" of s1, "DN" (the default) or "reflectance" of s2.
            offset: what the processing baseline of s2 added to each DN, 0 or 1000; a
                warning says so where DN look as if it were still in.
            stride: patches from one window to the next; 0 for half a window.

        Returns:
            What the encoder says. NaN, infinity, masked pixels (`numpy.ma`) and fill
            values (see docs/data.md) are not shown to it.

        Raises:
            InputError: the arrays do not fit together or the model, cannot be in the
                unit that is said, or are of a sensor that it does not read.

        Examples: Of two images that have radar alone, the second half measured:
            >>> s1 = np.full((2, model.size, model.size, 2), (-12.0, -19.0))  # dB
            >>> s1[1, model.size // 2 :] = np.nan
            >>> features = model.encode(s1=s1)
            >>> features.pooled.shape == (2, model.width)
            True
            >>> bool(np.isnan(features.dense[1, -1]).all())
            True
            >>> red = np.full((model.size, model.size, 1), 800)  # DN
            >>> model.encode(s2=red, bands={"s2": ["B04"]}).pooled.ndim
            1
        """
        given = {s: x for s, x in (("s1", s1), ("s2", s2)) if x is not None}
        single = _check_shapes(given, self.patch_size)
        self.check_given(given)
        given = {s: np.ma.asarray(x)[None if single else ...] for s, x in given.items()}
        pixels = self._in_contract(given, bands or {}, units or {}, offset)
        found = self._of_pixels(pixels, stride)
        return Features(*jax.tree.map(lambda x: x[0], found)) if single else found

    def check_given(self, given: Iterable[str]) -> None:
        """Refuses images of a sensor that the encoder does not read.

        Raises:
            InputError: names the first of them.
        """
        for s in given:
            if s not in self.encoder.sensors:
                raise InputError(
                    f"{s} is given, and this encoder reads {self.encoder.reads} alone; "
                    f"give {' and '.join(self.encoder.sensors)}."
                )

    def _in_contract(
        self,
        given: Mapping[str, np.ma.MaskedArray],
        bands: Mapping[str, Sequence[str]],
        units: Mapping[str, str],
        offset: int,
    ) -> dict[str, np.ndarray]:
        """Images [B, H, W, C] in the contract's bands and units, see `encode`."""
        for s in (*bands, *units):
            if s not in given:
                raise InputError(
                    f"Bands or units of {s!r} are given, and images of "
                    f"{list(given)}; give both, or none."
                )
        pixels = {}
        for s, images in given.items():
            sensor, added = self.contract[s], offset if s == "s2" else 0
            stored = sensor.units[0].name
            unit = units.get(s, stored)
            if s == "s2" and unit == stored and not offset:
                _doubt_offset(images)
            named = tuple(bands.get(s, sensor.band_names))
            pixels[s] = to_model(images, sensor, named, unit, added)
        return pixels

    def _of_pixels(self, pixels: dict[str, np.ndarray], stride: int) -> Features:
        """Features of pixels [B, H, W, C] in the contract's units."""
        count, height, width, _ = next(iter(pixels.values())).shape
        p, side = self.patch_size, self.encoder.side
        shape = (height // p, width // p)
        cover = Cover(shape, side, stride or max(side // 2, 1))
        jobs = [(i, corner) for i in range(count) for corner in cover.corners]
        areas = (np.s_[i, row * p :, column * p :] for i, (row, column) in jobs)
        parts = ({s: x[area] for s, x in pixels.items()} for area in areas)
        blends = {s: [Blend(cover, self.width) for _ in range(count)] for s in SENSORS}
        total, weight = np.zeros((count, self.width)), np.zeros((count, 1))
        with Progress("Encoding", len(jobs), "window", brief=True) as bar:
            for (i, corner), said in zip(jobs, self.windows(parts), strict=True):
                for s in SENSORS:
                    blends[s][i].add(corner, said.tokens[s], said.known[s])
                shown = sum(known.sum() for known in said.known.values())
                total[i] += shown * said.summary
                weight[i] += shown
                bar.update()
        maps = {s: np.stack([x.finish(shape[0]) for x in blends[s]]) for s in SENSORS}
        summary = total / np.where(weight > 0, weight, np.nan)
        both = np.stack([maps[s] for s in SENSORS])
        pooled, dense = _mean(both, (0, 2, 3)), _mean(both, 0)
        return Features(pooled, summary.astype(np.float32), dense, maps)

    def windows(
        self,
        parts: Iterator[dict[str, np.ndarray]],
        step: Callable[[nnx.State, dict[str, jax.Array]], Any] | None = None,
    ) -> Iterator[Any]:
        """Encodes windows, which are gathered into batches of one size.

        Args:
            parts: pixels of each window from its first on, {sensor: [>= 0, >= 0, C]},
                in the contract's units; NaN was not measured, nor was what a window has
                beyond its array, nor a sensor without one.
            step: compiled, makes of the parameters and pixels [B, S, S, C] by sensor
                what is yielded of each of the B windows; else that is what the encoder
                says, see `Said`.
        """
        step = step or self._step
        rows = -(-self.batch_size // self.mesh.size) * self.mesh.size
        batches = iter(lambda: list(itertools.islice(parts, rows)), [])
        started = (
            (len(batch), step(self.params, self._to_devices(batch, rows)))
            for batch in batches
        )
        for count, found in loop.ahead(started):
            found = jax.device_get(found)  # whole: a window's would each be a transfer
            for i in range(count):
                yield jax.tree.map(lambda x, i=i: x[i], found)

    def _to_devices(self, batch: Sequence[dict], rows: int) -> dict[str, jax.Array]:
        """Windows [rows, S, S, C] by sensor, those behind the batch missing."""
        pixels = {}
        for s, sensor in self.contract.items():
            shape = (rows, self.size, self.size, len(sensor.bands))
            pixels[s] = np.full(shape, np.nan, np.float32)
            for window, part in zip(pixels[s], batch):
                if s in part:
                    part = part[s][: self.size, : self.size]
                    window[: part.shape[0], : part.shape[1]] = part
        return sharding.to_devices(pixels, self.mesh)

    @functools.cached_property
    def _step(self):
        return jax.jit(self.say, out_shardings=sharding.rows(self.mesh))

    def say(self, params: nnx.State, pixels: dict[str, jax.Array]) -> "Said":
        """What the encoder says of windows [B, S, S, C] by sensor, to be compiled."""
        images = {s: normalized(x, self.contract[s]) for s, x in pixels.items()}
        present = self.encoder.present(images, None)
        encoded = self.encoder(params, images, present)
        side = (len(encoded.summary), self.encoder.side, self.encoder.side)
        known = {s: present[s].reshape(side) for s in SENSORS}
        tokens = {s: encoded.tokens[s].reshape(*side, -1) for s in SENSORS}
        return Said(tokens, known, encoded.summary)


class Said(NamedTuple):
    """What an encoder says of a window, or of [B, ...] of them.

    Attributes:
        tokens: of its patches, {sensor: [side, side, D]}.
        known: which patches show anything of a sensor, {sensor: [side, side]} bool;
            the tokens of others say nothing.
        summary: the global token, [D].
    """

    tokens: dict[str, np.ndarray]
    known: dict[str, np.ndarray]
    summary: np.ndarray


def load(
    directory,
    *,
    step: int = 0,
    devices=None,
    batch_size: int = BATCH,
    statistics: Mapping[str, sensors.Sensor] | None = None,
) -> Model:
    """Loads an encoder.

    Args:
        directory: of a pretraining's run, as `--workdir` made it, or what
            `configs/export.py` wrote, of which nothing is executed.
        step: which of its checkpoints; 0 for the latest.
        devices: to compute on; all there are by default.
        batch_size: windows that are encoded at a time.
        statistics: the sensors whose means and deviations normalise the bands; those of
            the pretraining by default.

    Raises:
        InputError: there is no run or no checkpoint, or it is damaged; or what was
            exported is, or is of a method or format that this version does not know.
    """
    mesh = sharding.make_mesh(devices=devices)
    if not weights.are_in(directory):
        found = encoders.restore(directory, mesh, step)
        known = statistics or found.contract
        encoder = build.image_encoder(found.config, known, mesh)
        return Model(encoder, found.encoder_params, mesh, batch_size)
    if step:
        raise InputError(
            f"{directory} is an export, which has one step alone; leave out step="
            f"{step}, or name the run directory."
        )
    found = weights.restore(directory, mesh, statistics)
    return Model(*found, mesh, batch_size)


def to_model(
    images: np.ndarray,
    sensor: sensors.Sensor,
    bands: Sequence[str],
    unit: str,
    offset: int = 0,
) -> np.ndarray:
    """Images [B, H, W, C] with the bands of a model, in its unit.

    Args:
        images: of one sensor, masked where nothing was measured, if an array of
            `numpy.ma`.
        sensor: of the model's contract.
        bands: names of the images' bands.
        unit: of the images.
        offset: what was added to each DN.

    Returns:
        Float32 with NaN in all bands where nothing was measured. A band that is not
        there is the mean of the training data.

    Raises:
        InputError: the names do not fit, or the values are not in that unit.
    """
    names = [sensors.canonical(name) for name in bands]
    if len(names) != images.shape[-1] or len(set(names)) < len(names):
        raise InputError(
            f"{sensor.title} has {images.shape[-1]} bands in its last axis, and "
            f"{len(names)} different names are wanted, {list(bands)}; pass those of "
            f"the array with bands={{{sensor.name!r}: (...)}}, the last axis being "
            "that of bands."
        )
    known = set(sensors.known_bands(sensor.name))
    if unknown := [n for n in names if n not in known]:
        raise InputError(
            f"{sensor.title} has no band {unknown}; it has {sorted(known)}."
        )
    if not set(names) & set(sensor.band_names):
        raise InputError(
            f"The model takes {', '.join(sensor.band_names)} of {sensor.title}, and "
            f"none is among {', '.join(names)}."
        )
    pixels = np.ma.filled(images.astype(np.float32), np.nan)
    pixels = np.moveaxis(pixels, -1, 1)
    found = np.empty((*images.shape[:-1], len(sensor.bands)), np.float32)
    for image, values in zip(found, pixels):
        values = sensors.to_contract(values, sensor, unit=unit, offset=offset)
        measured = (
            np.isfinite(values).all(axis=0) & ~sensor.expected.filled([values])[0]
        )
        for i, band in enumerate(sensor.bands):
            at = names.index(band.name) if band.name in names else None
            image[..., i] = band.mean if at is None else values[at]
        image[~measured] = np.nan
    return found


def normalized(images: jax.Array, sensor: sensors.Sensor) -> jax.Array:
    """What a network sees of images [B, H, W, C] in native units."""
    mean = jnp.array([b.mean for b in sensor.bands], jnp.float32)
    std = jnp.array([b.std for b in sensor.bands], jnp.float32)
    return (images - mean[None, None, None]) / std[None, None, None]


def _doubt_offset(dn: np.ndarray) -> None:
    """Warns of DN that look as if their offset had not been taken off."""
    dark = (dn >= offsets.DARKEST) & (dn <= offsets.FLOOR)
    if not dark.any() and (dn > offsets.FLOOR).any():
        warnings.warn(
            f"No DN of Sentinel-2 is below {offsets.FLOOR}, as in products of since "
            f"January 2022, to which {offsets.OFFSET} was added; for these pass "
            f"offset={offsets.OFFSET}.",
            stacklevel=4,  # whoever called `encode`
        )


def _check_shapes(given: Mapping[str, np.ndarray], patch_size: int) -> bool:
    """Whether the arrays are of single images; refuses those that do not fit."""
    shapes = {s: np.shape(images) for s, images in given.items()}
    if not shapes:
        raise InputError("Neither s1 nor s2 is given; pass one of them or both.")
    places = {shape[:-1] for shape in shapes.values()}
    if len(places) > 1 or len(next(iter(places))) not in (2, 3):
        raise InputError(
            f"Images have the shapes {shapes}; both sensors' are [B, H, W, bands] or "
            "[H, W, bands], of the same places."
        )
    place = places.pop()
    if any(not n or n % patch_size for n in place[-2:]) or not place[0]:
        raise InputError(
            f"Images of {place[-2]} x {place[-1]} px are no whole number of patches of "
            f"{patch_size} px; cut them, or fill them up with NaN."
        )
    return len(place) == 2


def _mean(maps: np.ndarray, axis) -> np.ndarray:
    """The mean of what is known, NaN where nothing is."""
    known = ~np.isnan(maps)
    total, count = np.where(known, maps, 0.0).sum(axis), known.sum(axis)
    return total / np.where(count > 0, count, np.nan).astype(maps.dtype)
