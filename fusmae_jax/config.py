"""What a pretraining config may say; refused in a sentence before any work starts.

`check_config` looks at the config alone, `check_data` at the card of its dataset too,
and only `check_devices` at the devices.
"""

from jax.sharding import Mesh

from data_pipeline import config_fields, data_fields, sensors, sources, subsets
from data_pipeline.config_fields import (
    Field,
    ask,
    check_rules,
    choice,
    flag,
    location,
    number,
    seed,
    several,
    text,
    whole,
)
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from fusmae_jax import build, inputs
from fusmae_jax.training import sharding

# Fields of whatever uses an encoder; see `check_checkpoint`.
CHECKPOINT = {
    "checkpoint": location(meaning="Run directory of a pretraining."),
    "step": whole(0, meaning="Which of its checkpoints; 0 for the latest."),
}

# Fields of a pretraining by whatever method.
TABLE = {
    "task": choice("pretrain", meaning="What launch.py does."),
    "method": choice(
        *build.METHODS, meaning="What is trained: a file of fusmae_jax/objectives."
    ),
    "seed": seed("Seed of weights, order of pairs, views and masks."),
    "init_from": location(
        meaning="Run directory whose last checkpoint has the parameters to begin with, "
        "or a file of a plain ViT's weights, of MAE or timm; empty for random ones."
    ),
    "epochs": whole(1, meaning="Passes over the training pairs."),
    "batch_size": whole(1, meaning="Pairs of a step, over all devices and hosts."),
    "accumulate": whole(
        1,
        meaning="Parts of a batch that go through the network one by one: less memory, "
        "the same steps.",
    ),
    **data_fields.rows(
        ("source", "dir", "weights", "split", "eval_split", "eval_dir", "classes")
    ),
    **data_fields.rows(
        ("fraction", "subset_seed", "statistics", "allow_overlap", "threads", "workers")
    ),
    **data_fields.rows(("stall_seconds", "count", "size", "seed")),
    "bands.s1": several(
        choice(*sensors.known_bands("s1"), spell=sensors.canonical),
        least=1,
        meaning="Bands of Sentinel-1 that the model sees; HH and HV are of polar data.",
    ),
    "bands.s2": several(
        choice(*sensors.known_bands("s2"), spell=sensors.canonical),
        least=1,
        meaning="Bands of Sentinel-2 that the model sees.",
    ),
    "view.crop_scale": several(
        number(),
        length=2,
        twice=True,
        meaning="Least and greatest area of a training crop, as shares of the scene's.",
    ),
    "view.crop_ratio": several(
        number(),
        length=2,
        twice=True,
        meaning="Least and greatest width of a training crop over its height.",
    ),
    "view.turn": flag(meaning="Whether crops are flipped and turned by quarters."),
    "view.resampling": choice(
        *inputs.RESAMPLING, meaning="How scenes are interpolated to images."
    ),
    "optim.base_lr": number(
        least=0.0, meaning="Learning rate of AdamW for batches of 256 pairs."
    ),
    "optim.b1": number(least=0.0, below=1.0, meaning="Decay of AdamW's mean gradient."),
    "optim.b2": number(
        least=0.0, below=1.0, meaning="Decay of AdamW's mean squared gradient."
    ),
    "optim.weight_decay": number(least=0.0, meaning="Weight decay of the matrices."),
    "optim.clip_norm": number(
        least=0.0, meaning="Longer gradients are scaled to this norm; 0 never clips."
    ),
    "optim.peak_lr": number(
        least=0.0,
        meaning="Learning rate after the warm-up; follows optim.base_lr and batch_size "
        "unless set.",
    ),
    "optim.warmup_epochs": whole(
        0,
        meaning="Epochs in which the rate rises, before it falls to 0 as a cosine; "
        "follows epochs unless set.",
    ),
    "fsdp": whole(1, meaning="Devices that share one copy of the parameters."),
    "fsdp_min_size": whole(
        0, meaning="Kernels with fewer elements are not split over fsdp devices."
    ),
    "log_every": whole(1, meaning="Steps between lines of metrics."),
    "eval_every": whole(1, meaning="Steps between scores of held-out pairs."),
    "eval_pairs": whole(1, meaning="Held-out pairs in use, at most."),
    "eval_draws": whole(
        1, meaning="Masks of each held-out pair in the final comparison."
    ),
    "figure_pairs": whole(1, meaning="Held-out pairs in a figure."),
    "judge.every": whole(
        0, meaning="Epochs between kNN and probe of the encoder; 0 for never."
    ),
    "judge.labels": text(
        filled=True, meaning="Which of the data's labels kNN and probe predict."
    ),
    "judge.train_pairs": whole(
        1, meaning="Training pairs that kNN and probe learn from, at most."
    ),
    "judge.eval_pairs": whole(
        1, meaning="Held-out pairs that kNN and probe are scored on, at most."
    ),
    "checkpoint_every": whole(1, meaning="Steps between checkpoints."),
    "keep_checkpoints": whole(1, meaning="How many of the last checkpoints are kept."),
    "keep_every": whole(
        0, meaning="Steps between checkpoints that are kept for good; 0 for none."
    ),
    "bad_steps": whole(
        1,
        meaning="Steps in a row whose loss or gradient is not finite that end the run.",
    ),
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
        lambda c: c.keep_every % c.checkpoint_every == 0,
        "keep_every is {c.keep_every}; it must be 0 or a multiple of checkpoint_every="
        "{c.checkpoint_every}, as other steps have no checkpoint that could be kept.",
    ),
    (
        lambda c: c.data.eval_split != c.data.split or c.data.allow_overlap,
        "data.eval_split is {c.data.eval_split!r}, which is data.split too; hold out "
        "another split, or pass data.allow_overlap=True.",
    ),
)


def fields(config) -> dict[str, Field]:
    """What each field may hold, and means; those of the config's method too.

    Raises:
        InputError: there is no such method.
    """
    method = config.get("method")
    config_fields.check_value("method", method, TABLE["method"])
    return TABLE | build.method(method).FIELDS


def check_config(config) -> None:
    """Refuses what no data and no devices could make work.

    Raises:
        InputError: names the fields and their values.
    """
    known = fields(config)
    check_method(config, known)
    config_fields.check(config, known, like="configs/pretrain_base.py")
    ask(config, (inputs.check_crops, "view.crop_scale", "view.crop_ratio"))
    check_rules(config, RULES)
    build.method(config.method).check(config)
    data_fields.check(config.data, [config.data.eval_split])


def check_method(config, known: dict[str, Field]) -> None:
    """Refuses a field of another method.

    Args:
        config: of a method that there is.
        known: what each field may hold.

    Raises:
        InputError: names it, and how a method is chosen with its fields.
    """
    fields = {other: build.method(other).FIELDS for other in build.METHODS}
    for name in sorted(set().union(*fields.values()) - known.keys()):
        if config_fields.find(config, name)[0]:
            having = [other for other in fields if name in fields[other]]
            raise InputError(
                f"{name} is a field of {', '.join(having)}, and method is "
                f"{config.method}; choose a method behind the config's name, as in "
                f"--config=quickstart:{config.method}, which brings its fields."
            )


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
            f"{list(description.classes)}; choose one, or set judge.every=0."
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
        raise InputError("Name a run directory: checkpoint=runs/quickstart.")


def count_steps(config, pairs: int) -> tuple[int, int]:
    """Steps of the whole run and of its warm-up, from epochs over `pairs`.

    Raises:
        InputError: there is not one batch in them, nothing is left after the warm-up,
            or there are too many to count.
    """
    epochs = config.epochs
    steps = epochs * pairs // config.batch_size
    warmup = config.optim.warmup_epochs * pairs // config.batch_size
    if steps < 1:
        raise InputError(
            f"{epochs} epochs of {pairs} pairs are less than one batch of "
            f"{config.batch_size}; lower batch_size or raise epochs."
        )
    if steps > config_fields.MOST:
        raise InputError(
            f"epochs={epochs} of {pairs} pairs are {steps} steps, more than "
            f"{config_fields.MOST}; lower it."
        )
    if warmup >= steps:
        raise InputError(
            f"optim.warmup_epochs={config.optim.warmup_epochs} of {pairs} pairs are "
            f"all {steps} steps of the run; lower it, raise epochs, or lower "
            "batch_size."
        )
    return steps, warmup
