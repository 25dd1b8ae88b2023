"""DINO-MM's network: a transformer on stacked sensors, and a head of prototypes."""

import jax
import jax.numpy as jnp
from flax import nnx

from fusmae_jax.inputs import Present
from fusmae_jax.models import layers, products, vit
from fusmae_jax.models.products import Arithmetic


class Head(nnx.Module):
    """How near a vector lies to each of many prototypes, of which all have length 1.

    Three layers with GELU between, to a narrow vector that is scaled to length 1; then
    a linear layer without bias whose columns are, too (Caron et al. 2021).
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int,
        narrow: int,
        prototypes: int,
        arithmetic: Arithmetic,
        rngs: nnx.Rngs,
    ):
        widths = [dim, hidden, hidden, narrow]
        self.layers = nnx.List(
            [
                layers.Linear(a, b, arithmetic=arithmetic, rngs=rngs)
                for a, b in zip(widths, widths[1:])
            ]
        )
        self.last = Prototypes(narrow, prototypes, arithmetic=arithmetic, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, C, D] to cosines [B, C, K], float32."""
        first, *rest = self.layers
        x = first(x)
        for layer in rest:
            x = layer(products.gelu(x, layer.arithmetic))
        return self.last(unit(x.astype(jnp.float32), axis=-1))


class Prototypes(nnx.Module):
    """A linear layer without bias, of whose columns only the direction counts."""

    def __init__(self, dim: int, count: int, *, arithmetic: Arithmetic, rngs):
        self.arithmetic = arithmetic
        normal = nnx.initializers.normal(1.0)
        self.kernel = nnx.Param(normal(rngs.params(), (dim, count)))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = unit(self.kernel[...], axis=0)
        none = jnp.zeros(kernel.shape[1])
        return products.linear(x, kernel, none, self.arithmetic).astype(jnp.float32)


def unit(x: jax.Array, axis: int) -> jax.Array:
    """`x` with vectors along an axis scaled to length 1; none stays none."""
    square = jnp.square(x).sum(axis=axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class DINOMM(nnx.Module):
    """What student and teacher are.

    Args:
        bands: number of bands by sensor, {"s1": 2, "s2": 12}.
        image_size, patch_size, dim, depth, num_heads, remat: see `vit.ViT`.
        head_dim: width of the head's hidden layers.
        head_narrow: length of the vector that is compared with prototypes.
        prototypes: how many there are, K.
        dtype, attention, platform, devices: see `FusMAE`.
        rngs: key of the initial parameters.
    """

    def __init__(
        self,
        *,
        bands: dict[str, int],
        image_size: int = 112,
        patch_size: int = 8,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        head_dim: int = 2048,
        head_narrow: int = 256,
        prototypes: int = 65_536,
        dtype: str = "float32",
        attention: str = "auto",
        remat: str = "none",
        platform: str = "",
        devices: int = 1,
        rngs: nnx.Rngs,
    ):
        arithmetic = Arithmetic(dtype, platform, devices, attention)
        self.encoder = vit.ViT(
            bands=bands,
            image_size=image_size,
            patch_size=patch_size,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            arithmetic=arithmetic,
            remat=remat,
            rngs=rngs,
        )
        self.head = Head(
            dim,
            hidden=head_dim,
            narrow=head_narrow,
            prototypes=prototypes,
            arithmetic=arithmetic,
            rngs=rngs,
        )

    @property
    def num_patches(self) -> int:
        """Patches of an image that is not a small crop."""
        return self.encoder.span**2

    def __call__(
        self, images: dict[str, jax.Array], present: Present | None = None
    ) -> jax.Array:
        """Encodes crops and compares them with the prototypes.

        Args:
            images: C crops of each sample, {sensor: [B, C, H, W, bands]}.
            present: which crops show a sensor, [B, C], or which of their patches show
                anything of it, [B, C, N].

        Returns:
            Cosines, [B, C, K].
        """
        b, c = next(iter(images.values())).shape[:2]
        # Crops beside their sample, so that devices keep their samples.
        flat = lambda x: x.reshape(b * c, *x.shape[2:])
        found = self.encoder(jax.tree.map(flat, images), jax.tree.map(flat, present))
        return self.head(found.summary.reshape(b, c, -1))
