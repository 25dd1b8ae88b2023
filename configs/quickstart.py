"""Trains a small Fus-MAE on the real pairs that come with the project.

    python launch.py --config=configs/quickstart.py

and any other method with its name behind it, --config=configs/quickstart.py:mae.

Needs no data and no accelerator: 17 BigEarthNet pairs, 5 more of other MGRS tiles
held out, under 3 minutes on 2 CPU cores. It shows the machinery at work; 17 pairs
teach no representation worth keeping.

What differs from the real runs, and why: targets are plain pixels rather than
normalised patches, so that errors and pictures speak of reflectance and backscatter;
views are 64 px, small crops among them, and masks consistent, because so few pairs
have to show many kinds of ground in so few steps.
"""

from configs import pretrain_base

# Of what only some methods have, for networks of this size.
SMALL = {
    **{"mask.mode": "consistent", "loss.normalize": "none"},
    **{"model.decoder_dim": 64, "model.decoder_depth": 1, "model.decoder_heads": 4},
    **{"crops.local": 2, "crops.local_size": 32},
    **{"model.head_dim": 256, "model.head_narrow": 64, "model.prototypes": 512},
    **{"model.projector_dim": 512, "loss.common": 448},
}


def get_config(method="fusmae"):
    c = pretrain_base.get_config(method)
    c.epochs, c.batch_size = 1100, 16
    c.data.update(source="sample", threads=2)
    c.view.crop_scale = (0.03, 0.6)
    c.model.update(image_size=64, dim=96, depth=3, num_heads=4, dtype="float32")
    pretrain_base.change(c, SMALL)
    c.optim.update(base_lr=3.2e-2, weight_decay=0.2, clip_norm=1.0)
    c.log_every, c.eval_every, c.checkpoint_every = 50, 200, 400
    c.keep_every = 0
    c.figure_pairs, c.eval_draws = 5, 8
    return c
