r"""Compares what Fus-MAE's parts do, on procedural patterns whose answer is known.

    python launch.py --config=configs/compare_synthetic.py

Needs no data and no accelerator. Every arm is a pretraining with a config of its own,
trained on the same pairs for as many images with each of the seeds, and judged by the
same evaluations; the workdir gets a table (comparison.md), all scores (comparison.csv)
and a figure. What is finished is kept in `results`, a file for each training, so that
the same command goes on, on another machine too. With --config.budget=flops all
arms have the FLOPs of the reference instead.
"""

import ml_collections

from configs import pretrain_synthetic, probe_synthetic

ABLATIONS = {
    "fusmae": {},
    "no_fusion": {"model.fuse_early": False, "model.fuse_features": False},
    "early_fusion": {"model.fuse_features": False},
    "feature_fusion": {"model.fuse_early": False},
    "consistent_masks": {"mask.mode": "consistent"},
}


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "compare"
    c.arms = make_arms(pretrain_synthetic, ABLATIONS)
    c.evaluations = dict(patterns=probe_synthetic.get_config())
    c.evaluations.patterns.unlock()
    c.evaluations.patterns.methods = ("probe",)
    c.evaluations.patterns.fractions, c.evaluations.patterns.repeats = (1.0,), (1,)
    c.seeds = (0, 1, 2)
    c.budget, c.reference = "images", "fusmae"
    c.tune = dict(rates=(1.0,), share=0.25)
    c.metric, c.of_class = "oa", ""
    c.results, c.only = "", ()
    return c.lock()


def make_arms(base, changes) -> dict[str, ml_collections.ConfigDict]:
    """A pretraining's config for each arm: `base`'s, of a method, changed.

    Args:
        base: a config file that takes a method.
        changes: of each arm, fields by their names; `method` is Fus-MAE unless said.
    """
    arms = {}
    for name, changed in changes.items():
        changed = dict(changed)
        arms[name] = base.get_config(changed.pop("method", "fusmae"))
        arms[name].judge.every = 0
        arms[name].update_from_flattened_dict(changed)
    return arms
