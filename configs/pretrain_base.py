"""Pretrains Fus-MAE ViT-B/8 on paired Sentinel-1/Sentinel-2 images.

    python launch.py --config=configs/pretrain_base.py --config.data.dir=DIR

The same command runs on a TPU VM and on a multi-GPU host; on several hosts add
--multihost. Any field can be overridden, e.g. --config.batch_size=512. On one GPU of
80 GB it fits as it is, on 40 GB with --config.accumulate=2, on 24 GB and on a TPU v5e-8
with --config.accumulate=4, by XLA's compilers: docs/usage.md has
the table.

What the paper leaves open is chosen as docs/model.md explains.
"""

import ml_collections

# By name; pixels have the units of data_pipeline/sensors.py.
S1_BANDS = ("VV", "VH")
S2_BANDS = (
    *("B01", "B02", "B03", "B04", "B05", "B06"),
    *("B07", "B08", "B8A", "B09", "B11", "B12"),
)


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "pretrain"
    c.method = "fusmae"  # of fusmae_jax/objectives
    c.seed = 0
    c.epochs = 100
    c.batch_size = 1024  # pairs, over all devices and hosts
    c.accumulate = 1  # parts of a batch that go through the network one by one

    c.data = data()
    c.bands = dict(s1=S1_BANDS, s2=S2_BANDS)
    c.view = dict(
        crop_scale=(0.2, 1.0),  # of the scene's area
        crop_ratio=(3 / 4, 4 / 3),
        turn=True,  # flips and quarter turns
        resampling="linear",  # or "cubic"
    )
    c.mask = dict(
        ratio=0.75,
        mode="independent",  # or "consistent"
        drop_sensor=0.0,  # chance that a pair lacks a sensor, redrawn from the other
    )

    c.model = dict(
        image_size=112,
        patch_size=8,
        dim=768,
        depth=12,
        num_heads=12,
        fuse_early=True,  # XAttnEncoder
        fuse_features=True,  # XAttnDecoder
        decoder_dim=256,
        decoder_depth=2,
        decoder_heads=8,
        global_token="encoder",  # or "decoders" see it too, and teach its output
        dtype="auto",  # of matrix products: bfloat16 where devices are made for it,
        # else float32, as parameters always are
        attention="auto",  # or "xla", "cudnn"
        remat="none",  # or "dots", "full": less memory, more time
    )
    c.loss = dict(normalize="patch", weight_s1=1.0, weight_s2=1.0)  # "none", "group"

    c.optim = dict(
        base_lr=1.5e-4,  # for 256 pairs
        b1=0.9,
        b2=0.95,
        weight_decay=0.05,
        clip_norm=0.0,  # 0 never clips
    )
    # References: they follow what they are made of on the command line.
    c.optim.peak_lr = c.optim.get_ref("base_lr") * c.get_ref("batch_size") / 256
    c.optim.warmup_epochs = c.get_ref("epochs") // 10

    c.fsdp = 1  # devices that share one copy of the parameters
    c.fsdp_min_size = 2**18  # kernels with fewer elements stay whole
    keep_books(c)
    return c.lock()


def data() -> dict:
    """Where pairs come from, and which of them."""
    return dict(
        source="records",  # or "sample", "synthetic"
        dir="",  # a dataset that configs/prepare_*.py built, or several: "A,B"
        weights=(),  # of several; () counts their pairs
        split="train",
        eval_split="validation",
        eval_dir="",  # where that is, if not in dir
        classes=(),  # only pairs with one of these; () takes all
        fraction=1.0,  # of the training pairs, every class kept,
        subset_seed=0,  # and which
        statistics="published",  # that normalise bands, or "computed" at the build
        allow_overlap=False,  # let training pairs be held-out ones too
        threads=0,  # that read records; 0 for one a core, at most 8
        workers=0,  # processes that do, instead
        stall_seconds=60,  # of waiting for data, until the log says so; 0 for never
        count=10_000,  # synthetic scenes,
        size=120,  # their side at 10 m,
        seed=0,  # and which
    )


def keep_books(c: ml_collections.ConfigDict) -> None:
    """How often a run logs, evaluates, draws and saves."""
    c.log_every = 50  # steps
    c.eval_every = 1_000
    c.eval_pairs = 512  # held-out pairs in use
    c.eval_draws = 4  # masks of each in the final comparison
    c.figure_pairs = 6
    c.judge = dict(
        every=0,  # epochs between kNN and probe of the encoder; 0 for never
        labels="labels",  # which of the data's
        train_pairs=2_000,
        eval_pairs=1_000,
    )
    c.checkpoint_every = 1_000
    c.keep_checkpoints = 3  # the last ones,
    c.keep_every = 10_000  # and every 10,000th for good
    c.bad_steps = 10  # in a row, of loss or gradient not finite, that end the run
