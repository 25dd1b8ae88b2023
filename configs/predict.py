r"""Writes the class of every pixel of a scene, by a head that a dense probe trained.

    python launch.py --config=configs/dense_pairs.py --config.checkpoint=runs/base \
        --config.data.dir=data/floods --workdir=runs/floods
    python launch.py --config=configs/predict.py --config.checkpoint=runs/base \
        --config.evaluation=runs/floods --config.s2=S2A_MSIL2A_....SAFE \
        --config.s1=s1.tif --config.out=maps/floods

The scene is one of either sensor or both, as for embed; there must have been a head for
what it has. The map is a Cloud-Optimized GeoTIFF with the scene's own pixels, 255 where
nothing was measured, beside a picture; areas are printed. A stopped map goes on with
the same command.
"""

import ml_collections

from configs import embed


def get_config() -> ml_collections.ConfigDict:
    c = embed.get_config()
    c.unlock()
    c.task = "predict"
    c.evaluation, c.head = "", "auto"
    del c.dtype, c.data, c.split, c.view
    return c.lock()
