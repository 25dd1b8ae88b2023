"""Views: from stored pixels of every grid to registered, normalised images.

A record keeps each band on its native grid. One resample per grid takes it straight
to the crop the network sees; the crop is given in fractions of the scene's side, so
all grids, and both sensors, show the same ground.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from data_pipeline import sensors
from data_pipeline.errors import InputError

RESAMPLING = ("linear", "cubic")
TRIES = 10  # at a crop that fits into its scene, before a square one is taken
INVALID_ADVICE = (
    "are not finite and count as their band's mean; prepare the data again to leave "
    "such pairs out."
)


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


def center_box(image_size: int, scene_size: int) -> tuple[float, ...]:
    """The box that shows the middle of a scene pixel by pixel, or all of a small one.

    Args:
        image_size: side of the image in pixels.
        scene_size: side of the scene in pixels at 10 m.
    """
    fraction = min(1.0, image_size / scene_size)
    edge = (1.0 - fraction) / 2
    return edge, edge, fraction, fraction


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


def see(
    fields: dict[str, jax.Array],
    view: View,
    sensor: sensors.Sensor,
    *,
    size: int,
    grids: tuple[sensors.Grid, ...] | None = None,
    method: str = "linear",
) -> jax.Array:
    """One sensor's images under `view`, normalised, [B, size, size, C].

    Args:
        fields: stored pixels by field name, native units, [B, H, W, C] each.
        view: the views, shared by all sensors.
        sensor: the contract, with the bands wanted in the order wanted.
        size: side of the images in pixels.
        grids: how the data stores this sensor; None where every band is on its own
            grid.
        method: "linear" or "cubic".

    Returns:
        Each band minus its mean, over its standard deviation. Pixels that are not
        finite in the record count as the band's mean.
    """
    bands = {band.name: band for band in sensor.bands}
    # Turned as stored, where there are fewer bytes to turn.
    box, images = turn_box(view.box, view.turn), {}
    for grid in sensors.SENSORS[sensor.name].grids if grids is None else grids:
        names = [name for name in grid.bands if name in bands]
        if not names:
            continue
        columns = [grid.bands.index(name) for name in names]
        mean = jnp.array([bands[name].mean for name in names], jnp.float32)
        std = jnp.array([bands[name].std for name in names], jnp.float32)
        pixels = turn_images(fields[grid.field][..., columns], view.turn)
        pixels = pixels.astype(jnp.float32)
        pixels = (pixels - mean[None, None, None]) / std[None, None, None]
        # Before the resample, or one bad pixel would spoil its whole row and column.
        pixels = jnp.where(jnp.isfinite(pixels), pixels, 0.0)
        resampled = resample(pixels, box, size, method)
        images |= {name: resampled[..., i] for i, name in enumerate(names)}
    return jnp.stack([images[name] for name in sensor.band_names], axis=-1)


def native_units(images: jax.Array, sensor: sensors.Sensor) -> jax.Array:
    """Undoes the normalisation of images [..., C]: dB for S1, DN for S2."""
    mean = jnp.array([b.mean for b in sensor.bands], jnp.float32)
    std = jnp.array([b.std for b in sensor.bands], jnp.float32)
    shape = (1,) * (images.ndim - 1) + (len(sensor.bands),)
    return images * std.reshape(shape) + mean.reshape(shape)


def invalid_pixels(fields: dict[str, jax.Array]) -> jax.Array:
    """The number of stored values that are not finite."""
    floats = [x for x in fields.values() if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum((~jnp.isfinite(x)).sum() for x in floats)
