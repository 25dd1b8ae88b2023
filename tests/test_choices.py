"""Speed changes no result: the step with any choice made otherwise has our losses."""

import contextlib

import numpy as np
import pytest

from benchmarks import choices
from tests import tiny

pytestmark = pytest.mark.journey

STEPS = 2
# These say something of low precision only.
BFLOAT16 = ("residuals in float32", "products as XLA takes them")


def run(dtype, change=contextlib.nullcontext):
    """The losses of a few steps, and the program without names and places."""
    config = tiny.config()
    config.model.dtype = dtype
    variant = choices.Variant(config, change)
    losses = [variant.loss]
    for _ in range(STEPS - 1):
        variant.state, metrics = variant.step(variant.state, variant.fields)
        losses.append(float(metrics["loss"]))
    text = variant.step.as_text().splitlines()
    return losses, [line.split(", metadata=")[0] for line in text if " = " in line]


@pytest.fixture(scope="module")
def ours():
    return {dtype: run(dtype) for dtype in ("float32", "bfloat16")}


def test_bfloat16_stays_near_float32(ours):
    (low, _), (full, _) = ours["bfloat16"], ours["float32"]
    np.testing.assert_allclose(low, full, rtol=2e-2)
    assert low != full


@pytest.mark.parametrize("name", choices.LEVERS)
def test_a_choice_made_otherwise_is_another_program_with_the_same_losses(name, ours):
    dtype = "bfloat16" if name in BFLOAT16 else "float32"
    losses, program = run(dtype, choices.LEVERS[name])
    want, same = ours[dtype]
    np.testing.assert_allclose(losses, want, rtol=1e-2 if name in BFLOAT16 else 1e-5)
    assert program != same  # or the lever is not connected
