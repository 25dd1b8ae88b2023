"""What methods share that train one network: its fields, its objective, its encoder."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from data_pipeline.config_fields import ask, choice, whole
from fusmae_jax import dtypes, inputs, patches, streams
from fusmae_jax.inputs import Inputs
from fusmae_jax.models import attention, layers
from fusmae_jax.models.products import Arithmetic
from fusmae_jax.objectives import protocol

# What a config may say of any of them.
FIELDS = {
    "model.image_size": whole(1, meaning="Side of the images in pixels."),
    "model.patch_size": whole(1, meaning="Side of a patch in pixels."),
    "model.dim": whole(1, meaning="Width of an encoder in channels."),
    "model.depth": whole(1, meaning="Blocks of an encoder."),
    "model.num_heads": whole(1, meaning="Attention heads of an encoder."),
    "model.dtype": choice(
        dtypes.AUTO,
        *dtypes.DTYPES,
        meaning="Type of matrix products: auto is bfloat16 where devices are made for "
        "it, else float32, as parameters always are.",
    ),
    "model.attention": choice(
        *attention.IMPLEMENTATIONS, meaning="Who computes attention."
    ),
    "model.remat": choice(
        *layers.REMAT,
        meaning="What of a block is computed again for the gradient, for less memory "
        "and more time: nothing, all but the linear layers, or everything.",
    ),
}

# What must hold between fields, and what is said where it does not.
RULES = (
    (
        # On a GPU "auto" is bfloat16, but for runs that say otherwise.
        lambda c: c.model.attention != "cudnn" or c.model.dtype != "float32",
        "model.attention=cudnn needs model.dtype=bfloat16, and that is "
        "{c.model.dtype}; set one of them.",
    ),
)

# Arguments of a network that say how it computes, not what.
HOW = ("platform", "devices", "attention", "remat")


def check(config) -> None:
    """Refuses sizes that do not divide.

    Raises:
        InputError: names the fields and their values.
    """
    ask(
        config,
        (patches.grid_side, "model.image_size", "model.patch_size"),
        (patches.check_width, "model.dim"),
        (layers.head_width, "model.dim", "model.num_heads"),
    )


def arguments(config, seen: Inputs, target: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Objective` that a config describes.

    Args:
        config: see `configs/pretrain_base.py`.
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
class Objective(protocol.Objective):
    """Trains a network on crops.

    Attributes:
        inputs: how the data are seen.
        model: arguments of the network, of which those left out are filled in.
        crop_scale, crop_ratio, turn: see `inputs.draw_views`.
        network: the class of the network, whose `encoder` is what is kept.
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

    def encoder_params(self, params: nnx.State) -> nnx.State:
        """Those of the network's `encoder`, without heads and decoders."""
        return params["encoder"]

    def _views(self, key: jax.Array, batch: int) -> inputs.View:
        how = dict(scale=self.crop_scale, ratio=self.crop_ratio, turn=self.turn)
        return inputs.draw_views(key, batch, **how)

    @property
    def heads(self) -> list[int]:
        """Channels of an attention head, of each width that the network has."""
        return [layers.head_width(self.model["dim"], self.model["num_heads"])]

    @property
    def masked(self) -> bool:
        """Whether some tokens may not be attended to."""
        return self.inputs.missing

    def advice(self) -> str:
        """Says so where a GPU would be faster, were heads or numbers others."""
        names = ("dtype", "platform", "devices", "attention")
        arithmetic = Arithmetic(*(self.model[name] for name in names))
        slow = [
            str(width)
            for width in self.heads
            if attention.choose(arithmetic, width, self.masked) == "xla"
        ]
        if arithmetic.platform != "gpu" or arithmetic.attention != "auto" or not slow:
            return ""
        return (
            "XLA computes attention here, as cuDNN takes bfloat16 and heads of 8, 16, "
            f"... {120 if self.masked else 128} channels, not {arithmetic.dtype} and "
            f"{' and '.join(slow)}; other widths would be faster."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder(protocol.Encoder):
    """The encoder of a network.

    Attributes:
        inputs: how the data are seen.
        model: the arguments of the network.
        knows_one_sensor: see `protocol`.
        network: the class of the network, which has it as `encoder`.
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
        return {name: x for name, x in self.model.items() if name not in HOW}

    def _split(self, rngs: nnx.Rngs | streams.Keys) -> tuple[nnx.GraphDef, nnx.State]:
        # What is not of the encoder costs nothing, as nobody reads it.
        return nnx.split(self.network(**self.model, rngs=rngs).encoder)

    def _merged(self, params: nnx.State, remat: str) -> nnx.Module:
        """The network's encoder; `remat` is that of whoever wants gradients now."""
        encoder = nnx.merge(self._graphdef, params)
        encoder.remat = remat
        return encoder

    def init(self, rngs: nnx.Rngs) -> nnx.State:
        """Parameters that nothing has trained."""
        return self._split(rngs)[1]

    @functools.cached_property
    def _graphdef(self) -> nnx.GraphDef:
        make = lambda key: self._split(streams.Keys(key))
        return jax.eval_shape(make, jax.random.key(0))[0]

    def layer_of(self, path: str) -> int:
        """The layer of a parameter; see `protocol`.

        Layer 0 is all that stands before the blocks: the patch embeddings, the tokens,
        and what fuses the sensors early. The last is the final norm.

        Raises:
            ValueError: the path is none of this encoder's.
        """
        own = re.sub(r"^s[12]/", "", path)  # of networks for each sensor
        if re.match(r"(embed|absent|fuse)/|global_token$", own):
            return 0
        if block := re.match(r"blocks/(\d+)/", own):
            return int(block[1]) + 1
        if own.startswith("norm/"):
            return self.depth + 1
        raise ValueError(f"No layer is known for {path}; add it to `layer_of`.")
