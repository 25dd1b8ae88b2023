"""Reports a run's reconstructions: errors beside simple predictors, and pictures.

    python launch.py --config=configs/reconstruct.py --config.checkpoint=runs/quickstart

Needs the run directory and nothing else about the model.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "reconstruct"
    c.checkpoint = ""  # a run directory
    c.step = 0  # which of its checkpoints; 0 for the latest
    c.data = dict(source="sample", dir="", count=1_000, size=120, seed=0)
    c.split = "validation"
    c.pairs = 64
    c.draws = 4  # masks of each pair
    c.shown = 6  # pairs in the picture
    return c.lock()
