"""Feature-level fusion of the two sensors, and the light decoder of each."""

import jax
import jax.numpy as jnp
from flax import nnx

from fusmae_jax import layers, masking, patches
from fusmae_jax.encoder import OTHER, Present
from fusmae_jax.masking import SENSORS


class XAttnDecoder(nnx.Module):
    """Feature-level fusion: each sensor's tokens attend to the other's, then an MLP.

    Works on visible tokens at encoder width, between the encoder and the decoders.
    Both sensors read the tokens as they came in; no weights are shared. Rebuilt from
    descriptions of section 3.2, equations 10 and 11, of the paper. An absent sensor is
    stood for as in `XAttnEncoder`.
    """

    def __init__(self, dim: int, num_heads: int, *, dtype, rngs: nnx.Rngs):
        self.norm1 = layers.per_sensor(lambda: layers.layer_norm(dim, rngs))
        self.attn = layers.per_sensor(
            lambda: layers.Attention(dim, num_heads, dtype=dtype, rngs=rngs)
        )
        self.absent = layers.per_sensor(
            lambda: layers.token(nnx.initializers.zeros, dim, rngs)
        )
        self.norm2 = layers.per_sensor(lambda: layers.layer_norm(dim, rngs))
        self.mlp = layers.per_sensor(lambda: layers.Mlp(dim, dtype=dtype, rngs=rngs))

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
    """Redraws all patches of one sensor from its visible tokens, as MAE's decoder."""

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
        dtype,
        rngs: nnx.Rngs,
    ):
        self.side, self.dim = side, dim
        patches.sincos_2d(side, dim)  # refuses a width without positions, now
        kw = dict(dtype=dtype, rngs=rngs)
        init = dict(kernel_init=layers.xavier)
        self.bridge = nnx.Linear(encoder_dim, dim, **init, **kw)
        self.mask_token = layers.token(nnx.initializers.normal(0.02), dim, rngs)
        self.blocks = nnx.List(
            [layers.Block(dim, num_heads, **kw) for _ in range(depth)]
        )
        self.norm = layers.layer_norm(dim, rngs)
        self.predict = nnx.Linear(dim, patch_size**2 * bands, **init, **kw)

    def __call__(self, visible: jax.Array, mask: masking.Mask) -> jax.Array:
        """Predicts patches [B, N, E] from visible tokens [B, K, D]."""
        x = self.bridge(visible).astype(jnp.float32)
        x = masking.restore_tokens(x, self.mask_token[...], mask)
        x = x + patches.sincos_2d(self.side, self.dim)[None]
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x)).astype(jnp.float32)
