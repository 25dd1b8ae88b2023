"""A decoder whose queries are all places of a sensor, and that reads both sensors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fusmae_jax import patches
from fusmae_jax.inputs import SENSORS
from fusmae_jax.models import layers
from fusmae_jax.models.products import Arithmetic


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
