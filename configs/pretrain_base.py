"""Pretrains Fus-MAE ViT-B/8 on paired Sentinel-1/Sentinel-2 images.

    python launch.py --config=configs/pretrain_base.py --config.data.dir=DIR

Another method is trained by its name behind the file's, as every other pretraining is:
--config=configs/pretrain_base.py:mae, with the fields that are its own.

The same command runs on a TPU VM and on a multi-GPU host; on several hosts add
--multihost. Any field can be overridden, e.g. --config.batch_size=512. On one GPU of
80 GB it fits as it is, on 40 GB with --config.accumulate=2, on 24 GB and on a TPU v5e-8
with --config.accumulate=4, by XLA's compilers: docs/usage.md has the table.

What the paper leaves open is chosen as docs/model.md explains. With --explain the
command prints what every field means, and stops.
"""

import ml_collections

# By name; pixels have the units of data_pipeline/sensors.py.
S1_BANDS = ("VV", "VH")
S2_BANDS = (
    *("B01", "B02", "B03", "B04", "B05", "B06"),
    *("B07", "B08", "B8A", "B09", "B11", "B12"),
)


# What methods that redraw hidden patches ask for.
REDRAW = {
    **{"mask.ratio": 0.75, "mask.drop_sensor": 0.0},
    **{"model.decoder_dim": 256, "model.decoder_depth": 2, "model.decoder_heads": 8},
    **{"loss.normalize": "patch", "loss.weight_s1": 1.0, "loss.weight_s2": 1.0},
}
# What a method asks for beside that which all share: that two differ in nothing else is
# seen here.
METHODS = {
    "fusmae": REDRAW
    | {
        "mask.mode": "independent",
        "model.fuse_early": True,
        "model.fuse_features": True,
        "model.global_token": "encoder",
        "model.feature_queries": "visible",
        "loss.targets": "pixels",
        "loss.contrast": 0.0,
        "loss.temperature": 0.1,
    },
    "mae": REDRAW | {"model.sensors": "both"},
    "multimae": REDRAW | {"mask.alpha": 1.0},
    "dinomm": {
        "mask.drop_sensor": 0.5,
        "crops.local": 8,
        "crops.local_size": 48,
        "crops.local_scale": (0.05, 0.4),
        "crops.jitter": 0.4,
        "model.head_dim": 2048,
        "model.head_narrow": 256,
        "model.prototypes": 65_536,
        "loss.student_temperature": 0.1,
        "loss.teacher_temperature": 0.04,
        "loss.first_temperature": 0.04,
        "loss.teacher_warmup": 0.0,
        "loss.teacher_momentum": 0.996,
        "loss.center_momentum": 0.9,
    },
    "decur": {
        "crops.jitter": 0.4,
        "model.projector_dim": 8192,
        "loss.common": 7168,
        "loss.redundancy": 0.0051,
    },
    "croma": {
        "mask.ratio": 0.75,
        "model.decoder_dim": 512,
        "model.decoder_depth": 1,
        "model.decoder_heads": 8,
        "loss.contrast": 1.0,
        "loss.reconstruct": 1.0,
    },
}


def get_config(method: str = "fusmae") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "pretrain"
    c.method = method  # of fusmae_jax/objectives
    c.seed = 0
    c.init_from = ""
    c.epochs = 100
    c.batch_size = 1024
    c.accumulate = 1

    c.data = data()
    c.bands = dict(s1=S1_BANDS, s2=S2_BANDS)
    c.view = dict(
        crop_scale=(0.2, 1.0),
        crop_ratio=(3 / 4, 4 / 3),
        turn=True,
        resampling="linear",
    )
    c.model = dict(
        image_size=112,
        patch_size=8,
        dim=768,
        depth=12,
        num_heads=12,
        dtype="auto",
        attention="auto",
        remat="none",
    )
    for field, value in METHODS.get(method, {}).items():
        group, _, name = field.partition(".")
        c[group] = {**c.get(group, {}), name: value}

    c.optim = dict(base_lr=1.5e-4, b1=0.9, b2=0.95, weight_decay=0.05, clip_norm=0.0)
    # References: they follow what they are made of on the command line.
    c.optim.peak_lr = c.optim.get_ref("base_lr") * c.get_ref("batch_size") / 256
    c.optim.warmup_epochs = c.get_ref("epochs") // 10

    c.fsdp = 1
    c.fsdp_min_size = 2**18
    keep_books(c)
    return c.lock()


def change(c: ml_collections.ConfigDict, fields: dict) -> None:
    """Sets fields by their dotted names, of those which the config's method has."""
    for field, value in fields.items():
        group, _, name = field.partition(".")
        if name in c.get(group, {}):
            c[group][name] = value


def data() -> dict:
    """Where pairs come from, and which of them."""
    return dict(
        source="records",
        dir="",
        weights=(),
        split="train",
        eval_split="validation",
        eval_dir="",
        classes=(),
        fraction=1.0,
        subset_seed=0,
        statistics="published",
        allow_overlap=False,
        threads=0,
        workers=0,
        stall_seconds=60,
        count=10_000,
        size=120,
        seed=0,
    )


def keep_books(c: ml_collections.ConfigDict) -> None:
    """How often a run logs, evaluates, draws and saves."""
    c.log_every = 50
    c.eval_every = 1_000
    c.eval_pairs = 512
    c.eval_draws = 4
    c.figure_pairs = 6
    c.judge = dict(every=0, labels="labels", train_pairs=2_000, eval_pairs=1_000)
    c.checkpoint_every = 1_000
    c.keep_checkpoints = 3
    c.keep_every = 10_000
    c.bad_steps = 10
