"""Trains a small Fus-MAE on the real pairs that come with the project.

    python launch.py --config=configs/quickstart.py

Needs no data and no accelerator: 17 BigEarthNet pairs, 5 more of other MGRS tiles
held out, under 3 minutes on 2 CPU cores. It shows the machinery at work; 17 pairs
teach no representation worth keeping. Targets are plain pixels rather than
normalised patches, so that errors and pictures speak of reflectance and backscatter.
"""

from configs import pretrain_base


def get_config():
    c = pretrain_base.get_config()
    c.epochs, c.batch_size = 320, 16
    c.data.update(source="sample", threads=2)
    c.view.crop_scale = (0.5, 1.0)
    c.model.update(dim=128, depth=4, num_heads=4, dtype="float32")
    c.model.update(decoder_dim=96, decoder_depth=2, decoder_heads=4)
    c.loss.normalize = "none"
    c.optim.base_lr = 1.6e-2
    c.log_every, c.eval_every, c.checkpoint_every = 20, 100, 100
    c.figure_pairs = 5
    c.keep_every = 0
    return c
