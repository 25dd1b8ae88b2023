r"""Builds a dataset of records from the archives of BigEarthNet v1.

    python launch.py --config=configs/prepare_bigearthnet.py --config.source=DIR \
        --config.splits=LISTS --config.out=DIR

Both archives lie in the source, BigEarthNet-v1.0 and BigEarthNet-S1-v1.0, as folders or
as tars, which need not be unpacked. --config.download=DIR, without source, fetches them
and the lists of the splits into DIR, and says how to go on. A build that was stopped
goes on where it was when the command is given again. With --explain the command prints
what every field means, and stops.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "prepare"
    c.archive = "bigearthnet_v1"
    c.download = ""
    c.download_parts = ()
    c.source = ""
    c.out = ""
    c.splits = ""
    c.holdout_tiles = ()
    c.holdout_share = 0.0
    c.exclude = ()
    c.pairs_per_shard = 2048  # about 400 MB
    c.workers = 8
    c.strict = False
    c.most_skipped = 0.1
    c.check_values = True
    c.compression = "zstd:3"
    c.scratch = ""
    c.runner = ""
    c.runner_options = ()
    c.read = ml_collections.ConfigDict()
    c.read.most_missing = 0.5
    return c.lock()
