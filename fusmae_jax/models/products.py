"""Linear layers in low precision, with gradients of their own.

Parameters are float32; factors are rounded to a lower type, and products are summed in
float32. So are the gradients of kernels and biases, which never pass through the lower
type: XLA would sum a bias's gradient in it, over all tokens of a batch.

What is said here of XLA's CPU backend was seen in jax 0.10: it hands a bfloat16
product to the processor's matrix instructions only if the result is float32 and both
factors lie in memory row by row, and computes it in float32 otherwise. On the machine
of docs/performance.md that is the difference between 250 and 1,600 GFLOP/s.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from fusmae_jax import dtypes

ROWS = Layout(major_to_minor=(0, 1))


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """How a network computes, and on what.

    Attributes:
        dtype: of matrix products, "float32" or "bfloat16"; "auto" is an InputError.
        platform: what a program is compiled for, "cpu", "gpu" or "tpu", whatever the
            machine that compiles it has; "" for a program that is fast nowhere in
            particular.
        devices: how many share a batch.
        attention: who computes it, see `attention.attend`.
    """

    dtype: str = "float32"
    platform: str = ""
    devices: int = 1
    attention: str = "auto"

    def __post_init__(self):
        dtype = jnp.dtype(dtypes.settled(self.dtype)).name
        object.__setattr__(self, "dtype", dtype)

    @property
    def result_dtype(self):
        """What products are best left in, until something else reads them."""
        return jnp.dtype("float32" if self.platform == "cpu" else self.dtype)

    @property
    def wants_rows(self) -> bool:
        """Whether XLA is to be told how the factors of a kernel's gradient lie."""
        # It cannot split the constraint among devices: all would get all rows.
        low = self.dtype != "float32"
        return self.platform == "cpu" and self.devices == 1 and low


def linear(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, arithmetic: Arithmetic
) -> jax.Array:
    """`x` [..., K] times `kernel` [K, N] plus `bias` [N]; [..., N] of the lower type.

    The gradients of `kernel` and `bias` are float32 sums.
    """
    if arithmetic.platform == "tpu" and x.ndim == 3:
        # In memory tokens are filled up to tiles, which one axis of all would cross.
        return _affine(x, kernel, bias[None, None], "bnk,kd->bnd", arithmetic)
    y = _affine(x.reshape(-1, x.shape[-1]), kernel, bias[None], "nk,kd->nd", arithmetic)
    return y.reshape(*x.shape[:-1], -1)


def split_heads(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, heads: int, arithmetic: Arithmetic
) -> jax.Array:
    """`linear`, and its result [B, N, h * d] by heads: [B, h, N, d]."""
    if arithmetic.platform == "tpu":  # which then need not move them apart in memory
        kernel = kernel.reshape(len(kernel), heads, -1)
        bias = bias.reshape(1, heads, 1, -1)
        return _affine(x, kernel, bias, "bnk,khd->bhnd", arithmetic)
    y = linear(x, kernel, bias, arithmetic)
    return y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)


def join_heads(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, arithmetic: Arithmetic
) -> jax.Array:
    """`linear` of what stands by heads, [B, h, N, d]; returns [B, N, h * d]."""
    b, h, n, d = x.shape
    if arithmetic.platform == "tpu":
        kernel = kernel.reshape(h, d, -1)
        return _affine(x, kernel, bias[None, None], "bhnd,hdk->bnk", arithmetic)
    return linear(x.swapaxes(1, 2).reshape(b, n, h * d), kernel, bias, arithmetic)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _affine(x, kernel, bias, spec: str, arithmetic: Arithmetic):
    """The product of an einsum, and a bias with as many axes as the result."""
    return _forward(x, kernel, bias, spec, arithmetic)[0]


def _product(spec, x, y, arithmetic, result=None):
    result = result or arithmetic.result_dtype
    x, y = x.astype(arithmetic.dtype), y.astype(arithmetic.dtype)
    return jnp.einsum(spec, x, y, preferred_element_type=result)


def _forward(x, kernel, bias, spec, arithmetic):
    # A rounded copy of x is all that the gradient needs; empty arrays carry the type
    # that x had and the shape of the bias.
    rounded = x.astype(arithmetic.dtype)
    y = _product(spec, rounded, kernel, arithmetic)
    y = (y + bias.astype(y.dtype)).astype(arithmetic.dtype)
    return y, (rounded, kernel, jnp.zeros(0, x.dtype), jnp.zeros((0, *bias.shape)))


def _backward(spec, arithmetic, saved, grad):
    x, kernel, like, bias = saved
    inputs, result = spec.split("->")
    left, right = inputs.split(",")
    grad_x = _product(f"{result},{right}->{left}", grad, kernel, arithmetic)
    if arithmetic.wants_rows:
        transposed = with_layout_constraint(x.T, ROWS)
        grad_kernel = jnp.matmul(transposed, grad, preferred_element_type=jnp.float32)
    else:
        summed = f"{left},{result}->{right}"
        grad_kernel = _product(summed, x, grad, arithmetic, jnp.float32)
    alike = tuple(i for i, size in enumerate(bias.shape[1:]) if size == 1)
    grad_bias = grad.astype(jnp.float32).sum(axis=alike, keepdims=True)
    return grad_x.astype(like.dtype), grad_kernel, grad_bias


_affine.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: jax.Array, arithmetic: Arithmetic) -> jax.Array:
    """Exact GELU (Hendrycks and Gimpel 2016), float32 inside, of any shape.

    Between forward and backward pass one array is kept: on a TPU, and a CPU, the slope,
    which saves computing it; on a GPU, where numbers cost less than memory, what came
    in, which is there anyway.
    """
    return _gelu_forward(x, arithmetic)[0]


def _gelu(x):
    """The value and the slope, float32."""
    # (Through erf, as erfc, of which the tail is exact, takes a TPU twice as long.)
    x = x.astype(jnp.float32)
    below = (1 + jax.lax.erf(0.5**0.5 * x)) / 2  # of a standard normal
    return x * below, below + x * jnp.exp(-x * x / 2) * (2 * math.pi) ** -0.5


def _gelu_forward(x, arithmetic):
    value, slope = _gelu(x)
    kept = x if arithmetic.platform == "gpu" else slope.astype(x.dtype)
    return value.astype(x.dtype), kept


def _gelu_backward(arithmetic, slope, grad):
    if arithmetic.platform == "gpu":
        # Else XLA would see what both passes compute, and keep that in float32.
        slope = _gelu(jax.lax.optimization_barrier(slope))[1]
    slope = grad.astype(jnp.float32) * slope.astype(jnp.float32)
    return (slope.astype(grad.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)
