"""Layers against arithmetic that shares no code with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from data_pipeline.errors import InputError
from fusmae_jax.models import layers
from fusmae_jax.models.fusmae import XAttnEncoder
from fusmae_jax.models.products import Arithmetic

D, HEADS = 24, 3


def perturbed(module, seed=0):
    """The module with every parameter random, so that biases and scales count."""
    graphdef, params = nnx.split(module)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    leaves = [x + 0.3 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))


def np_linear(layer, x):
    return x @ np.float64(layer.kernel[...]) + np.float64(layer.bias[...])


def np_norm(layer, x):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    y = (x - mean) / np.sqrt(var + 1e-6)
    return y * np.float64(layer.scale[...]) + np.float64(layer.bias[...])


def np_attention(layer, x, context):
    """One sample, one head at a time."""
    q, k, v = (
        np_linear(layer.query, x),
        np_linear(layer.key, context),
        np_linear(layer.value, context),
    )
    d = D // HEADS
    out = []
    for h in range(HEADS):
        cut = slice(h * d, (h + 1) * d)
        scores = q[:, cut] @ k[:, cut].T / np.sqrt(d)
        out.append(special.softmax(scores, axis=-1) @ v[:, cut])
    return np_linear(layer.out, np.concatenate(out, axis=-1))


def np_mlp(layer, x):
    x = np_linear(layer.up, x)
    return np_linear(layer.down, x * special.ndtr(x))  # GELU is x times normal CDF


def tokens(seed, n):
    return np.random.default_rng(seed).normal(size=(2, n, D)).astype(np.float32)


def test_cross_attention_equals_numpy():
    kw = dict(arithmetic=Arithmetic(), rngs=nnx.Rngs(0))
    layer = perturbed(layers.Attention(D, HEADS, **kw))
    x, y = tokens(1, 5), tokens(2, 7)
    want = np.stack([np_attention(layer, a, b) for a, b in zip(x, y)])
    np.testing.assert_allclose(layer(x, y), want, rtol=1e-4, atol=1e-5)


def test_block_equals_numpy():
    block = perturbed(layers.Block(D, HEADS, arithmetic=Arithmetic(), rngs=nnx.Rngs(0)))
    x = tokens(1, 6)
    want = []
    for a in x:
        y = np_norm(block.norm1, a)
        a = a + np_attention(block.attn, y, y)
        want.append(a + np_mlp(block.mlp, np_norm(block.norm2, a)))
    np.testing.assert_allclose(block(x), want, rtol=1e-4, atol=1e-5)


def test_xattn_encoder_equals_numpy():
    fuse = perturbed(XAttnEncoder(D, HEADS, arithmetic=Arithmetic(), rngs=nnx.Rngs(0)))
    x, y = tokens(1, 5), tokens(2, 4)
    want = []
    for a, b in zip(x, y):
        na, nb = np_norm(fuse.norm1["s1"], a), np_norm(fuse.norm1["s2"], b)
        a = a + np_attention(fuse.attn["s1"], na, nb)
        b = b + np_attention(fuse.attn["s2"], nb, na)
        z = np.concatenate([a, b])
        want.append(z + np_mlp(fuse.mlp, np_norm(fuse.norm2, z)))
    np.testing.assert_allclose(fuse({"s1": x, "s2": y}), want, rtol=1e-4, atol=1e-5)


def test_block_equals_the_encoder_layer_of_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    block = perturbed(layers.Block(D, HEADS, arithmetic=Arithmetic(), rngs=nnx.Rngs(0)))
    layer = torch.nn.TransformerEncoderLayer(
        D, HEADS, 4 * D, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
    ).eval()

    def set_(target, value):
        target.data = torch.tensor(np.array(value))

    qkv = (block.attn.query, block.attn.key, block.attn.value)
    set_(layer.self_attn.in_proj_weight, np.concatenate([m.kernel[...].T for m in qkv]))
    set_(layer.self_attn.in_proj_bias, np.concatenate([m.bias[...] for m in qkv]))
    for ours, theirs in (
        (block.attn.out, layer.self_attn.out_proj),
        (block.mlp.up, layer.linear1),
        (block.mlp.down, layer.linear2),
    ):
        set_(theirs.weight, ours.kernel[...].T)
        set_(theirs.bias, ours.bias[...])
    for ours, theirs in ((block.norm1, layer.norm1), (block.norm2, layer.norm2)):
        set_(theirs.weight, ours.scale[...])
        set_(theirs.bias, ours.bias[...])
    x = tokens(1, 6)
    with torch.no_grad():
        want = layer(torch.tensor(x)).numpy()
    np.testing.assert_allclose(block(x), want, rtol=1e-4, atol=1e-5)


def test_what_is_kept_has_the_type_of_products_and_parameters_are_float32():
    block = layers.Block(D, HEADS, arithmetic=Arithmetic("bfloat16"), rngs=nnx.Rngs(0))
    x = tokens(1, 6)
    assert block(jnp.bfloat16(x)).dtype == block.mlp.up(x).dtype == jnp.bfloat16
    assert block.norm1(jnp.bfloat16(x)).dtype == jnp.float32
    assert {p.dtype for p in jax.tree.leaves(nnx.state(block))} == {jnp.dtype("f4")}


def test_a_width_that_does_not_divide_into_heads_is_refused():
    with pytest.raises(InputError, match="Width 32 does not divide into 5 heads"):
        layers.Attention(32, 5, arithmetic=Arithmetic(), rngs=nnx.Rngs(0))
