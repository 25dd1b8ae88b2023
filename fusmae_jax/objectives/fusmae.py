"""Fus-MAE's objective: its fields, masks and FLOPs, and its encoder.

Two additions are not of the paper, and off unless a config asks for them. Latent
targets: the decoders are not asked for pixels but for what a fixed random projection
makes of a patch, and only to tell it from those of the image's other hidden patches, as
OlmoEarth's pretraining is reported to do. And a contrast: the encoder is shown each
sensor alone once more, and over the batch the mean of a sample's radar tokens is to be
nearest to that of its optics (InfoNCE, see `comparison.info_nce`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from data_pipeline.config_fields import (
    ask,
    check_rules,
    choice,
    flag,
    number,
    whole,
)
from data_pipeline.errors import InputError
from fusmae_jax import inputs, patches, streams
from fusmae_jax.flops import block, linear
from fusmae_jax.inputs import SENSORS, Inputs
from fusmae_jax.models import fusmae, layers
from fusmae_jax.objectives import comparison, networks, reconstruction
from fusmae_jax.objectives.protocol import Encoded

TARGETS = ("pixels", "latent")

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
    "model.feature_queries": choice(
        *fusmae.FEATURE_QUERIES,
        meaning="Which places ask in the fusion at feature level: the visible ones, "
        "before the decoders, or all, within them, as in MultiMAE.",
    ),
    "loss.targets": choice(
        *TARGETS,
        meaning="What is asked for of hidden patches: their pixels, or to tell their "
        "fixed random projections apart.",
    ),
    "loss.contrast": number(
        least=0.0,
        meaning="Weight of telling samples apart by each sensor alone; 0 leaves it "
        "out.",
    ),
    "loss.temperature": number(
        above=0.0,
        meaning="What cosines are divided by where patches or samples are told apart.",
    ),
}

# What must hold between fields, and what is said where it does not.
RULES = (
    (
        lambda c: c.model.fuse_features or c.model.feature_queries == "visible",
        "model.feature_queries={c.model.feature_queries} without a fusion at feature "
        "level; set model.fuse_features=True, or leave it visible.",
    ),
)


def check(config) -> None:
    """Refuses what cannot work, where each field alone fits.

    Raises:
        InputError: names the fields and their values.
    """
    reconstruction.check(config)
    check_rules(config, RULES)
    if config.model.feature_queries == "all":  # they attend without any block, too
        ask(config, (layers.head_width, "model.decoder_dim", "model.decoder_heads"))


def build(config, seen: Inputs, target: Mapping[str, Any]) -> "Objective":
    """The objective that a config describes, see `reconstruction.arguments`."""
    shared = reconstruction.arguments(config, seen, target)
    return Objective(
        **shared,
        mask_mode=config.mask.mode,
        targets=config.loss.targets,
        contrast=config.loss.contrast,
        temperature=config.loss.temperature,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Objective(reconstruction.Reconstruction):
    """Masked reconstruction of both sensors, as many patches of each.

    Attributes:
        mask_mode: "independent" masks per sensor, or "consistent" ones.
        targets: what is asked for, one of `TARGETS`.
        contrast: weight of InfoNCE between the sensors; 0.0 for none.
        temperature: what cosines are divided by.
    """

    mask_mode: str = "independent"
    targets: str = "pixels"
    contrast: float = 0.0
    temperature: float = 0.1

    network = fusmae.FusMAE

    def __post_init__(self):
        if self.mask_mode not in patches.MASK_MODES:
            raise InputError(
                f"mask.mode is {self.mask_mode!r}; choose one of "
                f"{list(patches.MASK_MODES)}."
            )
        if self.targets not in TARGETS:
            raise InputError(
                f"loss.targets is {self.targets!r}; choose one of {list(TARGETS)}."
            )
        if self.targets == "latent":
            model = {**self.model, "target_dim": self.model["dim"]}
            object.__setattr__(self, "model", model)
        super().__post_init__()

    @property
    def redraws(self) -> bool:
        """See `protocol`."""
        return self.targets == "pixels"

    @property
    def separable(self) -> bool:
        """See `protocol`; a contrast is over the batch."""
        return super().separable and not self.contrast

    def _noise(self, key: jax.Array, batch: int) -> dict[str, jax.Array]:
        return patches.draw_noise(key, batch, self.num_patches, self.mask_mode)

    def target(self, s: str, seen: jax.Array):
        """What is asked for of patches [B, N, E], see `Reconstruction.target`.

        Of latent targets missing pixels count as the mean of those of their patch; NaN
        are those of a patch of which nothing was measured.
        """
        x, mean, std = super().target(s, seen)
        if self.targets == "pixels":
            return x, mean, std
        known = jnp.where(jnp.isnan(x), 0.0, x) if self.inputs.missing else x
        projected = known @ self._projection(s, x.shape[-1])
        if self.inputs.missing:
            nothing = jnp.isnan(x).all(axis=-1, keepdims=True)
            projected = jnp.where(nothing, jnp.nan, projected)
        return projected, mean, std

    def _projection(self, s: str, values: int) -> jax.Array:
        """What makes latent targets of patches, [E, D]: the same in every run."""
        # Or XLA would draw the numbers while it compiles.
        number = jax.lax.optimization_barrier(jnp.uint32(SENSORS.index(s)))
        key = jax.random.fold_in(streams.key(0, "targets"), number)
        return jax.random.normal(key, (values, self.model["dim"])) / values**0.5

    def _error(self, predicted, target, count) -> jax.Array:
        if self.targets == "pixels":
            return super()._error(predicted, target, count)
        if self.inputs.missing:
            known = ~jnp.isnan(target[..., 0])
            count, target = count * known, jnp.where(known[..., None], target, 0.0)
        return patch_discrimination(predicted, target, count, self.temperature)

    def floor(self, fields, weight):
        """See `Reconstruction.floor`; nothing is known of latent targets."""
        return super().floor(fields, weight) if self.redraws else {}

    def pixels_of(self, path: str) -> tuple[str, int] | None:
        """See `Reconstruction.pixels_of`; latent predictions are none."""
        if path.startswith("decoders/") and not self.redraws:
            return None
        return super().pixels_of(path)

    def _beside(self, model, images, masks, present, weight):
        """InfoNCE of what the encoder says of each sensor's visible patches alone."""
        if not self.contrast:
            return super()._beside(model, images, masks, present, weight)
        rows = len(images["s1"])
        pixels, ids = model.patchify(images), {s: masks[s].visible for s in SENSORS}
        visible = {s: patches.take(pixels[s], ids[s]) for s in SENSORS}
        here = present or dict.fromkeys(SENSORS, jnp.ones(rows, bool))
        here = {s: patches.take_present(x, ids[s]) for s, x in here.items()}
        # One pass over twice the samples: of the first half radar alone is shown.
        nothing = {s: jnp.zeros_like(x) for s, x in here.items()}
        alone = {
            "s1": jnp.concatenate([here["s1"], nothing["s1"]]),
            "s2": jnp.concatenate([nothing["s2"], here["s2"]]),
        }
        visible, ids = (
            {s: jnp.concatenate([x, x]) for s, x in both.items()}
            for both in (visible, ids)
        )
        tokens = model.encoder(visible, ids, alone).tokens
        tokens = {"s1": tokens["s1"][:rows], "s2": tokens["s2"][rows:]}
        vectors = {s: direction(tokens[s], here[s]) for s in SENSORS}
        count = jnp.ones(rows) if weight is None else weight
        for x in here.values():  # a sample that lacks a sensor is compared with none
            count = count * x.reshape(rows, -1).any(axis=1)
        scale = jnp.full(1, 1.0 / self.temperature)
        error = comparison.info_nce(vectors, scale, count)
        return self.contrast * error, {"loss_contrast": error}

    def encoder(self) -> "Encoder":
        """The encoder, before the feature-level fusion."""
        alone = self.drop_sensor > 0.0 or self.contrast > 0.0
        return Encoder(self.inputs, self.model, alone)

    def flops(self) -> int:
        """See `train_step_flops`."""
        contrast = self.contrast > 0.0
        return train_step_flops(
            self.model, self.mask_ratio, self.drop_sensor, contrast=contrast
        )


def direction(tokens: jax.Array, present: inputs.Present) -> jax.Array:
    """The mean of the tokens [B, K, D] that are `present`, of length 1, [B, D]."""
    there = patches.spread(present, tokens.shape[1])
    total = jnp.where(there[..., None], tokens, 0.0).astype(jnp.float32).sum(axis=1)
    return unit(total)


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., D] of length 1 that point where x does; zeros stay."""
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def patch_discrimination(
    predicted: jax.Array, target: jax.Array, count: jax.Array, temperature: float
) -> jax.Array:
    """How badly predictions tell their own patch from the others of their image.

    Args:
        predicted: [B, M, D].
        target: [B, M, D].
        count: how much each patch counts, [B, M]; one of 0.0 is no other's other.
        temperature: what cosines are divided by.

    Returns:
        The mean cross-entropy of choosing the patch; 0 where nothing counts.
    """
    predicted, target = unit(predicted.astype(jnp.float32)), unit(target)
    logits = jnp.einsum("bid,bjd->bij", predicted, target) / temperature
    never = jnp.where(count > 0.0, 0.0, jnp.finfo(jnp.float32).min)
    own = jnp.diagonal(logits, axis1=1, axis2=2)
    lacks = jax.nn.logsumexp(logits + never[:, None], axis=-1) - own
    total = jnp.where(count > 0.0, lacks * count, 0.0).sum()
    return total / jnp.maximum(count.sum(), 1e-6)


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder(networks.Encoder):
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
        network = self._merged(params, remat)
        found = network.encode(images, present, branches=branches)
        n = network.side**2
        blocks = {
            name: Encoded(*network.read(x, (n, 2 * n)))
            for name, x in found.blocks.items()
        }
        return Encoded(found.tokens, found.summary, blocks)


def train_step_flops(
    model: Mapping[str, Any],
    mask_ratio: float,
    drop_sensor: float = 0.0,
    *,
    contrast: bool = False,
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

    Where all places ask in the feature fusion, that and the decoders are instead

        two decoders        2 (4 K D W + block(N, 2 K, W) + R block(N, N, W))
        prediction          2 N W P

    For latent targets it predicts 2 D values of a patch, not P; their projection takes
    2 T P D and choosing among them 4 T T D, of which the first needs no gradient and
    the second one alone. A contrast takes patch embedding, early fusion and encoder
    twice more, and 2 D to compare a pair with itself.

    Args:
        model: arguments of `FusMAE`, of which those left out are filled in.
        mask_ratio: share of patches hidden.
        drop_sensor: chance that a pair lacks a sensor.
        contrast: whether each sensor is encoded alone once more.
    """
    n = patches.grid_side(model["image_size"], model["patch_size"]) ** 2
    k = patches.num_visible(n, mask_ratio)
    d = model["dim"]
    values = model["patch_size"] ** 2 * sum(model["bands"].values())

    embedding = linear(k, values, d)
    blocks = model["depth"] - model["fuse_early"]
    encoder = blocks * block(2 * k + 1, 2 * k + 1, d)
    encoder += 2 * model["fuse_early"] * block(k, k, d)
    predicted = n if drop_sensor else n - k
    latent = 2 * model.get("target_dim", 0)
    within = model["fuse_features"] and model.get("feature_queries") == "all"
    forward = encoder + 2 * (model["fuse_features"] and not within) * block(k, k, d)
    count = latent or values
    if within:
        forward += _asking_decoders(model, count, n, k)
    else:
        forward += _decoders(model, count, n, k, predicted)
    if contrast:
        forward += 2 * encoder + linear(1, d, 1)
        embedding *= 3
    choosing = linear(predicted, values, d) + 4 * linear(predicted, d, predicted)
    return 3 * forward + 2 * embedding + bool(latent) * choosing


def _decoders(model, values: int, n: int, k: int, predicted: int) -> int:
    """The forward pass of both decoders that predict so many `values` of a patch."""
    more = model.get("global_token") == "decoders"
    each = reconstruction.decoder_flops(model, n + more, k + more, predicted)
    return 2 * each + linear(predicted, model["decoder_dim"], values)


def _asking_decoders(model, values: int, n: int, k: int) -> int:
    """The same where all places ask, see `decoders.QueryDecoder`."""
    read, w = 2 * k + (model.get("global_token") == "decoders"), model["decoder_dim"]
    each = linear(read, model["dim"], w) + block(n, read, w)
    each += model["decoder_depth"] * block(n, n, w)
    return 2 * each + linear(n, w, values)
