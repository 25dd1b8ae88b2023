r"""Compares pretrainings on cities at two dates: retrieval across sensors, and change.

    python launch.py --config=configs/compare_cities.py --config.data_dir=data/cities

Made for some hundred pairs of Sentinel-1 (VV) and Sentinel-2 (twelve bands) of cities
at two dates, such as OSCD's, and two CPU cores: the quickstart's network, ten minutes
for an arm and a seed. Each arm is trained on the training cities without their masks.
Then, with its encoder as it is, the test cities' images are to find their partners of
the other sensor, and heads are to find urban change in training cities, which are held
out in folds: see change_pairs. These cities' images were pretrained on, without masks.
"""

import ml_collections

from configs import (
    change_pairs,
    compare_floods,
    compare_synthetic,
    probe_bigearthnet,
    quickstart,
)


def get_config():
    c = compare_synthetic.get_config()
    c.unlock()
    c.data_dir = "data/cities"
    c.arms = compare_synthetic.make_arms(quickstart, compare_floods.METHODS)
    for arm in c.arms.values():
        arm.epochs, arm.data.source = 116, "records"
        arm.data.dir = c.get_ref("data_dir")
        arm.bands.s1 = ("VV",)
        arm.log_every, arm.eval_every, arm.checkpoint_every = 100, 1_000, 500
    search = probe_bigearthnet.get_config()
    search.unlock()
    search.data.dir = c.get_ref("data_dir")
    search.methods, search.baselines = ("retrieval",), ("random",)
    search.fractions, search.repeats, search.batch_size = (1.0,), (1,), 32
    c.evaluations = ml_collections.ConfigDict({"retrieval": search})
    for name, way, head in (
        ("change", "difference", "linear"),
        ("change_concatenated", "concatenation", "linear"),
        ("change_upsampled", "difference", "upsample"),
    ):
        judge = change_pairs.get_config()
        judge.unlock()
        judge.data.dir, judge.data.allow_overlap = c.get_ref("data_dir"), True
        judge.ways, judge.heads, judge.batch_size = (way,), (head,), 32
        if head == "upsample":  # which costs a hundred times as much to train
            judge.fit.update(steps=150, learning_rates=(3e-3,), class_weights=(4.0,))
        c.evaluations[name] = judge
    c.metric, c.of_class = "f1", ""
    c.shown = dict(retrieval="recall@1")
    return c.lock()
