"""Attention: right, whoever computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.models import attention
from fusmae_jax.models.products import Arithmetic
from tests import tiny

GPU = Arithmetic("bfloat16", "gpu")
REAL = jax.nn.dot_product_attention


def tokens(n, m, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = ((2, 3, n, 8), (2, 3, m, 8), (2, 3, m, 8))
    return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


@pytest.fixture
def no_gpu(monkeypatch):
    """The arithmetic of what cuDNN is asked for, by XLA, on what cuDNN takes."""

    def stand_in(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == k.shape[1] % 2 == q.shape[-1] % 8 == 0
        assert set(options) <= {"scale", "query_seq_lengths", "key_value_seq_lengths"}
        return REAL(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)


def compare(arithmetic, n, m, mask=None):
    """Holds a kernel and its gradients to JAX's attention by XLA."""
    full = None if mask is None else mask[:, None, None]

    def ours(*qkv):
        return jnp.square(attention.attend(*qkv, mask, arithmetic)).sum()

    def theirs(*qkv):
        return jnp.square(REAL(*(x.swapaxes(1, 2) for x in qkv), mask=full)).sum()

    gradients = (jax.value_and_grad(f, (0, 1, 2)) for f in (ours, theirs))
    got, want = (gradient(*tokens(n, m)) for gradient in gradients)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def some(m):
    """A mask of two samples, of keys here and there."""
    return jnp.arange(m)[None] % jnp.array([[2], [3]]) != 1


@pytest.mark.parametrize("n, m", [(5, 5), (4, 7)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_it_and_its_gradients_are_those_of_jax(n, m, masked, platform):
    mask = some(m) if masked else None
    compare(Arithmetic("float32", platform), n, m, mask)


@pytest.mark.journey
@pytest.mark.parametrize("n, m", [(4, 6), (5, 5), (4, 7), (5, 6)])
@pytest.mark.parametrize("masked", [False, True])
def test_cudnn_is_asked_for_the_same_whatever_the_lengths(no_gpu, n, m, masked):
    compare(GPU, n, m, some(m) if masked else None)


def test_a_key_that_is_overlooked_gets_no_gradient(no_gpu):
    q, k, v = tokens(5, 5)
    mask = some(5)
    for arithmetic in (Arithmetic(), GPU):
        loss = lambda k, v: jnp.square(attention.attend(q, k, v, mask, arithmetic))
        for gradient in jax.grad(lambda *kv: loss(*kv).sum(), (0, 1))(k, v):
            by_keys = np.asarray(gradient).swapaxes(1, 2)
            assert not by_keys[~np.asarray(mask)].any()


@pytest.mark.parametrize("masked", [False, True])
def test_keys_that_fill_up_are_overlooked(no_gpu, masked):
    q, k, v = tokens(6, 6)
    mask = some(6) if masked else None
    some_keys = None if mask is None else mask[:, :5]
    want = attention.attend(q, k[:, :, :5], v[:, :, :5], some_keys)
    for arithmetic in (Arithmetic(), GPU):
        got = attention.attend(q, k, v, mask, arithmetic, keys=5)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        grads = jax.grad(
            lambda *qkv: attention.attend(*qkv, mask, arithmetic, keys=5).sum(), (1, 2)
        )(q, k, v)
        assert not any(np.asarray(x)[:, :, 5:].any() for x in grads)


@pytest.mark.parametrize(
    "arithmetic, width, masked, who",
    [
        (Arithmetic("bfloat16", "gpu"), 64, False, "cudnn"),
        (Arithmetic("bfloat16", "gpu"), 64, True, "cudnn"),
        (Arithmetic("bfloat16", "gpu"), 128, True, "xla"),
        (Arithmetic("bfloat16", "gpu"), 12, False, "xla"),
        (Arithmetic("float32", "gpu"), 64, False, "xla"),
        (Arithmetic("bfloat16", "tpu"), 64, False, "xla"),
        (Arithmetic("bfloat16", "cpu"), 64, False, "xla"),
        (Arithmetic("bfloat16"), 64, False, "xla"),
        (Arithmetic("bfloat16", "gpu", attention="xla"), 64, False, "xla"),
        (Arithmetic("float32", "cpu", attention="cudnn"), 64, False, "cudnn"),
    ],
)
def test_who_computes_it(arithmetic, width, masked, who):
    assert attention.choose(arithmetic, width, masked) == who


def test_large_scores_do_not_overflow():
    q, k, v = tokens(4, 4)
    y = attention.attend(1e4 * q, 1e4 * k, v)
    assert np.isfinite(y).all()


def test_bfloat16_stays_near_float32():
    exact = attention.attend(*tokens(6, 6))
    rough = attention.attend(*tokens(6, 6, dtype=jnp.bfloat16))
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(jnp.float32), exact, atol=0.03)


def test_without_a_gpu_cudnn_says_that_it_is_not_there():
    qkv = tokens(4, 4, dtype=jnp.bfloat16)
    with pytest.raises(Exception, match="(?i)cudnn"):
        attention.attend(*qkv, None, Arithmetic("bfloat16", attention="cudnn"))


@pytest.mark.parametrize("field", ["attention", "remat"])
def test_an_unknown_choice_is_refused_by_name(field):
    with pytest.raises(ValueError, match=f"^{field} is 'flash'"):
        tiny.model(**{field: "flash"})
