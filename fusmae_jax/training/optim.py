"""The optimiser: AdamW on a warm-up-then-cosine schedule."""

import jax
import optax

from data_pipeline.errors import InputError


def schedule(peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Rises linearly to `peak` over the warm-up, then falls to 0 as a cosine."""
    if not 0 <= warmup_steps < steps:
        raise InputError(
            f"A warm-up of {warmup_steps} steps does not fit into {steps} steps; make "
            "it shorter."
        )
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps)


def adamw(
    rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    weight_decay: float = 0.05,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW that decays matrices only; biases, norms and tokens are left alone.

    Args:
        rate: learning rate by step.
        b1: decay of the first moment.
        b2: decay of the second moment; 0.95 is MAE's.
        weight_decay: decoupled decay of the matrices.
        clip_norm: gradients longer than this are scaled down to it; 0 never clips.
    """

    def matrices(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    steps.append(
        optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=matrices)
    )
    return optax.chain(*steps)
