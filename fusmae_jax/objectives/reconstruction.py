"""What reconstructions of hidden patches share: fields, targets, errors, pictures.

A method of the kind is a subclass of `Reconstruction`, and one of `networks.Encoder`,
beside its network. Those whose network is shown equally many patches of each sensor
only name it; others say in `_redrawn` what they show and ask for.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.config_fields import ask, check_rules, choice, number, whole
from data_pipeline.errors import InputError
from fusmae_jax import flops, inputs, patches, streams
from fusmae_jax.inputs import SENSORS, Inputs
from fusmae_jax.models import attention, layers
from fusmae_jax.objectives import networks

# What a config may say of any of them.
FIELDS = networks.FIELDS | {
    "mask.ratio": number(above=0.0, below=1.0, meaning="Share of patches hidden."),
    "mask.drop_sensor": number(
        least=0.0,
        most=1.0,
        meaning="Chance that a pair lacks a sensor, redrawn from the other.",
    ),
    "model.decoder_dim": whole(1, meaning="Width of a decoder in channels."),
    "model.decoder_depth": whole(0, meaning="Blocks of a decoder."),
    "model.decoder_heads": whole(1, meaning="Attention heads of a decoder."),
    "loss.normalize": choice(
        *patches.NORMALIZATIONS,
        meaning="How targets are normalised: each patch, or each patch and family of "
        "bands.",
    ),
    "loss.weight_s1": number(least=0.0, meaning="Weight of Sentinel-1 in the loss."),
    "loss.weight_s2": number(least=0.0, meaning="Weight of Sentinel-2 in the loss."),
}

# What must hold between fields, and what is said where it does not.
RULES = (
    (
        lambda c: c.loss.weight_s1 + c.loss.weight_s2 > 0.0,
        "loss.weight_s1 and loss.weight_s2 are both {c.loss.weight_s1}, so that "
        "nothing would be learnt; set one of them above 0.",
    ),
    *networks.RULES,
    (
        lambda c: (
            c.model.attention != "cudnn" or all(map(attention.takes, heads(c.model)))
        ),
        "model.attention=cudnn takes heads of 8, 16, ... 128 channels, which "
        "model.dim={c.model.dim} over model.num_heads={c.model.num_heads} or "
        "model.decoder_dim={c.model.decoder_dim} over model.decoder_heads="
        "{c.model.decoder_heads} are not; set model.attention=auto.",
    ),
)


def check(config) -> None:
    """Refuses what none of them can work with, where each field alone fits.

    Raises:
        InputError: names the fields and their values.
    """
    networks.check(config)
    ask(
        config,
        (visible, "model.image_size", "model.patch_size", "mask.ratio"),
        (patches.check_width, "model.decoder_dim"),
    )
    if config.model.decoder_depth:
        ask(config, (layers.head_width, "model.decoder_dim", "model.decoder_heads"))
    check_rules(config, RULES)


def heads(model: Mapping[str, Any]) -> list[int]:
    """Channels of an attention head, of the encoder and of the decoders if they attend.

    Raises:
        InputError: a width does not divide.
    """
    widths = [("dim", "num_heads")]
    widths += [("decoder_dim", "decoder_heads")] if model["decoder_depth"] else []
    return [layers.head_width(model[dim], model[count]) for dim, count in widths]


def visible(image_size: int, patch_size: int, ratio: float) -> int:
    """How many patches of an image a mask leaves visible, see `patches.num_visible`."""
    return patches.num_visible(patches.grid_side(image_size, patch_size) ** 2, ratio)


class Draw(NamedTuple):
    """Everything random about a batch; row i belongs to sample i.

    Attributes:
        view: what is seen of each scene.
        noise: what decides the masks, {sensor: [B, N]}.
        present: which samples show a sensor at all, {sensor: [B] bool}; None for all.
    """

    view: inputs.View
    noise: dict[str, jax.Array]
    present: inputs.Present | None = None


class Outcome(NamedTuple):
    """What the objective saw and got, {sensor: array} each, in image order.

    Attributes:
        predicted: predicted patches in the space of the targets, [B, N, E].
        patches: the images' patches, normalised per band, NaN where nothing was
            measured, [B, N, E].
        hidden: 1.0 where a patch was hidden, [B, N].
    """

    predicted: dict[str, jax.Array]
    patches: dict[str, jax.Array]
    hidden: dict[str, jax.Array]


class Redrawn(NamedTuple):
    """What a network has redrawn, {sensor: [B, M, ...]} each.

    Attributes:
        predicted: patches, in the space of the targets.
        patches: the same patches of the images.
        hidden: 1.0 where a patch was hidden, [B, M].
        count: how much each patch counts in the loss, [B, M].
        masks: in whose order they are, {sensor: Mask}; None for that of the image.
    """

    predicted: dict[str, jax.Array]
    patches: dict[str, jax.Array]
    hidden: dict[str, jax.Array]
    count: dict[str, jax.Array]
    masks: dict[str, patches.Mask] | None = None


def arguments(config, seen: Inputs, target: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Reconstruction` that a config describes.

    Args:
        config: see `configs/pretrain_base.py`.
        seen: how the data are seen.
        target: what programs are compiled for, `platform` and `devices` of a network.
    """
    return dict(
        networks.arguments(config, seen, target),
        mask_ratio=config.mask.ratio,
        drop_sensor=config.mask.drop_sensor,
        normalize=config.loss.normalize,
        weights={"s1": config.loss.weight_s1, "s2": config.loss.weight_s2},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Reconstruction(networks.Objective):
    """Mean squared error of hidden patches.

    Attributes:
        mask_ratio: share of patches hidden.
        drop_sensor: chance that a sample lacks one of its sensors in training, which
            is then redrawn from the other alone.
        hide: a sensor that all held-out samples lack, so that it is redrawn from the
            other alone; "" for none.
        normalize: target normalisation, see `patches.normalize_patches`.
        weights: of the sensors' losses in their sum.
        mask_mode: how the masks of the sensors belong together, for figures; "" where
            there is nothing to say.
    """

    mask_ratio: float = 0.75
    drop_sensor: float = 0.0
    hide: str = ""
    normalize: str = "patch"
    weights: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(SENSORS, 1.0)
    )

    redraws = True
    mask_mode = ""

    def __post_init__(self):
        super().__post_init__()
        if self.normalize not in patches.NORMALIZATIONS:
            raise InputError(
                f"loss.normalize is {self.normalize!r}; choose one of "
                f"{list(patches.NORMALIZATIONS)}."
            )
        patches.num_visible(self.num_patches, self.mask_ratio)
        jax.eval_shape(lambda: self.draw(jax.random.key(0), 1))

    @property
    def separable(self) -> bool:
        """See `protocol`; pairs count by how much of them was measured."""
        return not self.inputs.missing

    @property
    def sensors(self) -> tuple[str, ...]:
        """The sensors that are shown and redrawn."""
        return SENSORS

    @property
    def heads(self) -> list[int]:
        """See `networks.Objective`; the decoders' too."""
        return heads(self.model)

    @property
    def masked(self) -> bool:
        """See `networks.Objective`."""
        return self.drop_sensor > 0.0 or self.inputs.missing

    def draw(self, key: jax.Array, batch: int) -> Draw:
        """Draws the views and masks of a training batch."""
        view_key, mask_key, present_key = jax.random.split(key, 3)
        view = self._views(view_key, batch)
        present = inputs.draw_present(present_key, batch, self.drop_sensor)
        noise = self._noise(mask_key, batch)
        return Draw(view, noise, present if self.drop_sensor else None)

    def draw_fixed(self, key: jax.Array, pairs: jax.Array) -> Draw:
        """Draws masks for the plain middle of each scene, see `protocol`."""
        view = inputs.fixed_view(len(pairs), self.inputs.center)
        present = {s: jnp.full(len(pairs), s != self.hide) for s in SENSORS}
        noise = streams.each(self._noise, key, pairs)
        return Draw(view, noise, present if self.hide else None)

    def _noise(self, key: jax.Array, batch: int) -> dict[str, jax.Array]:
        """Draws what decides the masks: of a sensor's patches the least are shown."""
        raise NotImplementedError

    def loss(
        self,
        model: nnx.Module,
        extra,
        fields: dict[str, jax.Array],
        draw: Draw,
        weight: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array], tuple]:
        """Mean squared error on hidden patches, `loss_<sensor>`, weighted.

        Where pixels are missing, of those that were measured; patches without any are
        the last to be shown.
        """
        del extra
        loss, metrics, _ = self._score(model, fields, draw, weight, False)
        return loss, metrics, ()

    def redraw(
        self, model: nnx.Module, fields: dict[str, jax.Array], draw: Draw
    ) -> Outcome:
        """Predicts all patches, the visible ones too."""
        return self._score(model, fields, draw, None, True)[2]

    def _score(self, model, fields, draw: Draw, weight, whole: bool):
        """Loss, its parts, and with `whole` the `Outcome`, see `loss`."""
        images = self.inputs.images(fields, draw.view)
        present = draw.present
        if self.inputs.missing:
            present = patches.present(images, self.patch_size, present)
        redrawn = self._redrawn(model, images, draw, present, whole)
        metrics = {}
        for s in self.sensors:
            target, _, _ = self.target(s, redrawn.patches[s])
            count = redrawn.count[s]
            if weight is not None:
                count = count * weight[:, None]
            error = self._error(redrawn.predicted[s], target, count)
            metrics[f"loss_{s}"] = error
        loss = sum(self.weights[s] * metrics[f"loss_{s}"] for s in self.sensors)
        if not whole:
            more, others = self._beside(model, images, redrawn.masks, present, weight)
            return loss + more, metrics | others, None
        outcome = redrawn.predicted, redrawn.patches, redrawn.hidden
        if masks := redrawn.masks:
            outcome = (
                {s: patches.put_back(x[s], masks[s]) for s in self.sensors}
                for x in outcome
            )
        return loss, metrics, Outcome(*outcome)

    def _redrawn(
        self,
        model: nnx.Module,
        images: dict[str, jax.Array],
        draw: Draw,
        present: inputs.Present | None,
        whole: bool,
    ) -> Redrawn:
        """Hides patches of images, as many of each sensor, and redraws them.

        Args:
            model: the network, called as `models.fusmae.FusMAE` is.
            images: of the sensors, [B, H, W, C].
            draw: from `draw`.
            present: which samples have a sensor, or which patches show anything.
            whole: whether to redraw the visible patches too.
        """
        noise = self._last(draw.noise, present) if self.inputs.missing else draw.noise
        keep = patches.num_visible(self.num_patches, self.mask_ratio)
        masks = {s: patches.mask_from_noise(noise[s], keep) for s in self.sensors}
        whole = whole or draw.present is not None
        predicted, seen = model(images, masks, present, whole=whole)
        hidden, count = {}, {}
        for s in self.sensors:
            hidden[s], count[s] = self._hidden(seen[s], keep, draw, s)
        return Redrawn(predicted, seen, hidden, count, masks)

    def _beside(
        self,
        model: nnx.Module,
        images: dict[str, jax.Array],
        masks: dict[str, patches.Mask] | None,
        present: inputs.Present | None,
        weight: jax.Array | None,
    ) -> tuple[jax.Array | float, dict[str, jax.Array]]:
        """What else is asked for: a term of the loss, and what is logged of it."""
        del model, images, masks, present, weight
        return 0.0, {}

    def _last(self, noise, present: inputs.Present) -> dict[str, jax.Array]:
        """Noise that puts patches that show nothing behind all others.

        Masks that are the same for both sensors stay so: patches that both have come
        first, and then those that one has.
        """
        lacking = {s: 1.0 - present[s] for s in self.sensors}
        if self.mask_mode == "consistent":
            lacking = dict.fromkeys(self.sensors, sum(lacking.values()))
        return {s: noise[s] + lacking[s] for s in self.sensors}

    def _error(self, predicted, target, count) -> jax.Array:
        return patches.hidden_error(predicted, target, count, self.inputs.missing)

    def _hidden(self, redrawn: jax.Array, keep: int, draw: Draw, s: str):
        """Which of the patches `redrawn` [B, M, E] were hidden, and how each counts.

        Returns:
            1.0 or 0.0, and the weight in the loss, [B, M] each.
        """
        b, m, _ = redrawn.shape
        behind = jnp.arange(m) >= keep - (self.num_patches - m)
        hidden = jnp.broadcast_to(behind.astype(jnp.float32), (b, m))
        if draw.present is None:
            return hidden, hidden
        # A sensor that is redrawn whole counts as much as one in part, so that every
        # sample weighs the same, whatever parts a batch is cut into.
        here, share = draw.present[s][:, None], 1.0 - keep / self.num_patches
        return jnp.where(here, hidden, 1.0), jnp.where(here, hidden, share)

    def target(self, s: str, seen: jax.Array):
        """What is asked for of patches [B, N, E], see `patches.normalize_patches`."""
        families = self.inputs.contract[s].families
        missing = self.inputs.missing
        return patches.normalize_patches(seen, self.normalize, families, missing)

    def pictures(self, outcome: Outcome) -> dict[str, dict[str, jax.Array]]:
        """Targets and predictions as images in native units, see `protocol`.

        A prediction of normalised targets is given each patch's own mean and deviation
        back; patches that were visible are shown as they are. Pixels that were not
        measured are NaN in both, but not in a prediction of a sensor that all lack.
        """
        p, drawn = self.patch_size, {}
        for s in self.sensors:
            sensor, seen = self.inputs.contract[s], outcome.patches[s]
            hidden = outcome.hidden[s][..., None]
            _, mean, std = self.target(s, seen)
            predicted = patches.restore_patches(outcome.predicted[s], mean, std)
            shown = hidden == 0.0
            if self.inputs.missing and s != self.hide:
                shown |= jnp.isnan(seen)
            predicted = jnp.where(shown, seen, predicted)
            covered = jnp.broadcast_to(hidden, (*hidden.shape[:2], p * p))
            image = lambda x: inputs.native_units(patches.unpatchify(x, p), sensor)
            drawn[s] = {
                "target": image(seen),
                "prediction": image(predicted),
                "hidden": patches.unpatchify(covered, p)[..., 0] == 1.0,
            }
        return drawn

    def floor(
        self, fields: dict[str, jax.Array], weight: jax.Array
    ) -> dict[str, jax.Array]:
        """What a mean over 5 x 5 pixels takes from the true images.

        No model can predict speckle. Noise of each pixel alone comes out with its whole
        variance, noise that neighbours share with a part of it; measured detail below
        50 m, of which optical images have more, comes out too.

        Returns:
            `floor_<sensor>`, mean squares in the space of the targets.
        """
        view = inputs.fixed_view(len(weight), self.inputs.center)
        images, found = self.inputs.images(fields, view), {}
        for s in self.sensors:
            image = images[s]
            # Of constants, which XLA would sum up while it compiles, for minutes.
            along = np.convolve(np.ones(self.inputs.size), np.ones(5), "same")
            count = np.outer(along, along).astype(np.float32)[None, :, :, None]
            known = image
            if self.inputs.missing:
                there = ~jnp.isnan(image[..., :1])
                known, count = jnp.where(there, image, 0.0), sum_around(1.0 * there)
            # A mean has a share of each of its pixels' noise, which is lost with it.
            # Nothing is known of a pixel without neighbours, 0 / 0.
            rest = (image - sum_around(known) / count) / jnp.sqrt(1 - 1 / count)
            seen, rest = (patches.patchify(x, self.patch_size) for x in (image, rest))
            _, _, std = self.target(s, seen)
            rest = patches.restore_patches(rest, 0.0 * std, 1.0 / std)
            count = jnp.broadcast_to(weight[:, None], rest.shape[:2])
            zeros = jnp.zeros_like(rest)
            found[f"floor_{s}"] = self._error(zeros, rest, count)
        return found

    def pixels_of(self, path: str) -> tuple[str, int] | None:
        """Those of the patch embeddings and of the predictions; see `protocol`."""
        if embeds := re.fullmatch(r"encoder/embed/(s[12])/kernel", path):
            return embeds[1], 0
        predicts = r"(?:decoders|predict)/(s[12])/(?:predict/)?(kernel|bias)"
        if predicts := re.fullmatch(predicts, path):
            return predicts[1], {"kernel": 1, "bias": 0}[predicts[2]]
        return None


def sum_around(images: jax.Array) -> jax.Array:
    """Each pixel of [B, H, W, C] and the up to 24 around it, added up."""
    return jax.lax.reduce_window(
        images, 0.0, jax.lax.add, (1, 5, 5, 1), (1, 1, 1, 1), "SAME"
    )


def decoder_flops(model: Mapping[str, Any], n: int, k: int, predicted: int) -> int:
    """Matrix-product FLOPs of `decoders.Decoder`, forward.

    Args:
        model: arguments of a network.
        n: tokens of its blocks.
        k: those that come from the encoder.
        predicted: those that are wanted of the last block.
    """
    d, w, depth = model["dim"], model["decoder_dim"], model["decoder_depth"]
    queries = [n] * (depth - 1) + [predicted] * (depth > 0)  # of each block
    return flops.linear(k, d, w) + sum(flops.block(q, n, w) for q in queries)
