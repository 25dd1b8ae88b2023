"""Pretrains MultiMAE: a joint encoder, shown more of one sensor or of the other.

    python launch.py --config=configs/pretrain_multimae.py --config.data.dir=DIR

Everything that is not its own is as in pretrain_base, so that the two can be compared:
98 patches of a pair are shown, as in MultiMAE and in Fus-MAE, and a pair costs 59
GFLOP, Fus-MAE's 60. docs/methods.md says what the original does otherwise.
"""

from configs import pretrain_base


def get_config():
    return pretrain_base.get_config("multimae")
