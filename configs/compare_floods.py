r"""Compares pretrainings on pairs of your own, by the classes of their pixels.

    python launch.py --config=configs/compare_floods.py --config.data_dir=data/floods

and Fus-MAE with one change each by --config=configs/compare_floods.py:ablations.

Made for some hundred pairs with masks, such as floods, in three splits, and for two CPU
cores: the quickstart's network, an estimated 20 minutes for an arm and a seed. Each arm
is trained on the training pairs without their masks; then a linear head learns the
masks from 1 %, 10 % and all of them, with radar, optics and both.

The bands are those of OMBRIA's pictures; name others in a copy of this file. Boosted
trees on the pixels are put beside by `python -m benchmarks.pixel_trees`.
"""

import ml_collections

from configs import compare_synthetic, dense_pairs, quickstart

METHODS = {
    "fusmae": {},
    "mae_stacked": {"method": "mae"},
    "mae_s1": {"method": "mae", "model.sensors": "s1"},
    "mae_s2": {"method": "mae", "model.sensors": "s2"},
    "multimae": {"method": "multimae"},
    "dinomm": {"method": "dinomm", "optim.base_lr": 8e-3},
    "decur": {"method": "decur", "optim.base_lr": 8e-3},
    "croma": {"method": "croma"},
    "croma_reconstruction": {"method": "croma", "loss.contrast": 0.0},
}
# One change each.
ABLATIONS = {
    **compare_synthetic.ABLATIONS,
    "sensors_dropped": {"mask.drop_sensor": 0.5},
    "normalized_targets": {"loss.normalize": "patch"},
    "half_masked": {"mask.ratio": 0.5},
    "global_token_taught": {"model.global_token": "decoders"},
}


def get_config(what="methods"):
    c = compare_synthetic.get_config()
    c.unlock()
    c.data_dir = "data/floods"
    c.arms = compare_synthetic.make_arms(
        quickstart, ABLATIONS if what == "ablations" else METHODS
    )
    for arm in c.arms.values():
        arm.epochs, arm.data.source = 90, "records"
        arm.data.dir = c.get_ref("data_dir")
        arm.bands.s1, arm.bands.s2 = ("VV",), ("B04", "B08", "B11")
        arm.log_every, arm.eval_every, arm.checkpoint_every = 100, 1_000, 500
    judge = dense_pairs.get_config()
    judge.unlock()
    judge.data.dir = c.get_ref("data_dir")
    judge.baselines = ("random",)
    judge.fractions, judge.repeats = (0.01, 0.1, 1.0), (1, 1, 1)
    judge.batch_size, judge.features.pool = 16, "mean"
    judge.dense.update(heads=("linear",), batch_size=16)
    judge.dense.learning_rates = (1e-3, 3e-3, 1e-2, 3e-2)
    c.evaluations = ml_collections.ConfigDict({"floods": judge})
    c.tune.rates = (0.3, 1.0, 3.0)
    c.metric, c.of_class = "iou", "flooded"
    return c.lock()
