"""Evaluates an encoder on procedural patterns whose classes need both sensors.

    python launch.py --config=configs/probe_synthetic.py \
        --config.checkpoint=runs/pretrain_synthetic

Some 3 minutes on 2 CPU cores, without any data.
"""

from configs import probe_bigearthnet


def get_config():
    c = probe_bigearthnet.get_config()
    c.data.update(source="patterns", count=4_000, size=48)
    c.single_label = True
    c.fractions, c.repeats = (0.1, 1.0), (3, 1)
    c.probe.epochs = 60
    c.probe.learning_rates = (3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
    c.probe.weight_decays = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
    return c
