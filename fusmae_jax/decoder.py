"""Feature-level fusion of the two sensors, and the light decoder of each."""

import jax
import jax.numpy as jnp
from flax import nnx

from fusmae_jax import layers, masking, patches
from fusmae_jax.encoder import OTHER, Present
from fusmae_jax.masking import SENSORS
from fusmae_jax.products import Arithmetic


class XAttnDecoder(nnx.Module):
    """Feature-level fusion: each sensor's tokens attend to the other's, then an MLP.

    Works on visible tokens at encoder width, between the encoder and the decoders.
    Both sensors read the tokens as they came in; no weights are shared. Rebuilt from
    descriptions of section 3.2, equations 10 and 11, of the paper. An absent sensor is
    stood for as in `XAttnEncoder`.
    """

    def __init__(self, dim: int, num_heads: int, *, arithmetic: Arithmetic, rngs):
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.norm1 = layers.per_sensor(lambda: layers.layer_norm(dim, rngs))
        self.attn = layers.per_sensor(lambda: layers.Attention(dim, num_heads, **kw))
        self.absent = layers.per_sensor(
            lambda: layers.token(nnx.initializers.zeros, dim, rngs)
        )
        self.norm2 = layers.per_sensor(lambda: layers.layer_norm(dim, rngs))
        self.mlp = layers.per_sensor(lambda: layers.Mlp(dim, **kw))

    def __call__(
        self, tokens: dict[str, jax.Array], present: Present | None = None
    ) -> dict[str, jax.Array]:
        """Maps tokens {sensor: [B, K, D]} to tokens of the same shapes."""
        present = present or dict.fromkeys(SENSORS)
        y = {s: self.norm1[s](tokens[s]) for s in SENSORS}
        context = {
            s: layers.where_present(present[s], y[s], self.absent[s][...])
            for s in SENSORS
        }
        x = {s: tokens[s] + self.attn[s](y[s], context[OTHER[s]]) for s in SENSORS}
        return {s: x[s] + self.mlp[s](self.norm2[s](x[s])) for s in SENSORS}


class Decoder(nnx.Module):
    """Redraws patches of one sensor from its visible tokens, as MAE's decoder.

    Tokens stay in the order of the mask, the visible ones first: attention does not
    mind, and what is asked for last lies at the end.
    """

    def __init__(
        self,
        *,
        bands: int,
        patch_size: int,
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
        self.predict = layers.Linear(dim, patch_size**2 * bands, **kw)

    def __call__(
        self,
        visible: jax.Array,
        mask: masking.Mask,
        summary: jax.Array | None = None,
        *,
        whole: bool = False,
    ) -> jax.Array:
        """Predicts patches [B, M, E] from visible tokens [B, K, D].

        They are the hidden ones, M = N - K, or with `whole` all, in `mask.order`. The
        encoder's global token, `summary` [B, D], is one more to attend to, without a
        position.
        """
        b, hidden = mask.hidden.shape
        blanks = jnp.broadcast_to(self.mask_token[...], (b, hidden, self.dim))
        x = self.bridge(visible).astype(jnp.float32)
        code = jnp.asarray(patches.sincos_2d(self.side, self.dim))
        x = jnp.concatenate([x, blanks], axis=1)
        x = x + code.at[mask.order].get(mode="promise_in_bounds")
        wanted = x.shape[1] if whole else hidden
        if summary is not None:
            first = self.bridge(summary[:, None]).astype(jnp.float32)
            x = jnp.concatenate([first, x], axis=1)
        x = x.astype(self.arithmetic.dtype)
        for i, block in enumerate(self.blocks):
            last = i + 1 == len(self.blocks)
            x = block(x, first=x.shape[1] - wanted if last else 0)
        x = x[:, -wanted:]  # where there is no block at all
        return self.predict(self.norm(x)).astype(jnp.float32)
