"""Images to patches and back, and the fixed code of their positions."""

import functools

import jax
import numpy as np

from data_pipeline.errors import InputError


def grid_side(image_size: int, patch_size: int) -> int:
    """Patches along one side of a square image.

    Raises:
        InputError: the image is not a whole number of patches.
    """
    if image_size <= 0 or patch_size <= 0 or image_size % patch_size:
        raise InputError(
            f"Image size {image_size} is not a whole number of patches of "
            f"{patch_size} px; change one of them."
        )
    return image_size // patch_size


def patchify(images: jax.Array, p: int) -> jax.Array:
    """Splits images [B, H, W, C] into row-major patches [B, N, P*P*C]."""
    b, h, w, c = images.shape
    rows, cols = grid_side(h, p), grid_side(w, p)
    x = images.reshape(b, rows, p, cols, p, c)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, h/p, w/p, P, P, C]
    return x.reshape(b, rows * cols, p * p * c)


def unpatchify(patches: jax.Array, p: int) -> jax.Array:
    """Inverse of `patchify` for square images: [B, N, P*P*C] to [B, H, W, C]."""
    b, n, e = patches.shape
    side, c = round(n**0.5), e // (p * p)
    x = patches.reshape(b, side, side, p, p, c)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, rows, P, cols, P, C]
    return x.reshape(b, side * p, side * p, c)


def check_width(dim: int) -> None:
    """Refuses a width that cannot carry the code of positions.

    Raises:
        InputError: it does not divide into sines and cosines of rows and columns.
    """
    if dim % 4:
        raise InputError(
            f"Width {dim} cannot carry 2-D sine-cosine positions; choose a multiple "
            "of 4."
        )


@functools.lru_cache
def sincos_2d(side: int, dim: int) -> np.ndarray:
    """Fixed 2-D sine-cosine position code, [side * side, dim], as in MAE.

    Half of the channels code the column, half the row. Built in NumPy: under `jit`
    it is a constant, never a parameter.
    """
    check_width(dim)
    omega = 10_000.0 ** -(np.arange(dim // 4) / (dim // 4))
    y, x = np.mgrid[:side, :side]
    angles = [np.outer(pos.ravel(), omega) for pos in (x, y)]
    parts = [f(a) for a in angles for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)
