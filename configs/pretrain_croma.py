"""Pretrains CROMA ViT-B/8 on paired Sentinel-1/Sentinel-2 images.

    python launch.py --config=configs/pretrain_croma.py --config.data.dir=DIR

As its authors did, but for what `fusmae_jax/objectives/croma.py` lists; they trained on
a million pairs of SSL4EO-S12. --config.loss.contrast=0 trains the reconstruction alone.
The contrast is of the batch as a whole, which has to be large: --config.accumulate
makes it smaller.
"""

from configs import pretrain_base


def get_config():
    c = pretrain_base.get_config()
    with c.unlocked():
        c.method = "croma"
        c.mask = dict(ratio=0.75)
        c.model = dict(
            image_size=112,
            patch_size=8,
            dim=768,
            depth=12,
            num_heads=16,
            decoder_dim=512,
            decoder_depth=1,
            decoder_heads=8,
            dtype="auto",
            attention="auto",
            remat="none",
        )
        c.loss = dict(contrast=1.0, reconstruct=1.0)
    return c.lock()
