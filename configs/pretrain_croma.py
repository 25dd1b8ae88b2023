"""Pretrains CROMA ViT-B/8 on paired Sentinel-1/Sentinel-2 images.

    python launch.py --config=configs/pretrain_croma.py --config.data.dir=DIR

As its authors did, but for what `fusmae_jax/objectives/croma.py` lists; they trained on
a million pairs of SSL4EO-S12. --config.loss.contrast=0 trains the reconstruction alone.
The contrast is of the batch as a whole, which has to be large: --config.accumulate
makes it smaller.
"""

from configs import pretrain_base


def get_config():
    c = pretrain_base.get_config("croma")
    c.model.num_heads = 16
    return c
