r"""Writes what a head that an evaluation trained says of a scene, or of pairs.

    python launch.py --config=configs/dense_pairs.py --config.checkpoint=runs/base \
        --config.data.dir=data/floods --workdir=runs/floods
    python launch.py --config=configs/predict.py --config.checkpoint=runs/base \
        --config.evaluation=runs/floods --config.s2=S2A_MSIL2A_....SAFE \
        --config.s1=s1.tif --config.out=maps/floods
    python launch.py --config=configs/predict.py --config.checkpoint=runs/base \
        --config.evaluation=runs/probe_bigearthnet --config.data.dir=data/mine \
        --config.split=test --config.out=tables/mine

The scene is one of either sensor or both, as for embed; there must have been a head for
what it has. Dense heads make a Cloud-Optimized GeoTIFF of classes with the scene's own
pixels, 255 where nothing was measured, beside a picture; areas are printed; with
--config.probabilities=True there is one of probabilities too. Linear probes and
fine-tuned encoders make one of the probabilities in the window around each patch, and a
GeoParquet table of a dataset's pairs. A stopped map goes on with the same command.
"""

import ml_collections

from configs import embed


def get_config() -> ml_collections.ConfigDict:
    c = embed.get_config()
    c.unlock()
    c.task = "predict"
    c.evaluation, c.head, c.probabilities = "", "auto", False
    c.split = "test"
    del c.dtype, c.view
    return c.lock()
