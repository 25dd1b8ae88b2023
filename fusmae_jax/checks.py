"""What a pretraining config may say; refused in a sentence before any work starts.

`check_config` looks at the config alone, `check_data` at the card of its dataset too,
and only `check_devices` at the devices.
"""

from jax.sharding import Mesh

from data_pipeline import data_fields, fields, rules, sensors, sources, subsets
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from data_pipeline.fields import SEED, choice, flag, number, several, text, whole
from fusmae_jax import build, dtypes, inputs, patches, sharding
from fusmae_jax.models import attention, layers
from fusmae_jax.models.fusmae import GLOBAL_TOKENS, REMAT

TWO = several(number(), length=2, twice=True)

TABLE = {
    "task": choice("pretrain"),
    "method": choice(*build.METHODS),
    "seed": SEED,
    "epochs": whole(1),
    "batch_size": whole(1),
    "accumulate": whole(1),
    **data_fields.rows(
        ("source", "dir", "weights", "split", "eval_split", "eval_dir", "classes")
    ),
    **data_fields.rows(
        ("fraction", "subset_seed", "statistics", "allow_overlap", "threads", "workers")
    ),
    **data_fields.rows(("count", "size", "seed", "stall_seconds")),
    "bands.s1": several(
        choice(*sensors.S1.band_names, spell=sensors.canonical), least=1
    ),
    "bands.s2": several(
        choice(*sensors.S2_L1C.band_names, spell=sensors.canonical), least=1
    ),
    "view.crop_scale": TWO,
    "view.crop_ratio": TWO,
    "view.turn": flag(),
    "view.resampling": choice(*inputs.RESAMPLING),
    "mask.ratio": number(above=0.0, below=1.0),
    "mask.mode": choice(*patches.MASK_MODES),
    "mask.drop_sensor": number(least=0.0, most=1.0),
    "model.image_size": whole(1),
    "model.patch_size": whole(1),
    "model.dim": whole(1),
    "model.depth": whole(1),
    "model.num_heads": whole(1),
    "model.fuse_early": flag(),
    "model.fuse_features": flag(),
    "model.decoder_dim": whole(1),
    "model.decoder_depth": whole(0),
    "model.decoder_heads": whole(1),
    "model.global_token": choice(*GLOBAL_TOKENS),
    "model.dtype": choice(dtypes.AUTO, *dtypes.DTYPES),
    "model.attention": choice(*attention.IMPLEMENTATIONS),
    "model.remat": choice(*REMAT),
    "loss.normalize": choice(*patches.NORMALIZATIONS),
    "loss.weight_s1": number(least=0.0),
    "loss.weight_s2": number(least=0.0),
    "optim.base_lr": number(least=0.0),
    "optim.b1": number(least=0.0, below=1.0),
    "optim.b2": number(least=0.0, below=1.0),
    "optim.weight_decay": number(least=0.0),
    "optim.clip_norm": number(least=0.0),
    "optim.peak_lr": number(least=0.0),
    "optim.warmup_epochs": whole(0),
    "fsdp": whole(1),
    "fsdp_min_size": whole(0),
    "log_every": whole(1),
    "eval_every": whole(1),
    "eval_pairs": whole(1),
    "eval_draws": whole(1),
    "figure_pairs": whole(1),
    "judge.every": whole(0),
    "judge.labels": text(filled=True),
    "judge.train_pairs": whole(1),
    "judge.eval_pairs": whole(1),
    "checkpoint_every": whole(1),
    "keep_checkpoints": whole(1),
    "keep_every": whole(0),
    "bad_steps": whole(1),
}

# What must hold between fields, and what is said where it does not.
RULES = (
    (
        lambda c: c.optim.warmup_epochs < c.epochs,
        "optim.warmup_epochs is {c.optim.warmup_epochs}; it must be below "
        "epochs={c.epochs}, or the rate never comes down.",
    ),
    (
        lambda c: c.batch_size % c.accumulate == 0,
        "batch_size={c.batch_size} does not divide into accumulate={c.accumulate} "
        "parts; choose a multiple of {c.accumulate}.",
    ),
    (
        lambda c: c.loss.weight_s1 + c.loss.weight_s2 > 0.0,
        "loss.weight_s1 and loss.weight_s2 are both {c.loss.weight_s1}, so that "
        "nothing would be learnt; set one of them above 0.",
    ),
    (
        lambda c: c.keep_every % c.checkpoint_every == 0,
        "keep_every is {c.keep_every}; it must be 0 or a multiple of checkpoint_every="
        "{c.checkpoint_every}, as other steps have no checkpoint that could be kept.",
    ),
    (
        lambda c: c.data.eval_split != c.data.split or c.data.allow_overlap,
        "data.eval_split is {c.data.eval_split!r}, which is data.split too; hold out "
        "another split, or pass --config.data.allow_overlap=True.",
    ),
    (
        # On a GPU "auto" is bfloat16, but for runs that say otherwise.
        lambda c: c.model.attention != "cudnn" or c.model.dtype != "float32",
        "model.attention=cudnn needs model.dtype=bfloat16, and that is "
        "{c.model.dtype}; set one of them.",
    ),
    (
        lambda c: c.model.attention != "cudnn" or all(map(attention.takes, heads(c))),
        "model.attention=cudnn takes heads of 8, 16, ... 128 channels, which "
        "model.dim={c.model.dim} over model.num_heads={c.model.num_heads} or "
        "model.decoder_dim={c.model.decoder_dim} over model.decoder_heads="
        "{c.model.decoder_heads} are not; set model.attention=auto.",
    ),
)


def heads(config) -> list[int]:
    """Channels of an attention head, of the encoder and of the decoders if they attend.

    Raises:
        InputError: a width does not divide.
    """
    c = config.model
    deep = [(c.decoder_dim, c.decoder_heads)] if c.decoder_depth else []
    return [layers.head_width(*sizes) for sizes in ((c.dim, c.num_heads), *deep)]


def visible(image_size: int, patch_size: int, ratio: float) -> int:
    """How many patches of an image a mask leaves visible, see `patches.num_visible`."""
    return patches.num_visible(patches.grid_side(image_size, patch_size) ** 2, ratio)


def check_config(config) -> None:
    """Refuses what no data and no devices could make work.

    Raises:
        InputError: names the fields and their values.
    """
    fields.check(config, TABLE, like="configs/pretrain_base.py")
    rules.ask(
        config,
        (patches.grid_side, "model.image_size", "model.patch_size"),
        (visible, "model.image_size", "model.patch_size", "mask.ratio"),
        (patches.check_width, "model.dim"),
        (patches.check_width, "model.decoder_dim"),
        (layers.head_width, "model.dim", "model.num_heads"),
        (inputs.check_crops, "view.crop_scale", "view.crop_ratio"),
    )
    if config.model.decoder_depth:
        rules.ask(
            config, (layers.head_width, "model.decoder_dim", "model.decoder_heads")
        )
    rules.check(config, RULES)
    data_fields.check(config.data, [config.data.eval_split])


def check_data(config) -> None:
    """Refuses what the dataset, by its card, does not have.

    Raises:
        InputError: there is no dataset, or it lacks a band, a class or labels.
    """
    description = sources.describe(config.data)
    description.layout.fields(build.contract(config, description.sensors))
    if config.data.classes:
        subsets.find_classes(description, config.data.classes)
    if config.judge.every:
        check_judged(config.judge.labels, description)


def check_judged(field: str, description: Description) -> None:
    """Refuses to judge an encoder by labels that the data do not have."""
    if field not in description.classes:
        raise InputError(
            f"judge.labels is {field!r}, but {description.name} has "
            f"{list(description.classes)}; choose one, or set --config.judge.every=0."
        )


def check_devices(config, mesh: Mesh) -> None:
    """Refuses a batch that does not divide over the devices, and cuDNN without a GPU.

    Raises:
        InputError: names the fields and their values.
    """
    platform, devices = sharding.platform(mesh), mesh.size
    if config.model.attention == "cudnn" and platform != "gpu":
        raise InputError(
            f"model.attention=cudnn needs an NVIDIA GPU, and this is a {platform}; set "
            "it to auto."
        )
    size = config.batch_size
    if size % (devices * config.accumulate):
        raise InputError(
            f"batch_size={size} does not divide into accumulate={config.accumulate} "
            f"parts over {devices} devices; choose a multiple of "
            f"{devices * config.accumulate}."
        )


def check_checkpoint(directory: str) -> None:
    """Refuses to judge a run that is not named."""
    if not directory:
        raise InputError("Name a run directory: --config.checkpoint=runs/quickstart.")


def count_steps(config, pairs: int) -> tuple[int, int]:
    """Steps of the whole run and of its warm-up, from epochs over `pairs`.

    Raises:
        InputError: there is not one batch in them, or there are too many to count.
    """
    epochs, warmup = config.epochs, config.optim.warmup_epochs
    steps = epochs * pairs // config.batch_size
    if steps < 1:
        raise InputError(
            f"{epochs} epochs of {pairs} pairs are less than one batch of "
            f"{config.batch_size}; lower batch_size or raise epochs."
        )
    if steps > fields.MOST:
        raise InputError(
            f"epochs={epochs} of {pairs} pairs are {steps} steps, more than "
            f"{fields.MOST}; lower it."
        )
    return steps, warmup * pairs // config.batch_size
