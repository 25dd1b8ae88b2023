"""Fus-MAE: a masked autoencoder of paired radar and optical images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.errors import InputError
from fusmae_jax import dtypes, masking, patches
from fusmae_jax.decoder import Decoder, XAttnDecoder
from fusmae_jax.encoder import Encoded, Encoder, Present
from fusmae_jax.masking import SENSORS
from fusmae_jax.products import Arithmetic


GLOBAL_TOKENS = ("encoder", "decoders")


class Reconstruction(NamedTuple):
    """The autoencoder's answer, {sensor: [B, M, E]} each.

    Attributes:
        predicted: predicted patches, in the space of the loss's targets.
        patches: the same patches of the images that were given.
    """

    predicted: dict[str, jax.Array]
    patches: dict[str, jax.Array]


class FusMAE(nnx.Module):
    """Encodes the visible patches of both sensors together and redraws the hidden.

    The paper's authors published no code. What is known of the architecture, what
    is chosen here and why is listed in docs/model.md.

    Args:
        bands: number of bands by sensor, {"s1": 2, "s2": 12}.
        image_size: side of the square images in pixels.
        patch_size: side of a patch in pixels.
        dim: encoder width D.
        depth: encoder blocks, the XAttnEncoder counted in.
        num_heads: attention heads of the encoder.
        fuse_early: whether the first block is an XAttnEncoder.
        fuse_features: whether an XAttnDecoder stands before the decoders.
        decoder_dim: width of the per-sensor decoders.
        decoder_depth: blocks of each decoder.
        decoder_heads: attention heads of the decoders.
        global_token: who sees the global token, one of `GLOBAL_TOKENS`: the "encoder"
            alone, and then pretraining never asks its output for anything; or the
            "decoders" too, as in MAE and MultiMAE.
        dtype: of matrix products; parameters stay float32.
        attention: who computes it, see `attention.choose`.
        remat: what of an encoder block is computed again for the gradient: "none",
            "dots" (all but the products of its linear layers) or "full"; less memory,
            more time.
        platform, devices: what programs are compiled for, see `products.Arithmetic`.
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
        fuse_early: bool = True,
        fuse_features: bool = True,
        decoder_dim: int = 256,
        decoder_depth: int = 2,
        decoder_heads: int = 8,
        global_token: str = "encoder",
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
        if global_token not in GLOBAL_TOKENS:
            raise InputError(
                f"global_token is {global_token!r}; choose one of "
                f"{list(GLOBAL_TOKENS)}."
            )
        self.patch_size, self.global_token = patch_size, global_token
        self.encoder = Encoder(
            bands=bands,
            image_size=image_size,
            patch_size=patch_size,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            fuse_early=fuse_early,
            remat=remat,
            **kw,
        )
        self.fuse = XAttnDecoder(dim, num_heads, **kw) if fuse_features else None
        self.decoders = nnx.Dict(
            {
                s: Decoder(
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

    def patchify(self, images: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Splits images {sensor: [B, H, W, C]} into patches {sensor: [B, N, E]}."""
        return {s: patches.patchify(images[s], self.patch_size) for s in SENSORS}

    def encode(
        self,
        images: dict[str, jax.Array],
        present: Present | None = None,
        *,
        last: int = 1,
        branches: jax.Array | None = None,
    ) -> Encoded:
        """Encodes whole images {sensor: [B, H, W, C]}, nothing hidden.

        A sample may lack a sensor: `present` says which it has, and whatever stands in
        the images of the other is not read. For `last` and `branches` see `Encoder`.
        """
        pixels = self.patchify(images)
        everything = jnp.arange(self.num_patches)[None]
        ids = {
            s: jnp.broadcast_to(everything, pixels[s].shape[:2]) for s in SENSORS
        }
        return self.encoder(pixels, ids, present, last=last, branches=branches)

    def __call__(
        self,
        images: dict[str, jax.Array],
        masks: dict[str, masking.Mask],
        present: Present | None = None,
        *,
        whole: bool = False,
    ) -> Reconstruction:
        """Hides what `masks` say of images {sensor: [B, H, W, C]}, and redraws it.

        Where a sensor is absent it is hidden whole, and redrawn from the other alone.

        Args:
            images: the images.
            masks: which of their patches are hidden, by sensor.
            present: which samples have a sensor.
            whole: whether to redraw the visible patches too, M = N of them in the
                order of the masks; else the hidden ones, M = N - K.
        """
        pixels = self.patchify(images)
        ids = {s: masks[s].visible for s in SENSORS}
        # One gather a sensor: the visible patches come first, the targets behind them.
        pixels = {s: masking.take(pixels[s], masks[s].order) for s in SENSORS}
        k = {s: ids[s].shape[1] for s in SENSORS}
        # Hidden patches are dropped before they are embedded, let alone attended to.
        visible = {s: pixels[s][:, : k[s]] for s in SENSORS}
        tokens, summary = self.encoder(visible, ids, present)
        summary = summary if self.global_token == "decoders" else None
        if self.fuse is not None:
            tokens = self.fuse(tokens, present)
        predicted = {
            s: self.decoders[s](tokens[s], masks[s], summary, whole=whole)
            for s in SENSORS
        }
        if not whole:
            pixels = {s: pixels[s][:, k[s] :] for s in SENSORS}
        return Reconstruction(predicted, pixels)
