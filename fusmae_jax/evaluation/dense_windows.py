"""Windows of a scene, in whole pixels, so that images and pixel labels are cut alike.

A window is as large as the encoder's image, or as the scene where that is smaller: the
image is then the scene enlarged, and what is said of it is shrunk back.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusmae_jax import views
from fusmae_jax.evaluation import backbone


class Windows(NamedTuple):
    """One window of each scene of a batch.

    Attributes:
        corner: row and column of its first pixel, [B, 2] int32.
        turn: see `views.View`, [B, 3] bool.
    """

    corner: jax.Array
    turn: jax.Array


def draw(key: jax.Array, batch: int, scene_size: int, side: int) -> Windows:
    """Draws windows of `side` pixels, each place and each turn as likely."""
    corner_key, turn_key = jax.random.split(key)
    corner = jax.random.randint(corner_key, (batch, 2), 0, scene_size - side + 1)
    return Windows(corner, jax.random.bernoulli(turn_key, 0.5, (batch, 3)))


def same(corner: jax.Array, batch: int) -> Windows:
    """The window at one corner [2] in every scene, not turned."""
    corner = jnp.broadcast_to(corner, (batch, 2))
    return Windows(corner, jnp.zeros((batch, 3), bool))


def tiles(image_size: int, scene_size: int) -> np.ndarray:
    """Corners of windows that together cover a scene, [T, 2] int32."""
    boxes = np.array(backbone.boxes("tiles", image_size, scene_size))
    return np.rint(boxes[:, :2] * scene_size).astype(np.int32)


def view(windows: Windows, scene_size: int, side: int) -> views.View:
    """What `views.see` needs to know of windows."""
    size = jnp.full_like(windows.corner, side)
    box = jnp.concatenate([windows.corner, size], axis=1) / scene_size
    return views.View(box, windows.turn)


def cut(labels: jax.Array, windows: Windows, side: int) -> jax.Array:
    """Pixel labels [B, S, S] under windows, [B, side, side]."""

    def one(labels, corner):
        return jax.lax.dynamic_slice(labels, corner, (side, side))

    labels = jax.vmap(one)(labels, windows.corner)[..., None]
    return views.turn_images(labels, windows.turn)[..., 0]


def confusion(labels: jax.Array, predicted: jax.Array, classes: int) -> jax.Array:
    """Counts pixels of one scene, rows true and columns predicted, [C, C] int32.

    Pixels whose label is no class are left out.
    """
    pair = labels.astype(jnp.int32) * classes + predicted
    pair = jnp.where(labels < classes, pair, classes**2).ravel()
    counts = jnp.bincount(pair, length=classes**2 + 1)[:-1]
    return counts.reshape(classes, classes)
