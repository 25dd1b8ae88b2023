r"""Fine-tunes an encoder on the masks of your own pairs, beside heads on a frozen one.

    python launch.py --config=configs/finetune_pairs.py \
        --config.checkpoint=runs/mine --config.data.dir=data/mine

Splits, and what to do with two of them, as in dense_pairs. All parameters of the
encoder are trained with a linear head, a hundred epochs for S1, S2 and both, and as
often again from scratch; one accelerator does for some thousand pairs. For less, pass
--config.baselines="()" or --config.sensors="('both',)". Expect mIoU, a line for each
encoder; configs/predict.py maps scenes with the one that did best.
"""

from configs import dense_pairs


def get_config():
    c = dense_pairs.get_config()
    c.baselines = ("supervised",)
    c.finetune.least_steps = 300
    c.dense.heads, c.dense.encoders = ("linear",), ("frozen", "tuned")
    return c
