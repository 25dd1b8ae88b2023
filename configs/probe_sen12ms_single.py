r"""Evaluates an encoder on SEN12MS: kNN, probe and retrieval, the one main class.

    python launch.py --config=configs/probe_sen12ms_single.py \
        --config.checkpoint=runs/pretrain_base --config.data.dir=data/sen12ms

As probe_sen12ms, whose features it finds in the cache, but a scene has the one class
that covers most of it: overall and average accuracy.
"""

from configs import probe_sen12ms


def get_config():
    c = probe_sen12ms.get_config()
    c.labels, c.single_label = "main_label", True
    return c
