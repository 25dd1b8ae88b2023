r"""Evaluates an encoder on the land cover of SEN12MS, pixel by pixel, 10 classes.

    python launch.py --config=configs/dense_sen12ms.py \
        --config.checkpoint=runs/pretrain_base --config.data.dir=data/sen12ms

Heads on frozen tokens, trained on a tenth of the training scenes; splits and bands as
in probe_sen12ms; made for one accelerator. The maps have cells of 500 m and are in part
wrong, as their authors say: scores compare encoders, and do not say how well land cover
can be mapped.
"""

from configs import probe_sen12ms


def get_config():
    c = probe_sen12ms.get_config()
    c.methods = ("dense",)
    c.fractions, c.repeats = (0.1,), (1,)
    return c
