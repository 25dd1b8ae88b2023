"""The training step with single choices made otherwise, to be raced and tested.

Each function patches the modules while a variant is compiled, nothing else.
"""

import contextlib
import time
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import pairs
from fusmae_jax import build, patches
from fusmae_jax.models import attention, decoders, fusmae, layers, products
from fusmae_jax.training import optim, pretrain, sharding


def embed_all():
    """Every patch is embedded; the hidden ones are dropped after it."""
    call = fusmae.FusMAE.__call__

    def instead(self, images, masks, present=None, *, whole=False):
        pixels, everything = self.patchify(images), jnp.arange(self.num_patches)
        tokens = {}
        for s, x in pixels.items():
            ids = jnp.broadcast_to(everything[None], x.shape[:2])
            embedded = self.encoder.embed_patches(s, x, ids)
            tokens[s] = patches.take(embedded, masks[s].visible)
        ready = mock.patch.object(
            fusmae.Encoder, "embed_patches", lambda self, s, *_: tokens[s]
        )
        with ready:
            return call(self, images, masks, present, whole=whole)

    return mock.patch.object(fusmae.FusMAE, "__call__", instead)


def predict_all():
    """The decoders predict the visible patches too; the loss ignores them."""
    call = fusmae.FusMAE.__call__

    def instead(self, images, masks, present=None, *, whole=False):
        return call(self, images, masks, present, whole=True)

    return mock.patch.object(fusmae.FusMAE, "__call__", instead)


def image_order():
    """Tokens are put back in image order before the decoder's blocks, as in MAE."""

    def instead(self, visible, mask, summary=None, *, whole=False):
        assert summary is None, "the global token has no place in the image"
        blanks = (*mask.hidden.shape, self.dim)
        blanks = jnp.broadcast_to(self.mask_token[...], blanks)
        x = jnp.concatenate([self.bridge(visible).astype(jnp.float32), blanks], axis=1)
        x = patches.put_back(x, mask)
        x = x + patches.sincos_2d(self.side, self.dim)[None]
        for block in self.blocks:
            x = block(x)
        x = self.predict(self.norm(x)).astype(jnp.float32)
        return patches.take(x, mask.order if whole else mask.hidden)

    return mock.patch.object(decoders.SensorDecoder, "__call__", instead)


def fused_qkv():
    """One product for queries, keys and values, where they are of the same tokens."""
    call = layers.Attention.__call__

    def instead(self, x, context, mask=None, keys=None):
        if x is not context:
            return call(self, x, context, mask, keys)
        parts = (self.query, self.key, self.value)
        kernel = jnp.concatenate([p.kernel[...] for p in parts], axis=1)
        bias = jnp.concatenate([p.bias[...] for p in parts])
        y = products.linear(x, kernel, bias, self.arithmetic)
        qkv = y.reshape(*x.shape[:2], 3, self.num_heads, -1).transpose(2, 0, 3, 1, 4)
        return self.out.of_heads(attention.attend(*qkv, mask, self.arithmetic, keys))

    return mock.patch.object(layers.Attention, "__call__", instead)


def jax_attention():
    """Attention as `jax.nn` has it for XLA."""

    def instead(q, k, v, mask, bias, arithmetic):
        mask = None if mask is None else mask[:, None, None]
        qkv = (x.swapaxes(1, 2) for x in (q, k, v))
        y = jax.nn.dot_product_attention(
            *qkv, bias=bias, mask=mask, implementation="xla"
        )
        return y.swapaxes(1, 2)

    return mock.patch.object(attention, "_attend_xla", instead)


def jax_gradients():
    """The gradients that JAX derives of attention, linear layers and GELU."""
    stack = contextlib.ExitStack()
    for module, name, forward in (
        (products, "_affine", products._forward),
        (products, "gelu", products._gelu_forward),
        (attention, "_attend_xla", attention._forward),
    ):
        plain = lambda *args, forward=forward: forward(*args)[0]
        stack.enter_context(mock.patch.object(module, name, plain))
    return stack


def scan_blocks():
    """The encoder's blocks as one loop. Their parameters are stacked in every step."""
    call = fusmae.Encoder.__call__

    def instead(self, *args, **options):
        graphdef = nnx.graphdef(self.blocks[0])
        params = [nnx.state(block) for block in self.blocks]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *params)

        def loop(x, mask, branches, keys):
            def body(x, params):
                return nnx.merge(graphdef, params)(x, mask, keys=keys), None

            return jax.lax.scan(body, x, stacked)[0]

        object.__setattr__(self, "blocks", [loop])
        return call(self, *args, **options)

    return mock.patch.object(fusmae.Encoder, "__call__", instead)


def full_residuals():
    """The residual stream in float32."""
    call = layers.Block.__call__

    def instead(self, x, *args, **options):
        return call(self, x.astype(jnp.float32), *args, **options)

    return mock.patch.object(layers.Block, "__call__", instead)


def two_pass_norm():
    """LayerNorm with the variance about the mean, in a pass of its own."""
    norm = nnx.LayerNorm

    def instead(dim, rngs):
        kw = dict(epsilon=1e-6, dtype=jnp.float32, rngs=rngs)
        return norm(dim, use_fast_variance=False, **kw)

    return mock.patch.object(layers, "layer_norm", instead)


def plain_products():
    """bfloat16 products as XLA's CPU backend takes them by itself, in float32."""
    return mock.patch.object(build, "target", lambda mesh: {})


def remat(how: str):
    """Parts of the encoder are computed again for the gradient."""
    call = build.objective

    def instead(config, *args, **target):
        return call(config, *args, **target, remat=how)

    return mock.patch.object(build, "objective", instead)


# On a GPU cuDNN computes attention, and products are what they are.
CPU_ONLY = ("attention of jax.nn", "products as XLA takes them")

# What the row undoes or adds, and how.
LEVERS = {
    "embed all patches, drop the hidden after": embed_all,
    "predict visible patches too": predict_all,
    "decode in image order": image_order,
    "queries, keys, values by one product": fused_qkv,
    "attention of jax.nn": jax_attention,
    "gradients by JAX": jax_gradients,
    "scan over blocks": scan_blocks,
    "remat, all but linear layers": lambda: remat("dots"),
    "remat, everything": lambda: remat("full"),
    "residuals in float32": full_residuals,
    "LayerNorm in two passes": two_pass_norm,
    "products as XLA takes them": plain_products,
}


class Variant:
    """A compiled step and its state; `turn` advances it."""

    def __init__(self, config, change=contextlib.nullcontext, donate: bool = True):
        mesh = sharding.make_mesh()
        rate = optim.schedule(config.optim.peak_lr, 10, 1_000)
        self.fields = sharding.to_devices(
            pairs.host_batch(config, config.batch_size), mesh
        )
        with change():
            objective = build.objective(config, **build.target(mesh))
            init, _, step = pretrain.compile_step(config, objective, mesh, rate)
            self.state = init()
            if not donate:
                step = jax.jit(step.__wrapped__)
            self.step = step.lower(self.state, self.fields).compile()
        self.memory = pretrain.step_memory(self.step)
        self.state, metrics = self.step(self.state, self.fields)
        self.loss = float(metrics["loss"])

    def turn(self, steps: int, wait: bool = False) -> float:
        """Seconds a step, over `steps` of them; with `wait`, one at a time."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.fields)
            if wait:
                jax.block_until_ready(metrics)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - start) / steps
