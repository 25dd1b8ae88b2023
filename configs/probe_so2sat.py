r"""Evaluates an encoder on So2Sat LCZ42: kNN, linear probe and retrieval, 17 classes.

    python launch.py --config=configs/probe_so2sat.py \
        --config.checkpoint=runs/pretrain_so2sat_bands --config.data.dir=data/so2sat

So2Sat has neither B01 nor B09. The encoder must have been pretrained without them:

    python launch.py --config=configs/pretrain_base.py --config.data.dir=DIR \
        --workdir=runs/pretrain_so2sat_bands --config.bands.s2="('B02','B03','B04',\
        'B05','B06','B07','B08','B8A','B11','B12')"

Tested on the validation split of TFDS, whose areas are not in the training cities.
There is no third split to choose on, so nothing is chosen: the probe has one setting,
and `val_split` only repeats the training pairs. Scenes of 32 px are enlarged to the
encoder's image. Made for one accelerator.
"""

from configs import probe_bigearthnet


def get_config():
    c = probe_bigearthnet.get_config()
    c.data.update(val_split="train", test_split="validation")
    c.data.statistics = "computed"  # none are published in these units
    c.normalize = "data"
    c.single_label = True
    c.probe.learning_rates, c.probe.weight_decays = (0.1,), (1e-4,)
    return c
