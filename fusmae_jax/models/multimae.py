"""MultiMAE: a joint encoder, and decoders that read all visible tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fusmae_jax import dtypes, patches
from fusmae_jax.inputs import SENSORS, Present
from fusmae_jax.models import fusmae, layers
from fusmae_jax.models.products import Arithmetic


class Seen(NamedTuple):
    """What a decoder reads of the encoder.

    Attributes:
        tokens: of the visible patches of all sensors, [B, K, D].
        summary: the global token, [B, D].
        mask: which of the 2 N patches of both sensors, one behind the other, these are.
    """

    tokens: jax.Array
    summary: jax.Array
    mask: patches.Mask


class Decoder(nnx.Module):
    """Redraws all patches of one sensor from the visible tokens of all.

    Queries are the places of the sensor, each its visible token or a learned one; they
    attend to all visible tokens and the global token, once, and what they find takes
    their place. Blocks of self-attention follow.
    """

    def __init__(
        self,
        *,
        sensor: str,
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
        self.predict = layers.Linear(dim, patch_size**2 * bands, **kw)

    def __call__(self, seen: Seen) -> jax.Array:
        """Predicts all patches of the sensor, [B, N, E], in the order of the image."""
        n, k = self.side**2, seen.tokens.shape[1]
        code = jnp.asarray(patches.sincos_2d(self.side, self.dim))
        marks = [code + self.sensors[s][...][None] for s in SENSORS]
        tokens = jnp.concatenate([seen.tokens, seen.summary[:, None]], axis=1)
        tokens = self.bridge(tokens).astype(jnp.float32)
        tokens, summary = tokens[:, :k], tokens[:, k:]
        blanks = jnp.broadcast_to(
            self.mask_token[...], (*seen.mask.hidden.shape, self.dim)
        )
        slots = patches.put_back(jnp.concatenate([tokens, blanks], axis=1), seen.mask)
        slots = slots + jnp.concatenate(marks)[None]
        context = patches.take(slots, seen.mask.visible)
        context = jnp.concatenate([context, summary], axis=1)
        first = n * SENSORS.index(self.sensor)
        queries = slots[:, first : first + n]
        low = self.arithmetic.dtype
        queries, context = queries.astype(low), context.astype(low)
        x = self.attn(self.query_norm(queries), self.context_norm(context))
        x = x + self.mlp(self.norm(x))
        for block in self.blocks:
            x = block(x)
        return self.predict(x).astype(jnp.float32)


class MultiMAE(nnx.Module):
    """Encodes visible patches of both sensors together and redraws each sensor.

    Bachmann et al. 2022, with an encoder that has a final norm, as Fus-MAE's without
    early fusion is. docs/methods.md says what is known and what is chosen.

    Args:
        bands: number of bands by sensor, {"s1": 2, "s2": 12}.
        image_size: side of the square images in pixels.
        patch_size: side of a patch in pixels.
        dim: encoder width D.
        depth: encoder blocks.
        num_heads: attention heads of the encoder.
        decoder_dim: width of the decoders.
        decoder_depth: blocks of each decoder, behind its cross-attention.
        decoder_heads: attention heads of the decoders.
        dtype, attention, remat, platform, devices: see `fusmae.FusMAE`.
        rngs: key of the initial parameters.

    Raises:
        InputError: sizes that do not divide, with the numbers; or dtype is "auto".
    """

    def __init__(
        self,
        *,
        bands: dict[str, int],
        image_size: int = 112,
        patch_size: int = 8,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        decoder_dim: int = 256,
        decoder_depth: int = 2,
        decoder_heads: int = 8,
        dtype: str = "float32",
        attention: str = "auto",
        remat: str = "none",
        platform: str = "",
        devices: int = 1,
        rngs: nnx.Rngs,
    ):
        dtype = jnp.dtype(dtypes.settled(dtype)).name
        arithmetic = Arithmetic(dtype, platform, devices, attention)
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.patch_size = patch_size
        self.encoder = fusmae.Encoder(
            bands=bands,
            image_size=image_size,
            patch_size=patch_size,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            fuse_early=False,
            remat=remat,
            **kw,
        )
        self.decoders = nnx.Dict(
            {
                s: Decoder(
                    sensor=s,
                    bands=bands[s],
                    patch_size=patch_size,
                    side=self.encoder.side,
                    encoder_dim=dim,
                    dim=decoder_dim,
                    depth=decoder_depth,
                    num_heads=decoder_heads,
                    **kw,
                )
                for s in SENSORS
            }
        )

    @property
    def num_patches(self) -> int:
        """Patches of one sensor's image."""
        return self.encoder.side**2

    def __call__(
        self,
        images: dict[str, jax.Array],
        mask: patches.Mask,
        present: Present | None = None,
    ) -> layers.Redrawn:
        """Hides what a mask says of images {sensor: [B, H, W, C]}; redraws everything.

        Args:
            images: the images.
            mask: which of the 2 N patches are hidden, those of s2 behind those of s1.
            present: which samples have a sensor, [B], or which patches [B, N].

        Returns:
            All patches, M = N, in the order of the image.
        """
        pixels = {s: patches.patchify(images[s], self.patch_size) for s in SENSORS}
        n = self.num_patches
        shape = pixels["s1"].shape[:2]
        ids = jnp.broadcast_to(jnp.arange(n)[None], shape)
        here = present or dict.fromkeys(SENSORS)
        # All are embedded, as which sensor is shown where differs between samples.
        tokens = [
            self.encoder.embed_patches(s, pixels[s], ids, here[s]) for s in SENSORS
        ]
        tokens = patches.take(jnp.concatenate(tokens, axis=1), mask.visible)
        known = None
        if present is not None:
            known = [
                jnp.broadcast_to(present[s].reshape(shape[0], -1), shape)
                for s in SENSORS
            ]
            known = patches.take(jnp.concatenate(known, axis=1), mask.visible)
        *_, last = self.encoder.through_blocks(tokens, known).values()
        k = mask.visible.shape[1]
        last = self.encoder.norm(last)
        seen = Seen(last[:, :k], last[:, k], mask)
        predicted = {s: self.decoders[s](seen) for s in SENSORS}
        return layers.Redrawn(predicted, pixels)
