"""Transformer layers shared by the encoder and the decoders.

Parameters are float32. Matrix products run in `dtype`; LayerNorm, softmax and the
residual stream stay in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.errors import InputError
from fusmae_jax.masking import SENSORS

xavier = nnx.initializers.xavier_uniform()


def layer_norm(dim: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis, in float32 whatever comes in."""
    return nnx.LayerNorm(dim, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)


def per_sensor(make: Callable[[], nnx.Module]) -> nnx.Dict:
    """One module of its own for each sensor, by name."""
    return nnx.Dict({sensor: make() for sensor in SENSORS})


class Attention(nnx.Module):
    """Multi-head attention from `x` to `context`, which may be `x` itself."""

    def __init__(self, dim: int, num_heads: int, *, dtype, rngs: nnx.Rngs):
        if dim <= 0 or num_heads <= 0 or dim % num_heads:
            raise InputError(
                f"Width {dim} does not divide into {num_heads} heads; choose a "
                "width that is a multiple of the number of heads."
            )
        self.num_heads = num_heads
        kw = dict(kernel_init=xavier, dtype=dtype, rngs=rngs)
        self.query = nnx.Linear(dim, dim, **kw)
        self.key = nnx.Linear(dim, dim, **kw)
        self.value = nnx.Linear(dim, dim, **kw)
        self.out = nnx.Linear(dim, dim, **kw)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Attends from x [B, N, D] to context [B, M, D]; returns [B, N, D]."""

        def heads(t):  # [B, N, D] -> [B, N, h, d]
            return t.reshape(*t.shape[:2], self.num_heads, -1)

        y = jax.nn.dot_product_attention(
            heads(self.query(x)), heads(self.key(context)), heads(self.value(context))
        )
        return self.out(y.reshape(x.shape))


class Mlp(nnx.Module):
    """Two-layer perceptron with exact GELU, `ratio` times as wide inside."""

    def __init__(self, dim: int, *, ratio: int = 4, dtype, rngs: nnx.Rngs):
        kw = dict(kernel_init=xavier, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(dim, ratio * dim, **kw)
        self.down = nnx.Linear(ratio * dim, dim, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.gelu(self.up(x), approximate=False))


class Block(nnx.Module):
    """Pre-norm transformer block with self-attention."""

    def __init__(self, dim: int, num_heads: int, *, dtype, rngs: nnx.Rngs):
        self.norm1 = layer_norm(dim, rngs)
        self.attn = Attention(dim, num_heads, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(dim, rngs)
        self.mlp = Mlp(dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [B, N, D] to tokens [B, N, D]."""
        y = self.norm1(x)
        x = x + self.attn(y, y)
        return x + self.mlp(self.norm2(x))
