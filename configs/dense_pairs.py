r"""Evaluates an encoder on the masks of your own pairs, pixel by pixel.

    python launch.py --config=configs/dense_pairs.py \
        --config.checkpoint=runs/mine --config.data.dir=data/mine

Heads on frozen tokens, trained on all training pairs. prepare_pairs must have had
masks; labels of pairs are not needed. Pixels without a class, and pairs without a mask,
count neither in training nor in the scores. Learning rates are chosen on the validation
pairs, and the best is tested once on the test pairs. Of two splits none can choose:

    --config.data.val_split=train --config.dense.learning_rates="(3e-3,)"

and --config.data.test_split=validation where that is the other one. Made for one
accelerator; a CPU does for some hundred pairs and a small encoder. Expect mIoU of S1,
S2 and both, beside a random encoder and bare pixels: where these do as well,
pretraining has taught nothing that this task needs.
"""

from configs import probe_bigearthnet


def get_config():
    c = probe_bigearthnet.get_config()
    c.methods = ("dense",)
    c.dense.field, c.dense.least_steps, c.dense.batch_size = "mask", 300, 16
    c.fractions, c.repeats = (1.0,), (1,)
    return c
