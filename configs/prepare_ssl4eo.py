r"""Builds a dataset of records from the unpacked archive of SSL4EO-S12 v1.

    python launch.py --config=configs/prepare_ssl4eo.py --config.source=DIR \
        --config.out=DIR

In the source lie the folders s1/ and s2a/ (or s2c/), each with locations of seven
digits; --config.download=DIR, without source, fetches what they are packed in into DIR,
and says how to unpack it. The four seasons of a location become four pairs; some
locations, drawn by their numbers, are held out whole for validation.
"""

import ml_collections

from configs import prepare_bigearthnet


def get_config() -> ml_collections.ConfigDict:
    c = prepare_bigearthnet.get_config()
    with c.unlocked():
        c.archive = "ssl4eo"
        c.holdout_share = 0.01  # of the 251,079 locations
        c.pairs_per_shard = 384  # about 400 MB
        c.read = ml_collections.ConfigDict()
        c.read.most_missing = 0.5
        c.read.level = "L2A"
        c.read.s2_offset = "0"  # the published archive is older than baseline 04.00
        c.read.void_ids = ""
    return c
