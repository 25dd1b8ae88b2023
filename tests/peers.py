"""Small runs of the methods that compare crops, sensors or patches, for tests."""

import jax
import numpy as np

from configs import pretrain_base
from data_pipeline import synthetic
from tests import tiny

# Sizes, and tasks that so small a network learns in so few steps.
SMALL = {
    "fusmae": {  # with what it may have beside the paper's
        **{"loss.targets": "latent", "loss.contrast": 2.0, "mask.ratio": 0.25},
        **{"loss.temperature": 0.2, "view.crop_scale": (0.9, 1.0)},
        **{"optim.base_lr": 0.006},
        **{"model.decoder_dim": 16, "model.decoder_heads": 2},
    },
    "dinomm": {
        **{"crops.local": 2, "crops.local_size": 12, "crops.local_scale": (0.3, 0.6)},
        **{"crops.jitter": 0.1, "mask.drop_sensor": 0.2},
        **{"model.head_dim": 32, "model.head_narrow": 16, "model.prototypes": 32},
        **{"loss.teacher_momentum": 0.95, "optim.base_lr": 0.016},
    },
    "decur": {
        **{"crops.jitter": 0.1, "view.crop_scale": (0.5, 1.0)},
        **{"model.projector_dim": 24, "loss.common": 16, "optim.base_lr": 0.016},
    },
    "croma": {
        **{"view.crop_scale": (0.5, 1.0), "mask.ratio": 0.5, "optim.base_lr": 0.016},
        **{"model.decoder_dim": 16, "model.decoder_heads": 2},
    },
}
METHODS = tuple(SMALL)


def config(method: str, **changes):
    """A small run of a method on synthetic scenes: 60 steps of 16 pairs."""
    c = pretrain_base.get_config(method)
    c.unlock()
    like = tiny.config()
    for name in like:
        if name not in ("method", "view", "mask", "model", "loss", "optim"):
            c[name] = like[name]
    names = ("image_size", "patch_size", "dim", "depth", "num_heads", "dtype")
    c.model.update({name: like.model[name] for name in names})
    c.epochs, c.batch_size, c.data.count = 20, 16, 48
    c.eval_every, c.checkpoint_every, c.eval_pairs = 30, 6, 16
    c.judge.update(every=20, train_pairs=16, eval_pairs=16)
    changes = {name.replace("__", "."): x for name, x in changes.items()}
    c.update_from_flattened_dict(SMALL[method] | changes)
    return c


def fields(count: int):
    """Stored pixels of synthetic scenes."""
    names = ("s1_10m", "s2_10m", "s2_20m", "s2_60m")
    scenes = synthetic.Scenes(count, size=24, fields=names)
    return jax.tree.map(lambda *x: np.stack(x), *(scenes[i] for i in range(count)))
