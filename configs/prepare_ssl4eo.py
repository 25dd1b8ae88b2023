r"""Builds a dataset of records from the unpacked archive of SSL4EO-S12 v1.

    python launch.py --config=configs/prepare_ssl4eo.py --config.source=DIR \
        --config.out=DIR

In the source lie the folders s1/ and s2a/ (or s2c/), each with locations of seven
digits. The four seasons of a location become four pairs; some locations, drawn by
their numbers, are held out whole for validation.
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
        c.read.level = "L2A"  # of Sentinel-2: "L2A" (s2a/) or "L1C" (s2c/)
        # Processing baseline 04.00 and later (2022) add 1000 DN. The published archive
        # predates it: "0". For later downloads "auto" looks for the baseline in each
        # product's metadata.json, and "1000" takes the offset out.
        c.read.s2_offset = "0"
        c.read.void_ids = ""  # void_ids.csv of SSL4EO-S12: locations to leave out
    return c
