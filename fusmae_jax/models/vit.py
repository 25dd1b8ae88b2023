"""A plain vision transformer on the patches of one sensor, or of several stacked."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fusmae_jax import patches
from fusmae_jax.inputs import Present
from fusmae_jax.models import attention, layers
from fusmae_jax.models.products import Arithmetic


class Encoded(NamedTuple):
    """What the transformer says of a batch.

    Attributes:
        tokens: of the patches in the order of the image, [B, N, D].
        summary: the global token, [B, D].
        blocks: the same of each block, by name, the last of which this is.
    """

    tokens: jax.Array
    summary: jax.Array
    blocks: Mapping[str, "Encoded"] = {}


class ViT(nnx.Module):
    """Dosovitskiy et al. 2020, with fixed positions and a global token at the end.

    Several sensors are stacked: a patch is one token, made of the bands of all. (Their
    projection is written as a sum of one for each sensor, which is the same map.) What
    is absent or was not measured is 0 in its place, the mean of the band; a patch of
    which nothing was measured is attended to by none.

    Images may be of any whole number of patches. Positions are those of an image of
    `image_size`, of which smaller ones show the same ground with fewer pixels, as if
    codes were interpolated.

    Args:
        bands: number of bands of each sensor that is read, by name.
        image_size: side in pixels of the images that are mostly seen.
        patch_size: side of a patch in pixels.
        dim: width D.
        depth: number of blocks.
        num_heads: attention heads.
        arithmetic: how products are computed.
        remat: what of a block is computed again for the gradient, see `layers.REMAT`.
        rngs: key of the initial parameters.

    Raises:
        InputError: sizes that do not divide, with the numbers.
    """

    def __init__(
        self,
        *,
        bands: Mapping[str, int],
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        arithmetic: Arithmetic,
        rngs: nnx.Rngs,
        remat: str = "none",
    ):
        layers.check_encoder(bands, bands, depth, arithmetic, remat)
        self.span = patches.grid_side(image_size, patch_size)
        self.patch_size, self.dim, self.remat = patch_size, dim, remat
        self.head_width = layers.head_width(dim, num_heads)
        self.arithmetic = arithmetic
        patches.check_width(dim)
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.embed = nnx.Dict(
            {s: layers.Linear(patch_size**2 * n, dim, **kw) for s, n in bands.items()}
        )
        self.global_token = layers.token(nnx.initializers.normal(0.02), dim, rngs)
        self.blocks = nnx.List(
            [layers.Block(dim, num_heads, **kw) for _ in range(depth)]
        )
        self.norm = layers.layer_norm(dim, rngs)

    def __call__(
        self,
        images: dict[str, jax.Array],
        present: Present | None = None,
        *,
        branches: jax.Array | None = None,
    ) -> Encoded:
        """Encodes images.

        Args:
            images: {sensor: [B, H, W, C]}; sensors that are not read may be there.
            present: which samples have a sensor, [B], or which of their patches show
                anything of it, [B, N]; pixels may then be NaN. None for all.
            branches: for training, see `layers.drop_path`.
        """
        here = {s: None if present is None else present[s] for s in self.embed}
        x = sum(self._embed(s, images[s], here[s]) for s in self.embed)
        rows, n, _ = x.shape  # rows may be a symbol, see `export`
        code = patches.sincos_2d(round(n**0.5), self.dim, self.span)
        x = x + jnp.asarray(code)[None]
        summary = jnp.broadcast_to(self.global_token[...], (rows, 1, self.dim))
        x = jnp.concatenate([x, summary], axis=1).astype(self.arithmetic.dtype)
        mask = None
        if any(y is not None and y.ndim == 2 for y in here.values()):
            shown = functools.reduce(jnp.logical_or, here.values())
            mask = jnp.pad(shown, ((0, 0), (0, 1)), constant_values=True)
        outputs = layers.run_blocks(
            self.blocks,
            x,
            mask,
            branches=branches,
            fill=attention.filling(self.arithmetic, n + 1, self.head_width),
            remat=self.remat,
        )
        said = {name: self._read(x, n) for name, x in outputs.items()}
        *_, last = said.values()
        return last._replace(blocks=said)

    def _embed(self, s: str, images: jax.Array, here: jax.Array | None) -> jax.Array:
        """What the patches of a sensor add to the tokens, float32."""
        pixels = patches.patchify(images, self.patch_size)
        # Pixels too, or one that is not finite would spoil the gradient.
        pixels = layers.where_present(here, pixels, 0.0)
        if here is not None and here.ndim == 2:
            pixels = jnp.where(jnp.isnan(pixels), 0.0, pixels)
        return self.embed[s](pixels).astype(jnp.float32)

    def _read(self, x: jax.Array, n: int) -> Encoded:
        x = self.norm(x)
        return Encoded(x[:, :n], x[:, n])
