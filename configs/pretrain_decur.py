"""Pretrains DeCUR, a ViT-S/8 for each sensor, on Sentinel-1/Sentinel-2 images.

    python launch.py --config=configs/pretrain_decur.py --config.data.dir=DIR

As its authors did, but for what `fusmae_jax/objectives/decur.py` lists; they trained on
SSL4EO-S12 for up to 200 epochs, on four GPUs. The loss is of the batch as a whole,
which has to be large: --config.accumulate makes it smaller.
"""

from configs import pretrain_base


def get_config():
    c = pretrain_base.get_config("decur")
    c.batch_size = 512
    c.model.update(dim=384, num_heads=6)
    c.optim.update(base_lr=5e-5, b2=0.999, weight_decay=0.01)
    return c
