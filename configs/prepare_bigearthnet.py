r"""Builds a dataset of records from the archives of BigEarthNet v1.

    python launch.py --config=configs/prepare_bigearthnet.py --config.source=DIR \
        --config.splits=LISTS --config.out=DIR

Both archives lie in the source, BigEarthNet-v1.0 and BigEarthNet-S1-v1.0, as folders or
as tars, which need not be unpacked. A build that was stopped goes on where it was when
the command is given again.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "prepare"
    c.archive = "bigearthnet_v1"  # module of data_pipeline/archives that reads it
    c.source = ""  # folder with both archives
    c.out = ""  # folder to build in, empty or with a build that was stopped
    # Split by lists: a folder with train.csv, val.csv and test.csv, or one .csv or
    # .parquet with a column "split"; empty takes the archive's own splits, if it has
    # any. Or hold out for validation the pairs of some MGRS tiles, or of a share of the
    # tiles, drawn by their names. With none of these all pairs are "train".
    c.splits = ""
    c.holdout_tiles = ()
    c.holdout_share = 0.0
    # Files of names to leave out: snow, clouds, no class of the 19. "FILE:test" leaves
    # out the names that the file's column "split" puts there, and all that show the
    # ground of these.
    c.exclude = ()
    c.pairs_per_shard = 2048  # about 400 MB
    c.workers = 8  # processes; 0 builds in this one
    c.strict = False  # stop at the first bad pair instead of listing it
    c.check_values = True  # refuse data whose values cannot be dB or DN
    c.compression = "zstd:3"  # or "none": larger by a fifth, faster to read
    # Folder for what was found in tars; empty is <out>-scratch. What is put there is
    # removed at the end.
    c.scratch = ""
    c.runner = ""  # a Beam runner, e.g. FlinkRunner; empty: processes of this machine
    c.runner_options = ()  # passed to Beam, e.g. ("--flink_master=HOST:8081",)
    c.read = ml_collections.ConfigDict()  # what only this archive needs: nothing
    return c.lock()
