r"""Builds a dataset of records from So2Sat LCZ42 of TensorFlow Datasets.

    python launch.py --config=configs/prepare_so2sat.py --config.source=DIR \
        --config.out=DIR

The source is a data directory of TFDS, in which so2sat/all was prepared once, about
55 GB by FTP, in an environment with TensorFlow:

    import tensorflow_datasets as tfds
    tfds.builder(
        "so2sat/all", data_dir="DIR", file_format="array_record"
    ).download_and_prepare()

The splits are those of TFDS: the validation areas are not in the training cities.
"""

import ml_collections

from configs import prepare_bigearthnet


def get_config() -> ml_collections.ConfigDict:
    c = prepare_bigearthnet.get_config()
    with c.unlocked():
        c.archive = "so2sat"
        c.pairs_per_shard = 16384  # about 400 MB
        c.read = ml_collections.ConfigDict()
        c.read.most_missing = 0.5
        c.read.speckle = "lee"
    return c
