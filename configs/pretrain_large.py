"""Pretrains Fus-MAE ViT-L/8: the base run with a wider and deeper encoder.

    python launch.py --config=configs/pretrain_large.py --config.data.dir=DIR

On small devices send a batch through in parts with --config.accumulate=4; only where
that is not enough split the parameters over 4 of them with --config.fsdp=4, too.
"""

from configs import pretrain_base


def get_config(method="fusmae"):
    c = pretrain_base.get_config(method)
    c.model.update(dim=1024, depth=24, num_heads=16)
    return c
