r"""Evaluates an encoder on the reference maps of BigEarthNet v2, pixel by pixel.

    python launch.py --config=configs/dense_bigearthnet_v2.py \
        --config.checkpoint=runs/pretrain_base --config.data.dir=data/bigearthnet_v2

Heads on frozen tokens, trained on a tenth of the training scenes; made for one
accelerator. The data must have been prepared with Reference_Maps; pixels outside the 19
classes, and patches without a map, count neither in training nor in the scores. As for
probe_bigearthnet_v2, the encoder must not have been pretrained on the test patches.
"""

from configs import probe_bigearthnet


def get_config():
    c = probe_bigearthnet.get_config()
    c.methods = ("dense",)
    c.fractions, c.repeats = (0.1,), (1,)
    return c
