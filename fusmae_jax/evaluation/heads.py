"""Heads that tell the class of every pixel from a map of tokens."""

import jax
import jax.numpy as jnp
from flax import nnx

from fusmae_jax.models import layers

HEADS = ("linear", "upsample")
WIDTH = 64  # of the upsampling head where it is coarsest
LEAST_WIDTH = 32
INIT_STD = 0.01


class Linear(nnx.Module):
    """One linear layer for all tokens: as little as can tell classes apart."""

    def __init__(self, dim: int, classes: int, *, rngs: nnx.Rngs):
        self.classify = _classifier(dim, classes, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [B, h, w, D] to logits [B, h, w, C]."""
        return self.classify(x)


class Upsample(nnx.Module):
    """Doubles a map of tokens until another doubling would pass the pixel grid.

    Each stage has a 3x3 convolution and, from the second on, half the width as long as
    that is not too narrow, since pixels become four times as many.
    """

    def __init__(self, dim: int, classes: int, patch_size: int, *, rngs: nnx.Rngs):
        stages = patch_size.bit_length() - 1
        widths = [max(LEAST_WIDTH, WIDTH >> i) for i in range(stages)]
        self.narrow = nnx.Linear(dim, WIDTH, rngs=rngs)
        # Convolutions are matrix products, of which vmap makes a batch; of convolutions
        # it makes grouped ones, which CPUs run very slowly inside a loop.
        self.convs = nnx.List(
            [
                nnx.Linear(9 * before, width, rngs=rngs)
                for before, width in zip([WIDTH, *widths], widths)
            ]
        )
        self.norms = nnx.List([layers.layer_norm(width, rngs) for width in widths])
        self.classify = _classifier([WIDTH, *widths][-1], classes, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [B, h, w, D] to logits [B, 2^n * h, 2^n * w, C]."""
        x = self.narrow(x)
        for conv, norm in zip(self.convs, self.norms):
            x = resize(x, 2 * x.shape[1])
            x = nnx.gelu(norm(conv(neighbourhoods(x))))
        return self.classify(x)


def make(
    head: str, dim: int, classes: int, patch_size: int, *, rngs: nnx.Rngs
) -> nnx.Module:
    """Builds a head.

    Args:
        head: one of HEADS.
        dim: width D of the tokens.
        classes: C.
        patch_size: side of the patch that a token stands for, in pixels.
        rngs: key of the initial parameters.
    """
    if head == "linear":
        return Linear(dim, classes, rngs=rngs)
    return Upsample(dim, classes, patch_size, rngs=rngs)


def resize(x: jax.Array, side: int) -> jax.Array:
    """Resamples square maps [B, h, h, C] to [B, side, side, C], bilinearly."""
    return jax.image.resize(x, (len(x), side, side, x.shape[-1]), "linear")


def neighbourhoods(x: jax.Array) -> jax.Array:
    """Every pixel of [B, h, w, C] with its eight neighbours, [B, h, w, 9 * C].

    Zeros stand beyond the edge. A linear layer on them is a 3x3 convolution.
    """
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1)


def _classifier(dim: int, classes: int, rngs: nnx.Rngs) -> nnx.Linear:
    # Small, so that all classes begin about equally likely.
    init = nnx.initializers.normal(INIT_STD)
    return nnx.Linear(dim, classes, kernel_init=init, rngs=rngs)
