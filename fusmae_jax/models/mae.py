"""A masked autoencoder of one stream of tokens: the sensors stacked, or one alone."""

import jax
import jax.numpy as jnp
from flax import nnx

from fusmae_jax import patches
from fusmae_jax.inputs import SENSORS, Present
from fusmae_jax.models import attention, decoders, layers
from fusmae_jax.models.products import Arithmetic

READS = {"both": SENSORS, "s1": ("s1",), "s2": ("s2",)}


class Encoder(nnx.Module):
    """Makes one token of all that its sensors show of a patch, and encodes them.

    The embedding is linear in the stacked channels; its rows lie by sensor. What was
    not measured, an absent sensor too, counts as the mean of each band, 0. No token
    attends to a patch of which nothing was measured at all.
    """

    def __init__(
        self,
        *,
        bands: dict[str, int],
        sensors: str,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        arithmetic: Arithmetic,
        rngs: nnx.Rngs,
        remat: str = "none",
    ):
        self.sensors = READS[sensors]
        bands = {s: bands[s] for s in self.sensors}
        layers.check_encoder(bands, self.sensors, depth, arithmetic, remat)
        self.side = patches.grid_side(image_size, patch_size)
        self.patch_size = patch_size
        self.dim, self.remat, self.arithmetic = dim, remat, arithmetic
        self.head_width = layers.head_width(dim, num_heads)
        patches.check_width(dim)
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.embed = nnx.Dict(
            {s: layers.Linear(patch_size**2 * n, dim, **kw) for s, n in bands.items()}
        )
        self.blocks = nnx.List(
            [layers.Block(dim, num_heads, **kw) for _ in range(depth)]
        )
        self.norm = layers.layer_norm(dim, rngs)

    def __call__(
        self,
        pixels: dict[str, jax.Array],
        ids: jax.Array,
        present: Present | None = None,
        *,
        branches: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Encodes patches.

        Args:
            pixels: the patches, {sensor: [B, K, E]}.
            ids: their places in the grid, [B, K].
            present: which samples have a sensor, [B], or which of these patches
                [B, K].
            branches: for training, see `layers.drop_path`.

        Returns:
            What each block says of them, normalised, by name, [B, K, D].
        """
        parts = []
        for s in self.sensors:
            x = layers.where_present(present and present[s], pixels[s], 0.0)
            if present and present[s].ndim == 2:
                x = jnp.where(jnp.isnan(x), 0.0, x)
            parts.append(self.embed[s](x).astype(jnp.float32))
        x = sum(parts) + patches.positions(self.side, self.dim, ids)
        blocks = layers.run_blocks(
            self.blocks,
            x.astype(self.arithmetic.dtype),
            self.shown(present),
            branches=branches,
            fill=attention.filling(self.arithmetic, ids.shape[1], self.head_width),
            remat=self.remat,
        )
        return {name: self.norm(x) for name, x in blocks.items()}

    def shown(self, present: Present | None) -> jax.Array | None:
        """Which tokens say anything, of patches that are present, [B, K].

        None for all: where whole sensors are absent every sample has another.
        """
        if present is None or present[self.sensors[0]].ndim == 1:
            return None
        return jnp.stack([present[s] for s in self.sensors]).any(axis=0)

    def encode(
        self,
        images: dict[str, jax.Array],
        present: Present | None = None,
        *,
        branches: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Encodes whole images {sensor: [B, H, W, C]}, see `__call__`."""
        pixels = {s: patches.patchify(images[s], self.patch_size) for s in self.sensors}
        shape = pixels[self.sensors[0]].shape[:2]
        ids = jnp.broadcast_to(jnp.arange(self.side**2)[None], shape)
        return self(pixels, ids, present, branches=branches)


class MAE(nnx.Module):
    """Encodes the visible patches and redraws the hidden (He et al. 2022).

    With both sensors it is what SatViT is (Fuller et al. 2022): their channels stacked,
    one token a place. docs/methods.md says what is known and what is chosen.

    Args:
        bands: number of bands by sensor, {"s1": 2, "s2": 12}.
        sensors: which are read, a name in `READS`.
        image_size: side of the square images in pixels.
        patch_size: side of a patch in pixels.
        dim: encoder width D.
        depth: encoder blocks.
        num_heads: attention heads of the encoder.
        decoder_dim: width of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        dtype, attention, remat, platform, devices: see `fusmae.FusMAE`.
        rngs: key of the initial parameters.

    Raises:
        InputError: sizes that do not divide, with the numbers; or dtype is "auto".
    """

    def __init__(
        self,
        *,
        bands: dict[str, int],
        sensors: str = "both",
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
        self.encoder = Encoder(
            bands=bands,
            sensors=sensors,
            image_size=image_size,
            patch_size=patch_size,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            remat=remat,
            **kw,
        )
        self.decoder = decoders.Decoder(
            side=self.encoder.side,
            encoder_dim=dim,
            dim=decoder_dim,
            depth=decoder_depth,
            num_heads=decoder_heads,
            **kw,
        )
        self.predict = nnx.Dict(
            {
                s: layers.Linear(decoder_dim, patch_size**2 * bands[s], **kw)
                for s in self.encoder.sensors
            }
        )

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return self.encoder.side**2

    def __call__(
        self,
        images: dict[str, jax.Array],
        masks: dict[str, patches.Mask],
        present: Present | None = None,
        *,
        whole: bool = False,
    ) -> decoders.Redrawn:
        """Hides what `masks`, which are all the same, say of images; redraws it.

        Args:
            images: {sensor: [B, H, W, C]}.
            masks: which patches are hidden, by sensor.
            present: which samples have a sensor, [B], or which patches [B, N].
            whole: whether to redraw the visible patches too, M = N of them in the
                order of the masks; else the hidden ones, M = N - K.
        """
        read = self.encoder.sensors
        mask = masks[read[0]]
        k = mask.visible.shape[1]
        pixels = {
            s: patches.take(patches.patchify(images[s], self.patch_size), mask.order)
            for s in read
        }
        present = present and {
            s: patches.take_present(x, mask.visible) for s, x in present.items()
        }
        visible = {s: x[:, :k] for s, x in pixels.items()}
        *_, tokens = self.encoder(visible, mask.visible, present).values()
        x = self.decoder(tokens, mask, whole=whole)
        predicted = {s: self.predict[s](x).astype(jnp.float32) for s in read}
        if not whole:
            pixels = {s: x[:, k:] for s, x in pixels.items()}
        return decoders.Redrawn(predicted, pixels)
