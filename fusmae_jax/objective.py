"""The pretraining objective: what a batch shows, hides, and asks for."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from data_pipeline import sensors
from data_pipeline.errors import InputError
from fusmae_jax import losses, masking, patches, views
from fusmae_jax.masking import SENSORS
from fusmae_jax.model import FusMAE


class Draw(NamedTuple):
    """Everything random about a batch; row i belongs to sample i.

    Attributes:
        view: what is seen of each scene.
        noise: what decides the masks, {sensor: [B, N]}.
        present: which samples show a sensor at all, {sensor: [B] bool}; None for all.
    """

    view: views.View
    noise: dict[str, jax.Array]
    present: dict[str, jax.Array] | None = None


class Outcome(NamedTuple):
    """What the objective saw and got, {sensor: array} each, in image order.

    Attributes:
        predicted: predicted patches in the space of the targets, [B, N, E].
        patches: the images' patches, normalised per band, [B, N, E].
        hidden: 1.0 where a patch was hidden, [B, N].
    """

    predicted: dict[str, jax.Array]
    patches: dict[str, jax.Array]
    hidden: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Masked reconstruction of both sensors.

    Attributes:
        contract: the sensors with the bands in use, by name.
        image_size: side of the images in pixels.
        patch_size: side of a patch in pixels.
        grids: how the data stores each sensor, {sensor: grids}; None where every
            band is on its own grid.
        mask_ratio: share of patches hidden.
        mask_mode: "independent" masks per sensor, or "consistent" ones.
        drop_sensor: chance that a sample lacks one of its sensors in training, which
            is then redrawn from the other alone.
        normalize: target normalisation, see `losses.normalize_patches`.
        weights: of the sensors' losses in their sum.
        crop_scale, crop_ratio, turn: see `views.draw_views`.
        resampling: "linear" or "cubic".
    """

    contract: dict[str, sensors.Sensor]
    image_size: int
    patch_size: int
    grids: dict[str, tuple[sensors.Grid, ...]] | None = None
    mask_ratio: float = 0.75
    mask_mode: str = "independent"
    drop_sensor: float = 0.0
    normalize: str = "patch"
    weights: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(SENSORS, 1.0)
    )
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    turn: bool = True
    resampling: str = "linear"

    def __post_init__(self):
        for value, allowed, name in (
            (self.mask_mode, masking.MODES, "mask.mode"),
            (self.normalize, losses.NORMALIZATIONS, "loss.normalize"),
            (self.resampling, views.RESAMPLING, "view.resampling"),
        ):
            if value not in allowed:
                raise InputError(f"{name} is {value!r}; choose one of {list(allowed)}.")
        masking.num_visible(self.num_patches, self.mask_ratio)
        jax.eval_shape(lambda: self.draw(jax.random.key(0), 1))

    @property
    def num_patches(self) -> int:
        """Patches N of one sensor's image."""
        return patches.grid_side(self.image_size, self.patch_size) ** 2

    def draw(self, key: jax.Array, batch: int) -> Draw:
        """Draws the views and masks of a training batch."""
        view_key, mask_key, present_key = jax.random.split(key, 3)
        view = views.draw_views(
            view_key,
            batch,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            turn=self.turn,
        )
        present = masking.draw_present(present_key, batch, self.drop_sensor)
        noise = self._noise(mask_key, batch)
        return Draw(view, noise, present if self.drop_sensor else None)

    def draw_fixed(self, key: jax.Array, pairs: jax.Array, scene_size: int) -> Draw:
        """Draws masks for the plain middle of each scene.

        Args:
            key: random key.
            pairs: number of each pair, [B]; its masks depend on it and on the key.
            scene_size: side of the scenes in pixels at 10 m.
        """
        box = views.center_box(self.image_size, scene_size)

        def noise(pair):
            drawn = self._noise(jax.random.fold_in(key, pair), 1)
            return {s: x[0] for s, x in drawn.items()}

        return Draw(views.fixed_view(len(pairs), box), jax.vmap(noise)(pairs))

    def see(
        self, fields: dict[str, jax.Array], view: views.View, s: str, size: int = 0
    ) -> jax.Array:
        """One sensor's images, see `views.see`; of `image_size` unless said."""
        return views.see(
            fields,
            view,
            self.contract[s],
            size=size or self.image_size,
            grids=self.grids and self.grids[s],
            method=self.resampling,
        )

    def _noise(self, key: jax.Array, batch: int) -> dict[str, jax.Array]:
        return masking.draw_noise(key, batch, self.num_patches, self.mask_mode)

    def __call__(
        self,
        model: FusMAE,
        fields: dict[str, jax.Array],
        draw: Draw,
        weight: jax.Array | None = None,
        *,
        whole: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array], Outcome | None]:
        """Scores the model on a batch.

        Args:
            model: the autoencoder.
            fields: stored pixels by field name, native units, [B, H, W, C] each.
            draw: views and masks.
            weight: 0.0 for samples that are padding, [B]; None counts all.
            whole: whether the visible patches are wanted too.

        Returns:
            The loss, its parts `loss_s1` and `loss_s2`, and with `whole` what was seen.
        """
        images = {s: self.see(fields, draw.view, s) for s in SENSORS}
        keep = masking.num_visible(self.num_patches, self.mask_ratio)
        masks = {s: masking.mask_from_noise(draw.noise[s], keep) for s in SENSORS}
        redrawn = model(
            images, masks, draw.present, whole=whole or draw.present is not None
        )
        metrics, hidden = {}, {}
        for s in SENSORS:
            hidden[s], count = self._hidden(redrawn.patches[s], keep, draw, s)
            target, _, _ = losses.normalize_patches(
                redrawn.patches[s], self.normalize, self.contract[s].families
            )
            if weight is not None:
                count = count * weight[:, None]
            error = losses.hidden_error(redrawn.predicted[s], target, count)
            metrics[f"loss_{s}"] = error
        loss = sum(self.weights[s] * metrics[f"loss_{s}"] for s in SENSORS)
        if not whole:
            return loss, metrics, None
        shuffled = *redrawn, hidden
        return loss, metrics, Outcome(
            *({s: masking.put_back(x[s], masks[s]) for s in SENSORS} for x in shuffled)
        )

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
