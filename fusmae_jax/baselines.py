"""Simple predictors of hidden patches, for a reconstruction to be held against.

Each fills the hidden patches of one image from that image's visible ones, band by
band, without learning anything. NumPy; used on a few held-out pairs.
"""

import numpy as np
import scipy


def visible_mean(patches: np.ndarray, hidden: np.ndarray, patch_size: int):
    """Fills hidden patches [N, E] with each band's mean over the visible pixels."""
    n, e = patches.shape
    x = patches.reshape(n, patch_size**2, -1)
    filled = x.copy()
    filled[hidden] = x[~hidden].mean(axis=(0, 1))
    return filled.reshape(n, e)


def nearest_patch(patches: np.ndarray, hidden: np.ndarray, patch_size: int):
    """Fills each hidden patch with a copy of the nearest visible one."""
    del patch_size
    side = round(len(patches) ** 0.5)
    places = np.indices((side, side)).reshape(2, -1).T
    _, nearest = scipy.spatial.cKDTree(places[~hidden]).query(places[hidden])
    filled = patches.copy()
    filled[hidden] = patches[~hidden][nearest]
    return filled


def inverse_distance(
    patches: np.ndarray, hidden: np.ndarray, patch_size: int, neighbours: int = 12
):
    """Fills each hidden pixel from its nearest visible pixels, weighted by 1/d^2."""
    n, e = patches.shape
    side = round(n**0.5)
    rows, cols = np.indices((side, side)).reshape(2, -1, 1) * patch_size
    y, x = np.indices((patch_size, patch_size)).reshape(2, 1, -1)
    places = np.stack([rows + y, cols + x], axis=-1)  # [N, P*P, 2]
    pixels = patches.reshape(n, patch_size**2, -1)
    tree = scipy.spatial.cKDTree(places[~hidden].reshape(-1, 2))
    k = np.arange(1, min(neighbours, tree.n) + 1)
    distance, nearest = tree.query(places[hidden].reshape(-1, 2), k=k)
    weight = 1.0 / distance**2
    weight /= weight.sum(axis=1, keepdims=True)
    seen = pixels[~hidden].reshape(-1, pixels.shape[-1])
    filled = pixels.copy()
    drawn = np.einsum("pk,pkc->pc", weight, seen[nearest])
    filled[hidden] = drawn.reshape(filled[hidden].shape)
    return filled.reshape(n, e)


PREDICTORS = {
    "mean of visible pixels": visible_mean,
    "nearest visible patch": nearest_patch,
    "inverse distance": inverse_distance,
}
