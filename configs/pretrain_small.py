"""Pretrains Fus-MAE ViT-S/8: the base run with a narrower encoder.

python launch.py --config=configs/pretrain_small.py --config.data.dir=DIR
"""

from configs import pretrain_base


def get_config(method="fusmae"):
    c = pretrain_base.get_config(method)
    c.model.update(dim=384, num_heads=6)
    return c
