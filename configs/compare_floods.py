r"""Compares pretrainings on pairs of your own, by the classes of their pixels.

    python launch.py --config=configs/compare_floods.py \
        --config.data_dir=data/floods --config.eval_dir=data/floods_2021

and Fus-MAE with one change each by --config=configs/compare_floods.py:ablations.

Made for some hundred pairs with masks, such as floods, in three splits, test pairs of a
second dataset, and two CPU cores: the quickstart's network, ten minutes for an arm and
a seed. Each arm is trained on the training pairs without their masks; then a linear
head learns the masks from 1 %, 10 % and all of them, with radar, optics and both.

The bands are those of OMBRIA's pictures; name others in a copy of this file. Boosted
trees on the pixels are put beside by `python -m benchmarks.pixel_trees`.
"""

import ml_collections

from configs import compare_synthetic, dense_pairs, quickstart
from data_pipeline.errors import InputError

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
    "all_places_ask": {"model.feature_queries": "all"},
    "targets_by_family": {"loss.normalize": "group"},
    "radar_counts_double": {"loss.weight_s1": 2.0},
    "latent_targets": {"loss.targets": "latent"},
    "contrast": {"loss.contrast": 0.1},
}


ARMS = {"methods": METHODS, "ablations": ABLATIONS}


def get_config(what="methods"):
    if what not in ARMS:
        raise InputError(f"There are no arms {what!r}; choose one of {list(ARMS)}.")
    c = compare_synthetic.get_config()
    c.unlock()
    c.data_dir, c.eval_dir = "data/floods", "data/floods_2021"
    c.arms = compare_synthetic.make_arms(quickstart, ARMS[what])
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
    judge.dense.update(heads=("linear",), batch_size=16, epochs=10)
    judge.dense.learning_rates = (3e-3, 1e-2, 3e-2, 1e-1)
    elsewhere = judge.copy_and_resolve_references()
    elsewhere.data.dir = c.get_ref("data_dir")
    elsewhere.update(baselines=(), fractions=(1.0,), repeats=(1,))
    elsewhere.data.eval_dir = c.get_ref("eval_dir")
    c.evaluations = ml_collections.ConfigDict(
        {"floods": judge, "floods_2021": elsewhere}
    )
    c.metric, c.of_class = "iou", "flooded"
    return c.lock()
