"""CROMA: each sensor tells its own sample from others; both redraw what is hidden.

Fuller, Millard and Green 2023 (arXiv 2311.00566), by their code. Of each sensor as many
patches are visible, others in each. An encoder for each sensor makes tokens, whose
mean is projected; over the batch, that of a sample's radar is to be nearest to that of
its optics and the reverse (InfoNCE, with a temperature that is learnt). A third encoder
goes on from radar's tokens and attends to those of optics, and one decoder redraws the
hidden patches of both. Attention fades with distance, and no place has a code but in
the decoder. With `loss.contrast=0` the reconstruction is trained alone.

As the original has it: the encoders, the decoder, the loss, targets that are normalised
per patch over all bands of both sensors. Otherwise here: images and crops are those of
Fus-MAE, deviations of patches are the population's, and queries, keys and values have
biases. The loss is of the whole batch: with `accumulate`, of each of its parts.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from data_pipeline.config_fields import ask, check_rules, choice, number, whole
from fusmae_jax import flops, inputs, patches, streams
from fusmae_jax.inputs import SENSORS, Inputs
from fusmae_jax.models import croma, layers
from fusmae_jax.objectives import comparison, networks, protocol, reconstruction

# What a config may say of CROMA.
FIELDS = {
    **networks.FIELDS,
    "model.depth": whole(
        2, meaning="Blocks of the encoder of optics; radar's and the joint have half."
    ),
    "model.attention": choice(
        "auto", "xla", meaning="Who computes attention; cuDNN knows no distances."
    ),
    **{
        name: reconstruction.FIELDS[name]
        for name in (
            *("mask.ratio", "model.decoder_dim", "model.decoder_depth"),
            "model.decoder_heads",
        )
    },
    "loss.contrast": number(
        least=0.0, meaning="Weight of telling samples apart; 0 leaves it out."
    ),
    "loss.reconstruct": number(
        least=0.0, meaning="Weight of redrawing hidden patches; 0 leaves it out."
    ),
}

RULES = (
    (
        lambda c: c.loss.contrast + c.loss.reconstruct > 0.0,
        "loss.contrast and loss.reconstruct are both {c.loss.contrast}, so that "
        "nothing would be learnt; set one of them above 0.",
    ),
)


def check(config) -> None:
    """Refuses what CROMA cannot work with, where each field alone fits.

    Raises:
        InputError: names the fields and their values.
    """
    comparison.check(config)
    ask(
        config,
        (reconstruction.visible, "model.image_size", "model.patch_size", "mask.ratio"),
        (patches.check_width, "model.decoder_dim"),
        (layers.head_width, "model.decoder_dim", "model.decoder_heads"),
    )
    check_rules(config, RULES)


def build(config, seen: Inputs, target: Mapping[str, Any]) -> "Objective":
    """The objective that a config describes, see `build.objective`."""
    return Objective(
        **networks.arguments(config, seen, target),
        mask_ratio=config.mask.ratio,
        **config.loss,
    )


class Draw(NamedTuple):
    """Everything random about a batch; row i belongs to sample i.

    Attributes:
        view: what is seen of each scene.
        noise: what decides the masks, {sensor: [B, N]}.
    """

    view: inputs.View
    noise: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Objective(comparison.Comparison):
    """Contrast of both sensors, and masked reconstruction of both.

    Attributes:
        mask_ratio: share of patches hidden.
        contrast, reconstruct: weights of the two in the loss.
    """

    mask_ratio: float = 0.75
    contrast: float = 1.0
    reconstruct: float = 1.0

    network = croma.CROMA

    @property
    def separable(self) -> bool:
        """See `protocol`."""
        return not self.contrast and not self.inputs.missing

    @property
    def parts(self) -> tuple[str, ...]:
        """What is in the loss."""
        weights = {"contrast": self.contrast, "reconstruct": self.reconstruct}
        return tuple(name for name, weight in weights.items() if weight)

    def draw(self, key: jax.Array, batch: int) -> Draw:
        """Draws the views and masks of a training batch."""
        view_key, mask_key = jax.random.split(key)
        return Draw(self._views(view_key, batch), self._noise(mask_key, batch))

    def draw_fixed(self, key: jax.Array, pairs: jax.Array) -> Draw:
        """Draws masks for the plain middle of each scene, see `protocol`."""
        view = inputs.fixed_view(len(pairs), self.inputs.center)
        return Draw(view, streams.each(self._noise, key, pairs))

    def _noise(self, key: jax.Array, batch: int) -> dict[str, jax.Array]:
        return patches.draw_noise(key, batch, self.num_patches, "independent")

    def loss(
        self,
        model: croma.CROMA,
        extra,
        fields: dict[str, jax.Array],
        draw: Draw,
        weight: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array], tuple]:
        """InfoNCE, and the squared errors of both sensors' hidden patches, weighted.

        Where pixels are missing, patches without any are the last to be shown, and a
        sample that shows nothing of a sensor is compared with none.
        """
        del extra
        images = self.inputs.images(fields, draw.view)
        noise, present = draw.noise, None
        if self.inputs.missing:
            present = patches.present(images, self.patch_size, None)
            noise = {s: noise[s] + (1.0 - present[s]) for s in SENSORS}
        pixels = {s: patches.patchify(images[s], self.patch_size) for s in SENSORS}
        keep = patches.num_visible(self.num_patches, self.mask_ratio)
        masks = {s: patches.mask_from_noise(noise[s], keep) for s in SENSORS}
        found = model(pixels, masks, present, parts=self.parts)
        weight = jnp.ones(len(noise["s1"])) if weight is None else weight
        loss, metrics = 0.0, {}
        if "contrast" in self.parts:
            compared = weight
            if present is not None:
                both = (present[s].any(axis=1) for s in SENSORS)
                compared = weight * jnp.prod(jnp.stack(list(both)), axis=0)
            metrics["loss_contrast"] = comparison.info_nce(
                found.vectors, found.scale, compared
            )
            loss += self.contrast * metrics["loss_contrast"]
        if "reconstruct" in self.parts:
            target = self.target(pixels)
            places = {"s1": masks["s1"].hidden, "s2": masks["s1"].order}
            for s in SENSORS:
                wanted = patches.take(target[s], places[s])
                count = patches.take(hidden(masks[s]), places[s]) * weight[:, None]
                metrics[f"loss_{s}"] = patches.hidden_error(
                    found.predicted[s], wanted, count, self.inputs.missing
                )
                loss += self.reconstruct * metrics[f"loss_{s}"]
        return loss, metrics, ()

    def target(self, pixels: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Patches {sensor: [B, N, E]}, normalised by the values of both sensors."""
        stacked = jnp.concatenate([pixels[s] for s in SENSORS], axis=-1)
        alike = ("all",)  # one family of bands
        x, _, _ = patches.normalize_patches(
            stacked, "patch", alike, self.inputs.missing
        )
        first = pixels["s1"].shape[-1]
        return {"s1": x[..., :first], "s2": x[..., first:]}

    def encoder(self) -> "Encoder":
        """The three encoders."""
        return Encoder(self.inputs, self.model)

    def pixels_of(self, path: str) -> tuple[str, int] | None:
        """Those of the patch embeddings and of the predictions; see `protocol`."""
        if predicts := re.fullmatch(r"decoder/predict/(s[12])/(kernel|bias)", path):
            return predicts[1], {"kernel": 1, "bias": 0}[predicts[2]]
        return super().pixels_of(path)

    def advice(self) -> str:
        """None: no other widths would let another compute attention."""
        return ""

    def flops(self) -> int:
        """The forward and backward pass of a pair.

        With N patches a sensor, K of them visible, P values of both sensors in a patch,
        widths D and W and depths L and R of encoder and decoder, `block` of
        `fusmae.train_step_flops` and `cross` the same without an MLP, the forward pass
        is the sum of

            patch embedding     2 K P D
            encoders            (L / 2 + L) block(K, K, D)
            joint encoder       L / 2 (block(K, K, D) + cross(K, K, D))
            projections         2 (16 D^2 + 2 D^2), and 2 D for a product of two
            decoder             2 K D W + R block(N, N, W)
            prediction          2 (N - K) P_1 W + 2 N P_2 W

        of what the loss asks for. The backward pass costs twice as much, but that
        pixels need no gradient.
        """
        model, d, w = self.model, self.model["dim"], self.model["decoder_dim"]
        n = self.num_patches
        k, half = patches.num_visible(n, self.mask_ratio), model["depth"] // 2
        values = self.patch_size**2 * sum(model["bands"].values())
        embedding, block = flops.linear(k, values, d), flops.block(k, k, d)
        forward = embedding + (half + model["depth"]) * block
        if "contrast" in self.parts:
            mlp = 2 * flops.linear(1, d, 4 * d)
            forward += 2 * (mlp + flops.linear(1, d, d)) + flops.linear(1, d, 1)
        if "reconstruct" in self.parts:
            cross = block - 2 * flops.linear(k, d, 4 * d)
            forward += half * (block + cross) + flops.linear(k, d, w)
            forward += model["decoder_depth"] * flops.block(n, n, w)
            area, bands = self.patch_size**2, model["bands"]
            forward += flops.linear(n - k, w, area * bands["s1"])
            forward += flops.linear(n, w, area * bands["s2"])
        return 3 * forward - embedding


def hidden(mask: patches.Mask) -> jax.Array:
    """1.0 at the places of hidden patches, [B, N]."""
    kept = mask.visible.shape[1]
    behind = jnp.arange(mask.order.shape[1]) >= kept
    flags = jnp.broadcast_to(behind.astype(jnp.float32), mask.order.shape)
    return patches.put_back(flags, mask)


class Encoder(networks.Encoder):
    """Where both sensors are there the joint encoder speaks, for both; else the own.

    The joint encoder stands on the tokens of radar, each of which has read the optics
    around: at every place both sensors have its token, and their mean is that of the
    original's evaluations with both. Where a sample lacks a sensor, its tokens are
    those that the encoder of the other has at their places. The summary is the mean of
    the tokens of what is there.
    """

    name, network = "CROMA", croma.CROMA
    summarizes = False

    @property
    def depth(self) -> int:
        """Blocks that optics go through: of their own encoder, and of the joint one."""
        return self.model["depth"] + self.model["depth"] // 2

    def __call__(self, params, images, present=None, *, branches=None, remat="none"):
        """Encodes images; see `protocol`."""
        network = self._merged(params, remat)
        found = network.encode(images, present, branches=branches)
        both = dict.fromkeys(SENSORS, found.joint)
        blocks = {
            # Where there is no second sensor nothing comes after the own encoder.
            name: join(x, found.own if name.startswith("joint") else x, present)
            for name, x in found.blocks.items()
        }
        return join(both, found.own, present)._replace(blocks=blocks)

    def layer_of(self, path: str) -> int:
        """The layer of a parameter; see `protocol`. Radar has every other one."""
        if path.startswith("embed/"):
            return 0
        if block := re.match(r"blocks/(s[12])/(\d+)/", path):
            return {"s1": 2, "s2": 1}[block[1]] * (int(block[2]) + 1)
        if path.startswith("norms/"):
            return self.model["depth"]
        if block := re.match(r"joint/(\d+)/", path):
            return self.model["depth"] + int(block[1]) + 1
        if path.startswith("norm/"):
            return self.depth + 1
        raise ValueError(f"No layer is known for {path}; add it to `layer_of`.")


def join(
    both: dict[str, jax.Array],
    own: dict[str, jax.Array],
    present: inputs.Present | None,
) -> protocol.Encoded:
    """Tokens {sensor: [B, N, D]} of samples that have both sensors, or their own.

    Where a sensor is absent the other's tokens stand for it.
    """
    if present is None:
        summary = sum(x.mean(axis=1) for x in both.values()) / len(both)
        return protocol.Encoded(dict(both), summary)
    n = both["s1"].shape[1]
    shown = {s: patches.spread(x, n) for s, x in present.items()}
    there = {s: x.any(axis=1)[:, None, None] for s, x in shown.items()}
    alone = jnp.where(there["s1"], own["s1"], own["s2"])
    together = there["s1"] & there["s2"]
    tokens = {s: jnp.where(together, both[s], alone) for s in SENSORS}
    total = sum((tokens[s] * shown[s][..., None]).sum(axis=1) for s in SENSORS)
    count = sum(x.sum(axis=1, keepdims=True) for x in shown.values())
    return protocol.Encoded(tokens, total / jnp.maximum(count, 1))
