"""Decoders, which redraw hidden patches from the tokens of visible ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fusmae_jax import patches
from fusmae_jax.inputs import SENSORS
from fusmae_jax.models import layers
from fusmae_jax.models.products import Arithmetic


class Redrawn(NamedTuple):
    """The answer of an autoencoder, {sensor: [B, M, E]} each.

    Attributes:
        predicted: predicted patches, in the space of the loss's targets.
        patches: the same patches of the images that were given.
    """

    predicted: dict[str, jax.Array]
    patches: dict[str, jax.Array]


class Decoder(nnx.Module):
    """Makes tokens of hidden patches from visible ones, as MAE's decoder.

    Tokens stay in the order of the mask, the visible ones first: attention does not
    mind, and what is asked for last lies at the end.
    """

    def __init__(
        self,
        *,
        side: int,
        encoder_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        arithmetic: Arithmetic,
        rngs: nnx.Rngs,
    ):
        self.side, self.dim, self.arithmetic = side, dim, arithmetic
        patches.sincos_2d(side, dim)  # refuses a width without positions, now
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.bridge = layers.Linear(encoder_dim, dim, **kw)
        self.mask_token = layers.token(nnx.initializers.normal(0.02), dim, rngs)
        self.blocks = nnx.List(
            [layers.Block(dim, num_heads, **kw) for _ in range(depth)]
        )
        self.norm = layers.layer_norm(dim, rngs)

    def __call__(
        self,
        visible: jax.Array,
        mask: patches.Mask,
        summary: jax.Array | None = None,
        *,
        whole: bool = False,
    ) -> jax.Array:
        """Makes tokens [B, M, W] of visible tokens [B, K, D].

        They are the hidden ones, M = N - K, or with `whole` all, in `mask.order`. The
        encoder's global token, `summary` [B, D], is one more to attend to, without a
        position.
        """
        b, hidden = mask.hidden.shape
        blanks = jnp.broadcast_to(self.mask_token[...], (b, hidden, self.dim))
        x = self.bridge(visible).astype(jnp.float32)
        x = jnp.concatenate([x, blanks], axis=1)
        x = x + patches.positions(self.side, self.dim, mask.order)
        wanted = x.shape[1] if whole else hidden
        if summary is not None:
            first = self.bridge(summary[:, None]).astype(jnp.float32)
            x = jnp.concatenate([first, x], axis=1)
        x = x.astype(self.arithmetic.dtype)
        for i, block in enumerate(self.blocks):
            last = i + 1 == len(self.blocks)
            x = block(x, first=x.shape[1] - wanted if last else 0)
        return self.norm(x[:, -wanted:])  # where there is no block at all


class SensorDecoder(Decoder):
    """Redraws patches of one sensor from its visible tokens, as MAE's decoder."""

    def __init__(self, *, values: int, rngs: nnx.Rngs, **sizes):
        super().__init__(rngs=rngs, **sizes)
        self.predict = layers.Linear(
            self.dim, values, arithmetic=self.arithmetic, rngs=rngs
        )

    def __call__(
        self,
        visible: jax.Array,
        mask: patches.Mask,
        summary: jax.Array | None = None,
        *,
        whole: bool = False,
    ) -> jax.Array:
        """Predicts patches [B, M, E], those that `Decoder` says."""
        x = super().__call__(visible, mask, summary, whole=whole)
        return self.predict(x).astype(jnp.float32)


class Seen(NamedTuple):
    """What a decoder reads of the encoder.

    Attributes:
        tokens: of the visible patches of all sensors, [B, K, D].
        summary: the global token, [B, D]; None if it is not read.
        mask: which of the 2 N patches of both sensors, one behind the other, these are.
        known: which of the tokens stand for what there is, [B, K]; None for all.
    """

    tokens: jax.Array
    summary: jax.Array | None
    mask: patches.Mask
    known: jax.Array | None = None


class QueryDecoder(nnx.Module):
    """Redraws all patches of one sensor from the visible tokens of all.

    Queries are the places of the sensor, each its visible token or a learned one; they
    attend to all visible tokens and the global token, once, and what they find takes
    their place. Blocks of self-attention follow, as in MultiMAE's code.
    """

    def __init__(
        self,
        *,
        sensor: str,
        values: int,
        side: int,
        encoder_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        arithmetic: Arithmetic,
        rngs: nnx.Rngs,
    ):
        self.sensor, self.side, self.dim = sensor, side, dim
        self.arithmetic = arithmetic
        patches.check_width(dim)
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        normal = nnx.initializers.normal(0.02)
        self.bridge = layers.Linear(encoder_dim, dim, **kw)
        self.mask_token = layers.token(nnx.initializers.zeros, dim, rngs)
        self.sensors = layers.per_sensor(lambda: layers.token(normal, dim, rngs))
        self.query_norm = layers.layer_norm(dim, rngs)
        self.context_norm = layers.layer_norm(dim, rngs)
        self.attn = layers.Attention(dim, num_heads, **kw)
        self.norm = layers.layer_norm(dim, rngs)
        self.mlp = layers.Mlp(dim, **kw)
        self.blocks = nnx.List(
            [layers.Block(dim, num_heads, **kw) for _ in range(depth)]
        )
        self.predict = layers.Linear(dim, values, **kw)

    def __call__(self, seen: Seen) -> jax.Array:
        """Predicts all patches of the sensor, [B, N, E], in the order of the image."""
        n, k = self.side**2, seen.tokens.shape[1]
        code = jnp.asarray(patches.sincos_2d(self.side, self.dim))
        marks = [code + self.sensors[s][...][None] for s in SENSORS]
        tokens = seen.tokens
        if seen.summary is not None:
            tokens = jnp.concatenate([tokens, seen.summary[:, None]], axis=1)
        tokens = self.bridge(tokens).astype(jnp.float32)
        tokens, summary = tokens[:, :k], tokens[:, k:]
        tokens = layers.where_present(seen.known, tokens, self.mask_token[...])
        blanks = jnp.broadcast_to(
            self.mask_token[...], (*seen.mask.hidden.shape, self.dim)
        )
        slots = patches.put_back(jnp.concatenate([tokens, blanks], axis=1), seen.mask)
        slots = slots + jnp.concatenate(marks)[None]
        context = patches.take(slots, seen.mask.visible)
        context = jnp.concatenate([context, summary], axis=1)
        known = seen.known
        if known is not None:
            known = jnp.concatenate([known, jnp.ones(summary.shape[:2], bool)], axis=1)
        first = n * SENSORS.index(self.sensor)
        queries = slots[:, first : first + n]
        low = self.arithmetic.dtype
        queries, context = queries.astype(low), context.astype(low)
        x = self.attn(self.query_norm(queries), self.context_norm(context), known)
        x = x + self.mlp(self.norm(x))
        for block in self.blocks:
            x = block(x)
        return self.predict(x).astype(jnp.float32)
