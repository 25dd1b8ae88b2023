"""FLOPs: the formula against the graph it describes, and what devices are known."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs import pretrain_base
from fusmae_jax import flops, masking
from fusmae_jax.model import FusMAE
from tests import tiny

VARIANTS = [(early, late) for early in (True, False) for late in (True, False)]
SIZES = dict(
    image_size=64,
    patch_size=8,
    dim=256,
    depth=2,
    num_heads=4,
    decoder_dim=128,
    decoder_depth=1,
    decoder_heads=4,
)


def forward(sizes):
    """The forward pass of one pair, and the shapes of its arguments."""
    graphdef, params = nnx.split(
        nnx.eval_shape(lambda: FusMAE(bands=tiny.BANDS, **sizes, rngs=nnx.Rngs(0)))
    )
    side, n = sizes["image_size"], (sizes["image_size"] // sizes["patch_size"]) ** 2

    def run(params, images, noise):
        masks = {s: masking.mask_from_noise(noise[s], n // 4) for s in noise}
        return nnx.merge(graphdef, params)(images, masks).predicted

    images = {
        s: jax.ShapeDtypeStruct((1, side, side, c), jnp.float32)
        for s, c in tiny.BANDS.items()
    }
    noise = {s: jax.ShapeDtypeStruct((1, n), jnp.float32) for s in tiny.BANDS}
    return run, (params, images, noise)


def product_flops(jaxpr):
    """FLOPs of every matrix product in a jaxpr and the jaxprs inside it."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            terms = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * terms * eqn.outvars[0].aval.size
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += product_flops(inner)
    return total


@pytest.mark.parametrize("early, late", VARIANTS)
def test_the_formula_counts_every_matrix_product_of_the_model(early, late):
    sizes = SIZES | dict(fuse_early=early, fuse_features=late)
    run, args = forward(sizes)
    want = product_flops(jax.make_jaxpr(run)(*args).jaxpr)
    assert flops.train_step_flops(sizes, tiny.BANDS, 0.75) == 3 * want


@pytest.mark.parametrize("early, late", VARIANTS)
def test_xla_counts_the_same_and_a_few_percent_of_other_arithmetic(early, late):
    sizes = SIZES | dict(fuse_early=early, fuse_features=late)
    run, args = forward(sizes)
    counted = jax.jit(run).lower(*args).compile().cost_analysis()["flops"]
    want = flops.train_step_flops(sizes, tiny.BANDS, 0.75) / 3
    # Norms, softmax and GELU make up 5 % at this width and less at greater ones.
    assert want < counted < 1.07 * want


def test_the_base_model_needs_60_gflop_an_image():
    config = pretrain_base.get_config()
    got = flops.train_step_flops(config.model.to_dict(), tiny.BANDS, config.mask.ratio)
    assert got == pytest.approx(60.4e9, rel=0.01)


@pytest.mark.parametrize(
    "device, tera",
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("TPU v4", 275),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v5 lite", 197),
        ("TPU v6 lite", 918),
    ],
)
def test_peaks_follow_the_name_jax_gives_a_device(device, tera):
    assert flops.peak(device) == tera * 1e12


def test_an_unknown_device_has_no_peak():
    assert flops.peak("cpu") is None
