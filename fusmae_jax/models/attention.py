"""Attention, softmax(q k^T / sqrt(d)) v, by XLA or by cuDNN's fused kernel."""

import functools

import jax
import jax.numpy as jnp

from fusmae_jax.models.products import Arithmetic

IMPLEMENTATIONS = ("auto", "xla", "cudnn")
# For cuDNN a mask is channels of the keys, the first of which is so low where they are
# to be overlooked. (As many as keep heads a multiple of 8 wide.)
MASK_CHANNELS, MASKED = 8, -(2.0**30)


def takes(width: int) -> bool:
    """Whether cuDNN takes heads of so many channels."""
    return width % 8 == 0 and width <= 128


def choose(arithmetic: Arithmetic, width: int, masked: bool = False) -> str:
    """Who computes attention with heads of `width` channels: "xla" or "cudnn".

    "auto" is cuDNN wherever it can, that is on a GPU in 16-bit numbers: it never
    writes the scores to memory, which bound the step on a GPU otherwise.
    """
    if arithmetic.attention != "auto":
        return arithmetic.attention
    low = jnp.dtype(arithmetic.dtype).itemsize == 2
    fits = low and takes(width + MASK_CHANNELS * masked)
    return "cudnn" if arithmetic.platform == "gpu" and fits else "xla"


def filling(arithmetic: Arithmetic, tokens: int, width: int) -> int:
    """How many tokens to append to a sequence, for cuDNN to take it as it is."""
    return tokens % 2 if choose(arithmetic, width) == "cudnn" else 0


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    arithmetic: Arithmetic = Arithmetic(),
    keys: int | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Attends from q [B, h, N, d] to k and v [B, h, M, d]; returns [B, h, N, d].

    Softmax is float32, whoever computes it.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: False where keys and values are to be overlooked, [B, M].
        arithmetic: says for what and by whom; see `choose`.
        keys: how many there are, where those behind are filling; None for M.
        bias: what is added to the scores, [B, h, N, M], a constant to the gradient;
            only XLA adds any, whoever is chosen.
    """
    keys = k.shape[2] if keys is None else keys
    if bias is None and choose(arithmetic, q.shape[-1], mask is not None) == "cudnn":
        return _attend_cudnn(q, k, v, mask, keys)
    k, v = k[:, :, :keys], v[:, :, :keys]
    mask = None if mask is None else mask[:, :keys]
    bias = None if bias is None else bias[..., :keys]
    return _attend_xla(q, k, v, mask, bias, arithmetic)


def _attend_cudnn(q, k, v, mask, keys):
    """Fills up sequences of odd length, at which JAX refuses to train with cuDNN.

    (Only a bias needs even lengths, but JAX, 0.10 and 0.11 at least, takes the empty
    array that stands for none to be one.)
    """
    # cuDNN has heads behind tokens, as linear layers leave them: nothing is moved.
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    n, d = q.shape[1], q.shape[-1]
    q, k, v = (_fill_up(x) for x in (q, k, v))
    lengths = {}
    if mask is not None:
        # Inside the keys a mask is split among devices as they are. A bias or lengths
        # of each sample need not be, and would then be those of other samples.
        counts = jnp.arange(k.shape[1])[None] < keys
        hidden = jnp.where(_fill_up(mask) & counts, 0.0, MASKED)
        q, k, v = _widen(q, jnp.ones(q.shape[:2])), _widen(k, hidden), _widen(v)
    elif keys < k.shape[1]:
        # Queries that fill up count, so that no number is left unwritten.
        lengths = {
            "query_seq_lengths": jnp.full(len(q), q.shape[1], jnp.int32),
            "key_value_seq_lengths": jnp.full(len(k), keys, jnp.int32),
        }
    y = jax.nn.dot_product_attention(
        q, k, v, scale=d**-0.5, implementation="cudnn", **lengths
    )
    return y[:, :n, :, :d].swapaxes(1, 2)


def _fill_up(x):
    """`x` [B, N, ...] with zeros, or False, up to an even N."""
    return jnp.pad(x, [(0, 0), (0, x.shape[1] % 2)] + [(0, 0)] * (x.ndim - 2))


def _widen(x, value=None):
    """Heads `x` [B, N, h, d] with a mask's channels: `value` [B, N] or zeros, zeros."""
    b, n, h, _ = x.shape
    more = jnp.zeros((b, n, h, MASK_CHANNELS), x.dtype)
    if value is not None:
        more = more.at[..., 0].set(value[..., None].astype(x.dtype))
    return jnp.concatenate([x, more], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend_xla(q, k, v, mask, bias, arithmetic: Arithmetic):
    """With a gradient of its own, whose products have the type of q, k and v.

    JAX's would multiply float32 with it, and sum the softmax in it.
    """
    return _forward(q, k, v, mask, bias, arithmetic)[0]


def _softmax(q, k, mask, bias):
    """Weights of the keys, [B, h, N, M] float32."""
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
    if bias is not None:  # before the scale, which comes last
        scores += q.shape[-1] ** 0.5 * bias
    if mask is not None:
        # Finite, so that a sample in which everything is overlooked stays so.
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    scale = q.shape[-1] ** -0.5
    weights = jnp.exp(scale * (scores - scores.max(axis=-1, keepdims=True)))
    return weights / weights.sum(axis=-1, keepdims=True)


def _forward(q, k, v, mask, bias, arithmetic):
    weights = _softmax(q, k, mask, bias).astype(v.dtype)
    dot = functools.partial(jnp.einsum, preferred_element_type=arithmetic.result_dtype)
    y = dot("bhnm,bhmd->bhnd", weights, v).astype(v.dtype)
    return y, (q, k, v, mask, weights)


def _backward(arithmetic, saved, grad):
    q, k, v, mask, weights = saved
    dot = functools.partial(jnp.einsum, preferred_element_type=arithmetic.result_dtype)
    grad_v = dot("bhnm,bhnd->bhmd", weights, grad)
    slope = jnp.einsum("bhnd,bhmd->bhnm", grad, v, preferred_element_type=jnp.float32)
    weights, scale = weights.astype(jnp.float32), q.shape[-1] ** -0.5
    slope = weights * (slope - (weights * slope).sum(axis=-1, keepdims=True)) * scale
    if mask is not None:
        slope = jnp.where(mask[:, None, None], slope, 0.0)
    slope = slope.astype(q.dtype)
    grad_q = dot("bhnm,bhmd->bhnd", slope, k)
    grad_k = dot("bhnm,bhnd->bhmd", slope, q)
    grads = (x.astype(y.dtype) for x, y in zip((grad_q, grad_k, grad_v), (q, k, v)))
    return *grads, None, None


_attend_xla.defvjp(_forward, _backward)
