"""What a pretraining config may say; refused in a sentence before any work starts."""

import math

import jax

from data_pipeline.errors import InputError

AT_LEAST_ONE = (
    *("epochs", "batch_size", "accumulate", "fsdp"),
    *("log_every", "eval_every", "eval_pairs", "eval_draws", "figure_pairs"),
    *("checkpoint_every", "keep_checkpoints", "bad_steps"),
    *("judge.train_pairs", "judge.eval_pairs"),
)
NOT_NEGATIVE = (
    *("seed", "judge.every", "data.threads", "data.workers", "data.seed"),
    *("data.subset_seed", "fsdp_min_size", "keep_every"),
    *("model.decoder_depth", "loss.weight_s1", "loss.weight_s2"),
    *("optim.base_lr", "optim.peak_lr", "optim.warmup_epochs"),
    *("optim.weight_decay", "optim.clip_norm"),
)
DTYPES = ("float32", "bfloat16")


def field(config, name: str):
    """The value of a field like "model.dim"."""
    for part in name.split("."):
        config = config[part]
    return config


def require(config, least: int, names: tuple[str, ...]) -> None:
    """Refuses a config with a field that is smaller than `least`."""
    for name in names:
        value = field(config, name)
        if not math.isfinite(value) or value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}.")


def check_config(config) -> None:
    """Refuses numbers that are out of range and sizes that do not divide.

    Raises:
        InputError: names the field and its value.
    """
    require(config, 1, AT_LEAST_ONE)
    require(config, 0, NOT_NEGATIVE)
    if config.model.dtype not in DTYPES:
        raise InputError(
            f"model.dtype is {config.model.dtype!r}; choose one of {list(DTYPES)}."
        )
    if config.model.attention == "cudnn":
        check_cudnn(config)
    for name in ("view.crop_scale", "view.crop_ratio"):
        value = field(config, name)
        if len(value) != 2 or not all(isinstance(x, int | float) for x in value):
            raise InputError(f"{name} is {value}; it must be two numbers.")
    check_batch(config)


def check_cudnn(config) -> None:
    """Refuses to ask cuDNN for what it cannot do."""
    asked = {
        "an NVIDIA GPU": jax.default_backend() == "gpu",
        "model.dtype=bfloat16": config.model.dtype == "bfloat16",
        "mask.drop_sensor=0": config.mask.drop_sensor == 0.0,
    }
    lacking = [name for name, given in asked.items() if not given]
    if lacking:
        raise InputError(
            f"model.attention=cudnn needs {' and '.join(lacking)}; set it to auto."
        )


def check_batch(config) -> None:
    """Refuses a batch that does not divide over devices and parts."""
    devices, size = jax.device_count(), config.batch_size
    if size % (devices * config.accumulate):
        raise InputError(
            f"batch_size={size} does not divide into accumulate={config.accumulate} "
            f"parts over {devices} devices; choose a multiple of "
            f"{devices * config.accumulate}."
        )


def count_steps(config, pairs: int) -> tuple[int, int]:
    """Steps of the whole run and of its warm-up, from epochs over `pairs`.

    Raises:
        InputError: there is not one batch in them.
    """
    epochs, warmup = config.epochs, config.optim.warmup_epochs
    steps = epochs * pairs // config.batch_size
    if steps < 1:
        raise InputError(
            f"{epochs} epochs of {pairs} pairs are less than one batch of "
            f"{config.batch_size}; lower batch_size or raise epochs."
        )
    return steps, warmup * pairs // config.batch_size
