"""Pretrains Fus-MAE ViT-H/8: the base run with a wider and much deeper encoder.

    python launch.py --config=configs/pretrain_huge.py --config.data.dir=DIR

Split the parameters over devices with --config.fsdp=8; on small devices send a batch
through in parts, too, with --config.accumulate=4.
"""

from configs import pretrain_base


def get_config(method="fusmae"):
    c = pretrain_base.get_config(method)
    c.model.update(dim=1280, depth=32, num_heads=16)
    return c
