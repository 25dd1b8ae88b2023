"""Pretrains a plain masked autoencoder, the sensors' channels stacked as in SatViT.

    python launch.py --config=configs/pretrain_mae.py --config.data.dir=DIR

One token a place sees both sensors; --config.model.sensors=s2 makes it an autoencoder
of Sentinel-2 alone, s1 of Sentinel-1. Everything else is as in pretrain_base, so that
the two can be compared; docs/methods.md says what SatViT does otherwise. With half of
the tokens a pair costs 27 GFLOP, Fus-MAE's 60.
"""

from configs import pretrain_base


def get_config():
    return pretrain_base.get_config("mae")
