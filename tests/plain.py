"""Transformers in NumPy, written apart from those of the project, to hold them against.

`p` are parameters by their paths in a network, as `named` gives them.
"""

import numpy as np
from scipy import special

from fusmae_jax.export import weights


def named(params) -> dict[str, np.ndarray]:
    """Parameters by path, in float64."""
    return {name: np.float64(x) for name, x in weights.named(params).items()}


def within(p, prefix):
    """The parameters of a part of a network."""
    return {k.removeprefix(prefix): x for k, x in p.items() if k.startswith(prefix)}


def affine(x, p, name):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def norm(x, p, name):
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-6)
    return x * p[f"{name}/scale"] + p[f"{name}/bias"]


def attend(x, context, p, name, heads):
    """Attention of one sample, x [N, D] to context [M, D]."""
    q, k, v = (
        affine(y, p, f"{name}/{kind}")
        for kind, y in (("query", x), ("key", context), ("value", context))
    )
    width, said = q.shape[-1] // heads, []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = special.softmax(q[:, part] @ k[:, part].T / np.sqrt(width), axis=-1)
        said.append(scores @ v[:, part])
    return affine(np.concatenate(said, axis=-1), p, f"{name}/out")


def perceptron(x, p, name):
    x = affine(x, p, f"{name}/up")
    return affine(x * special.ndtr(x), p, f"{name}/down")


def blocks(x, p, name, depth, heads):
    """Pre-norm blocks of one sample [N, D]."""
    for i in range(depth):
        at = f"{name}/{i}"
        y = norm(x, p, f"{at}/norm1")
        x = x + attend(y, y, p, f"{at}/attn", heads)
        x = x + perceptron(norm(x, p, f"{at}/norm2"), p, f"{at}/mlp")
    return x


def positions(side, dim):
    """Sines and cosines of the column, then those of the row, [side * side, dim]."""
    rate = 10_000.0 ** -(np.arange(dim // 4) / (dim // 4))
    code = [
        np.concatenate([f(at * rate) for at in (col, row) for f in (np.sin, np.cos)])
        for row in range(side)
        for col in range(side)
    ]
    return np.stack(code)


def cut(image, p):
    """Patches of an image [H, W, C], row by row, [N, P * P * C]."""
    h, w, _ = image.shape
    places = [(y, x) for y in range(0, h, p) for x in range(0, w, p)]
    return np.stack([image[y : y + p, x : x + p].ravel() for y, x in places])


def normalized(patches):
    """Patches without their own mean and deviation, as MAE asks for them."""
    mean, var = (f(patches, axis=-1, keepdims=True) for f in (np.mean, np.var))
    return (patches - mean) / np.sqrt(var + 1e-6)
