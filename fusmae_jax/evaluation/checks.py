"""What the config of an evaluation may say; see `fusmae_jax.config`."""

import jax

from data_pipeline import config_fields, data_fields, sources
from data_pipeline.config_fields import (
    check_rules,
    choice,
    flag,
    group,
    location,
    number,
    rows_of,
    seed,
    several,
    text,
    whole,
    within,
)
from data_pipeline.errors import InputError
from fusmae_jax.config import CHECKPOINT, check_checkpoint
from fusmae_jax.evaluation import (
    dense,
    features,
    finetune,
    labelled_data,
    linear_probe,
    results,
    tasks,
)
from fusmae_jax.evaluation.encoder import SENSOR_SETS, sensor_sets

BASELINES = ("random", "statistics", "supervised")

# Change is between pairs: `change` evaluates that.
ON_PAIRS = tuple(task for task in results.TASKS if task != "change")

# Where a config may say several values, of which each makes a recipe.
FINETUNE = rows_of(finetune.Recipe)
FINETUNE["base_lr"] = several(
    FINETUNE["base_lr"],
    least=1,
    meaning="Peak learning rates of AdamW for batches of 256 pairs; of several, "
    "validation chooses.",
)
FINETUNE |= config_fields.optional({name: FINETUNE[name] for name in ("b1", "b2")})
DENSE = rows_of(dense.Recipe)
HEAD = DENSE.pop("head")

TABLE = {
    "task": choice("evaluate", meaning="What launch.py does."),
    "methods": several(
        choice(*ON_PAIRS), least=1, meaning="How the encoder is evaluated."
    ),
    **CHECKPOINT,
    "seed": seed("Seed of subsets, probes, heads and resamples."),
    **data_fields.rows(
        ("source", "dir", "eval_dir", "split", "val_split", "test_split", "classes")
    ),
    **data_fields.rows(("statistics", "allow_overlap", "count", "size", "seed")),
    "labels": text(filled=True, meaning="Which of the data's labels are predicted."),
    "single_label": flag(meaning="Whether every pair has exactly one class."),
    "allow_empty_classes": flag(
        meaning="Whether tested classes may lack training pairs."
    ),
    "normalize": choice(
        "run",
        "data",
        meaning="Whose statistics normalise bands: the pretraining's, or those of the "
        "data that are evaluated on.",
    ),
    "sensors": several(
        choice(*SENSOR_SETS), least=1, meaning="Which sensors are shown, in turn."
    ),
    "baselines": several(
        choice(*BASELINES),
        meaning="What the encoder is compared with: a random encoder, statistics of "
        "the images, or one that is fine-tuned from scratch.",
    ),
    "fractions": several(
        number(above=0.0, most=1.0),
        least=1,
        meaning="Shares of the training labels that are learnt from, in turn.",
    ),
    "repeats": several(
        whole(1),
        least=1,
        twice=True,
        meaning="How often each of the fractions is drawn.",
    ),
    **within("features", rows_of(features.Recipe)),
    "cache": location(
        meaning="Folder of features for further evaluations; empty for "
        "<checkpoint>/features."
    ),
    "batch_size": whole(
        1, meaning="Pairs that are encoded at once, over all devices and hosts."
    ),
    "bootstrap": whole(0, meaning="Resamples behind each interval; 0 for none."),
    "score_per_batch": whole(
        0,
        meaning="Pairs of the batches of which micro mAP is averaged too, as older "
        "papers do; 0 for none.",
    ),
    "knn.k": whole(1, meaning="Neighbours that vote, at most."),
    "knn.temperature": number(
        above=0.0,
        meaning="Temperature of their weights, exp(similarity / temperature): the "
        "lower, the more the nearest neighbours count.",
    ),
    "probe.norm": choice(
        *linear_probe.NORMS,
        meaning="How features are normalised: each over the training pairs, or each "
        "pair's over its features; without parameters.",
    ),
    "probe.epochs": whole(1, meaning="Passes over the training pairs."),
    "probe.batch_size": whole(1, meaning="Pairs of a step, at most."),
    **within("probe", rows_of(linear_probe.Grid)),
    "retrieval.ks": several(
        whole(1), least=1, meaning="How many pairs are retrieved, in turn."
    ),
    "retrieval.center": flag(
        meaning="Whether the mean feature of each side is subtracted first."
    ),
    **within("finetune", FINETUNE),
    "scratch": group(
        meaning="What differs from finetune where an encoder is trained from scratch."
    ),
    **within("scratch", config_fields.optional(FINETUNE)),
    "dense.field": text(
        filled=True, meaning="Which of the data's pixel labels are predicted."
    ),
    "dense.heads": several(HEAD, least=1),
    "dense.encoders": several(
        choice("frozen", "tuned"),
        least=1,
        meaning="What heads stand on, in turn: the encoder as it is, or one that is "
        "fine-tuned with the head, as finetune says.",
    ),
    **within("dense", DENSE),
}

# What must hold between fields, and what is said where it does not.
RULES = (
    (
        lambda c: len(c.fractions) == len(c.repeats),
        "fractions {c.fractions} and repeats {c.repeats} must be as many; say of each "
        "fraction how often it is drawn.",
    ),
    (
        lambda c: all(f < 1.0 or n == 1 for f, n in zip(c.fractions, c.repeats)),
        "repeats is {c.repeats} for fractions {c.fractions}; all labels can be drawn "
        "in one way only.",
    ),
    (
        lambda c: "retrieval" not in c.methods or c.features.pool != "sensors",
        "features.pool='sensors' keeps the sensors' features apart, so that retrieval "
        "across them compares nothing; choose 'mean' or 'global', or leave retrieval "
        "out of methods.",
    ),
    (
        lambda c: not (c.single_label and c.score_per_batch),
        "score_per_batch is {c.score_per_batch}, but single_label=True is scored by "
        "accuracy, which has no mean over batches; set one of them otherwise.",
    ),
    (
        lambda c: c.data.statistics == "published" or c.normalize == "data",
        "data.statistics is {c.data.statistics!r}, but normalize={c.normalize} takes "
        "the statistics of the pretraining; set normalize=data too.",
    ),
    (
        lambda c: not labelled_data.tunes_on_masks(c) or not _mixes(c),
        "mixup mixes labels of pairs, and dense.encoders={c.dense.encoders} has masks "
        "learnt; set finetune.mixup=0.0, and scratch.mixup if it is there.",
    ),
)


def _mixes(config) -> bool:
    """Whether any fine-tuning mixes samples."""
    return bool(config.finetune.mixup or config.scratch.get("mixup", 0.0))


fields = config_fields.always(TABLE)


def check_config(config) -> None:
    """Refuses what no run, no data and no devices could make work.

    Raises:
        InputError: names the fields and their values.
    """
    config_fields.check(config, TABLE, like="configs/probe_bigearthnet.py")
    check_checkpoint(config.checkpoint)
    check_rules(config, RULES)
    for name, changes in (("finetune", {}), ("scratch", config.scratch)):
        try:
            tasks.finetune_recipes(config, changes)
        except InputError as error:
            raise InputError(f"With what {name} says, {error}") from error
    data = config.data
    labelled_data.check_names(
        data.split, data.val_split, data.test_split, allow=data.allow_overlap
    )
    data_fields.check(data, (data.val_split, data.test_split))


def check_data(config) -> None:
    """Refuses what the dataset, by its card, does not have.

    Raises:
        InputError: there is no dataset, or it lacks labels or a sensor.
    """
    data = config.data
    labelled_data.check_description(sources.describe(data), config)
    splits = dict.fromkeys((data.split, data.val_split, data.test_split))
    found = {split: sources.describe(data, split) for split in splits}
    there = sensor_sets(*found.values())
    if not set(config.sensors) <= set(there):
        split, least = min(found.items(), key=lambda item: len(item[1].sensors))
        titles = " and ".join(sensor.title for sensor in least.sensors.values())
        advice = f'set sensors="{there}"' if there else "name other data"
        raise InputError(
            f"sensors is {tuple(config.sensors)}, and split {split} of {least.name} "
            f"holds {titles} alone; {advice}."
        )


def unused(config) -> list[str]:
    """Names of fields that say how something is done which is not asked for."""
    done = set(config.methods)
    if "supervised" in config.baselines:
        done |= {"finetune", "scratch"}
    if labelled_data.tunes_on_masks(config):
        done.add("finetune")
    idle = {"knn", "probe", "retrieval", "finetune", "scratch", "dense"} - done
    return [name for name in fields(config) if name.partition(".")[0] in idle]


def check_devices(config) -> None:
    """Refuses batches that do not divide over the devices, of what is wanted.

    Raises:
        InputError: names the field and its value.
    """
    found, tuned = [], config.finetune
    masks = labelled_data.tunes_on_masks(config)
    if "finetune" in config.methods or masks:
        found.append(("finetune", tuned.batch_size, tuned.accumulate))
    if "supervised" in config.baselines:
        tuned = {**tuned, **config.scratch}
        found.append(("finetune", tuned["batch_size"], tuned["accumulate"]))
    if "dense" in config.methods and "frozen" in config.dense.encoders:
        found.append(("dense", config.dense.batch_size, 1))
    for name, size, parts in found:
        least = jax.device_count() * parts
        if size % least:
            how = f" in accumulate={parts} parts" if parts > 1 else ""
            raise InputError(
                f"{name}.batch_size={size} does not divide over {jax.device_count()} "
                f"devices{how}; choose a multiple of {least}."
            )
