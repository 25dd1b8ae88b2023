"""MultiMAE: a joint encoder, and decoders that read all visible tokens."""

import jax
import jax.numpy as jnp
from flax import nnx

from fusmae_jax import patches
from fusmae_jax.inputs import SENSORS, Present
from fusmae_jax.models import decoders, fusmae
from fusmae_jax.models.products import Arithmetic


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
                s: decoders.QueryDecoder(
                    sensor=s,
                    values=patch_size**2 * bands[s],
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
    ) -> decoders.Redrawn:
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
            known = [patches.spread(present[s], n) for s in SENSORS]
            known = patches.take(jnp.concatenate(known, axis=1), mask.visible)
        *_, last = self.encoder.through_blocks(tokens, known).values()
        k = mask.visible.shape[1]
        last = self.encoder.norm(last)
        seen = decoders.Seen(last[:, :k], last[:, k], mask)
        predicted = {s: self.decoders[s](seen) for s in SENSORS}
        return decoders.Redrawn(predicted, pixels)
