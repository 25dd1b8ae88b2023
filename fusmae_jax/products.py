"""Matrix products in low precision, and their gradients.

Kernels are float32 parameters; factors are rounded to `dtype`, products are summed in
float32, and so is the gradient of a kernel, which never passes through `dtype`.

What is said here of XLA's CPU backend was seen in jax 0.10: it hands a bfloat16
product to the processor's matrix instructions only if the result is float32 and both
factors lie in memory row by row, and computes it in float32 otherwise. On the machine
of docs/performance.md that is the difference between 250 and 1,600 GFLOP/s.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

ROWS = Layout(major_to_minor=(0, 1))


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _on_one_cpu() -> bool:
    # XLA cannot split the constraint below among devices: all would get all rows.
    return _on_cpu() and jax.device_count() == 1


def result_dtype(dtype):
    """What products of `dtype` are best left in, until something else reads them."""
    return jnp.dtype(jnp.float32) if _on_cpu() else jnp.dtype(dtype)


def _product(x, kernel, dtype):
    return jnp.matmul(
        x.astype(dtype),
        kernel.astype(dtype),
        preferred_element_type=result_dtype(dtype),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, kernel: jax.Array, dtype) -> jax.Array:
    """`x` [..., K] times `kernel` [K, N] in `dtype`; returns [..., N].

    The result has the type that `result_dtype` says.
    """
    return _product(x, kernel, dtype)


def _forward(x, kernel, dtype):
    # A rounded copy of x is all that the gradient needs; an empty array carries the
    # type that x had. Rematerialisation has to see the product itself, not `matmul`.
    rounded = x.astype(dtype)
    return _product(rounded, kernel, dtype), (rounded, kernel, jnp.zeros(0, x.dtype))


def _backward(dtype, saved, grad):
    x, kernel, like = saved
    grad = grad.astype(dtype)
    grad_x = _product(grad, kernel.T, dtype).astype(like.dtype)
    x, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    transposed = x.T
    if _on_one_cpu() and dtype != jnp.float32:
        transposed = with_layout_constraint(transposed, ROWS)
    grad_kernel = jnp.matmul(transposed, grad, preferred_element_type=jnp.float32)
    return grad_x, grad_kernel.astype(kernel.dtype)


matmul.defvjp(_forward, _backward)
