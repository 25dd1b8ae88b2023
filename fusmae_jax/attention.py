"""Attention, softmax(q k^T / sqrt(d)) v, by XLA or by cuDNN's fused kernel."""

import jax
import jax.numpy as jnp

from fusmae_jax import products

IMPLEMENTATIONS = ("auto", "xla", "cudnn")


def takes(width: int) -> bool:
    """Whether cuDNN takes heads of so many channels."""
    return width % 8 == 0 and width <= 128


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Attends from q [B, N, h, d] to k and v [B, M, h, d]; returns [B, N, h, d].

    Softmax is float32.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: False where keys and values are to be overlooked, [B, M].
        implementation: "xla", "cudnn", or "auto" for cuDNN wherever it can: 16-bit
            numbers on a GPU, and no mask, with which it cannot train on odd numbers
            of tokens.
    """
    if implementation == "auto":
        fits = q.dtype.itemsize == 2 and takes(q.shape[-1])
        fused = jax.default_backend() == "gpu" and fits and mask is None
        implementation = "cudnn" if fused else "xla"
    if implementation == "cudnn":
        if mask is not None:
            raise NotImplementedError("Attention by cuDNN takes no mask here.")
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return _attend_xla(q, k, v, mask)


def _attend_xla(q, k, v, mask):
    scale = jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    scores = jnp.einsum(
        "bnhd,bmhd->bhnm", q * scale, k, preferred_element_type=jnp.float32
    )
    if mask is not None:
        # Finite, so that a sample in which everything is overlooked stays so.
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    y = jnp.einsum(
        "bhnm,bmhd->bnhd",
        weights.astype(v.dtype),
        v,
        preferred_element_type=products.result_dtype(v.dtype),
    )
    # Dividing the sums touches d numbers a query; dividing the weights would touch M.
    total = weights.sum(axis=-1).swapaxes(1, 2)[..., None]  # [B, N, h, 1]
    return (y / total.astype(y.dtype)).astype(v.dtype)
