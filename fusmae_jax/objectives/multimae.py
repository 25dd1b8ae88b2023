"""MultiMAE's objective: what is shown, how errors count, its FLOPs and encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from data_pipeline.config_fields import ask, number, whole
from data_pipeline.errors import InputError
from fusmae_jax import flops, inputs, patches
from fusmae_jax.inputs import SENSORS, Inputs
from fusmae_jax.models import layers, multimae
from fusmae_jax.objectives import fusmae, reconstruction
from fusmae_jax.objectives.reconstruction import Draw, Redrawn

# What a config may say of MultiMAE.
FIELDS = reconstruction.FIELDS | {
    "mask.ratio": number(
        above=0.0,
        below=1.0,
        meaning="Share of the patches of both sensors together that is hidden.",
    ),
    "mask.alpha": number(
        above=0.0,
        meaning="How evenly the sensors share what is shown, the parameter of a "
        "symmetric Dirichlet distribution; with 1 every share is as likely.",
    ),
    "model.decoder_depth": whole(
        0, meaning="Blocks of each decoder, behind its cross-attention."
    ),
}


def check(config) -> None:
    """Refuses what cannot work, where each field alone fits.

    Raises:
        InputError: names the fields and their values.
    """
    # Its decoders attend without any block, too.
    ask(config, (layers.head_width, "model.decoder_dim", "model.decoder_heads"))
    reconstruction.check(config)


def build(config, seen: Inputs, target: Mapping[str, Any]) -> "Objective":
    """The objective that a config describes, see `reconstruction.arguments`."""
    shared = reconstruction.arguments(config, seen, target)
    return Objective(**shared, alpha=config.mask.alpha)


@dataclasses.dataclass(frozen=True, eq=False)
class Objective(reconstruction.Reconstruction):
    """Masked reconstruction of both sensors, which share what is shown at random.

    All samples show as many patches, but of one sensor more than of the other. The
    error is the mean over the hidden patches of each sample, and then over samples that
    have any.

    Attributes:
        alpha: parameter of the symmetric Dirichlet distribution of the shares.
    """

    alpha: float = 1.0

    network = multimae.MultiMAE

    def __post_init__(self):
        if self.alpha <= 0.0:
            raise InputError(f"mask.alpha is {self.alpha}; choose a number above 0.")
        super().__post_init__()

    @property
    def num_shown(self) -> int:
        """Patches K that a sample shows, of both sensors together."""
        return len(SENSORS) * patches.num_visible(self.num_patches, self.mask_ratio)

    @property
    def separable(self) -> bool:
        """See `protocol`; a sample that shows a sensor whole has no error of it."""
        return super().separable and self.num_shown < self.num_patches

    def _noise(self, key: jax.Array, batch: int) -> dict[str, jax.Array]:
        """Draws what decides the masks, of both sensors: the K least are shown.

        Each sensor's share of K has numbers below 1, at random places.
        """
        share_key, *keys = jax.random.split(key, 1 + len(SENSORS))
        alpha = jnp.full(len(SENSORS), self.alpha)
        share = jax.random.dirichlet(share_key, alpha, (batch,))
        n, k = self.num_patches, self.num_shown
        first = jnp.round(share[:, 0] * k).astype(jnp.int32)
        first = jnp.clip(first, k - n, n)  # as many as there are
        noise = {}
        for s, count, key in zip(SENSORS, (first, k - first), keys):
            drawn = jax.random.uniform(key, (batch, n))
            rank = jnp.argsort(jnp.argsort(drawn, axis=1), axis=1)
            noise[s] = drawn + (rank >= count[:, None])
        return noise

    def _redrawn(
        self, model, images, draw: Draw, present: inputs.Present | None, whole: bool
    ) -> Redrawn:
        """Hides patches of images and redraws all; see `Reconstruction`."""
        del whole  # they all are
        noise = draw.noise
        if present is not None:  # what shows nothing comes last
            absent = {s: ~x.reshape(x.shape[0], -1) for s, x in present.items()}
            noise = {s: noise[s] + 2.0 * absent[s] for s in SENSORS}
        noise = jnp.concatenate([noise[s] for s in SENSORS], axis=1)
        mask = patches.mask_from_noise(noise, self.num_shown)
        predicted, seen = model(images, mask, present)
        behind = jnp.arange(noise.shape[1]) >= self.num_shown
        behind = jnp.broadcast_to(behind[None].astype(jnp.float32), noise.shape)
        parts = jnp.split(patches.put_back(behind, mask), len(SENSORS), axis=1)
        hidden = dict(zip(SENSORS, parts))
        count = {}
        for s in SENSORS:
            known = hidden[s]
            if self.inputs.missing:
                known = known * (1.0 - jnp.isnan(seen[s]).mean(axis=-1))
            total = known.sum(axis=1, keepdims=True)
            count[s] = hidden[s] / jnp.where(total > 0.0, total, jnp.inf)
        return Redrawn(predicted, seen, hidden, count)

    def encoder(self) -> "Encoder":
        """The encoder."""
        return Encoder(self.inputs, self.model)

    def flops(self) -> int:
        """See `train_step_flops`."""
        return train_step_flops(self.model, self.mask_ratio)


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder(fusmae.Encoder):
    """MultiMAE's encoder, which is Fus-MAE's without early fusion.

    Shares of what is shown are drawn down to none: it has seen one sensor alone.
    """

    knows_one_sensor: bool = True

    name = "MultiMAE"
    network = multimae.MultiMAE
    summarizes = True

    @property
    def depth(self) -> int:
        """Blocks."""
        return self.model["depth"]


def train_step_flops(model: Mapping[str, Any], mask_ratio: float) -> int:
    """Matrix-product FLOPs of one pair's forward and backward pass.

    With the letters of `fusmae.train_step_flops`, but K patches of both sensors
    together that are visible, the forward pass is the sum of

        patch embedding     2 N P D
        encoder             L block(K + 1, K + 1, D)
        two decoders        2 (2 (K + 1) D W + block(N, K + 1, W) + R block(N, N, W))
        prediction          2 N W P

    Args:
        model: arguments of `MultiMAE`, of which those left out are filled in.
        mask_ratio: share of patches hidden.
    """
    n = patches.grid_side(model["image_size"], model["patch_size"]) ** 2
    k = len(SENSORS) * patches.num_visible(n, mask_ratio)
    d, w = model["dim"], model["decoder_dim"]
    values = model["patch_size"] ** 2 * sum(model["bands"].values())
    embedding = flops.linear(n, values, d)
    encoder = model["depth"] * flops.block(k + 1, k + 1, d)
    each = flops.linear(k + 1, d, w) + flops.block(n, k + 1, w)
    each += model["decoder_depth"] * flops.block(n, n, w)
    forward = embedding + encoder + 2 * each + flops.linear(n, w, values)
    return 3 * forward - embedding
