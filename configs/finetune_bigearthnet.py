r"""Fine-tunes an encoder on BigEarthNet v1 with 1 %, 10 % and all of the labels.

    python launch.py --config=configs/finetune_bigearthnet.py \
        --config.checkpoint=runs/pretrain_base --config.data.dir=data/bigearthnet

All parameters are trained, a hundred epochs for every fraction, sensor set and draw,
and as often again from scratch: a job for several accelerators. For less, pass
--config.baselines="()" or --config.sensors="('both',)". Official splits; the last
parameters are tested, and no epoch is chosen.
"""

from configs import probe_bigearthnet


def get_config():
    c = probe_bigearthnet.get_config()
    c.methods = ("finetune",)
    c.baselines = ("supervised",)
    return c
