"""Fus-MAE: early fusion, joint encoder, feature-level fusion, a decoder a sensor."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.errors import InputError
from fusmae_jax import patches
from fusmae_jax.inputs import SENSORS, Present
from fusmae_jax.models import attention, decoders, layers
from fusmae_jax.models.products import Arithmetic

FEATURE_QUERIES = ("visible", "all")
GLOBAL_TOKENS = ("encoder", "decoders")
OTHER = {"s1": "s2", "s2": "s1"}


class CrossAttention(nnx.Module):
    """Each sensor's tokens attend to the other's; no weights are shared.

    Patches that are absent are overlooked. Where a sensor is absent as a whole there
    would be nothing to attend to: its learned token then stands at all its places.
    Attending to copies of one token gives that token's value, however many there are.
    It stays zero in a training that drops no sensor, and then adds the biases alone.
    """

    def __init__(self, dim: int, num_heads: int, *, arithmetic: Arithmetic, rngs):
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.norm1 = layers.per_sensor(lambda: layers.layer_norm(dim, rngs))
        self.attn = layers.per_sensor(lambda: layers.Attention(dim, num_heads, **kw))
        self.absent = layers.per_sensor(
            lambda: layers.token(nnx.initializers.zeros, dim, rngs)
        )

    def attend(
        self, tokens: dict[str, jax.Array], present: Present | None
    ) -> dict[str, jax.Array]:
        """Adds to tokens {sensor: [B, K, D]} what they read in the other sensor's.

        Args:
            tokens: not normalised.
            present: which samples have a sensor, or show which of these K patches.
        """
        present = present or dict.fromkeys(SENSORS)
        y = {s: self.norm1[s](tokens[s]) for s in SENSORS}
        context = {
            s: layers.where_present(present[s], y[s], self.absent[s][...])
            for s in SENSORS
        }
        mask = {
            s: here | ~here.any(axis=1, keepdims=True)
            for s, here in present.items()
            if here is not None and here.ndim == 2
        }
        read = lambda s, other: self.attn[s](y[s], context[other], mask.get(other))
        return {s: tokens[s] + read(s, OTHER[s]) for s in SENSORS}


class XAttnEncoder(CrossAttention):
    """Early fusion in place of the first block: each sensor attends to the other.

    Two cross-attentions with weights of their own, s1 to s2 and s2 to s1; their
    results are added to the un-normalised tokens, then one MLP is shared by all.
    Rebuilt from descriptions of section 3.1 of the paper (arXiv 2401.02764).
    """

    def __init__(self, dim: int, num_heads: int, *, arithmetic: Arithmetic, rngs):
        super().__init__(dim, num_heads, arithmetic=arithmetic, rngs=rngs)
        self.norm2 = layers.layer_norm(dim, rngs)
        self.mlp = layers.Mlp(dim, arithmetic=arithmetic, rngs=rngs)

    def __call__(
        self, tokens: dict[str, jax.Array], present: Present | None = None
    ) -> jax.Array:
        """Fuses {sensor: [B, K, D]} into one sequence [B, K_s1 + K_s2, D]."""
        x = self.attend(tokens, present)
        x = jnp.concatenate([x[s] for s in SENSORS], axis=1)
        return x + self.mlp(self.norm2(x))


class Encoded(NamedTuple):
    """What the encoder says of a batch.

    Attributes:
        tokens: {sensor: [B, K, D]}, in the order the patches were given. Those of an
            absent sensor are what the other one says of its places.
        summary: the global token, [B, D].
        blocks: what each block said, by name, the last of which `tokens` and `summary`
            are read from, see `Encoder.read`.
    """

    tokens: dict[str, jax.Array]
    summary: jax.Array
    blocks: dict[str, jax.Array]


class Encoder(nnx.Module):
    """Embeds patches of both sensors and encodes them together.

    With `fuse_early` the first of `depth` blocks is an `XAttnEncoder`; without it all
    are ordinary blocks over the joint sequence, so that depth stays comparable. The
    global token joins after the XAttnEncoder (as in MultiMAE: at the end of the
    sequence, without a position).

    Any sample may lack a sensor, or patches of it. What is in their place is never
    read: a learned token stands there, to which no other token attends.
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
        layers.check_encoder(bands, SENSORS, depth, arithmetic, remat)
        self.side = patches.grid_side(image_size, patch_size)
        self.patch_size = patch_size
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
        """Embeds patches [B, K, E] that stand at grid places ids [B, K].

        Where patches are present one by one, their missing pixels count as the mean.
        """
        # Pixels too, or one that is not finite would spoil the gradient.
        pixels = layers.where_present(present, pixels, 0.0)
        if present is not None and present.ndim == 2:
            pixels = jnp.where(jnp.isnan(pixels), 0.0, pixels)
        x = self.embed[sensor](pixels).astype(jnp.float32)
        x = layers.where_present(present, x, self.absent[sensor][...])
        x = x + patches.positions(self.side, self.dim, ids)
        return x.astype(self.arithmetic.dtype)

    def __call__(
        self,
        pixels: dict[str, jax.Array],
        ids: dict[str, jax.Array],
        present: Present | None = None,
        *,
        branches: jax.Array | None = None,
    ) -> Encoded:
        """Encodes patches of both sensors.

        Args:
            pixels: the patches, {sensor: [B, K, E]}.
            ids: their places in the grid, {sensor: [B, K]}.
            present: which samples have a sensor, [B], or which of these patches
                [B, K].
            branches: for training, see `layers.drop_path`, one for each of `blocks`.
        """
        here = present or dict.fromkeys(SENSORS)
        tokens = {s: self.embed_patches(s, pixels[s], ids[s], here[s]) for s in SENSORS}
        if self.fuse is None:
            x = jnp.concatenate([tokens[s] for s in SENSORS], axis=1)
        else:
            x = self.fuse(tokens, present)
        k = tokens["s1"].shape[1]
        mask = present and jnp.concatenate(
            [patches.spread(present[s], tokens[s].shape[1]) for s in SENSORS], axis=1
        )
        blocks = self.through_blocks(x, mask, branches=branches)
        *_, last = blocks.values()
        tokens, summary = self.read(last, (k, x.shape[1]))
        return Encoded(tokens, summary, blocks)

    def through_blocks(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        branches: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """What each block says of tokens and the global token, by name.

        Args:
            x: the tokens, [B, n, D].
            mask: False for those that no other may attend to, [B, n].
            branches: see `__call__`.

        Returns:
            The tokens, and the global token behind them, [B, n + 1, D] each; of no
            block at all, what would go into one.
        """
        rows, n = x.shape[0], x.shape[1] + 1  # rows may be a symbol, see `export`
        summary = jnp.broadcast_to(self.global_token[...], (rows, 1, self.dim))
        x = jnp.concatenate([x, summary.astype(x.dtype)], axis=1)
        if mask is not None:
            mask = jnp.concatenate([mask, jnp.ones((rows, 1), bool)], axis=1)
        blocks = layers.run_blocks(
            self.blocks,
            x,
            mask,
            branches=branches,
            fill=attention.filling(self.arithmetic, n, self.head_width),
            remat=self.remat,
        )
        return blocks or {"fused": x}

    def read(
        self, x: jax.Array, ends: tuple[int, int]
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Tokens and global token of a block's output, normalised, see `Encoded`.

        Args:
            x: the output, [B, n, D].
            ends: how many of its tokens are of s1, and of both sensors.
        """
        x, (k, n) = self.norm(x), ends
        return {"s1": x[:, :k], "s2": x[:, k:n]}, x[:, n]

    def encode(
        self,
        images: dict[str, jax.Array],
        present: Present | None = None,
        *,
        branches: jax.Array | None = None,
    ) -> Encoded:
        """Encodes whole images {sensor: [B, H, W, C]}, nothing hidden.

        A sample may lack a sensor, or patches of it: `present` says what it has, and
        whatever stands elsewhere is not read. For `branches` see `__call__`.
        """
        pixels = {s: patches.patchify(images[s], self.patch_size) for s in SENSORS}
        everything = jnp.arange(self.side**2)[None]
        ids = {s: jnp.broadcast_to(everything, pixels[s].shape[:2]) for s in SENSORS}
        return self(pixels, ids, present, branches=branches)


class XAttnDecoder(CrossAttention):
    """Feature-level fusion: each sensor's tokens attend to the other's, then an MLP.

    Works on visible tokens at encoder width, between the encoder and the decoders.
    Both sensors read the tokens as they came in. Rebuilt from descriptions of section
    3.2, equations 10 and 11, of the paper.
    """

    def __init__(self, dim: int, num_heads: int, *, arithmetic: Arithmetic, rngs):
        super().__init__(dim, num_heads, arithmetic=arithmetic, rngs=rngs)
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        self.norm2 = layers.per_sensor(lambda: layers.layer_norm(dim, rngs))
        self.mlp = layers.per_sensor(lambda: layers.Mlp(dim, **kw))

    def __call__(
        self, tokens: dict[str, jax.Array], present: Present | None = None
    ) -> dict[str, jax.Array]:
        """Maps tokens {sensor: [B, K, D]} to tokens of the same shapes."""
        x = self.attend(tokens, present)
        return {s: x[s] + self.mlp[s](self.norm2[s](x[s])) for s in SENSORS}


class FusMAE(nnx.Module):
    """Encodes the visible patches of both sensors together and redraws the hidden.

    The paper's authors published no code. What is known of the architecture, what
    is chosen here and why is listed in docs/model.md.

    Args:
        bands: number of bands by sensor, {"s1": 2, "s2": 12}.
        image_size: side of the square images in pixels.
        patch_size: side of a patch in pixels.
        dim: encoder width D.
        depth: encoder blocks, the XAttnEncoder counted in.
        num_heads: attention heads of the encoder.
        fuse_early: whether the first block is an XAttnEncoder.
        fuse_features: whether an XAttnDecoder stands before the decoders.
        decoder_dim: width of the per-sensor decoders.
        decoder_depth: blocks of each decoder.
        decoder_heads: attention heads of the decoders.
        global_token: who sees the global token, one of `GLOBAL_TOKENS`: the "encoder"
            alone, and then pretraining never asks its output for anything; or the
            "decoders" too, as in MAE and MultiMAE.
        feature_queries: which places ask in the fusion at feature level, one of
            `FEATURE_QUERIES`: the "visible" ones, before the decoders; or "all",
            within them, as in MultiMAE, which is another way to read the paper.
        target_dim: how many values of a patch the decoders predict; 0 for its pixels.
        dtype: of matrix products; parameters stay float32.
        attention: who computes it, see `attention.choose`.
        remat: what of an encoder block is computed again for the gradient: "none",
            "dots" (all but the products of its linear layers) or "full"; less memory,
            more time.
        platform, devices: what programs are compiled for, see `products.Arithmetic`.
        rngs: key of the initial parameters.

    Raises:
        InputError: sizes that do not divide, with the numbers; or dtype is "auto".
    """

    def __init__(
        self,
        *,
        bands: dict[str, int],
        image_size: int = 112,
        patch_size: int = 8,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        fuse_early: bool = True,
        fuse_features: bool = True,
        decoder_dim: int = 256,
        decoder_depth: int = 2,
        decoder_heads: int = 8,
        global_token: str = "encoder",
        feature_queries: str = "visible",
        target_dim: int = 0,
        dtype: str = "float32",
        attention: str = "auto",
        remat: str = "none",
        platform: str = "",
        devices: int = 1,
        rngs: nnx.Rngs,
    ):
        arithmetic = Arithmetic(dtype, platform, devices, attention)
        kw = dict(arithmetic=arithmetic, rngs=rngs)
        for name, value, known in (
            ("global_token", global_token, GLOBAL_TOKENS),
            ("feature_queries", feature_queries, FEATURE_QUERIES),
        ):
            if value not in known:
                raise InputError(f"{name} is {value!r}; choose one of {list(known)}.")
        self.patch_size, self.global_token = patch_size, global_token
        self.encoder = Encoder(
            bands=bands,
            image_size=image_size,
            patch_size=patch_size,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            fuse_early=fuse_early,
            remat=remat,
            **kw,
        )
        within = fuse_features and feature_queries == "all"
        before = fuse_features and not within
        self.fuse = XAttnDecoder(dim, num_heads, **kw) if before else None
        self.all_ask = within

        def decoder(s: str) -> nnx.Module:
            sizes = dict(
                values=target_dim or patch_size**2 * bands[s],
                side=self.encoder.side,
                encoder_dim=dim,
                dim=decoder_dim,
                depth=decoder_depth,
                num_heads=decoder_heads,
            )
            if within:
                return decoders.QueryDecoder(sensor=s, **sizes, **kw)
            return decoders.SensorDecoder(**sizes, **kw)

        self.decoders = nnx.Dict({s: decoder(s) for s in SENSORS})

    @property
    def num_patches(self) -> int:
        """Patches of one sensor's image."""
        return self.encoder.side**2

    def patchify(self, images: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Splits images {sensor: [B, H, W, C]} into patches {sensor: [B, N, E]}."""
        return {s: patches.patchify(images[s], self.patch_size) for s in SENSORS}

    def __call__(
        self,
        images: dict[str, jax.Array],
        masks: dict[str, patches.Mask],
        present: Present | None = None,
        *,
        whole: bool = False,
    ) -> decoders.Redrawn:
        """Hides what `masks` say of images {sensor: [B, H, W, C]}, and redraws it.

        Where a sensor is absent it is hidden whole, and redrawn from the other alone;
        so is a patch that is.

        Args:
            images: the images.
            masks: which of their patches are hidden, by sensor.
            present: which samples have a sensor, [B], or which patches [B, N].
            whole: whether to redraw the visible patches too, M = N of them in the
                order of the masks; else the hidden ones, M = N - K.
        """
        pixels = self.patchify(images)
        ids = {s: masks[s].visible for s in SENSORS}
        # One gather a sensor: the visible patches come first, the targets behind them.
        pixels = {s: patches.take(pixels[s], masks[s].order) for s in SENSORS}
        k = {s: ids[s].shape[1] for s in SENSORS}
        # Hidden patches are dropped before they are embedded, let alone attended to.
        visible = {s: pixels[s][:, : k[s]] for s in SENSORS}
        present = present and {
            s: patches.take_present(here, ids[s]) for s, here in present.items()
        }
        tokens, summary, _ = self.encoder(visible, ids, present)
        summary = summary if self.global_token == "decoders" else None
        if self.fuse is not None:
            tokens = self.fuse(tokens, present)
        if self.all_ask:
            predicted = self._ask_all(tokens, summary, masks, present, whole)
        else:
            predicted = {
                s: self.decoders[s](tokens[s], masks[s], summary, whole=whole)
                for s in SENSORS
            }
        if not whole:
            pixels = {s: pixels[s][:, k[s] :] for s in SENSORS}
        return decoders.Redrawn(predicted, pixels)

    def _ask_all(self, tokens, summary, masks, present, whole: bool):
        """Predictions of decoders that read both sensors; see `__call__`."""
        first = {s: i * self.num_patches for i, s in enumerate(SENSORS)}
        join = lambda parts: jnp.concatenate(parts, axis=1)
        mask = patches.Mask(
            join([masks[s].visible + first[s] for s in SENSORS]),
            join([masks[s].hidden + first[s] for s in SENSORS]),
        )
        known = present and join(
            [patches.spread(present[s], tokens[s].shape[1]) for s in SENSORS]
        )
        seen = decoders.Seen(join([tokens[s] for s in SENSORS]), summary, mask, known)
        wanted = {s: m.order if whole else m.hidden for s, m in masks.items()}
        return {s: patches.take(self.decoders[s](seen), wanted[s]) for s in SENSORS}
