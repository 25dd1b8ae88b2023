"""What methods share that compare crops of a scene: crops, and contrast."""

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from data_pipeline.config_fields import check_rules, number
from fusmae_jax import flops, inputs, patches, streams
from fusmae_jax.inputs import SENSORS, Inputs
from fusmae_jax.models import attention
from fusmae_jax.objectives import networks, protocol

JITTER = {
    "crops.jitter": number(
        least=0.0,
        below=1.0,
        meaning="Most that brightness and contrast of a crop change, as a share.",
    )
}

# What must hold between fields, and what is said where it does not.
RULES = (
    *networks.RULES,
    (
        lambda c: (
            c.model.attention != "cudnn"
            or attention.takes(c.model.dim // c.model.num_heads)
        ),
        "model.attention=cudnn takes heads of 8, 16, ... 128 channels, which "
        "model.dim={c.model.dim} over model.num_heads={c.model.num_heads} are not; set "
        "model.attention=auto.",
    ),
)

# DINO-MM's and DeCUR's chance that a crop is made brighter or darker. Theirs are
# pictures that span so many standard deviations on both sides of the mean.
JITTERED, SPAN = 0.8, 2.0


def check(config) -> None:
    """Refuses what none of them can work with, where each field alone fits.

    Raises:
        InputError: names the fields and their values.
    """
    networks.check(config)
    check_rules(config, RULES)


class Crops(NamedTuple):
    """C crops of each scene; row i belongs to sample i.

    Attributes:
        view: what they show, of shape [B, C, ...].
        light: by how much their brightness and contrast are multiplied, [B, C, 2].
        present: which of them show a sensor at all, {sensor: [B, C] bool}; None where
            all show both.
    """

    view: inputs.View
    light: jax.Array
    present: inputs.Present | None = None


def draw_crops(
    key: jax.Array,
    batch: int,
    count: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    turn: bool,
    jitter: float,
    drop_sensor: float = 0.0,
) -> Crops:
    """Draws crops, each apart.

    Args:
        key: random key.
        batch: number of scenes B.
        count: crops C of each.
        scale, ratio, turn: see `inputs.draw_views`.
        jitter: most that brightness and contrast change, as a share.
        drop_sensor: chance that a crop lacks one of the sensors.
    """
    view_key, light_key, chance_key, present_key = jax.random.split(key, 4)
    total = batch * count
    view = inputs.draw_views(view_key, total, scale=scale, ratio=ratio, turn=turn)
    light = jax.random.uniform(
        light_key, (total, 2), minval=1.0 - jitter, maxval=1.0 + jitter
    )
    jittered = jax.random.bernoulli(chance_key, JITTERED, (total, 1))
    present = inputs.draw_present(present_key, total, drop_sensor)
    drawn = Crops(
        view, jnp.where(jittered, light, 1.0), present if drop_sensor else None
    )
    return jax.tree.map(lambda x: x.reshape(batch, count, *x.shape[1:]), drawn)


def crop_images(
    seen: Inputs, fields: dict[str, jax.Array], crops: Crops, size: int = 0
) -> dict[str, jax.Array]:
    """Images of crops, {sensor: [B, C, H, W, bands]}, see `Inputs.images`."""
    one = lambda view, light: {
        s: shine(image, light, seen.missing)
        for s, image in seen.images(fields, view, size).items()
    }
    return jax.vmap(one, in_axes=1, out_axes=1)(crops.view, crops.light)


def shine(images: jax.Array, light: jax.Array, missing: bool = False) -> jax.Array:
    """Changes brightness and then contrast of normalised images [B, H, W, C].

    Brightness is that of pictures which are black two deviations below the mean;
    contrast is around the mean of each band in the image.

    Args:
        images: the images.
        light: factors of brightness and contrast, [B, 2].
        missing: whether pixels may be NaN, which stay so and do not count.
    """
    brightness, contrast = (light[:, i, None, None, None] for i in range(2))
    images = (images + SPAN) * brightness - SPAN
    average = jnp.nanmean if missing else jnp.mean
    middle = average(images, axis=(1, 2), keepdims=True)
    if missing:  # of an image without any pixel
        middle = jnp.where(jnp.isnan(middle), 0.0, middle)
    return (images - middle) * contrast + middle


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison(networks.Objective):
    """Crops of the same scene are to be told from those of others, or made alike."""

    def draw_fixed(self, key: jax.Array, pairs: jax.Array):
        """What `draw` draws of each pair alone: crops, which are to be compared."""
        return streams.each(self.draw, key, pairs)

    def present(self, images: dict[str, jax.Array], here: inputs.Present | None):
        """What there is to read of crops [B, C, ...], see `Encoder.present`."""
        if not self.inputs.missing:
            return here
        shown = lambda images: patches.present(images, self.patch_size, None)
        shown = jax.vmap(shown, in_axes=1, out_axes=1)(images)
        if here is None:
            return shown
        return {s: x & here[s][..., None] for s, x in shown.items()}

    def pixels_of(self, path: str) -> tuple[str, int] | None:
        """Those of the patch embeddings; see `protocol`."""
        embeds = re.search(r"(?:^|/)embed/(s[12])/kernel$", path)
        return (embeds[1], 0) if embeds else None


def info_nce(
    vectors: dict[str, jax.Array], scale: jax.Array, weight: jax.Array
) -> jax.Array:
    """How badly each sensor's vector tells its own sample's other from all others.

    Args:
        vectors: of length 1, {sensor: [B, D]}.
        scale: what products are multiplied by, [1].
        weight: how much each sample counts, [B]; one of 0.0 is no other's other.
    """
    logits = scale[:, None] * jnp.einsum("id,jd->ij", *vectors.values())
    own = jnp.diagonal(logits)
    never = jnp.where(weight > 0.0, 0.0, jnp.finfo(jnp.float32).min)
    across = jax.nn.logsumexp(logits + never[None], axis=1)
    down = jax.nn.logsumexp(logits + never[:, None], axis=0)
    lacks = (across + down) / 2 - own
    return jnp.where(weight > 0.0, lacks * weight, 0.0).sum() / jnp.maximum(
        weight.sum(), 1.0
    )


def vit_flops(
    bands: Mapping[str, int], patch_size: int, dim: int, depth: int, count: int
) -> tuple[int, int]:
    """FLOPs of `vit.ViT` on an image of `count` patches.

    Returns:
        Of the forward pass, and of the patch embedding in it, whose pixels need no
        gradient.
    """
    embedding = flops.linear(count, patch_size**2 * sum(bands.values()), dim)
    return embedding + depth * flops.block(count + 1, count + 1, dim), embedding


def join(encoded: protocol.Encoded, sensors=SENSORS) -> protocol.Encoded:
    """What a transformer on stacked sensors says, of each: tokens are of all."""
    each = lambda x: dict.fromkeys(sensors, x.tokens)
    blocks = {
        name: protocol.Encoded(each(x), x.summary) for name, x in encoded.blocks.items()
    }
    return protocol.Encoded(each(encoded), encoded.summary, blocks)
