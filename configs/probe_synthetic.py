"""Judges an encoder on procedural scenes whose classes need both sensors.

    python launch.py --config=configs/probe_synthetic.py \
        --config.checkpoint=runs/pretrain_synthetic

Minutes on a CPU, without any data.
"""

from configs import probe_bigearthnet


def get_config():
    c = probe_bigearthnet.get_config()
    c.data.update(source="synthetic", count=4_000, size=48)
    c.fractions, c.repeats = (0.1, 1.0), (3, 1)
    c.probe.epochs = 60
    return c
