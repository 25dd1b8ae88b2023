"""Transformer layers shared by the encoder and the decoders.

Parameters are float32. Matrix products run in `dtype`; LayerNorm, softmax and the
residual stream stay in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.errors import InputError
from fusmae_jax import attention, products
from fusmae_jax.masking import SENSORS


def layer_norm(dim: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis, in float32 whatever comes in."""
    return nnx.LayerNorm(dim, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)


def per_sensor(make: Callable[[], nnx.Module]) -> nnx.Dict:
    """One module of its own for each sensor, by name."""
    return nnx.Dict({sensor: make() for sensor in SENSORS})


def token(initializer, dim: int, rngs: nnx.Rngs) -> nnx.Param:
    """A learned token [D]."""
    return nnx.Param(initializer(rngs.params(), (dim,)))


def where_present(present: jax.Array | None, x: jax.Array, instead) -> jax.Array:
    """`x` [B, N, D] where its sensor is present [B], and `instead` elsewhere.

    None stands for a sensor that every sample has, and costs nothing.
    """
    if present is None:
        return x
    return jnp.where(present[:, None, None], x, jnp.broadcast_to(instead, x.shape))


class Linear(nnx.Module):
    """An affine map of the last axis, its product in `dtype`."""

    def __init__(self, inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs):
        xavier = nnx.initializers.xavier_uniform()
        self.dtype = jnp.dtype(dtype)
        self.kernel = nnx.Param(xavier(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, N, K] to [B, N, outputs], of `dtype`."""
        y = products.matmul(x, self.kernel[...], self.dtype)
        return (y + self.bias[...].astype(y.dtype)[None, None]).astype(self.dtype)


def head_width(dim: int, num_heads: int) -> int:
    """Channels of one of the heads that a width is divided into.

    Raises:
        InputError: it does not divide.
    """
    if dim <= 0 or num_heads <= 0 or dim % num_heads:
        raise InputError(
            f"Width {dim} does not divide into {num_heads} heads; choose a width that "
            "is a multiple of the number of heads."
        )
    return dim // num_heads


class Attention(nnx.Module):
    """Multi-head attention from `x` to `context`, which may be `x` itself."""

    def __init__(self, dim: int, num_heads: int, *, dtype, rngs, attention="auto"):
        head_width(dim, num_heads)
        self.num_heads, self.implementation = num_heads, attention
        kw = dict(dtype=dtype, rngs=rngs)
        self.query = Linear(dim, dim, **kw)
        self.key = Linear(dim, dim, **kw)
        self.value = Linear(dim, dim, **kw)
        self.out = Linear(dim, dim, **kw)

    def __call__(
        self, x: jax.Array, context: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """Attends from x [B, N, D] to context [B, M, D]; returns [B, N, D].

        `mask` [B, M] is False where the context is to be overlooked.
        """

        def heads(t):  # [B, N, D] -> [B, N, h, d]
            return t.reshape(*t.shape[:2], self.num_heads, -1)

        y = attention.attend(
            heads(self.query(x)),
            heads(self.key(context)),
            heads(self.value(context)),
            mask,
            self.implementation,
        )
        return self.out(y.reshape(x.shape))


class Mlp(nnx.Module):
    """Two-layer perceptron with exact GELU, `ratio` times as wide inside."""

    def __init__(self, dim: int, *, ratio: int = 4, dtype, rngs: nnx.Rngs):
        self.up = Linear(dim, ratio * dim, dtype=dtype, rngs=rngs)
        self.down = Linear(ratio * dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.gelu(self.up(x), approximate=False))


class Block(nnx.Module):
    """Pre-norm transformer block with self-attention."""

    def __init__(self, dim: int, num_heads: int, *, dtype, rngs, attention="auto"):
        kw = dict(dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(dim, rngs)
        self.attn = Attention(dim, num_heads, attention=attention, **kw)
        self.norm2 = layer_norm(dim, rngs)
        self.mlp = Mlp(dim, **kw)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        branches: jax.Array | None = None,
        first: int = 0,
    ) -> jax.Array:
        """Maps tokens [B, N, D] to tokens [B, N - first, D].

        Args:
            x: the tokens.
            mask: False for tokens that no other may attend to, [B, N].
            branches: what attention and MLP count in each sample, [2, B]; see
                `drop_path`.
            first: the first token wanted; those before it are attended to only.
        """
        y = self.norm1(x)
        y = self.attn(y[:, first:], y, mask)
        x = x[:, first:] + (y if branches is None else y * branches[0, :, None, None])
        y = self.mlp(self.norm2(x))
        return x + (y if branches is None else y * branches[1, :, None, None])


def drop_path(key: jax.Array, rate: float, blocks: int, batch: int) -> jax.Array:
    """Draws stochastic depth: which residual branches count, [blocks, 2, B].

    A branch of the i-th block is left out of a sample with a chance that grows
    linearly to `rate` in the last block, and weighs as much more when it is not
    (Huang et al. 2016; the linear rule is that of MAE's fine-tuning).
    """
    chance = rate * jnp.arange(1, blocks + 1) / blocks
    kept = 1.0 - chance[:, None, None]
    return jax.random.bernoulli(key, kept, (blocks, 2, batch)) / kept
