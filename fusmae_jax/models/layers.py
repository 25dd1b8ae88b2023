"""Transformer layers that encoders and decoders share.

Parameters are float32. Matrix products run in the type that `arithmetic` says, and
what lies between them is kept in it; LayerNorm, softmax, GELU and all sums are computed
in float32.
"""

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.errors import InputError
from fusmae_jax.inputs import SENSORS
from fusmae_jax.models import attention, products
from fusmae_jax.models.products import Arithmetic

# What of a block is kept for the gradient instead of computed again, and how.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


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
    """`x` [B, N, D] where its sensor is present, [B] or [B, N]; `instead` elsewhere.

    None stands for a sensor that every sample has, and costs nothing.
    """
    if present is None:
        return x
    # Rounded last, so that the gradient of a token is a float32 sum.
    instead = jnp.broadcast_to(instead, x.shape).astype(x.dtype)
    return jnp.where(present.reshape(x.shape[0], -1, 1), x, instead)


class Linear(nnx.Module):
    """An affine map of the last axis, or without `bias` a linear one."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        arithmetic: Arithmetic,
        rngs: nnx.Rngs,
        bias: bool = True,
    ):
        xavier = nnx.initializers.xavier_uniform()
        self.arithmetic = arithmetic
        self.kernel = nnx.Param(xavier(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    @property
    def _params(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.kernel[...]
        bias = jnp.zeros(kernel.shape[1]) if self.bias is None else self.bias[...]
        return kernel, bias

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, N, K] to [B, N, outputs], of the type of products."""
        return products.linear(x, *self._params, self.arithmetic)

    def by_heads(self, x: jax.Array, heads: int) -> jax.Array:
        """The same by heads, [B, h, N, outputs / h]."""
        return products.split_heads(x, *self._params, heads, self.arithmetic)

    def of_heads(self, x: jax.Array) -> jax.Array:
        """The same of what stands by heads, [B, h, N, K / h]."""
        return products.join_heads(x, *self._params, self.arithmetic)


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

    def __init__(self, dim: int, num_heads: int, *, arithmetic: Arithmetic, rngs):
        head_width(dim, num_heads)
        self.num_heads, self.arithmetic = num_heads, arithmetic
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.query = Linear(dim, dim, **kw)
        self.key = Linear(dim, dim, **kw)
        self.value = Linear(dim, dim, **kw)
        self.out = Linear(dim, dim, **kw)

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array,
        mask: jax.Array | None = None,
        keys: int | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from x [B, N, D] to context [B, M, D]; returns [B, N, D].

        `mask` [B, M] is False where the context is to be overlooked; only the first
        `keys` of the M are any, the others filling. `bias` [B, h, N, M] is added to the
        scores.
        """
        y = attention.attend(
            self.query.by_heads(x, self.num_heads),
            self.key.by_heads(context, self.num_heads),
            self.value.by_heads(context, self.num_heads),
            mask,
            self.arithmetic,
            keys,
            bias,
        )
        return self.out.of_heads(y)


class Mlp(nnx.Module):
    """Two-layer perceptron with exact GELU, `ratio` times as wide inside."""

    def __init__(self, dim: int, *, ratio: int = 4, arithmetic: Arithmetic, rngs):
        self.up = Linear(dim, ratio * dim, arithmetic=arithmetic, rngs=rngs)
        self.down = Linear(ratio * dim, dim, arithmetic=arithmetic, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(products.gelu(self.up(x), self.up.arithmetic))


class Block(nnx.Module):
    """Pre-norm transformer block with self-attention."""

    def __init__(self, dim: int, num_heads: int, *, arithmetic: Arithmetic, rngs):
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.norm1 = layer_norm(dim, rngs)
        self.attn = Attention(dim, num_heads, **kw)
        self.norm2 = layer_norm(dim, rngs)
        self.mlp = Mlp(dim, **kw)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        branches: jax.Array | None = None,
        first: int = 0,
        keys: int | None = None,
    ) -> jax.Array:
        """Maps tokens [B, N, D] to tokens [B, N - first, D] of the same type.

        Args:
            x: the tokens.
            mask: False for tokens that no other may attend to, [B, N].
            branches: what attention and MLP count in each sample, [2, B]; see
                `drop_path`.
            first: the first token wanted; those before it are attended to only.
            keys: how many tokens are any, the others filling; None for N.
        """

        def add(x, y, branch):
            if branches is not None:
                y = y * branches[branch, :, None, None]
            return (x + y).astype(x.dtype)

        y = self.norm1(x)
        x = add(x[:, first:], self.attn(y[:, first:], y, mask, keys), 0)
        return add(x, self.mlp(self.norm2(x)), 1)


def drop_path(key: jax.Array, rate: float, blocks: int, batch: int) -> jax.Array:
    """Draws stochastic depth: which residual branches count, [blocks, 2, B].

    A branch of the i-th block is left out of a sample with a chance that grows
    linearly to `rate` in the last block, and weighs as much more when it is not
    (Huang et al. 2016; the linear rule is that of MAE's fine-tuning).
    """
    chance = rate * jnp.arange(1, blocks + 1) / blocks
    kept = 1.0 - chance[:, None, None]
    return jax.random.bernoulli(key, kept, (blocks, 2, batch)) / kept


def check_encoder(
    bands: Mapping[str, int],
    sensors: Iterable[str],
    depth: int,
    arithmetic: Arithmetic,
    remat: str,
) -> None:
    """Refuses an encoder that cannot be built.

    Args:
        bands: how many bands it reads, by sensor.
        sensors: which it reads.
        depth: how many blocks it has.
        arithmetic: see there.
        remat: a name in `REMAT`.

    Raises:
        InputError: names what is wrong.
    """
    if set(bands) != set(sensors) or min(bands.values()) < 1:
        raise InputError(
            f"Every sensor of {list(sensors)} needs at least one band, got {bands}."
        )
    if depth < 1:
        raise InputError(f"The encoder needs a block at least, got depth={depth}.")
    for value, allowed, name in (
        (arithmetic.attention, attention.IMPLEMENTATIONS, "attention"),
        (remat, tuple(REMAT), "remat"),
    ):
        if value not in allowed:
            raise InputError(f"{name} is {value!r}; choose one of {list(allowed)}.")


def run_blocks(
    blocks: Iterable[Block],
    x: jax.Array,
    mask: jax.Array | None = None,
    *,
    branches: jax.Array | None = None,
    fill: int = 0,
    remat: str = "none",
) -> dict[str, jax.Array]:
    """What each of some blocks says of tokens, by name, [B, N, D] each.

    Args:
        blocks: one behind the other.
        x: the tokens, [B, N, D].
        mask: False for tokens that no other may attend to, [B, N].
        branches: for training, what counts of each block, see `drop_path`.
        fill: how many to append, to which nobody attends, see `attention.filling`.
        remat: what of a block is computed again for the gradient, see `REMAT`.
    """
    said, n = {}, x.shape[1]
    # Once for all blocks.
    x = jnp.pad(x, ((0, 0), (0, fill), (0, 0)))
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, fill)))
    for i, block in enumerate(blocks):
        block = functools.partial(block, keys=n)
        if remat != "none":
            block = jax.checkpoint(block, policy=REMAT[remat])
        x = block(x, mask, None if branches is None else branches[i])
        said[f"block{i}"] = x[:, :n]
    return said
