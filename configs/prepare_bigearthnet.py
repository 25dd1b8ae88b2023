r"""Builds a dataset of records from the unpacked archives of BigEarthNet v1.

    python launch.py --config=configs/prepare_bigearthnet.py --config.source=DIR \
        --config.out=DIR

Both archives lie unpacked in the source: BigEarthNet-v1.0/ and BigEarthNet-S1-v1.0/.
A build that was stopped goes on where it was when the command is given again.
"""

import ml_collections

LICENCE = """\
The data in this folder is licensed under the Community Data License Agreement -
Permissive, Version 1.0 (CDLA-Permissive-1.0): https://cdla.dev/permissive-1-0/

It comes from BigEarthNet:

    G. Sumbul, M. Charfuelan, B. Demir, V. Markl, "BigEarthNet: A Large-Scale Benchmark
    Archive for Remote Sensing Image Understanding", IGARSS 2019.
    G. Sumbul, A. de Wall, T. Kreuziger, F. Marcelino, H. Costa, P. Benevides,
    M. Caetano, B. Demir, V. Markl, "BigEarthNet-MM: A Large-Scale, Multimodal,
    Multilabel Benchmark Archive for Remote Sensing Image Classification and
    Retrieval", IEEE Geoscience and Remote Sensing Magazine, 2021.

It contains modified Copernicus Sentinel data 2017-2018.

What was changed: the pixels and labels were encoded anew, as ArrayRecord files;
Sentinel-1 backscatter was rounded from 32-bit to 16-bit floating point; the 19 classes
were derived from the 43 labels.
"""


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "prepare"
    c.source = ""  # folder with both unpacked archives
    c.out = ""  # folder to build in, empty or with a build that was stopped
    # Split by the official lists train.csv, val.csv and test.csv in a folder, or hold
    # out all pairs of some MGRS tiles for validation; with neither, all are "train".
    c.splits_dir = ""
    c.holdout_tiles = ()
    c.pairs_per_shard = 2048  # about 400 MB
    c.workers = 8  # processes; 0 builds in this one
    c.strict = False  # stop at the first bad pair instead of listing it
    c.licence = LICENCE
    return c.lock()
