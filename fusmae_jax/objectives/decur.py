"""DeCUR: what both sensors say is made alike in some dimensions, and apart in others.

Wang, Albrecht, Braham, Liu, Xiong and Zhu 2023 (arXiv 2309.05300), after Barlow Twins
(Zbontar et al. 2021), by their code. Each sensor has a transformer, whose global token
is projected. Over a batch the dimensions of the projections of two crops correlate:
within a sensor the matrix is to be the unit matrix; between the sensors it is to be so
in the common dimensions, and zero in the others, which are unique to each sensor.

As the original has it: crops of the sensors are drawn apart, brightness and contrast
change of optics alone, the first crops are those that are compared across sensors, the
loss weighs all three terms alike, and one projector serves both sensors (there are two
in the authors' code, made of the same layers). Otherwise here: patches of 8 pixels, so
that there are as many as in Fus-MAE, from random parameters instead of ImageNet's;
positions are fixed, crops have quarter turns too, and there is no grey, blur or
solarisation. The loss is of the whole batch: with `accumulate`, of each of its parts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.config_fields import check_rules, number, whole
from fusmae_jax import flops
from fusmae_jax.inputs import SENSORS, Inputs
from fusmae_jax.models import decur
from fusmae_jax.objectives import comparison, networks, protocol
from fusmae_jax.objectives.comparison import Crops

# What a config may say of DeCUR.
FIELDS = {
    **networks.FIELDS,
    **comparison.JITTER,
    "model.projector_dim": whole(2, meaning="Dimensions of the projections."),
    "loss.common": whole(
        0, meaning="How many of them are common to both sensors; others are unique."
    ),
    "loss.redundancy": number(
        least=0.0, meaning="Weight of what different dimensions share."
    ),
}

RULES = (
    (
        lambda c: c.loss.common <= c.model.projector_dim,
        "loss.common={c.loss.common} are more dimensions than model.projector_dim="
        "{c.model.projector_dim}; lower it.",
    ),
)


def check(config) -> None:
    """Refuses what DeCUR cannot work with, where each field alone fits.

    Raises:
        InputError: names the fields and their values.
    """
    comparison.check(config)
    check_rules(config, RULES)


def build(config, seen: Inputs, target: Mapping[str, Any]) -> "Objective":
    """The objective that a config describes, see `build.objective`."""
    known = networks.arguments(config, seen, target)
    return Objective(**known, jitter=config.crops.jitter, **config.loss)


@dataclasses.dataclass(frozen=True, eq=False)
class Objective(comparison.Comparison):
    """Correlations of two crops of each sensor.

    Attributes:
        jitter: of optics, see `comparison.draw_crops`.
        common: dimensions that are common to both sensors, the first ones.
        redundancy: weight of what different dimensions share.
    """

    jitter: float = 0.4
    common: int = 7168
    redundancy: float = 0.0051

    network = decur.DeCUR
    separable = False

    def draw(self, key: jax.Array, batch: int) -> dict[str, Crops]:
        """Draws two crops of each sensor, {sensor: Crops}."""
        how = dict(scale=self.crop_scale, ratio=self.crop_ratio, turn=self.turn)
        jitter = {"s1": 0.0, "s2": self.jitter}
        return {
            s: comparison.draw_crops(k, batch, 2, jitter=jitter[s], **how)
            for s, k in zip(SENSORS, jax.random.split(key, len(SENSORS)))
        }

    def loss(
        self,
        model: decur.DeCUR,
        extra,
        fields: dict[str, jax.Array],
        draw: dict[str, Crops],
        weight: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array], tuple]:
        """A third of each sensor's own term and of the one between them.

        A crop of which nothing was measured does not count.
        """
        del extra
        said, counts = {}, {}
        for s in SENSORS:
            seen = dataclasses.replace(
                self.inputs, contract={s: self.inputs.contract[s]}
            )
            images = comparison.crop_images(seen, fields, draw[s])
            present = self.present(images, None)
            count = jnp.ones(images[s].shape[:2])
            if weight is not None:
                count = count * weight[:, None]
            if present is not None:
                count = count * present[s].any(axis=2)
            here = None if present is None else present[s]
            said[s], counts[s] = model(s, images[s], here, count), count
        metrics = {}
        for s in SENSORS:
            both = counts[s].prod(axis=1)
            within, _ = correlation_errors(*said[s], both, self.redundancy)
            metrics[f"loss_{s}"] = within
        both = counts["s1"][:, 0] * counts["s2"][:, 0]
        first = (said[s][0] for s in SENSORS)
        alike, apart = correlation_errors(*first, both, self.redundancy, self.common)
        metrics |= {"loss_common": alike, "loss_unique": apart}
        loss = metrics["loss_s1"] + metrics["loss_s2"] + (alike + apart) / 2
        return loss / 3, metrics, ()

    def encoder(self) -> "Encoder":
        """Both transformers."""
        return Encoder(self.inputs, self.model)

    def flops(self) -> int:
        """The forward and backward pass of two crops of each sensor.

        With N patches of a crop, P values of a sensor's in a patch, projections of K
        dimensions and `block` of `fusmae.train_step_flops`, the forward pass is the sum
        of

            patch embedding     2 N P D                    for each of four crops
            encoder             L block(N + 1, N + 1, D)   likewise
            projector           2 (D K + 2 K^2)            likewise
            correlations        2 K^2                      three times

        The backward pass costs twice as much, but that pixels need no gradient.
        """
        model, k = self.model, self.model["projector_dim"]
        projector = flops.linear(1, model["dim"], k)
        projector += (decur.DEPTH - 1) * flops.linear(1, k, k)
        total = 3 * 3 * flops.linear(1, k, k)
        for s, count in model["bands"].items():
            how = {s: count}, self.patch_size, model["dim"], model["depth"]
            forward, embedding = comparison.vit_flops(*how, self.num_patches)
            total += 2 * (3 * (forward + projector) - embedding)
        return total


def correlation_errors(
    one: jax.Array,
    other: jax.Array,
    weight: jax.Array,
    redundancy: float,
    common: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """How far the correlations of dimensions over a batch are from what is wanted.

    Args:
        one, other: projections [B, K] of the same samples.
        weight: how much each sample counts, [B].
        redundancy: weight of correlations of different dimensions.
        common: how many dimensions, the first, are to correlate by 1 with their like;
            the others by 0. None for all.

    Returns:
        Sums of squares, of the common dimensions among themselves and of the others
        among themselves.
    """
    one, other = (decur.standardize(x, weight) for x in (one, other))
    share = weight / jnp.maximum(weight.sum(), 1.0)
    matrix = jnp.einsum("bi,bj->ij", one * share[:, None], other)
    k = len(matrix)
    common = k if common is None else common
    same = jnp.eye(k, dtype=bool)
    shared = jnp.arange(k) < common
    error = jnp.square(matrix - (same & shared[None]))
    error = jnp.where(same, error, redundancy * error)
    alike = shared[:, None] & shared[None]
    apart = ~shared[:, None] & ~shared[None]
    return jnp.where(alike, error, 0.0).sum(), jnp.where(apart, error, 0.0).sum()


class Encoder(networks.Encoder):
    """A transformer for each sensor, which know nothing of each other.

    The summary is the mean of the global tokens of what is there. The original's
    evaluations put both sensors' features one behind the other, as `features.pool`
    does with "sensors". Tokens of an absent sensor are zeros.
    """

    name, network = "DeCUR", decur.DeCUR

    def __call__(self, params, images, present=None, *, branches=None, remat="none"):
        """Encodes images; see `protocol`."""
        networks, found = nnx.merge(self._graphdef, params), {}
        for s in SENSORS:
            networks[s].remat = remat  # whoever's that wants gradients now
            found[s] = networks[s](images, present, branches=branches)
        there = None
        if present is not None:
            there = {
                s: x.reshape(x.shape[0], -1).any(axis=1)[:, None]
                for s, x in present.items()
            }
        blocks = {
            name: join({s: found[s].blocks[name] for s in SENSORS}, there)
            for name in found["s1"].blocks
        }
        return join(found, there)._replace(blocks=blocks)


def join(found, there: Mapping[str, jax.Array] | None) -> protocol.Encoded:
    """What transformers say, {sensor: vit.Encoded}, of what is there, [B, 1]."""
    tokens = {s: found[s].tokens for s in SENSORS}
    summaries = {s: found[s].summary for s in SENSORS}
    if there is None:
        return protocol.Encoded(tokens, sum(summaries.values()) / len(summaries))
    tokens = {s: jnp.where(there[s][..., None], x, 0.0) for s, x in tokens.items()}
    total = sum(jnp.where(there[s], x, 0.0) for s, x in summaries.items())
    count = sum(x.astype(jnp.float32) for x in there.values())
    return protocol.Encoded(tokens, total / jnp.maximum(count, 1.0))
