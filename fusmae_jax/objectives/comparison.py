"""What methods share that compare crops of a scene: fields, crops, encoders."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.config_fields import ask, check_rules, number, whole
from fusmae_jax import flops, inputs, patches, streams
from fusmae_jax.inputs import SENSORS, Inputs
from fusmae_jax.models import attention, layers
from fusmae_jax.models.products import Arithmetic
from fusmae_jax.objectives import protocol, reconstruction

# What a config may say of any of them.
FIELDS = {
    **{
        name: reconstruction.FIELDS[name]
        for name in (
            *("model.image_size", "model.patch_size", "model.dim", "model.num_heads"),
            *("model.dtype", "model.attention", "model.remat"),
        )
    },
    "model.depth": whole(1, meaning="Blocks of an encoder."),
}
JITTER = {
    "crops.jitter": number(
        least=0.0,
        below=1.0,
        meaning="Most that brightness and contrast of a crop change, as a share.",
    )
}

# What must hold between fields, and what is said where it does not.
RULES = (
    (
        # On a GPU "auto" is bfloat16, but for runs that say otherwise.
        lambda c: c.model.attention != "cudnn" or c.model.dtype != "float32",
        "model.attention=cudnn needs model.dtype=bfloat16, and that is "
        "{c.model.dtype}; set one of them.",
    ),
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
    ask(
        config,
        (patches.grid_side, "model.image_size", "model.patch_size"),
        (patches.check_width, "model.dim"),
        (layers.head_width, "model.dim", "model.num_heads"),
    )
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


def arguments(config, seen: Inputs, target: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Comparison` that a config describes.

    Args:
        config: see `configs/pretrain_dinomm.py`.
        seen: how the data are seen.
        target: what programs are compiled for, `platform` and `devices` of a network.
    """
    bands = {s: len(names) for s, names in config.bands.items()}
    return dict(
        inputs=seen,
        model=dict(bands=bands, **{**config.model, **target}),
        crop_scale=tuple(config.view.crop_scale),
        crop_ratio=tuple(config.view.crop_ratio),
        turn=config.view.turn,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison(protocol.Objective):
    """Crops of the same scene are to be told from those of others, or made alike.

    Attributes:
        inputs: how the data are seen.
        model: arguments of the network, of which those left out are filled in.
        crop_scale, crop_ratio, turn: see `inputs.draw_views`.
        network: the class of the network.
    """

    inputs: Inputs
    model: Mapping[str, Any]
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    turn: bool = True

    network = None

    def __post_init__(self):
        known = inspect.signature(self.network.__init__).parameters.values()
        defaults = {x.name: x.default for x in known if x.default is not x.empty}
        model = {**defaults, **self.model, "image_size": self.inputs.size}
        object.__setattr__(self, "model", model)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.model["patch_size"]

    @property
    def num_patches(self) -> int:
        """Patches N of one sensor's image."""
        return patches.grid_side(self.inputs.size, self.patch_size) ** 2

    def init(self, rngs: nnx.Rngs | streams.Keys) -> nnx.Module:
        """The network."""
        return self.network(**self.model, rngs=rngs)

    def draw_fixed(self, key: jax.Array, pairs: jax.Array):
        """What `draw` draws of each pair alone: crops, which are to be compared."""

        def one(pair):
            drawn = self.draw(jax.random.fold_in(key, pair), 1)
            return jax.tree.map(lambda x: x[0], drawn)

        return jax.vmap(one)(pairs)

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

    def advice(self) -> str:
        """Says so where a GPU would be faster, were heads or numbers others."""
        names = ("dtype", "platform", "devices", "attention")
        arithmetic = Arithmetic(*(self.model[name] for name in names))
        width = self.model["dim"] // self.model["num_heads"]
        if (
            arithmetic.platform != "gpu"
            or arithmetic.attention != "auto"
            or attention.choose(arithmetic, width, self.inputs.missing) == "cudnn"
        ):
            return ""
        return (
            "XLA computes attention here, as cuDNN takes bfloat16 and heads of 8, 16, "
            f"... channels, not {arithmetic.dtype} and {width}; other widths would be "
            "faster."
        )


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


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder(protocol.Encoder):
    """The encoder of a network.

    Attributes:
        inputs: how the data are seen.
        model: the arguments of the network.
        knows_one_sensor: see `protocol`.
        network: the class of the network.
    """

    inputs: Inputs
    model: Mapping[str, Any]
    knows_one_sensor: bool = True

    network = None

    @property
    def width(self) -> int:
        """Channels D of a token."""
        return self.model["dim"]

    @property
    def depth(self) -> int:
        """Blocks."""
        return self.model["depth"]

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.model["patch_size"]

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `protocol`."""
        how = ("platform", "devices", "attention", "remat")  # not what
        return {name: x for name, x in self.model.items() if name not in how}

    def _split(self, rngs: nnx.Rngs | streams.Keys) -> tuple[nnx.GraphDef, nnx.State]:
        # What is not of the encoder costs nothing, as nobody reads it.
        return nnx.split(self.network(**self.model, rngs=rngs).encoder)

    def init(self, rngs: nnx.Rngs) -> nnx.State:
        """Parameters that nothing has trained."""
        return self._split(rngs)[1]

    @functools.cached_property
    def _graphdef(self) -> nnx.GraphDef:
        make = lambda key: self._split(streams.Keys(key))
        return jax.eval_shape(make, jax.random.key(0))[0]

    def layer_of(self, path: str) -> int:
        """The layer of a parameter; see `protocol`.

        Layer 0 is the patch embeddings and the global token; the last is the final
        norm.

        Raises:
            ValueError: the path is none of this encoder's.
        """
        if re.search(r"(^|/)(embed/|global_token$)", path):
            return 0
        if block := re.search(r"(?:^|/)blocks/(\d+)/", path):
            return int(block[1]) + 1
        if re.search(r"(^|/)norm/", path):
            return self.depth + 1
        raise ValueError(f"No layer is known for {path}; add it to `layer_of`.")


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
