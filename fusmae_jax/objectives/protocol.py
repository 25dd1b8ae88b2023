"""The two protocols: an `Objective` is trained, an `Encoder` is judged and used.

Training, checkpoints, evaluation and whatever uses an encoder know these alone. A new
method is one file beside this one, with a class of its own, and `build`, which makes it
of a config; and a file in `models/` if its network is new.

Where `inputs.missing` says so, pixels of images may be NaN, as nothing was measured
there: see `Encoder.present` and `patches`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fusmae_jax import patches, streams
from fusmae_jax.inputs import SENSORS, Inputs, Present


class Objective:
    """What a model is trained for; frozen, without parameters.

    Attributes:
        inputs: how the data are seen.
        separable: whether the loss is a mean over samples. If not, the parts that
            `accumulate` cuts a batch into change its meaning, and a run has to go on
            with as many as it began with.
        redraws: whether it predicts images, see `redraw`.
        kept: where in the state the parameters lie that are judged and used: those that
            gradients train, or a tree like them in `extra`, "extra/teacher".
    """

    inputs: Inputs
    separable: bool = True
    redraws: bool = False
    kept: str = "params"

    def lasting(self, steps: int) -> "Objective":
        """The same in a run of so many steps, if it has schedules of its own."""
        del steps
        return self

    def init(self, rngs: nnx.Rngs | streams.Keys) -> nnx.Module:
        """The model, all of whose parameters are trained by gradients."""
        raise NotImplementedError

    @functools.cached_property
    def abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        """The model's graph definition and the shapes of its parameters."""
        make = lambda key: nnx.split(self.init(streams.Keys(key)))
        return jax.eval_shape(make, jax.random.key(0))

    def init_extra(self, params: nnx.State) -> Any:
        """What else is trained, but not by gradients: a teacher, a centre, a queue.

        Any tree of arrays, which is laid out by `sharding.RULES`, saved, and resumed
        with the parameters.
        """
        del params
        return ()

    def draw(self, key: jax.Array, batch: int) -> Any:
        """Draws everything random about a training batch.

        Returns:
            A tree of arrays [B, ...], of which row i belongs to sample i and depends on
            its place in the global batch, not on devices.
        """
        raise NotImplementedError

    def draw_fixed(self, key: jax.Array, pairs: jax.Array) -> Any:
        """The same for held-out pairs: views are fixed, row i depends on `pairs[i]`.

        Args:
            key: random key.
            pairs: number of each pair, [B].
        """
        raise NotImplementedError

    def loss(
        self,
        model: nnx.Module,
        extra,
        fields: dict[str, jax.Array],
        draw,
        weight: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        """Scores a model on a batch.

        Args:
            model: from `init`.
            extra: from `init_extra` or `after`.
            fields: stored pixels by field name, native units, [B, H, W, C] each.
            draw: from `draw`.
            weight: 0.0 for samples that are padding, [B]; None counts all.

        Returns:
            The loss; numbers to be logged beside it; and what `after` needs, () for
            nothing. All are means over samples.
        """
        raise NotImplementedError

    def after(self, extra, params: nnx.State, aux, step: jax.Array) -> Any:
        """What `extra` is after a step.

        Args:
            extra: before the step.
            params: after it.
            aux: from `loss`.
            step: how many steps came before.
        """
        del params, aux, step
        return extra

    def redraw(self, model: nnx.Module, fields: dict[str, jax.Array], draw) -> Any:
        """What the model predicts of every patch, a tree of arrays [B, ...]."""
        raise NotImplementedError

    def pictures(self, outcome) -> dict[str, dict[str, jax.Array]]:
        """Images of what `redraw` returned, in native units.

        Returns:
            For each sensor `target` and `prediction` [B, H, W, C], and `hidden`
            [B, H, W] bool.
        """
        raise NotImplementedError

    def floor(
        self, fields: dict[str, jax.Array], weight: jax.Array
    ) -> dict[str, jax.Array]:
        """Numbers of held-out pairs below which no model can be expected to come.

        Returns:
            `floor_<name>` for some `loss_<name>` that `loss` logs, means over samples.
        """
        del fields, weight
        return {}

    def encoder(self) -> "Encoder":
        """What is kept of the model, to be judged and used."""
        raise NotImplementedError

    def encoder_params(self, params: nnx.State) -> nnx.State:
        """The encoder's own of the model's parameters."""
        raise NotImplementedError

    def pixels_of(self, path: str) -> tuple[str, int] | None:
        """Which axis of a parameter counts pixels, that it is not taken for another's.

        Args:
            path: as `sharding.leaf_path` writes it.

        Returns:
            The sensor, and the axis along which its patches lie as `patches.patchify`
            makes them, P * P * C, bands fastest. None where no axis does.
        """
        raise NotImplementedError

    def advice(self) -> str:
        """What would make it faster on what it is compiled for; "" for nothing."""
        return ""

    def flops(self) -> float:
        """Matrix-product FLOPs of an image's forward and backward pass."""
        raise NotImplementedError


class Encoded(NamedTuple):
    """What an encoder says of a batch.

    Attributes:
        tokens: {sensor: [B, N, D]}, in the order of the image's patches.
        summary: one vector a sample, [B, D].
        blocks: what every block said, in their order, by name; the last is this one.
    """

    tokens: dict[str, jax.Array]
    summary: jax.Array
    blocks: Mapping[str, "Encoded"] = {}

    def last(self, count: int) -> "Encoded":
        """Outputs of the last `count` blocks, one behind the other: [..., count * D].

        Where there is no block at all there is still this one.
        """
        if count == 1 or not self.blocks:
            return self
        parts = list(self.blocks.values())[-count:]
        join = lambda xs: jnp.concatenate(xs, axis=-1)
        tokens = {s: join([part.tokens[s] for part in parts]) for s in SENSORS}
        return Encoded(tokens, join([part.summary for part in parts]))


class Encoder:
    """Whatever makes features of images: a network, or their statistics; frozen.

    Parameters are handed in by the caller, so that one encoder serves pretrained,
    random and fine-tuned ones.

    Attributes:
        name: what tables call it.
        inputs: how the data are seen.
        width: channels D of a token.
        depth: blocks, of which all outputs are known.
        patch_size: side of a patch in pixels.
        trained: whether it has parameters at all. If not, tokens and summary are
            measurements, each with a meaning and a scale of its own.
        summarizes: whether its training has asked the summary for anything.
        knows_one_sensor: whether its training has shown it one sensor alone.
        sensors: those that it reads; others are absent to it, whatever is there.
    """

    name: str
    inputs: Inputs
    width: int
    depth: int
    patch_size: int
    trained: bool = True
    summarizes: bool = True
    knows_one_sensor: bool = True
    sensors: tuple[str, ...] = SENSORS

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that decides what it says of images, but parameters, for a checksum."""
        raise NotImplementedError

    @property
    def reads(self) -> str:
        """Titles of the sensors that it reads, for sentences."""
        return " and ".join(self.inputs.contract[s].title for s in self.sensors)

    @property
    def side(self) -> int:
        """Patches along one side of an image."""
        return self.inputs.size // self.patch_size

    def init(self, rngs: nnx.Rngs) -> nnx.State:
        """Parameters that nothing has trained."""
        raise NotImplementedError

    def present(
        self, images: dict[str, jax.Array], here: Present | None
    ) -> Present | None:
        """What there is to read of images, of the sensors that are `here`, [B].

        Whoever encodes images or looks at their tokens asks here first.

        Returns:
            `here`, or where pixels may be missing which patches have any, [B, N]; never
            a sensor that it does not read.
        """
        if self.inputs.missing:
            here = patches.present(images, self.patch_size, here)
        if set(self.sensors) == set(SENSORS):
            return here
        if here is None:
            here = {s: jnp.ones(x.shape[0], bool) for s, x in images.items()}
        return {s: x if s in self.sensors else x & False for s, x in here.items()}

    def __call__(
        self,
        params: nnx.State,
        images: dict[str, jax.Array],
        present: Present | None = None,
        *,
        branches: jax.Array | None = None,
        remat: str = "none",
    ) -> Encoded:
        """Encodes images.

        Args:
            params: of the encoder.
            images: {sensor: [B, H, W, C]}, from `inputs`.
            present: which samples have a sensor, or which patches of it, as the method
                `present` says; what stands in the images elsewhere is not read. None
                where all have all.
            branches: for training, which branches of the blocks count, see
                `layers.drop_path`.
            remat: what of a block is computed again for the gradient, see `FusMAE`.
        """
        raise NotImplementedError

    def layer_of(self, path: str) -> int:
        """The layer that a parameter belongs to, for rates that fall with the depth.

        Args:
            path: as `sharding.leaf_path` writes it.

        Returns:
            0 for what first sees the images, 1 to `depth` for the blocks, and
            `depth + 1` for what comes after them.
        """
        raise NotImplementedError
