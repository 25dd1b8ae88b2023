r"""Exports a run's encoder: weights with a model card, PyTorch, ONNX, StableHLO.

    python launch.py --config=configs/export.py --config.checkpoint=runs/quickstart \
        --config.out=exports/quickstart

Seconds on a CPU. Needs `pip install '.[export]'`; without PyTorch,
`--config.formats="('safetensors','stablehlo')"` does. What is written is read by
`fusmae_jax.pretrained.load`, by the `fusmae_torch.py` beside it, by ONNX Runtime, and
by JAX without this project (docs/export.md).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "export"
    c.checkpoint = ""
    c.step = 0
    c.out = ""
    c.formats = ("safetensors", "torch", "onnx", "stablehlo")
    c.license = "unknown"
    return c.lock()
