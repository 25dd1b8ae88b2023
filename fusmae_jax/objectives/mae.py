"""A plain masked autoencoder's objective: its fields and FLOPs, and its encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from data_pipeline.config_fields import check_rules, choice
from fusmae_jax import patches
from fusmae_jax.flops import block, linear
from fusmae_jax.inputs import SENSORS, Inputs
from fusmae_jax.models import mae
from fusmae_jax.objectives import networks, reconstruction
from fusmae_jax.objectives.protocol import Encoded

# What a config may say of it.
FIELDS = reconstruction.FIELDS | {
    "model.sensors": choice(
        *mae.READS,
        meaning="Which sensors are read: both, their channels stacked, or one alone.",
    ),
}

# What must hold between fields, and what is said where it does not.
RULES = (
    (
        lambda c: c.model.sensors == "both" or not c.mask.drop_sensor,
        "mask.drop_sensor={c.mask.drop_sensor} would take its only sensor away from a "
        "model with model.sensors={c.model.sensors}; set it to 0.",
    ),
    (
        lambda c: (
            c.model.sensors == "both" or c.loss[f"weight_{c.model.sensors}"] > 0.0
        ),
        "model.sensors is {c.model.sensors}, whose weight in the loss is 0, so that "
        "nothing would be learnt; set loss.weight_{c.model.sensors} above 0.",
    ),
)


def check(config) -> None:
    """Refuses what cannot work, where each field alone fits.

    Raises:
        InputError: names the fields and their values.
    """
    reconstruction.check(config)
    check_rules(config, RULES)


def build(config, seen: Inputs, target: Mapping[str, Any]) -> "Objective":
    """The objective that a config describes, see `reconstruction.arguments`."""
    return Objective(**reconstruction.arguments(config, seen, target))


@dataclasses.dataclass(frozen=True, eq=False)
class Objective(reconstruction.Reconstruction):
    """Masked reconstruction of one stream of tokens.

    SatViT's loss is one mean over all channels, of patches normalised over all of them.
    Here each sensor is normalised and scored apart, and their errors are added, as in
    every other reconstruction: so radar is not drowned, and errors can be compared.
    """

    mask_mode = "consistent"
    network = mae.MAE

    @property
    def sensors(self) -> tuple[str, ...]:
        """The sensors that are shown and redrawn."""
        return mae.READS[self.model["sensors"]]

    def _noise(self, key: jax.Array, batch: int) -> dict[str, jax.Array]:
        return patches.draw_noise(key, batch, self.num_patches, "consistent")

    def encoder(self) -> "Encoder":
        """The encoder."""
        alone = len(self.sensors) == 1
        return Encoder(self.inputs, self.model, alone or self.drop_sensor > 0.0)

    def flops(self) -> int:
        """See `train_step_flops`."""
        return train_step_flops(self.model, self.mask_ratio, self.drop_sensor)


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder(networks.Encoder):
    """The encoder of a masked autoencoder, see `models.mae.Encoder`.

    Its tokens are the same of both sensors; those of one that it does not read are
    zeros, and never `present`. Its summary is the mean of the tokens.
    """

    network = mae.MAE
    summarizes = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return "MAE, stacked" if self.sensors == SENSORS else f"MAE, {self.reads}"

    @property
    def sensors(self) -> tuple[str, ...]:
        """See `protocol`."""
        return mae.READS[self.model["sensors"]]

    def __call__(self, params, images, present=None, *, branches=None, remat="none"):
        """Encodes images, nothing hidden; see `protocol`."""
        network = self._merged(params, remat)
        found = network.encode(images, present, branches=branches)
        shown = network.shown(present)
        blocks = {name: self._encoded(x, shown) for name, x in found.items()}
        *_, last = blocks.values()
        return Encoded(last.tokens, last.summary, blocks)

    def _encoded(self, x: jax.Array, shown: jax.Array | None) -> Encoded:
        """What a block says in its tokens x [B, N, D], of which some are `shown`."""
        tokens = {s: x if s in self.sensors else jnp.zeros_like(x) for s in SENSORS}
        if shown is None:
            return Encoded(tokens, x.mean(axis=1))
        count = jnp.maximum(shown.sum(axis=1, keepdims=True), 1)
        return Encoded(tokens, jnp.where(shown[..., None], x, 0.0).sum(axis=1) / count)


def train_step_flops(
    model: Mapping[str, Any], mask_ratio: float, drop_sensor: float = 0.0
) -> int:
    """Matrix-product FLOPs of one pair's forward and backward pass.

    With N patches, K of them visible and T predicted, and else the letters of
    `fusmae.train_step_flops`, the forward pass is the sum of

        patch embedding     2 K P D
        encoder             L block(K, K, D)
        decoder             2 K D W + (R - 1) block(N, N, W) + block(T, N, W)
        prediction          2 T W P

    where P are the values of the sensors that are read.

    Args:
        model: arguments of `MAE`, of which those left out are filled in.
        mask_ratio: share of patches hidden.
        drop_sensor: chance that a pair lacks a sensor.
    """
    n = patches.grid_side(model["image_size"], model["patch_size"]) ** 2
    k = patches.num_visible(n, mask_ratio)
    predicted = n if drop_sensor else n - k
    d, w = model["dim"], model["decoder_dim"]
    read = mae.READS[model["sensors"]]
    values = model["patch_size"] ** 2 * sum(model["bands"][s] for s in read)
    embedding = linear(k, values, d)
    encoder = model["depth"] * block(k, k, d)
    decoder = reconstruction.decoder_flops(model, n, k, predicted)
    forward = embedding + encoder + decoder + linear(predicted, w, values)
    return 3 * forward - embedding
