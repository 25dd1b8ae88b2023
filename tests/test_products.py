"""Linear layers in low precision: right, and with gradients that are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from fusmae_jax.models import products
from fusmae_jax.models.products import Arithmetic

CPU = Arithmetic("bfloat16", "cpu")
PLATFORMS = ["cpu", "gpu", "tpu"]


def factors(dtype, rows=(3, 5), inner=40, columns=24):
    rng = np.random.default_rng(0)
    shapes = ((*rows, inner), (inner, columns), (columns,))
    # Numbers that bfloat16 has, so that only sums are rounded.
    numbers = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in shapes)
    return tuple(x.astype(dtype) for x in numbers)


def affine(x, kernel, bias):
    return jnp.matmul(x, kernel) + bias[None, None]


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_that_of_numpy(dtype, platform):
    x, kernel, bias = factors(jnp.float32)
    want = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias)
    got = products.linear(x, kernel, bias, Arithmetic(dtype, platform))
    assert got.shape == (3, 5, 24) and got.dtype == dtype
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(
        np.asarray(got, np.float64), want, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_those_of_a_plain_product(dtype, platform):
    args = factors(jnp.float32)
    grad = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5, 24)), jnp.float32)
    grad = grad.astype(dtype)  # the two then differ by their sums alone
    _, ours = jax.vjp(
        lambda *args: products.linear(*args, Arithmetic(dtype, platform)), *args
    )
    _, plain = jax.vjp(affine, *args)
    for got, want in zip(ours(grad), plain(grad.astype(jnp.float32))):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-5)


def test_gradients_of_parameters_keep_more_digits_than_their_factors():
    """Over 4,096 tokens, of which a sum in bfloat16 would lose most."""
    x, kernel, bias = factors(jnp.float32, rows=(64, 64))
    loss = lambda *args: products.linear(x, *args, Arithmetic("bfloat16")).sum()
    got, summed = jax.grad(loss, (0, 1))(kernel, bias)
    want = np.asarray(x, np.float64).sum(axis=(0, 1))[:, None]
    np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), rtol=1e-4)
    assert (got != got.astype(jnp.bfloat16).astype(jnp.float32)).any()
    noise = jax.random.normal(jax.random.key(0), (64, 64, 24)).astype(jnp.bfloat16)
    loss = lambda b: products.linear(x, kernel, b, Arithmetic("bfloat16")) * noise
    summed = jax.grad(lambda b: loss(b).astype(jnp.float32).sum())(bias)
    want = np.asarray(noise, np.float64).sum(axis=(0, 1))
    np.testing.assert_allclose(summed, want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_heads_are_split_and_joined_alike_on_every_platform(platform):
    """In a linear layer to 3 heads of 8 channels, and one from them."""
    x, kernel, bias = factors(jnp.float32)
    back = jnp.asarray(np.random.default_rng(2).normal(size=(24, 40)), jnp.float32)
    arithmetic = Arithmetic("float32", platform)

    def ours(x, kernel, bias, back):
        y = products.split_heads(x, kernel, bias, 3, arithmetic)
        assert y.shape == (3, 3, 5, 8)
        return products.join_heads(jnp.sin(y), back, jnp.zeros(40), arithmetic)

    def plain(x, kernel, bias, back):
        return jnp.matmul(jnp.sin(affine(x, kernel, bias)), back)

    args = x, kernel, bias, back
    (got, ours), (want, plain) = jax.vjp(ours, *args), jax.vjp(plain, *args)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    for a, b in zip(ours(want), plain(want)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_and_its_gradient_are_exact(platform, dtype):
    x = jnp.linspace(-6.0, 6.0, 301, dtype=dtype)[None]
    wide = np.asarray(x, np.float64)
    below = special.ndtr(wide)
    slope = below + wide * np.exp(-wide * wide / 2) / np.sqrt(2 * np.pi)
    arithmetic = Arithmetic(dtype, platform)
    got, back = jax.vjp(lambda x: products.gelu(x, arithmetic), x)
    (grad,) = back(jnp.ones_like(x))
    assert got.dtype == grad.dtype == x.dtype
    tolerance = {"float32": 1e-6, "bfloat16": 5e-3}[dtype]
    for a, b in ((got, wide * below), (grad, slope)):
        np.testing.assert_allclose(np.asarray(a, np.float64), b, tolerance, tolerance)


def test_bfloat16_products_reach_the_matrix_instructions_of_a_cpu():
    """XLA takes a float32 detour unless factors and result are as it likes them."""
    x, kernel, bias = factors(jnp.float32, rows=(64, 4), inner=128, columns=256)

    def loss(x, kernel, bias, arithmetic):
        y = products.linear(x, kernel, bias, arithmetic)
        return jnp.square(y.astype(jnp.float32)).sum()

    lower = jax.jit(jax.grad(loss, (0, 1)), static_argnums=3).lower
    hlo = lower(x, kernel, bias, CPU).as_text()
    products_in = [line for line in hlo.splitlines() if "dot_general" in line]
    assert len(products_in) == 3
    for line in products_in:
        factors_in, result = line.rsplit("->", 1)
        assert factors_in.count("xbf16>") == 2 and "xf32>" in result, line
    assert "LayoutConstraint" in hlo
    # XLA could not split the constraint.
    several = Arithmetic("bfloat16", "cpu", devices=2)
    assert "LayoutConstraint" not in lower(x, kernel, bias, several).as_text()
