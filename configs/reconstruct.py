"""Reports a run's reconstructions: errors beside simple predictors, and pictures.

    python launch.py --config=configs/reconstruct.py --config.checkpoint=runs/quickstart

Needs the run directory and nothing else about the model. --config.hide=s2 hides
Sentinel-2 whole, so that it is drawn from Sentinel-1 alone, and hide=s1 the reverse;
--config.mask_ratio=0.5 hides half of the patches.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "reconstruct"
    c.checkpoint = ""
    c.step = 0
    c.data = dict(source="sample", dir="", count=1_000, size=120, seed=0)
    c.split = "validation"
    c.pairs = 64
    c.draws = 4
    c.shown = 6
    c.hide = "patches"
    c.mask_ratio = 0.0
    return c.lock()
