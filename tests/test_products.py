"""Products in low precision: right, and with gradients that are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax import products


def factors(dtype, rows=(3, 5), inner=40, columns=24):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(*rows, inner)), rng.normal(size=(inner, columns))
    # Numbers that bfloat16 has, so that only sums are rounded.
    return tuple(jnp.asarray(v, jnp.bfloat16).astype(dtype) for v in (x, kernel))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_is_that_of_numpy(dtype):
    x, kernel = factors(dtype)
    want = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    got = products.matmul(x, kernel.astype(jnp.float32), jnp.dtype(dtype))
    assert got.shape == (3, 5, 24) and got.dtype == products.result_dtype(dtype)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_those_of_a_plain_product(dtype):
    x, kernel = (v.astype(jnp.float32) for v in factors(dtype))
    grad = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5, 24)), jnp.float32)
    # Rounded as the backward pass rounds it: the two then differ by their sums alone.
    grad = grad.astype(dtype).astype(jnp.float32)
    _, ours = jax.vjp(
        lambda x, k: products.matmul(x, k, jnp.dtype(dtype)).astype(jnp.float32),
        *(x, kernel),
    )
    _, plain = jax.vjp(jnp.matmul, x, kernel)
    for got, want in zip(ours(grad), plain(grad)):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-5)


def test_a_kernels_gradient_keeps_more_digits_than_its_factors():
    x, kernel = factors("bfloat16", rows=(1, 64))
    loss = lambda k: products.matmul(x, k, jnp.dtype("bfloat16")).sum()
    got = jax.grad(loss)(kernel.astype(jnp.float32))
    want = np.asarray(x, np.float64).sum(axis=(0, 1))[:, None]
    np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), rtol=1e-4)
    assert (got != got.astype(jnp.bfloat16).astype(jnp.float32)).any()


def test_bfloat16_products_reach_the_matrix_instructions_of_a_cpu(monkeypatch):
    """XLA takes a float32 detour unless factors and result are as it likes them."""
    monkeypatch.setattr(products, "_on_one_cpu", lambda: True)
    x, kernel = factors("bfloat16", rows=(64, 4), inner=128, columns=256)

    def loss(x, kernel):
        return jnp.square(products.matmul(x, kernel, jnp.dtype("bfloat16"))).sum()

    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel.astype(jnp.float32))
    hlo = lowered.as_text()
    products_in = [line for line in hlo.splitlines() if "dot_general" in line]
    assert len(products_in) == 3
    for line in products_in:
        factors_in, result = line.rsplit("->", 1)
        assert factors_in.count("xbf16>") == 2 and "xf32>" in result, line
    assert "LayoutConstraint" in hlo
