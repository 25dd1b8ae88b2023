"""CROMA's network: an encoder a sensor, one of both, and a decoder."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.errors import InputError
from fusmae_jax import patches
from fusmae_jax.inputs import SENSORS, Present
from fusmae_jax.models import layers
from fusmae_jax.models.products import Arithmetic

TEMPERATURE = 0.07  # that cosines are divided by at first


def slopes(heads: int) -> list[float]:
    """What a patch of distance costs each head, as ALiBi has it (Press et al. 2021).

    A geometric series from 2^(-8 / h) to 2^-8 for a power of two; for other numbers
    that of the one below, and every other one of that above.
    """
    whole = 2 ** math.floor(math.log2(heads))
    series = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    more = [2 ** (-8 * (i + 1) / (2 * whole)) for i in range(0, 2 * whole, 2)]
    return series + more[: heads - whole]


def distances(queries: jax.Array, keys: jax.Array, side: int) -> jax.Array:
    """Distances in patches between places [B, N] and [B, M] of a grid, [B, N, M]."""
    (r, c), (s, d) = (divmod(x.astype(jnp.float32), side) for x in (queries, keys))
    down, across = r[:, :, None] - s[:, None], c[:, :, None] - d[:, None]
    return jnp.sqrt(jnp.square(down) + jnp.square(across))


class Block(nnx.Module):
    """A pre-norm block whose attention fades with distance (2D-ALiBi).

    With `crosses` it attends to another sensor's tokens between its own and the MLP;
    one norm serves these and its own.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        crosses: bool = False,
        arithmetic: Arithmetic,
        rngs: nnx.Rngs,
    ):
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.norm1 = layers.layer_norm(dim, rngs)
        self.attn = layers.Attention(dim, num_heads, **kw)
        self.norm_cross = layers.layer_norm(dim, rngs) if crosses else None
        self.cross = layers.Attention(dim, num_heads, **kw) if crosses else None
        self.norm2 = layers.layer_norm(dim, rngs)
        self.mlp = layers.Mlp(dim, **kw)

    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array,
        mask: jax.Array | None,
        branches: jax.Array | None = None,
        context: jax.Array | None = None,
        context_bias: jax.Array | None = None,
        context_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Maps tokens [B, N, D] to tokens of the same type.

        Args:
            x: the tokens.
            bias: what is added to the scores, [B, h, N, N].
            mask: False for tokens that no other may attend to, [B, N].
            branches: what attentions and MLP count in each sample, [2, B]; see
                `layers.drop_path`.
            context: the other sensor's tokens [B, M, D], if it `crosses`.
            context_bias, context_mask: the same for these, [B, h, N, M] and [B, M].
        """

        def add(x, y, branch):
            if branches is not None:
                y = y * branches[branch, :, None, None]
            return (x + y).astype(x.dtype)

        y = self.norm1(x)
        x = add(x, self.attn(y, y, mask, bias=bias), 0)
        if self.cross is not None:
            y, z = self.norm_cross(x), self.norm_cross(context)
            x = add(x, self.cross(y, z, context_mask, bias=context_bias), 0)
        return add(x, self.mlp(self.norm2(x)), 1)


class Encoded(NamedTuple):
    """What the encoder says of a batch.

    Attributes:
        own: what each sensor's encoder says, {sensor: [B, K, D]}.
        joint: what the joint encoder says at the places of s1, [B, K, D].
        blocks: of each block of s2's encoder what it and s1's said by then, and of each
            joint one what it said for both; {sensor: [B, K, D]} by name.
    """

    own: dict[str, jax.Array]
    joint: jax.Array
    blocks: dict[str, dict[str, jax.Array]]


class Encoder(nnx.Module):
    """An encoder of `depth` blocks for s2, and of half as many for s1 and for both.

    Tokens have no code of their places: attention knows distances alone. The joint
    encoder goes on from the tokens of s1 and attends to those of s2. What is absent or
    was not measured is 0, the mean of the band; a patch of which nothing was measured
    is attended to by none.
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
        arithmetic: Arithmetic,
        rngs: nnx.Rngs,
        remat: str = "none",
    ):
        if remat not in layers.REMAT:
            raise InputError(f"remat is {remat!r}; choose one of {list(layers.REMAT)}.")
        if depth < 2:
            raise InputError(f"CROMA needs a depth of at least 2, got {depth}.")
        layers.head_width(dim, num_heads)
        self.side = patches.grid_side(image_size, patch_size)
        self.patch_size, self.num_heads, self.remat = patch_size, num_heads, remat
        self.arithmetic = arithmetic
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.embed = nnx.Dict(
            {s: layers.Linear(patch_size**2 * bands[s], dim, **kw) for s in SENSORS}
        )
        stack = lambda count, **more: nnx.List(
            [Block(dim, num_heads, **kw, **more) for _ in range(count)]
        )
        self.blocks = nnx.Dict({"s1": stack(depth // 2), "s2": stack(depth)})
        self.norms = layers.per_sensor(lambda: layers.layer_norm(dim, rngs))
        self.joint = stack(depth // 2, crosses=True)
        self.norm = layers.layer_norm(dim, rngs)

    def __call__(
        self,
        pixels: dict[str, jax.Array],
        ids: dict[str, jax.Array],
        present: Present | None = None,
        *,
        branches: jax.Array | None = None,
        joint: bool = True,
    ) -> Encoded:
        """Encodes patches.

        Args:
            pixels: {sensor: [B, K, E]}.
            ids: their places in the grid, {sensor: [B, K]}.
            present: which samples have a sensor, [B], or which of these patches show
                anything of it, [B, K]; pixels may then be NaN. None for all.
            branches: for training, see `layers.drop_path`; first those of s2's blocks,
                every other of which s1's share, then those of the joint ones.
            joint: whether to encode both together; else `joint` is what s1's says.
        """
        here = present or dict.fromkeys(SENSORS)
        mask = {
            s: x if x is not None and x.ndim == 2 else None for s, x in here.items()
        }
        bias = {s: self._bias(ids[s], ids[s]) for s in SENSORS}
        said, own = {}, {}
        depth = {s: len(self.blocks[s]) for s in SENSORS}
        for s in SENSORS:
            x = self._embed(s, pixels[s], here[s])
            said[s] = [x]
            every = {"s1": 2, "s2": 1}[s]
            for i, block in enumerate(self.blocks[s]):
                branch = None if branches is None else branches[every * (i + 1) - 1]
                x = self._run(block)(x, bias[s], mask[s], branch)
                said[s].append(x)
            own[s] = self.norms[s](x)
        blocks = {}
        for i in range(depth["s2"]):
            so_far = {"s1": said["s1"][min((i + 1) // 2, depth["s1"])]}
            so_far["s2"] = said["s2"][i + 1]
            blocks[f"block{i}"] = {s: self.norms[s](x) for s, x in so_far.items()}
        if not joint:
            return Encoded(own, own["s1"], blocks)
        x = own["s1"].astype(self.arithmetic.dtype)
        context = own["s2"].astype(self.arithmetic.dtype)
        across = self._bias(ids["s1"], ids["s2"])
        for i, block in enumerate(self.joint):
            branch = None if branches is None else branches[depth["s2"] + i]
            x = self._run(block)(
                x, bias["s1"], mask["s1"], branch, context, across, mask["s2"]
            )
            blocks[f"joint{i}"] = dict.fromkeys(SENSORS, self.norm(x))
        return Encoded(own, self.norm(x), blocks)

    def encode(
        self,
        images: dict[str, jax.Array],
        present: Present | None = None,
        *,
        branches: jax.Array | None = None,
    ) -> Encoded:
        """Encodes whole images {sensor: [B, H, W, C]}, nothing hidden."""
        pixels = {s: patches.patchify(images[s], self.patch_size) for s in SENSORS}
        everything = jnp.arange(self.side**2)[None]
        ids = {s: jnp.broadcast_to(everything, pixels[s].shape[:2]) for s in SENSORS}
        return self(pixels, ids, present, branches=branches)

    def _run(self, block: Block):
        if self.remat == "none":
            return block
        return jax.checkpoint(block, policy=layers.REMAT[self.remat])

    def _bias(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        steep = jnp.array(slopes(self.num_heads))[None, :, None, None]
        return -steep * distances(queries, keys, self.side)[:, None]

    def _embed(self, s: str, pixels: jax.Array, here: jax.Array | None) -> jax.Array:
        # Pixels too, or one that is not finite would spoil the gradient.
        pixels = layers.where_present(here, pixels, 0.0)
        if here is not None and here.ndim == 2:
            pixels = jnp.where(jnp.isnan(pixels), 0.0, pixels)
        return self.embed[s](pixels)


class Contrast(nnx.Module):
    """Makes vectors of both sensors' tokens that are to be told apart by sample."""

    def __init__(self, dim: int, *, arithmetic: Arithmetic, rngs):
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.norms = layers.per_sensor(lambda: layers.layer_norm(dim, rngs))
        self.mlps = layers.per_sensor(lambda: layers.Mlp(dim, **kw))
        self.project = layers.per_sensor(lambda: layers.Linear(dim, dim, **kw))
        self.scale = nnx.Param(jnp.log(jnp.full((1,), 1 / TEMPERATURE)))

    def __call__(
        self, tokens: dict[str, jax.Array], shown: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Maps {sensor: [B, K, D]} to vectors of length 1, {sensor: [B, D]}.

        Those tokens are averaged of which `shown` [B, K] is 1.0, not 0.0.
        """
        found = {}
        for s, x in tokens.items():
            count = jnp.maximum(shown[s].sum(axis=1, keepdims=True), 1.0)
            x = (x * shown[s][..., None]).sum(axis=1) / count
            x = self.mlps[s](self.norms[s](x)[:, None])
            x = self.project[s](x)[:, 0].astype(jnp.float32)
            square = jnp.square(x).sum(axis=-1, keepdims=True)
            found[s] = x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
        return found


class Decoder(nnx.Module):
    """Redraws both sensors' patches from joint tokens at the places of s1."""

    def __init__(
        self,
        *,
        bands: dict[str, int],
        side: int,
        patch_size: int,
        encoder_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        arithmetic: Arithmetic,
        rngs: nnx.Rngs,
    ):
        self.side, self.dim, self.arithmetic = side, dim, arithmetic
        patches.check_width(dim)
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.bridge = layers.Linear(encoder_dim, dim, **kw)
        self.mask_token = layers.token(nnx.initializers.normal(0.02), dim, rngs)
        self.blocks = nnx.List(
            [layers.Block(dim, num_heads, **kw) for _ in range(depth)]
        )
        self.norm = layers.layer_norm(dim, rngs)
        self.predict = nnx.Dict(
            {s: layers.Linear(dim, patch_size**2 * bands[s], **kw) for s in SENSORS}
        )

    def __call__(
        self, tokens: jax.Array, masks: dict[str, patches.Mask]
    ) -> dict[str, jax.Array]:
        """Predicts patches, {sensor: [B, M, E]} float32, see `Outcome`.

        Tokens stay in the order of s1's mask: attention does not mind.
        """
        b, hidden = masks["s1"].hidden.shape
        blanks = jnp.broadcast_to(self.mask_token[...], (b, hidden, self.dim))
        x = jnp.concatenate([self.bridge(tokens).astype(jnp.float32), blanks], axis=1)
        code = jnp.asarray(patches.sincos_2d(self.side, self.dim))
        x = x + code.at[masks["s1"].order].get(mode="promise_in_bounds")
        x = x.astype(self.arithmetic.dtype)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        wanted = {"s1": x[:, -hidden:], "s2": x}
        return {s: self.predict[s](x).astype(jnp.float32) for s, x in wanted.items()}


class Outcome(NamedTuple):
    """What the network says in training; None for what was not asked for.

    Attributes:
        vectors: of length 1, {sensor: [B, D]}.
        scale: what their products are multiplied by, [1].
        predicted: the hidden patches of s1, [B, N - K, E], and all of s2 in the order
            of s1's mask, [B, N, E].
    """

    vectors: dict[str, jax.Array] | None
    scale: jax.Array | None
    predicted: dict[str, jax.Array] | None


class CROMA(nnx.Module):
    """What is trained.

    Args:
        bands: number of bands by sensor, {"s1": 2, "s2": 12}.
        image_size, patch_size, dim, depth, num_heads: see `Encoder`.
        decoder_dim, decoder_depth, decoder_heads: of the decoder.
        dtype, attention, remat, platform, devices: see `FusMAE`.
        rngs: key of the initial parameters.
    """

    def __init__(
        self,
        *,
        bands: dict[str, int],
        image_size: int = 112,
        patch_size: int = 8,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 16,
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        decoder_heads: int = 8,
        dtype: str = "float32",
        attention: str = "auto",
        remat: str = "none",
        platform: str = "",
        devices: int = 1,
        rngs: nnx.Rngs,
    ):
        kw = dict(arithmetic=Arithmetic(dtype, platform, devices, attention), rngs=rngs)
        self.encoder = Encoder(
            bands=bands,
            image_size=image_size,
            patch_size=patch_size,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            remat=remat,
            **kw,
        )
        self.contrast = Contrast(dim, **kw)
        self.decoder = Decoder(
            bands=bands,
            side=self.encoder.side,
            patch_size=patch_size,
            encoder_dim=dim,
            dim=decoder_dim,
            depth=decoder_depth,
            num_heads=decoder_heads,
            **kw,
        )

    @property
    def num_patches(self) -> int:
        """Patches of one sensor's image."""
        return self.encoder.side**2

    def __call__(
        self,
        pixels: dict[str, jax.Array],
        masks: dict[str, patches.Mask],
        present: Present | None = None,
        *,
        parts: Iterable[str] = ("contrast", "reconstruct"),
    ) -> Outcome:
        """Encodes the visible patches, compares them, and redraws the hidden ones.

        Args:
            pixels: all patches, {sensor: [B, N, E]}.
            masks: which of them are visible, as many of both sensors.
            present: which show anything, {sensor: [B, N]}; None for all.
            parts: what is asked for.
        """
        ids = {s: mask.visible for s, mask in masks.items()}
        visible = {s: patches.take(pixels[s], ids[s]) for s in SENSORS}
        if present is not None:
            present = {s: patches.take(present[s], ids[s]) for s in SENSORS}
        found = self.encoder(visible, ids, present, joint="reconstruct" in parts)
        vectors = scale = predicted = None
        if "contrast" in parts:
            shown = {
                s: jnp.ones(ids[s].shape) if present is None else 1.0 * present[s]
                for s in SENSORS
            }
            vectors = self.contrast(found.own, shown)
            scale = jnp.exp(self.contrast.scale[...])
        if "reconstruct" in parts:
            predicted = self.decoder(found.joint, masks)
        return Outcome(vectors, scale, predicted)
