"""Trains a small Fus-MAE on procedural patterns, to be evaluated by probe_synthetic.

    python launch.py --config=configs/pretrain_synthetic.py

Needs no data and no accelerator: some 4 minutes on 2 CPU cores. Optics sees one
pattern of each scene and radar another, see data_pipeline/synthetic.py. Half of the
pairs lacks a sensor, so that the encoder learns to make do with one, and what one
sensor says of the other. Every few epochs kNN and a quick probe say what it has learnt.
"""

from configs import pretrain_base, quickstart

CHANGED = {"mask.mode": "independent", "mask.drop_sensor": 0.5, "crops.local_size": 24}


def get_config(method="fusmae"):
    c = pretrain_base.get_config(method)
    c.epochs, c.batch_size = 12, 32
    c.data.update(source="patterns", count=4_000, size=48)
    c.view.crop_scale = (0.5, 1.0)
    c.model.update(image_size=48, dim=128, depth=4, num_heads=4, dtype="float32")
    pretrain_base.change(c, quickstart.SMALL | CHANGED)
    c.optim.update(base_lr=8e-3, clip_norm=1.0)
    c.log_every, c.eval_every, c.checkpoint_every = 50, 500, 500
    c.keep_every = 0
    c.judge.update(every=3, train_pairs=1_000, eval_pairs=400)
    return c
