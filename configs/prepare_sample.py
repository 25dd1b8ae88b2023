r"""Builds the sample that comes with the project from 22 pairs of BigEarthNet v1.

    python launch.py --config=configs/prepare_sample.py --config.source=DIR \
        --config.out=DIR
"""

import ml_collections

from configs import prepare_bigearthnet


def get_config() -> ml_collections.ConfigDict:
    c = prepare_bigearthnet.get_config()
    c.holdout_tiles = ("29SND", "33UUP")
    c.pairs_per_shard = 9  # two shards to train on, one to validate
    c.workers = 0
    return c
