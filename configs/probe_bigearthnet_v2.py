r"""Evaluates an encoder on BigEarthNet v2 (reBEN): kNN, linear probe and retrieval.

    python launch.py --config=configs/probe_bigearthnet_v2.py \
        --config.checkpoint=runs/pretrain_base --config.data.dir=data/bigearthnet_v2

The protocol of probe_bigearthnet on the data of prepare_bigearthnet_v2, the same 19
classes and the splits of its metadata; made for one accelerator. Half of this test
split is in the training split of v1: an encoder that was pretrained there is refused.
Pretrain on v2, or on a v1 without v2's test ground, as docs/data.md says how to build.
"""

from configs import probe_bigearthnet


def get_config():
    return probe_bigearthnet.get_config()
