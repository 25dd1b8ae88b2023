"""Fus-MAE's objective: its fields, masks and FLOPs, and its encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from data_pipeline.config_fields import choice, flag, whole
from data_pipeline.errors import InputError
from fusmae_jax import patches
from fusmae_jax.flops import block, linear
from fusmae_jax.inputs import Inputs
from fusmae_jax.models import fusmae
from fusmae_jax.objectives import reconstruction
from fusmae_jax.objectives.protocol import Encoded

# What a config may say of Fus-MAE.
FIELDS = reconstruction.FIELDS | {
    "mask.mode": choice(
        *patches.MASK_MODES,
        meaning="Whether each sensor has a mask of its own, or both the same.",
    ),
    "model.depth": whole(
        1, meaning="Blocks of the encoder, its XAttnEncoder included."
    ),
    "model.fuse_early": flag(
        meaning="Whether the first block is an XAttnEncoder, which fuses the sensors."
    ),
    "model.fuse_features": flag(
        meaning="Whether an XAttnDecoder fuses the sensors before the decoders."
    ),
    "model.global_token": choice(
        *fusmae.GLOBAL_TOKENS,
        meaning="Who sees the global token: the encoder alone, or the decoders too, "
        "which teaches its output.",
    ),
}

check = reconstruction.check


def build(config, seen: Inputs, target: Mapping[str, Any]) -> "Objective":
    """The objective that a config describes, see `reconstruction.arguments`."""
    shared = reconstruction.arguments(config, seen, target)
    return Objective(**shared, mask_mode=config.mask.mode)


@dataclasses.dataclass(frozen=True, eq=False)
class Objective(reconstruction.Reconstruction):
    """Masked reconstruction of both sensors, as many patches of each.

    Attributes:
        mask_mode: "independent" masks per sensor, or "consistent" ones.
    """

    mask_mode: str = "independent"

    network = fusmae.FusMAE

    def __post_init__(self):
        if self.mask_mode not in patches.MASK_MODES:
            raise InputError(
                f"mask.mode is {self.mask_mode!r}; choose one of "
                f"{list(patches.MASK_MODES)}."
            )
        super().__post_init__()

    def _noise(self, key: jax.Array, batch: int) -> dict[str, jax.Array]:
        return patches.draw_noise(key, batch, self.num_patches, self.mask_mode)

    def encoder(self) -> "Encoder":
        """The encoder, before the feature-level fusion."""
        return Encoder(self.inputs, self.model, self.drop_sensor > 0.0)

    def flops(self) -> int:
        """See `train_step_flops`."""
        return train_step_flops(self.model, self.mask_ratio, self.drop_sensor)


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder(reconstruction.Encoder):
    """Fus-MAE's encoder, see `models.fusmae.Encoder`."""

    name = "Fus-MAE"
    network = fusmae.FusMAE

    @property
    def depth(self) -> int:
        """Blocks, the XAttnEncoder not counted."""
        return self.model["depth"] - int(self.model["fuse_early"])

    @property
    def summarizes(self) -> bool:
        """See `protocol`."""
        return self.model.get("global_token") == "decoders"

    def __call__(self, params, images, present=None, *, branches=None, remat="none"):
        """Encodes images, nothing hidden; see `protocol`."""
        network = nnx.merge(self._graphdef, params)
        network.remat = remat  # whoever's that wants gradients now
        found = network.encode(images, present, branches=branches)
        n = network.side**2
        blocks = {
            name: Encoded(*network.read(x, (n, 2 * n)))
            for name, x in found.blocks.items()
        }
        return Encoded(found.tokens, found.summary, blocks)


def train_step_flops(
    model: Mapping[str, Any], mask_ratio: float, drop_sensor: float = 0.0
) -> int:
    """Matrix-product FLOPs of one pair's forward and backward pass.

    With N patches a sensor, K of them visible and T predicted, P values of both sensors
    in a patch, widths D and W and depths L and R of encoder and decoders, and

        block(q, k, d) = 4 q d^2 + 4 k d^2 + 4 q k d + 16 q d^2

    of queries, keys and values, attention, and MLP, the forward pass is the sum of

        patch embedding     2 K P D
        early fusion        2 block(K, K, D)                    for one of the L
        encoder             L block(2 K + 1, 2 K + 1, D)
        feature fusion      2 block(K, K, D)
        two decoders        2 (2 K D W + (R - 1) block(N, N, W) + block(T, N, W))
                            where K and N count the global token if decoders see it
        prediction          2 T W P

    T is N - K, or N where a sensor may be absent and is then predicted whole. The
    backward pass costs twice as much, except that pixels need no gradient. Nothing is
    counted for recomputation, norms, softmax, resampling, or the optimiser.

    Args:
        model: arguments of `FusMAE`, of which those left out are filled in.
        mask_ratio: share of patches hidden.
        drop_sensor: chance that a pair lacks a sensor.
    """
    n = patches.grid_side(model["image_size"], model["patch_size"]) ** 2
    k = patches.num_visible(n, mask_ratio)
    d = model["dim"]
    values = model["patch_size"] ** 2 * sum(model["bands"].values())

    embedding = linear(k, values, d)
    blocks = model["depth"] - model["fuse_early"]
    fusions = 2 * (model["fuse_early"] + model["fuse_features"])
    encoder = blocks * block(2 * k + 1, 2 * k + 1, d) + fusions * block(k, k, d)
    predicted = n if drop_sensor else n - k
    forward = embedding + encoder + _decoders(model, values, n, k, predicted)
    return 3 * forward - embedding


def _decoders(model, values: int, n: int, k: int, predicted: int) -> int:
    """The forward pass of both decoders, see `train_step_flops`."""
    more = model.get("global_token") == "decoders"
    each = reconstruction.decoder_flops(model, n + more, k + more, predicted)
    return 2 * each + linear(predicted, model["decoder_dim"], values)
