"""Attention: right, whoever computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax import attention
from tests import tiny


def tokens(n, m, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = ((2, n, 3, 8), (2, m, 3, 8), (2, m, 3, 8))
    return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


@pytest.mark.parametrize("n, m", [(5, 5), (4, 7)])
@pytest.mark.parametrize("masked", [False, True])
def test_it_and_its_gradients_are_those_of_jax(n, m, masked):
    mask = jnp.arange(m)[None] < jnp.array([[m], [m - 3]]) if masked else None
    full = None if mask is None else mask[:, None, None]

    def ours(*qkv):
        return jnp.square(attention.attend(*qkv, mask, "xla")).sum()

    def theirs(*qkv):
        return jnp.square(jax.nn.dot_product_attention(*qkv, mask=full)).sum()

    gradients = (jax.value_and_grad(f, (0, 1, 2)) for f in (ours, theirs))
    got, want = (gradient(*tokens(n, m)) for gradient in gradients)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_large_scores_do_not_overflow():
    q, k, v = tokens(4, 4)
    y = attention.attend(1e4 * q, 1e4 * k, v, None, "xla")
    assert np.isfinite(y).all()


def test_bfloat16_stays_near_float32():
    exact = attention.attend(*tokens(6, 6), None, "xla")
    rough = attention.attend(*tokens(6, 6, dtype=jnp.bfloat16), None, "xla")
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(jnp.float32), exact, atol=0.03)


def test_without_a_gpu_it_is_xlas_unless_told_otherwise():
    qkv = tokens(4, 4, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(
        attention.attend(*qkv), attention.attend(*qkv, None, "xla")
    )
    with pytest.raises(Exception, match="(?i)cudnn"):
        attention.attend(*qkv, None, "cudnn")


@pytest.mark.parametrize("field", ["attention", "remat"])
def test_an_unknown_choice_is_refused_by_name(field):
    with pytest.raises(ValueError, match=f"model.{field} is 'flash'"):
        tiny.model(**{field: "flash"})
