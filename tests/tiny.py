"""The smallest run that has every part, for tests."""

import functools

from flax import nnx

from configs import pretrain_base
from fusmae_jax.model import FusMAE

BANDS = {"s1": 2, "s2": 12}
MODEL = dict(
    bands=BANDS,
    image_size=24,
    patch_size=6,
    dim=32,
    depth=2,
    num_heads=2,
    decoder_dim=16,
    decoder_depth=1,
    decoder_heads=2,
)


def model(seed: int = 0, **changes) -> FusMAE:
    """A tiny model."""
    return FusMAE(**MODEL | changes, rngs=nnx.Rngs(seed))


make_model = functools.partial(FusMAE, **MODEL)


def config():
    """A tiny run on synthetic scenes: 6 steps of 8 pairs."""
    c = pretrain_base.get_config()
    c.epochs, c.batch_size = 2, 8
    c.data.update(source="synthetic", count=24, size=24, threads=1)
    c.model.update({k: v for k, v in MODEL.items() if k != "bands"})
    c.model.dtype = "float32"
    c.optim.warmup_epochs = 0
    c.fsdp_min_size = 0
    c.log_every, c.eval_every, c.checkpoint_every = 1, 3, 3
    c.keep_every = 0
    c.eval_pairs, c.eval_draws, c.figure_pairs = 3, 2, 2
    return c
