"""Inputs: from stored pixels of every grid to registered, normalised images.

A record keeps each band on its native grid. One resample per grid takes it straight
to the crop the network sees; the crop is given in fractions of the scene's side, so
all grids, and both sensors, show the same ground. Whatever looks at pairs looks through
`Inputs`: pretraining, evaluation, figures.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline import sensors
from data_pipeline.errors import InputError

SENSORS = ("s1", "s2")
RESAMPLING = ("linear", "cubic")
# Which samples have a sensor, {sensor: [B] bool}, or which of their patches show
# something of it, [B, N] bool; then pixels may be missing, and are NaN in the images.
# None where all samples have both, whole.
Present = dict[str, jax.Array]
LEAST_MEASURED = 0.5  # of what a pixel is resampled from; missing if it is less
VIEWS = ("center", "whole", "tiles")  # the parts of a scene, see `Inputs.boxes`
TRIES = 10  # at a crop that fits into its scene, before a square one is taken
INVALID_ADVICE = (
    "are not finite and count as their band's mean; prepare the data again to leave "
    "such pairs out."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """How the pairs of a dataset are seen.

    Attributes:
        contract: the sensors with the bands wanted, in the order wanted, by name; their
            statistics normalise the images.
        size: side of the images in pixels.
        scene_size: side of the dataset's scenes in pixels at 10 m.
        grids: how the data store each sensor, {sensor: grids}, () for one that they
            lack; None where every band is on its own grid.
        resampling: "linear" or "cubic".
        missing: whether the data have pixels that were not measured. If not, none is
            looked for, and programs are those of data without a hole.
    """

    contract: dict[str, sensors.Sensor]
    size: int
    scene_size: int
    grids: dict[str, tuple[sensors.Grid, ...]] | None = None
    resampling: str = "linear"
    missing: bool = False

    def images(
        self, fields: dict[str, jax.Array], view: "View", size: int = 0
    ) -> dict[str, jax.Array]:
        """Images of the sensors under `view`, normalised, {sensor: [B, H, W, C]}.

        Args:
            fields: stored pixels by field name, native units, [B, H, W, C] each.
            view: the views, shared by all sensors.
            size: side of the images in pixels; `self.size` unless said.

        Returns:
            Each band minus its mean, over its standard deviation. Values that are not
            finite in the record count as the band's mean. With `missing` a pixel is NaN
            in all bands where, on any of the sensor's grids, more than half of what it
            is resampled from was not measured; elsewhere it is made of what was, so
            that a hole draws its neighbours nowhere.
        """
        size = size or self.size
        return {s: self._image(fields, view, s, size) for s in self.contract}

    def _image(self, fields, view: "View", s: str, size: int) -> jax.Array:
        sensor = self.contract[s]
        bands = {band.name: band for band in sensor.bands}
        grids = self.grids[s] if self.grids else sensors.SENSORS[s].grids
        if not grids:  # nothing of it was measured anywhere
            return jnp.full((len(view.box), size, size, len(bands)), jnp.nan)
        # Turned as stored, where there are fewer bytes to turn.
        box = turn_box(view.box, view.turn)
        images: dict[str, jax.Array] = {}
        for grid in grids:
            names = [name for name in grid.bands if name in bands]
            if not names:
                continue
            columns = [grid.bands.index(name) for name in names]
            mean = jnp.array([bands[name].mean for name in names], jnp.float32)
            std = jnp.array([bands[name].std for name in names], jnp.float32)
            stored = turn_images(fields[grid.field][..., columns], view.turn)
            pixels = stored.astype(jnp.float32)
            pixels = (pixels - mean[None, None, None]) / std[None, None, None]
            # Before the resample, or one bad pixel would spoil its row and column.
            pixels = jnp.where(jnp.isfinite(pixels), pixels, 0.0)
            if self.missing:
                resampled = self._resample_measured(pixels, stored, box, size)
            else:
                resampled = resample(pixels, box, size, self.resampling)
            images |= {name: resampled[..., i] for i, name in enumerate(names)}
        image = jnp.stack([images[name] for name in sensor.band_names], axis=-1)
        if self.missing:
            bad = jnp.isnan(image).any(axis=-1, keepdims=True)
            image = jnp.where(bad, jnp.nan, image)
        return image

    def _resample_measured(self, pixels, stored, box, size: int) -> jax.Array:
        """Resamples those of `pixels` that are measured, by `stored`; see `images`.

        The kernel's weights of measured pixels do not sum to 1 beside a hole, and are
        divided by their sum. With less than a half of them a pixel is missing, so that
        the division is safe for cubic kernels too, whose weights are negative in part.
        """
        known = ~sensors.is_missing(stored).any(axis=-1, keepdims=True)
        pixels = jnp.where(known, pixels, 0.0)
        pixels = jnp.concatenate([pixels, known.astype(pixels.dtype)], axis=-1)
        resampled = resample(pixels, box, size, self.resampling)
        weight = resampled[..., -1:]
        there = weight >= LEAST_MEASURED
        return jnp.where(there, resampled[..., :-1] / weight, jnp.nan)

    def native_scenes(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Whole scenes in native units on the 10 m grid, {sensor: [B, H, W, C]}."""
        rows = len(next(iter(fields.values())))
        whole = fixed_view(rows, (0.0, 0.0, 1.0, 1.0))
        images = self.images(fields, whole, self.scene_size)
        return {s: native_units(x, self.contract[s]) for s, x in images.items()}

    @property
    def center(self) -> tuple[float, ...]:
        """The box of the middle of a scene pixel by pixel, or of all of a small one."""
        fraction = min(1.0, self.size / self.scene_size)
        edge = (1.0 - fraction) / 2
        return edge, edge, fraction, fraction

    def boxes(self, how: str) -> list[tuple[float, ...]]:
        """The parts of a scene that an encoder is shown, as `View` has them.

        Args:
            how: one of `VIEWS`: "center", see there; the "whole" scene resampled to the
                image; or "tiles" that together cover the scene pixel by pixel,
                overlapping where they must.
        """
        if how not in VIEWS:
            raise InputError(f"features.view is {how!r}; choose one of {list(VIEWS)}.")
        if how == "whole":
            return [(0.0, 0.0, 1.0, 1.0)]
        if how == "center" or self.scene_size <= self.size:
            return [self.center]
        side = self.window / self.scene_size
        corners = self.corners() / self.scene_size
        return [(float(y), float(x), side, side) for y, x in corners]

    @property
    def window(self) -> int:
        """Side of a window of scenes in whole pixels, see `Windows`."""
        return min(self.size, self.scene_size)

    def corners(self) -> np.ndarray:
        """Corners of windows that together cover a scene, [T, 2] int32."""
        count = -(-self.scene_size // self.window)
        starts = np.linspace(0, self.scene_size - self.window, count).round()
        return np.array([(y, x) for y in starts for x in starts], np.int32)

    def draw_windows(self, key: jax.Array, batch: int, turn: bool = True) -> "Windows":
        """Draws windows of scenes, each place and with `turn` each turn as likely."""
        corner_key, turn_key = jax.random.split(key)
        most = self.scene_size - self.window + 1
        corner = jax.random.randint(corner_key, (batch, 2), 0, most)
        turns = jax.random.bernoulli(turn_key, 0.5, (batch, 3))
        return Windows(corner, turns if turn else jnp.zeros_like(turns))

    def window_view(self, windows: "Windows") -> "View":
        """What shows windows to `images`."""
        side = jnp.full_like(windows.corner, self.window)
        box = jnp.concatenate([windows.corner, side], axis=1) / self.scene_size
        return View(box, windows.turn)

    def cut(self, labels: jax.Array, windows: "Windows") -> jax.Array:
        """Pixel labels [B, S, S] under windows, [B, window, window]."""

        def one(labels, corner):
            return jax.lax.dynamic_slice(labels, corner, (self.window, self.window))

        labels = jax.vmap(one)(labels, windows.corner)[..., None]
        return turn_images(labels, windows.turn)[..., 0]


class Windows(NamedTuple):
    """One window of each scene of a batch, in whole pixels.

    So images and pixel labels are cut alike. A window is as large as the encoder's
    image, or as the scene where that is smaller: the image is then the scene enlarged,
    and what is said of it is shrunk back.

    Attributes:
        corner: row and column of its first pixel, [B, 2] int32.
        turn: see `View`, [B, 3] bool.
    """

    corner: jax.Array
    turn: jax.Array

    @classmethod
    def at(cls, corner: jax.Array, batch: int) -> "Windows":
        """The window at one corner [2] in every scene, not turned."""
        corner = jnp.broadcast_to(corner, (batch, 2))
        return cls(corner, jnp.zeros((batch, 3), bool))


class View(NamedTuple):
    """Which part of each scene is seen, and how it is turned.

    Attributes:
        box: top, left, height and width of the crop, in fractions of the scene's
            side, [B, 4].
        turn: whether to flip rows, flip columns, and transpose, in this order,
            [B, 3] bool. All eight combinations are the flips and quarter turns.
    """

    box: jax.Array
    turn: jax.Array


def draw_views(
    key: jax.Array,
    batch: int,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    turn: bool = True,
) -> View:
    """Draws random-resized crops and turns.

    Areas and shapes are drawn together, again where the crop would be larger than the
    scene, as in torchvision's RandomResizedCrop; so every area lies within `scale`.

    Args:
        key: random key; row i of the result depends on it and on i alone.
        batch: number of views B.
        scale: least and greatest area of the crop, as a fraction of the scene's.
        ratio: least and greatest width over height.
        turn: whether to draw flips and quarter turns.
    """
    check_crops(scale, ratio)
    box_key, turn_key = jax.random.split(key)
    shape_key, place_key = jax.random.split(box_key)
    area, aspect = jnp.moveaxis(jax.random.uniform(shape_key, (batch, TRIES, 2)), -1, 0)
    area = scale[0] + (scale[1] - scale[0]) * area
    low, high = jnp.log(ratio[0]), jnp.log(ratio[1])
    aspect = jnp.exp(low + (high - low) * aspect)
    # After the last try: the shape nearest to a square, and of it no more than fits.
    squarest = nearest_to_square(ratio)
    most = min(squarest, 1 / squarest)
    area = jnp.append(area, jnp.minimum(area[:, -1:], most), axis=1)
    aspect = jnp.append(aspect, jnp.full((batch, 1), squarest), axis=1)
    height, width = jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)
    fits = (height <= 1.0) & (width <= 1.0)
    tried = jnp.argmax(fits.at[:, -1].set(True), axis=1)[:, None]
    height, width = (
        jnp.minimum(jnp.take_along_axis(x, tried, axis=1)[:, 0], 1.0)
        for x in (height, width)
    )
    top, left = jax.random.uniform(place_key, (batch, 2)).T
    box = jnp.stack([top * (1 - height), left * (1 - width), height, width], axis=1)
    turns = jax.random.bernoulli(turn_key, 0.5, (batch, 3)) & turn
    return View(box, turns)


def nearest_to_square(ratio: tuple[float, float]) -> float:
    """The width over height nearest to 1, of those from least to greatest."""
    return min(max(1.0, ratio[0]), ratio[1])


def check_crops(
    scale: tuple[float, float], ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> None:
    """Refuses limits of random-resized crops that there cannot be, see `draw_views`.

    Raises:
        InputError: they are out of range, or the wrong way round.
    """
    if not 0.0 < scale[0] <= scale[1] <= 1.0 or not 0.0 < ratio[0] <= ratio[1]:
        raise InputError(
            f"Crop scale {scale} must lie in (0, 1] and ratio {ratio} above 0, each "
            "from least to greatest."
        )
    squarest = nearest_to_square(ratio)
    most = min(squarest, 1 / squarest)
    if scale[0] > most:
        raise InputError(
            f"No crop of {scale[0]} of a scene has a ratio from {ratio[0]:.3g} to "
            f"{ratio[1]:.3g}; choose a least scale of at most {most:.3g}."
        )


def fixed_view(batch: int, box: tuple[float, ...]) -> View:
    """The view of one box in every scene, not turned."""
    boxes = jnp.broadcast_to(jnp.array(box), (batch, 4))
    return View(boxes, jnp.zeros((batch, 3), bool))


def resample(
    pixels: jax.Array, box: jax.Array, size: int, method: str = "linear"
) -> jax.Array:
    """Resamples pixels [B, H, W, C] under box [B, 4] to [B, size, size, C].

    Pixels are areas, not points, as in GDAL: the box's edge is the outer edge of the
    first pixel. Shrinking averages (antialiasing), enlarging interpolates.
    """
    if method not in RESAMPLING:
        raise InputError(f"Resampling {method!r} is not one of {list(RESAMPLING)}.")
    _, h, w, c = pixels.shape

    def one(image, box):
        native = jnp.array([h, w], jnp.float32)
        scale = size / (box[2:] * native)
        return jax.image.scale_and_translate(
            image, (size, size, c), (0, 1), scale, -box[:2] * native * scale, method
        )

    return jax.vmap(one)(pixels, box)


def turn_images(images: jax.Array, turn: jax.Array) -> jax.Array:
    """Turns square images [B, H, W, C] as turn [B, 3] says."""
    flip_rows, flip_columns, transpose = (
        turn[:, i, None, None, None] for i in range(3)
    )
    images = jnp.where(flip_rows, images[:, ::-1], images)
    images = jnp.where(flip_columns, images[:, :, ::-1], images)
    return jnp.where(transpose, images.swapaxes(1, 2), images)


def turn_box(box: jax.Array, turn: jax.Array) -> jax.Array:
    """Where box [B, 4] lies in a scene that is turned as turn [B, 3] says."""
    top, left, height, width = box.T
    top = jnp.where(turn[:, 0], 1 - top - height, top)
    left = jnp.where(turn[:, 1], 1 - left - width, left)
    box = jnp.stack([top, left, height, width], axis=1)
    return jnp.where(turn[:, 2:], box[:, jnp.array([1, 0, 3, 2])], box)


def draw_present(key: jax.Array, batch: int, rate: float) -> Present:
    """Draws which samples have which sensor, {sensor: [B] bool}.

    With a chance of `rate` a sample lacks one of the sensors, either as likely as the
    other (DINO-MM drops sensors so, half of the time); it never lacks both.
    """
    if not 0.0 <= rate <= 1.0:
        raise InputError(f"mask.drop_sensor is {rate}; choose a chance from 0 to 1.")
    chance, which = jax.random.uniform(key, (2, batch))
    lacks = jnp.where(chance < rate, (which * len(SENSORS)).astype(jnp.int32), -1)
    return {s: lacks != i for i, s in enumerate(SENSORS)}


def native_units(images: jax.Array, sensor: sensors.Sensor) -> jax.Array:
    """Undoes the normalisation of images [..., C]: dB for S1, DN for S2."""
    mean = jnp.array([b.mean for b in sensor.bands], jnp.float32)
    std = jnp.array([b.std for b in sensor.bands], jnp.float32)
    shape = (1,) * (images.ndim - 1) + (len(sensor.bands),)
    return images * std.reshape(shape) + mean.reshape(shape)


def invalid_pixels(
    fields: dict[str, jax.Array], missing: bool = False
) -> jax.Array | int:
    """The number of stored values that are not finite.

    With `missing` NaN says that nothing was measured, and infinite ones are left.
    """
    floats = [x for x in fields.values() if jnp.issubdtype(x.dtype, jnp.floating)]
    bad = jnp.isinf if missing else lambda x: ~jnp.isfinite(x)
    return sum(bad(x).sum() for x in floats)
