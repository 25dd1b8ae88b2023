"""Pretrains DINO-MM ViT-S/8 on paired Sentinel-1/Sentinel-2 images.

    python launch.py --config=configs/pretrain_dinomm.py --config.data.dir=DIR

As its authors did, but for what `fusmae_jax/objectives/dinomm.py` lists; they trained
on 300,000 pairs, on four GPUs. The teacher's forward pass and ten crops make a pair 114
GFLOP, twice the base run's; without small crops, --config.crops.local=0, it is 74.
"""

from configs import pretrain_base


def get_config():
    c = pretrain_base.get_config("dinomm")
    c.batch_size = 256
    c.view.update(crop_scale=(0.4, 1.0), resampling="cubic")
    c.model.update(dim=384, num_heads=6)
    c.optim.update(base_lr=5e-4, b2=0.999, weight_decay=0.04, clip_norm=3.0)
    return c
