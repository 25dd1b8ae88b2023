"""DeCUR's network: a transformer for each sensor, and a projector."""

import jax
import jax.numpy as jnp
from flax import nnx

from fusmae_jax.inputs import Present
from fusmae_jax.models import layers, vit
from fusmae_jax.models.products import Arithmetic

DEPTH = 3  # linear layers of the projector


class Projector(nnx.Module):
    """Linear layers without biases; between them batch normalisation and ReLU.

    The statistics are those of the batch it is given, over all devices, and none are
    kept: nothing is projected but in training.
    """

    def __init__(self, dim: int, width: int, *, arithmetic: Arithmetic, rngs):
        self.layers = nnx.List(
            [
                layers.Linear(
                    width if i else dim,
                    width,
                    arithmetic=arithmetic,
                    rngs=rngs,
                    bias=False,
                )
                for i in range(DEPTH)
            ]
        )
        self.norms = nnx.List([BatchNorm(width) for _ in range(DEPTH - 1)])

    def __call__(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        """Maps x [B, D] to [B, K], float32; samples count as `weight` [B] says."""
        first, *rest = self.layers
        x = first(x)
        for norm, layer in zip(self.norms, rest):
            x = layer(jax.nn.relu(norm(x.astype(jnp.float32), weight)))
        return x.astype(jnp.float32)


class BatchNorm(nnx.Module):
    """Scales and shifts what `standardize` makes of a batch."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        return standardize(x, weight) * self.scale[...][None] + self.bias[...][None]


def standardize(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x` [B, K] less its mean over a batch, over its deviation; by `weight` [B]."""
    share = (weight / jnp.maximum(weight.sum(), 1.0))[:, None]
    x = x - (share * x).sum(axis=0, keepdims=True)
    variance = (share * jnp.square(x)).sum(axis=0, keepdims=True)
    return x * jax.lax.rsqrt(variance + 1e-5)


class DeCUR(nnx.Module):
    """What is trained.

    Args:
        bands: number of bands by sensor, {"s1": 2, "s2": 12}.
        image_size, patch_size, dim, depth, num_heads, remat: of each sensor's
            transformer, see `vit.ViT`.
        projector_dim: width K of the projector.
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
        projector_dim: int = 8192,
        dtype: str = "float32",
        attention: str = "auto",
        remat: str = "none",
        platform: str = "",
        devices: int = 1,
        rngs: nnx.Rngs,
    ):
        arithmetic = Arithmetic(dtype, platform, devices, attention)
        self.encoder = nnx.Dict(
            {
                s: vit.ViT(
                    bands={s: count},
                    image_size=image_size,
                    patch_size=patch_size,
                    dim=dim,
                    depth=depth,
                    num_heads=num_heads,
                    arithmetic=arithmetic,
                    remat=remat,
                    rngs=rngs,
                )
                for s, count in bands.items()
            }
        )
        self.projector = Projector(dim, projector_dim, arithmetic=arithmetic, rngs=rngs)

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return next(iter(self.encoder.values())).span ** 2

    def __call__(
        self,
        s: str,
        images: jax.Array,
        present: jax.Array | None,
        weight: jax.Array,
    ) -> list[jax.Array]:
        """Encodes and projects crops of one sensor.

        Args:
            s: the sensor.
            images: C crops of each sample, [B, C, H, W, bands].
            present: which of their patches show anything, [B, C, N]; None for all.
            weight: how much each crop counts, [B, C].

        Returns:
            For each of the C crops [B, K].
        """
        b, c = images.shape[:2]
        # Crops beside their sample, so that devices keep their samples.
        flat = lambda x: x.reshape(b * c, *x.shape[2:])
        here: Present | None = None if present is None else {s: flat(present)}
        found = self.encoder[s]({s: flat(images)}, here)
        x = found.summary.reshape(b, c, -1)
        return [self.projector(x[:, i], weight[:, i]) for i in range(c)]
