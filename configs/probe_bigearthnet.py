"""Evaluates an encoder on BigEarthNet v1: kNN, linear probe and retrieval, 19 classes.

    python launch.py --config=configs/probe_bigearthnet.py \
        --config.checkpoint=runs/pretrain_base --config.data.dir=data/bigearthnet

Its lists put neighbours of training pairs into the test split, which measures
interpolation; those of probe_bigearthnet_v2 do not.

Needs the run directory and nothing else about the model. Learns from 1 %, 10 % and all
of the labels of the official training split, chooses on the official validation split,
and tests once on the official test split; radar, optics and both side by side; beside
a random encoder and statistics of the images. docs/evaluation.md explains the protocol
and what it leaves behind. The same command goes on where it was interrupted.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "evaluate"
    c.methods = ("knn", "probe", "retrieval")
    c.checkpoint = ""
    c.step = 0
    c.seed = 0
    c.data = dict(
        source="records",
        dir="",
        eval_dir="",
        split="train",
        val_split="validation",
        test_split="test",
        classes=(),
        statistics="published",
        allow_overlap=False,
        count=10_000,
        size=120,
        seed=0,
    )
    c.labels = "labels"
    c.single_label = False
    c.allow_empty_classes = False
    c.normalize = "run"

    c.sensors = ("s1", "s2", "both")
    c.baselines = ("random", "statistics")
    c.fractions = (0.01, 0.1, 1.0)
    c.repeats = (5, 1, 1)
    c.features = dict(pool="mean", blocks=1, view="center")
    c.cache = ""
    c.batch_size = 256
    c.bootstrap = 1_000
    c.score_per_batch = 0

    c.knn = dict(k=20, temperature=0.07)
    c.probe = dict(
        norm="batch",
        epochs=100,
        batch_size=256,
        learning_rates=(1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0),
        weight_decays=(0.0, 1e-4, 1e-3, 1e-2, 0.1),
    )
    c.retrieval = dict(ks=(1, 5, 10), center=True)
    add_trainings(c)
    return c.lock()


def add_trainings(c: ml_collections.ConfigDict) -> None:
    """How heads and encoders are trained together."""
    c.finetune = dict(
        base_lr=(5e-4,),
        epochs=100,
        least_steps=0,
        warmup_epochs=5,
        batch_size=128,
        layer_decay=0.65,
        drop_path=0.1,
        weight_decay=0.05,
        smoothing=0.0,
        mixup=0.0,
        crop_scale=(0.8, 1.0),
        turn=True,
        clip_norm=0.0,
        remat="none",
        accumulate=1,
    )
    c.scratch = dict(base_lr=(1e-3,), layer_decay=1.0)
    c.dense = dict(
        field="land_cover",
        heads=("linear", "upsample"),
        encoders=("frozen",),
        epochs=20,
        least_steps=0,
        batch_size=64,
        learning_rates=(3e-4, 1e-3, 3e-3, 1e-2),
        weight_decay=0.01,
        blocks=1,
    )
