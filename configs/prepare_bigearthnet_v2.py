r"""Builds a dataset of records from BigEarthNet v2 (reBEN).

    python launch.py --config=configs/prepare_bigearthnet_v2.py --config.source=DIR \
        --config.out=DIR

In the source lie the unpacked archives, BigEarthNet-S2/, BigEarthNet-S1/ and where
pixel labels are wanted Reference_Maps/, with metadata.parquet; or the LMDB that
rico-hdl wrote, with metadata.parquet in the same folder or in the one around it. The
split is that of the metadata. --config.download=DIR, without source, fetches the
archives into DIR, and says how to unpack them.
"""

import ml_collections

from configs import prepare_bigearthnet


def get_config() -> ml_collections.ConfigDict:
    c = prepare_bigearthnet.get_config()
    with c.unlocked():
        c.archive = "bigearthnet_v2"
        c.read = ml_collections.ConfigDict()
        c.read.most_missing = 0.5
        c.read.metadata = ""
        c.read.maps = True
        # To keep them put metadata_for_patches_with_snow_cloud_or_shadow.parquet beside
        # metadata.parquet, which has few of them.
        c.read.snow_and_clouds = False
    return c.lock()
