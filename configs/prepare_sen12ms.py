r"""Builds a dataset of records from the unpacked archive of SEN12MS.

    python launch.py --config=configs/prepare_sen12ms.py --config.source=DIR \
        --config.out=DIR

With --config.download=DIR, without source, it says how to fetch the archive into DIR,
and then verifies it. Below the source lie the seasons, each with its folders
{s1,s2,lc}_<scene>. The 26 hold-out scenes of SEN12MS become the test split, which is
the official one, and some of the other scenes, drawn by their names, the validation
split.

The archive's own lists of files give the same test split, and leave the choice of
validation pairs to you. To use them, pass --config.holdout_share=0 --config.splits=DIR,
a folder with train.csv, val.csv and test.csv of names without their ".tif":

    sed 's/\.tif$//' train_list.txt > train.csv
    sed 's/\.tif$//' test_list.txt > test.csv
    touch val.csv

Lists that exist only as .pkl are not opened here, as loading a pickle runs whatever
code is in it; of one that you trust, make the text with

    python -c "import pickle; \
        print(*pickle.load(open('train_list.pkl', 'rb')), sep='\n')" > train_list.txt
"""

import ml_collections

from configs import prepare_bigearthnet


def get_config() -> ml_collections.ConfigDict:
    c = prepare_bigearthnet.get_config()
    with c.unlocked():
        c.archive = "sen12ms"
        c.holdout_share = 0.05  # of the scenes that are not for testing
        c.pairs_per_shard = 192  # about 400 MB
    return c
