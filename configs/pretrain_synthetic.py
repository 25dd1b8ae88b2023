"""Trains a small Fus-MAE on procedural scenes, to be judged by probe_synthetic.

    python launch.py --config=configs/pretrain_synthetic.py

Needs no data and no accelerator. Some classes of these scenes are told apart by radar
alone, some by optics alone, some only by both. A quarter of the pairs lacks a sensor,
so that the encoder learns to make do with either.
"""

from configs import pretrain_base


def get_config():
    c = pretrain_base.get_config()
    c.epochs, c.batch_size = 24, 64
    c.data.update(source="synthetic", count=4_000, size=48)
    c.view.crop_scale = (0.5, 1.0)
    c.mask.drop_sensor = 0.25
    c.model.update(image_size=48, dim=128, depth=4, num_heads=4, dtype="float32")
    c.model.update(decoder_dim=64, decoder_depth=1, decoder_heads=4)
    c.optim.update(base_lr=4e-3, clip_norm=1.0)
    c.log_every, c.eval_every, c.checkpoint_every = 50, 250, 500
    c.keep_every = 0
    return c
