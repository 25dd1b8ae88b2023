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
    c.methods = ("knn", "probe", "retrieval")  # also "finetune", "dense"
    c.checkpoint = ""  # a run directory
    c.step = 0  # which of its checkpoints; 0 for the latest
    c.seed = 0
    c.data = dict(
        source="records",  # or "sample", "synthetic"
        dir="",  # a dataset that configs/prepare_*.py built
        eval_dir="",  # where the other splits are, if not in dir
        split="train",
        val_split="validation",
        test_split="test",
        classes=(),  # only pairs with one of these; () takes all
        statistics="published",  # of the bands, or "computed" at the build
        allow_overlap=False,  # test on what was trained on
        count=10_000,  # synthetic scenes,
        size=120,  # their side at 10 m,
        seed=0,  # and which
    )
    c.labels = "labels"  # which of the data's
    c.single_label = False  # one class a pair
    c.allow_empty_classes = False  # test classes without training pairs
    c.normalize = "run"  # bands by the pretraining's statistics, or this "data"'s

    c.sensors = ("s1", "s2", "both")
    c.baselines = ("random", "statistics")  # also "supervised" from scratch
    c.fractions = (0.01, 0.1, 1.0)  # of the training labels,
    c.repeats = (5, 1, 1)  # each drawn so often
    c.features = dict(
        pool="mean",  # of tokens; or "global" token, or "sensors" apart
        blocks=1,  # the last ones
        view="center",  # "whole" scene resampled, or "tiles"
    )
    c.cache = ""  # of features; <run directory>/features by default
    c.batch_size = 256  # pairs, over all devices and hosts
    c.bootstrap = 1_000  # resamples behind each interval
    c.score_per_batch = 0  # also micro mAP of batches of so many, averaged

    c.knn = dict(k=20, temperature=0.07)
    c.probe = dict(
        norm="batch",  # without parameters; or "layer", "none"
        epochs=100,
        batch_size=256,
        learning_rates=(1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0),  # for 256 pairs
        weight_decays=(0.0, 1e-4, 1e-3, 1e-2, 0.1),
    )
    c.retrieval = dict(ks=(1, 5, 10), center=True)
    add_trainings(c)
    return c.lock()


def add_trainings(c: ml_collections.ConfigDict) -> None:
    """How heads and encoders are trained together."""
    c.finetune = dict(
        base_lr=(5e-4,),  # for 256 pairs; of several, validation chooses
        epochs=100,
        warmup_epochs=5,
        batch_size=128,
        layer_decay=0.65,
        drop_path=0.1,
        weight_decay=0.05,
        smoothing=0.0,
        mixup=0.0,
        crop_scale=(0.8, 1.0),  # of the scene's area: small crops lose labels
        turn=True,
        clip_norm=0.0,
        remat="none",  # or "dots", "full": less memory, more time
        accumulate=1,  # parts of a batch: less memory, the same steps
    )
    c.scratch = dict(base_lr=(1e-3,), layer_decay=1.0)  # what differs from scratch
    c.dense = dict(
        field="land_cover",
        heads=("linear", "upsample"),
        epochs=20,
        batch_size=64,
        learning_rates=(3e-4, 1e-3, 3e-3, 1e-2),
        weight_decay=0.01,
        blocks=1,
    )
