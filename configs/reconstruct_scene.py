r"""Reconstructs a whole scene: patches that the model did not see, or a whole sensor.

    python launch.py --config=configs/reconstruct_scene.py \
        --config.checkpoint=runs/base --config.s1=s1.tif --config.hide=s2 \
        --config.out=maps/s2_of_s1

The scene is one of either sensor or both, as for embed. hide=patches hides as many
patches as in training, or the share mask_ratio; hide=s2 draws Sentinel-2 from
Sentinel-1 alone, hide=s1 the reverse, which needs a run with mask.drop_sensor above 0.
For each reconstructed sensor there is a Cloud-Optimized GeoTIFF in its own unit, a
picture beside what was measured, and the errors where that is known. A run with
loss.normalize=patch or group predicts all but the mean and contrast of patches, which
are then taken from the image. A stopped one goes on with the same command.
"""

import ml_collections

from configs import embed


def get_config() -> ml_collections.ConfigDict:
    c = embed.get_config()
    c.unlock()
    c.task = "reconstruct_scene"
    c.hide, c.mask_ratio = "patches", 0.0
    del c.dtype, c.data, c.split, c.view
    return c.lock()
