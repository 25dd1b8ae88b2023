r"""Evaluates an encoder on the real pairs that come with the project, as a demo.

    python launch.py --config=configs/probe_sample.py \
        --config.checkpoint=runs/quickstart

A minute on a CPU, without any data. It shows the machinery, and its numbers mean
nothing: 17 pairs to learn from and 5 to test on, some of whose classes no training pair
has. There is no third split, so nothing is chosen: the probe has one setting, and
`val_split` only repeats the training pairs.
"""

from configs import probe_bigearthnet


def get_config():
    c = probe_bigearthnet.get_config()
    c.data.update(source="sample", val_split="train", test_split="validation")
    c.allow_empty_classes = True
    c.fractions, c.repeats = (1.0,), (1,)
    c.batch_size = 8
    c.knn.k = 5
    c.retrieval.ks = (1, 3)
    c.probe.learning_rates, c.probe.weight_decays = (0.1,), (1e-4,)
    c.finetune.update(epochs=5, warmup_epochs=1, batch_size=8)
    return c
