"""The Fus-MAE encoder: patch embedding, early cross-attention fusion, joint blocks."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.errors import InputError
from fusmae_jax import attention, layers, patches
from fusmae_jax.masking import SENSORS
from fusmae_jax.products import Arithmetic

OTHER = {"s1": "s2", "s2": "s1"}

# What of a block is kept for the gradient instead of computed again, and how.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

# Which samples have a sensor, {sensor: [B] bool}; None where all have both.
Present = dict[str, jax.Array]


class XAttnEncoder(nnx.Module):
    """Early fusion in place of the first block: each sensor attends to the other.

    Two cross-attentions with weights of their own, s1 to s2 and s2 to s1; their
    results are added to the un-normalised tokens, then one MLP is shared by all.
    Rebuilt from descriptions of section 3.1 of the paper (arXiv 2401.02764). Where a
    sensor is absent, a learned token stands for it: attending to copies of one token
    gives that token's value, however many there are. It stays zero in a training that
    drops no sensor, and then adds the biases alone.
    """

    def __init__(self, dim: int, num_heads: int, *, arithmetic: Arithmetic, rngs):
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.norm1 = layers.per_sensor(lambda: layers.layer_norm(dim, rngs))
        self.attn = layers.per_sensor(lambda: layers.Attention(dim, num_heads, **kw))
        self.absent = layers.per_sensor(
            lambda: layers.token(nnx.initializers.zeros, dim, rngs)
        )
        self.norm2 = layers.layer_norm(dim, rngs)
        self.mlp = layers.Mlp(dim, **kw)

    def __call__(
        self, tokens: dict[str, jax.Array], present: Present | None = None
    ) -> jax.Array:
        """Fuses {sensor: [B, K, D]} into one sequence [B, K_s1 + K_s2, D]."""
        present = present or dict.fromkeys(SENSORS)
        y = {s: self.norm1[s](tokens[s]) for s in SENSORS}
        context = {
            s: layers.where_present(present[s], y[s], self.absent[s][...])
            for s in SENSORS
        }
        fused = [tokens[s] + self.attn[s](y[s], context[OTHER[s]]) for s in SENSORS]
        x = jnp.concatenate(fused, axis=1)
        return x + self.mlp(self.norm2(x))


class Encoded(NamedTuple):
    """What the encoder says of a batch.

    Attributes:
        tokens: {sensor: [B, K, D]}, in the order the patches were given. Those of an
            absent sensor are what the other one says of its places.
        summary: the global token, [B, D].
    """

    tokens: dict[str, jax.Array]
    summary: jax.Array


class Encoder(nnx.Module):
    """Embeds patches of both sensors and encodes them together.

    With `fuse_early` the first of `depth` blocks is an `XAttnEncoder`; without it all
    are ordinary blocks over the joint sequence, so that depth stays comparable. The
    global token joins after the XAttnEncoder (as in MultiMAE: at the end of the
    sequence, without a position).

    Any sample may lack a sensor. What is in its place is never read: a learned token
    stands there, at every place, to which no other token attends.
    """

    def __init__(
        self,
        *,
        bands: dict[str, int],
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        fuse_early: bool,
        arithmetic: Arithmetic,
        rngs: nnx.Rngs,
        remat: str = "none",
    ):
        if set(bands) != set(SENSORS) or min(bands.values()) < 1:
            raise InputError(
                f"Every sensor of {list(SENSORS)} needs at least one band, got {bands}."
            )
        if depth < 1:
            raise InputError(f"The encoder needs a block at least, got depth={depth}.")
        for value, allowed, name in (
            (arithmetic.attention, attention.IMPLEMENTATIONS, "attention"),
            (remat, tuple(REMAT), "remat"),
        ):
            if value not in allowed:
                raise InputError(f"{name} is {value!r}; choose one of {list(allowed)}.")
        self.side = patches.grid_side(image_size, patch_size)
        self.dim, self.remat, self.arithmetic = dim, remat, arithmetic
        self.head_width = layers.head_width(dim, num_heads)
        patches.sincos_2d(self.side, dim)  # refuses a width without positions, now
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.embed = nnx.Dict(
            {s: layers.Linear(patch_size**2 * bands[s], dim, **kw) for s in SENSORS}
        )
        self.fuse = XAttnEncoder(dim, num_heads, **kw) if fuse_early else None
        normal = nnx.initializers.normal(0.02)
        self.absent = layers.per_sensor(lambda: layers.token(normal, dim, rngs))
        self.global_token = layers.token(normal, dim, rngs)
        self.blocks = nnx.List(
            [layers.Block(dim, num_heads, **kw) for _ in range(depth - fuse_early)]
        )
        self.norm = layers.layer_norm(dim, rngs)

    def embed_patches(
        self,
        sensor: str,
        pixels: jax.Array,
        ids: jax.Array,
        present: jax.Array | None = None,
    ) -> jax.Array:
        """Embeds patches [B, K, E] that stand at grid places ids [B, K]."""
        code = jnp.asarray(patches.sincos_2d(self.side, self.dim))
        position = code.at[ids].get(mode="promise_in_bounds")
        # Pixels too, or one that is not finite would spoil the gradient.
        pixels = layers.where_present(present, pixels, 0.0)
        x = self.embed[sensor](pixels).astype(jnp.float32)
        x = layers.where_present(present, x, self.absent[sensor][...])
        return (x + position).astype(self.arithmetic.dtype)

    def __call__(
        self,
        pixels: dict[str, jax.Array],
        ids: dict[str, jax.Array],
        present: Present | None = None,
        *,
        last: int = 1,
        branches: jax.Array | None = None,
    ) -> Encoded:
        """Encodes patches of both sensors.

        Args:
            pixels: the patches, {sensor: [B, K, E]}.
            ids: their places in the grid, {sensor: [B, K]}.
            present: which samples have a sensor.
            last: how many of the last blocks' outputs are given, one behind the other
                in the channels: D becomes last * D.
            branches: for training, see `layers.drop_path`, one for each of `blocks`.
        """
        here = present or dict.fromkeys(SENSORS)
        tokens = {s: self.embed_patches(s, pixels[s], ids[s], here[s]) for s in SENSORS}
        if self.fuse is None:
            x = jnp.concatenate([tokens[s] for s in SENSORS], axis=1)
        else:
            x = self.fuse(tokens, present)
        summary = jnp.broadcast_to(self.global_token[...], (len(x), 1, self.dim))
        x = jnp.concatenate([x, summary.astype(x.dtype)], axis=1)
        k, n = tokens["s1"].shape[1], x.shape[1]
        # Once for all blocks; nobody attends to what is behind the global token.
        fill = attention.filling(self.arithmetic, n, self.head_width)
        x = jnp.pad(x, ((0, 0), (0, fill), (0, 0)))
        mask = present and jnp.concatenate(
            [
                jnp.repeat(present["s1"][:, None], k, axis=1),
                jnp.repeat(present["s2"][:, None], n - k - 1, axis=1),
                jnp.ones((len(x), 1 + fill), bool),
            ],
            axis=1,
        )
        outputs = []
        for i, block in enumerate(self.blocks):
            block = functools.partial(block, keys=n)
            if self.remat != "none":
                block = jax.checkpoint(block, policy=REMAT[self.remat])
            branch = None if branches is None else branches[i]
            x = block(x, mask, branch)
            outputs.append(x)
        # Behind no block at all there is still what went in.
        outputs = [self.norm(x) for x in (outputs or [x])[-last:]]
        x = outputs[0] if last == 1 else jnp.concatenate(outputs, axis=-1)
        return Encoded({"s1": x[:, :k], "s2": x[:, k : n - 1]}, x[:, n - 1])
