r"""Compares pretrainings of the base size on a whole archive.

    python launch.py --config=configs/compare_archives.py:bigearthnet_v2 \
        --config.data_dir=data/bigearthnet_v2

and likewise :sen12ms and :so2sat, on data that prepare_NAME has made. Nine arms see
the same pairs, 1,024 a step, for as many epochs; each run is judged by kNN and linear
probes on 1 %, 10 % and all labels, with radar, optics and both. Made for a slice or a
multi-GPU host: docs/comparison.md has device-hours. Machines share the arms with
--config.only and one --config.results.
"""

import importlib

import ml_collections

from configs import compare_floods, compare_synthetic, pretrain_base
from data_pipeline.errors import InputError

# Of each archive: how its scenes are seen, and whose statistics normalise them.
ARCHIVES = {
    "bigearthnet_v2": {},
    "sen12ms": {  # crops of 256 px at about their own scale; L1C
        "view.crop_scale": (0.1, 0.4),
        "data.statistics": "computed",
    },
    "so2sat": {  # scenes of 32 px, without B01 and B09
        "model.image_size": 32,
        "model.patch_size": 4,
        "bands.s2": tuple(b for b in pretrain_base.S2_BANDS if b not in ("B01", "B09")),
        "data.statistics": "computed",
        "crops.local_size": 16,
    },
}
# What the peers' own configs say of them, but sizes and what all share.
RECIPES = {
    "dinomm": {
        **{"optim.base_lr": 5e-4, "optim.b2": 0.999, "optim.weight_decay": 0.04},
        **{"optim.clip_norm": 3.0},
    },
    "decur": {
        **{"optim.base_lr": 5e-5, "optim.b2": 0.999, "optim.weight_decay": 0.01},
    },
    "croma": {"model.num_heads": 16},
}


def get_config(archive="bigearthnet_v2"):
    if archive not in ARCHIVES:
        raise InputError(f"{archive!r} is no archive; choose one of {list(ARCHIVES)}.")
    c = compare_synthetic.get_config()
    c.unlock()
    c.data_dir = f"data/{archive}"
    arms = {}
    for name, changes in compare_floods.METHODS.items():
        own = {k: x for k, x in changes.items() if k != "optim.base_lr"}
        arms[name] = RECIPES.get(changes.get("method"), {}) | own
    c.arms = compare_synthetic.make_arms(pretrain_base, arms)
    for arm in c.arms.values():
        arm.data.dir = c.get_ref("data_dir")
        pretrain_base.change(arm, ARCHIVES[archive])
    judge = importlib.import_module(f"configs.probe_{archive}").get_config()
    judge.unlock()
    judge.data.dir = c.get_ref("data_dir")
    judge.methods, judge.baselines = ("knn", "probe"), ("random", "statistics")
    judge.fractions, judge.repeats = (0.01, 0.1, 1.0), (1, 1, 1)
    c.evaluations = ml_collections.ConfigDict({archive: judge})
    c.metric = "oa" if judge.single_label else "map_micro"
    return c.lock()
