"""Reports a run's reconstructions: errors beside simple predictors, and pictures.

    python launch.py --config=configs/reconstruct.py --config.checkpoint=runs/quickstart

Needs the run directory and nothing else about the model.
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
    return c.lock()
