r"""Evaluates an encoder by the change that it shows between two dates.

    python launch.py --config=configs/change_pairs.py \
        --config.checkpoint=runs/mine --config.data.dir=data/cities

prepare_pairs must have been given images of two dates on one grid, and masks of two
classes, of which the second is change: a mask belongs to the later date and says what
has changed since the date before. Dates go by the acquisition times, which file names
or the columns acquired_s1 and acquired_s2 tell, or by the ids where there are none.

All pairs of the split are encoded once by the frozen encoder, and heads learn from the
tokens of both dates. Regions are held out whole in turn (folds), and all are scored
together: F1, precision and recall of changed pixels, with 95 % intervals over regions,
beside a random encoder and bare pixels. Expect some minutes on two CPU cores for some
hundred places and a small encoder; the tokens of all pairs are held in memory.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "change"
    c.checkpoint = ""
    c.step = 0
    c.seed = 0
    c.data = dict(
        source="records",
        dir="",
        split="train",
        statistics="published",
        allow_overlap=False,
        count=10_000,
        size=120,
        seed=0,
    )
    c.field = "mask"
    c.normalize = "run"
    c.sensors = ("s1", "s2", "both")
    c.baselines = ("random", "statistics")
    c.ways = ("difference", "concatenation")
    c.heads = ("linear", "upsample")
    c.blocks = 1
    c.folds = 4
    c.apart = 10_000.0
    c.batch_size = 64
    c.bootstrap = 1_000
    c.fit = dict(
        steps=300,
        batch_size=16,
        learning_rates=(3e-3, 1e-2, 3e-2, 0.1),
        class_weights=(1.0, 4.0, 16.0, 64.0),
        weight_decay=0.01,
    )
    return c.lock()
