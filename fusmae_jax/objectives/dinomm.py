"""DINO-MM: a student learns what its own average over time says of other crops.

Wang, Albrecht and Zhu 2022 (arXiv 2204.05381), after DINO (Caron et al. 2021), by their
code. Both sensors are stacked; crops lack one of them at random. The teacher, an
average of the student over the steps, sees two large crops, the student these and
several small ones; the cross-entropy between what both say of many prototypes is taken
over all pairs of different crops.

As the original has it: the sizes, numbers and areas of crops, the chance that a sensor
is dropped, brightness and contrast, the head, temperatures, momenta, the rate.
Otherwise here: positions are fixed, crops have quarter turns too, an absent sensor is
the mean of its bands (0 in normalised units; black there), the gradient is clipped as a
whole, weight decay is constant, there is no stochastic depth, grey, blur or
solarisation, and the last layer of the head is trained from the first step on.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.config_fields import ask, check_rules, number, several, whole
from fusmae_jax import flops, inputs, patches
from fusmae_jax.inputs import SENSORS, Inputs
from fusmae_jax.models import dinomm
from fusmae_jax.objectives import comparison, networks
from fusmae_jax.objectives.comparison import Crops

# What a config may say of DINO-MM.
FIELDS = {
    **networks.FIELDS,
    **comparison.JITTER,
    "mask.drop_sensor": number(
        least=0.0, most=1.0, meaning="Chance that a crop lacks one of the sensors."
    ),
    "crops.local": whole(
        0,
        meaning="Small crops of each scene, beside two large ones of view.crop_scale.",
    ),
    "crops.local_size": whole(1, meaning="Side of the small crops in pixels."),
    "crops.local_scale": several(
        number(),
        length=2,
        twice=True,
        meaning="Least and greatest area of a small crop, as shares of the scene's.",
    ),
    "model.head_dim": whole(1, meaning="Width of the head's hidden layers."),
    "model.head_narrow": whole(
        1, meaning="Length of the vector that the head compares with prototypes."
    ),
    "model.prototypes": whole(2, meaning="Prototypes that the head compares with."),
    "loss.student_temperature": number(
        above=0.0, meaning="What the student's cosines are divided by."
    ),
    "loss.teacher_temperature": number(
        above=0.0, meaning="What the teacher's cosines are divided by."
    ),
    "loss.first_temperature": number(above=0.0, meaning="The same in the first step."),
    "loss.teacher_warmup": number(
        least=0.0,
        most=1.0,
        meaning="Share of the steps in which the teacher's temperature goes from the "
        "first to the other.",
    ),
    "loss.teacher_momentum": number(
        least=0.0,
        most=1.0,
        meaning="What stays of the teacher after the first step; it rises to 1 in the "
        "last as a cosine.",
    ),
    "loss.center_momentum": number(
        least=0.0,
        most=1.0,
        meaning="What stays after a step of the mean of what the teacher says, which "
        "is taken off.",
    ),
}

RULES = (
    (
        lambda c: c.crops.local_size <= c.model.image_size,
        "crops.local_size={c.crops.local_size} is larger than model.image_size="
        "{c.model.image_size}; lower it.",
    ),
)


def check(config) -> None:
    """Refuses what DINO-MM cannot work with, where each field alone fits.

    Raises:
        InputError: names the fields and their values.
    """
    comparison.check(config)
    if config.crops.local:
        ask(
            config,
            (patches.grid_side, "crops.local_size", "model.patch_size"),
            (inputs.check_crops, "crops.local_scale", "view.crop_ratio"),
        )
        check_rules(config, RULES)


def build(config, seen: Inputs, target: Mapping[str, Any]) -> "Objective":
    """The objective that a config describes, see `build.objective`."""
    return Objective(
        **networks.arguments(config, seen, target),
        jitter=config.crops.jitter,
        drop_sensor=config.mask.drop_sensor,
        local=config.crops.local,
        local_size=config.crops.local_size,
        local_scale=tuple(config.crops.local_scale),
        **config.loss,
    )


class Draw(NamedTuple):
    """Everything random about a batch; row i belongs to sample i.

    Attributes:
        large: the two crops that the teacher sees too.
        small: the others, None where there are none.
    """

    large: Crops
    small: Crops | None


@dataclasses.dataclass(frozen=True, eq=False)
class Objective(comparison.Comparison):
    """Self-distillation between crops.

    Attributes:
        jitter: see `comparison.draw_crops`.
        drop_sensor: chance that a crop lacks one of its sensors.
        local: number of small crops.
        local_size: their side in pixels.
        local_scale: their least and greatest area, as shares of the scene's.
        student_temperature, teacher_temperature: what cosines are divided by.
        first_temperature, teacher_warmup: the teacher's in the first step, and
            the share of the steps in which it goes over to the other.
        teacher_momentum: what stays of the teacher after the first step.
        center_momentum: what stays of the centre after a step.
        steps: of the run.
    """

    jitter: float = 0.4
    drop_sensor: float = 0.5
    local: int = 8
    local_size: int = 48
    local_scale: tuple[float, float] = (0.05, 0.4)
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    first_temperature: float = 0.04
    teacher_warmup: float = 0.0
    teacher_momentum: float = 0.996
    center_momentum: float = 0.9
    steps: int = 1

    network = dinomm.DINOMM
    kept = "extra/teacher"

    def lasting(self, steps: int) -> "Objective":
        """The same in a run of so many steps."""
        return dataclasses.replace(self, steps=steps)

    def init_extra(self, params: nnx.State) -> dict[str, Any]:
        """The teacher, which begins as the student, the centre, and steps taken."""
        return {
            "teacher": jax.tree.map(jnp.copy, params),
            "center": jnp.zeros(self.model["prototypes"]),
            "step": jnp.zeros((), jnp.int32),
        }

    def draw(self, key: jax.Array, batch: int) -> Draw:
        """Draws the crops of a training batch."""
        large_key, small_key = jax.random.split(key)
        how = dict(
            ratio=self.crop_ratio,
            turn=self.turn,
            jitter=self.jitter,
            drop_sensor=self.drop_sensor,
        )
        draw = comparison.draw_crops
        large = draw(large_key, batch, 2, scale=self.crop_scale, **how)
        small = None
        if self.local:
            small = draw(small_key, batch, self.local, scale=self.local_scale, **how)
        return Draw(large, small)

    def loss(
        self,
        model: dinomm.DINOMM,
        extra: dict[str, Any],
        fields: dict[str, jax.Array],
        draw: Draw,
        weight: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        """Mean cross-entropy of different crops, and the teacher's entropy beside it.

        That is 0 where the teacher always says the same prototype, and the logarithm of
        their number where it says all alike: the two ways to collapse.
        """
        teacher = nnx.merge(self.abstract[0], extra["teacher"])
        images = comparison.crop_images(self.inputs, fields, draw.large)
        present = self.present(images, draw.large.present)
        taught, said = teacher(images, present), [model(images, present)]
        if draw.small is not None:
            images = comparison.crop_images(
                self.inputs, fields, draw.small, self.local_size
            )
            said.append(model(images, self.present(images, draw.small.present)))
        logits = jnp.concatenate(said, axis=1) / self.student_temperature
        centered = taught - extra["center"][None, None]
        centered = centered / self.temperature(extra["step"])
        wanted = jax.nn.softmax(centered, axis=-1)
        entropy = (wanted * -jax.nn.log_softmax(centered, axis=-1)).sum(axis=-1)
        weight = jnp.ones(len(logits)) if weight is None else weight
        mean = lambda x: (x * weight).sum() / weight.sum()
        center = (taught.mean(axis=1) * weight[:, None]).sum(axis=0) / weight.sum()
        metrics = {"teacher_entropy": mean(entropy.mean(axis=1))}
        return mean(cross_entropy(wanted, logits)), metrics, center

    def temperature(self, step: jax.Array) -> jax.Array:
        """The teacher's, when so many steps have been taken."""
        warmup = max(self.teacher_warmup * self.steps, 1e-6)
        share = jnp.minimum(step / warmup, 1.0)
        first, last = self.first_temperature, self.teacher_temperature
        return jnp.where(share < 1.0, first + (last - first) * share, last)

    def momentum(self, step: jax.Array) -> jax.Array:
        """What stays of the teacher, when so many steps have been taken."""
        left = (1.0 + jnp.cos(jnp.pi * jnp.minimum(step / self.steps, 1.0))) / 2
        return 1.0 - (1.0 - self.teacher_momentum) * left

    def after(self, extra, params: nnx.State, aux: jax.Array, step: jax.Array):
        """Moves the teacher towards the student, and the centre to what it said."""
        move = lambda old, new, stays: stays * old + (1.0 - stays) * new
        stays = self.momentum(step)
        return {
            "teacher": jax.tree.map(
                lambda old, new: move(old, new, stays), extra["teacher"], params
            ),
            "center": move(extra["center"], aux, self.center_momentum),
            "step": step + 1,
        }

    def encoder(self) -> "Encoder":
        """The teacher's transformer."""
        return Encoder(self.inputs, self.model, self.drop_sensor > 0.0)

    def flops(self) -> int:
        """The student's forward and backward pass of all crops; the teacher's of two.

        With N patches of a crop, a head of widths D, H, H, W, K and `block` of
        `fusmae.train_step_flops`, a crop's forward pass is the sum of

            patch embedding     2 N P D
            encoder             L block(N + 1, N + 1, D)
            head                2 (D H + H^2 + H W + W K)

        The backward pass costs twice as much, but that pixels need no gradient.
        """
        model, p = self.model, self.patch_size
        widths = [model["dim"], model["head_dim"], model["head_dim"]]
        widths += [model["head_narrow"], model["prototypes"]]
        head = sum(flops.linear(1, a, b) for a, b in zip(widths, widths[1:]))
        how = model["bands"], p, model["dim"], model["depth"]
        large, embedding = comparison.vit_flops(*how, self.num_patches)
        total = 2 * (4 * (large + head) - embedding)
        if self.local:
            count = patches.grid_side(self.local_size, p) ** 2
            small, embedding = comparison.vit_flops(*how, count)
            total += self.local * (3 * (small + head) - embedding)
        return total


def cross_entropy(wanted: jax.Array, logits: jax.Array) -> jax.Array:
    """Mean over pairs of different crops of what the student lacks, [B].

    Args:
        wanted: the teacher's probabilities of the first T crops, [B, T, K].
        logits: of the student, of these and more crops, [B, C, K].
    """
    t, c = wanted.shape[1], logits.shape[1]
    total = jax.nn.logsumexp(logits, axis=-1)  # [B, C]
    # Of all crops but the teacher's own; without an array of all pairs.
    others = logits.sum(axis=1, keepdims=True) - logits[:, :t]
    agreed = (wanted * others).sum(axis=-1)
    rest = total.sum(axis=1, keepdims=True) - total[:, :t]
    return (rest - agreed).sum(axis=1) / (t * (c - 1))


class Encoder(networks.Encoder):
    """The transformer on stacked sensors, whose tokens are of both."""

    name, network = "DINO-MM", dinomm.DINOMM

    def __call__(self, params, images, present=None, *, branches=None, remat="none"):
        """Encodes images; see `protocol`."""
        network = self._merged(params, remat)
        found = network(images, present, branches=branches)
        return comparison.join(found, SENSORS)
