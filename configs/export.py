r"""Exports a run's encoder: weights with what they are of, and a model card.

    python launch.py --config=configs/export.py --config.checkpoint=runs/quickstart \
        --config.out=exports/quickstart

Seconds on a CPU. Needs `pip install '.[export]'`. What is written is read by
`fusmae_jax.pretrained.load` (docs/export.md).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "export"
    c.checkpoint = ""
    c.step = 0
    c.out = ""
    c.formats = ("safetensors",)
    c.license = "unknown"
    return c.lock()
