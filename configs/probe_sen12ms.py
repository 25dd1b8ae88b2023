r"""Evaluates an encoder on SEN12MS: kNN, linear probe and retrieval, 10 classes.

    python launch.py --config=configs/probe_sen12ms.py \
        --config.checkpoint=runs/pretrain_base --config.data.dir=data/sen12ms

A scene has the classes with a tenth or more of its pixels, as in the archive's own
benchmark. Tested on its official test list, chosen on the scenes that prepare_sen12ms
held out of the others. Scenes of 256 px are shown in tiles, whose features are
averaged. Sentinel-2 is L1C here, of other brightness than the L2A of BigEarthNet, so
bands are normalised by this dataset's own statistics. Made for one accelerator.
"""

from configs import probe_bigearthnet


def get_config():
    c = probe_bigearthnet.get_config()
    # Those published are of clipped backscatter, and there are none of B01 and B09.
    c.data.statistics = "computed"
    c.normalize = "data"
    c.features.view = "tiles"
    c.batch_size = 128
    return c
