"""What the config of an evaluation may say; see `fusmae_jax.checks`."""

import jax

from data_pipeline import data_fields, fields, rules, sources
from data_pipeline.errors import InputError
from data_pipeline.fields import SEED, choice, flag, group, number, location, several
from data_pipeline.fields import text, whole
from fusmae_jax import checks
from fusmae_jax.evaluation import (
    dense,
    features,
    finetune,
    linear,
    probe,
    rows,
    splits,
    trainings,
)
from fusmae_jax.evaluation.encoder import SENSOR_SETS

BASELINES = ("random", "statistics", "supervised")
RATES = several(finetune.FIELDS["base_lr"], least=1)
DENSE = {k: row for k, row in dense.FIELDS.items() if k != "head"}
# The pool and the view are those of features.
FINETUNE = {k: row for k, row in finetune.FIELDS.items() if k not in ("b1", "b2")}
MOMENTS = {k: row for k, row in finetune.FIELDS.items() if k in ("b1", "b2")}

TABLE = {
    "task": choice("evaluate"),
    "methods": several(choice(*rows.TASKS), least=1),
    "checkpoint": location(),
    "step": whole(0),
    "seed": SEED,
    **data_fields.rows(
        ("source", "dir", "eval_dir", "split", "val_split", "test_split", "classes")
    ),
    **data_fields.rows(("statistics", "allow_overlap", "count", "size", "seed")),
    "labels": text(filled=True),
    "single_label": flag(),
    "allow_empty_classes": flag(),
    "normalize": choice("run", "data"),
    "sensors": several(choice(*SENSOR_SETS), least=1),
    "baselines": several(choice(*BASELINES)),
    "fractions": several(number(above=0.0, most=1.0), least=1),
    "repeats": several(whole(1), least=1, twice=True),
    **fields.within("features", features.FIELDS),
    "cache": location(),
    "batch_size": whole(1),
    "bootstrap": whole(0),
    "score_per_batch": whole(0),
    "knn.k": whole(1),
    "knn.temperature": number(above=0.0),
    "probe.norm": choice(*linear.NORMS),
    "probe.epochs": whole(1),
    "probe.batch_size": whole(1),
    "probe.learning_rates": probe.RATES,
    "probe.weight_decays": probe.DECAYS,
    "retrieval.ks": several(whole(1), least=1),
    "retrieval.center": flag(),
    **fields.within("finetune", FINETUNE | {"base_lr": RATES}),
    **fields.within("finetune", fields.optional(MOMENTS)),
    "scratch": group(),  # whatever of "finetune" differs
    **fields.within("scratch", fields.optional(finetune.FIELDS | {"base_lr": RATES})),
    "dense.field": text(filled=True),
    "dense.heads": several(dense.FIELDS["head"], least=1),
    **fields.within("dense", DENSE),
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
)


def check_config(config) -> None:
    """Refuses what no run, no data and no devices could make work.

    Raises:
        InputError: names the fields and their values.
    """
    fields.check(config, TABLE, like="configs/probe_bigearthnet.py")
    checks.check_checkpoint(config.checkpoint)
    rules.check(config, RULES)
    trainings.finetune_recipes(config, {})
    try:
        trainings.finetune_recipes(config, config.scratch)
    except InputError as error:
        raise InputError(f"With what scratch says, {error}") from error
    data = config.data
    splits.check_names(
        data.split, data.val_split, data.test_split, allow=data.allow_overlap
    )
    data_fields.check(data, (data.val_split, data.test_split))


def check_data(config) -> None:
    """Refuses what the dataset, by its card, does not have.

    Raises:
        InputError: there is no dataset, or it lacks labels.
    """
    splits.check_description(sources.describe(config.data), config)


def check_devices(config) -> None:
    """Refuses batches that do not divide over the devices, of what is wanted.

    Raises:
        InputError: names the field and its value.
    """
    found, tuned = [], config.finetune
    if "finetune" in config.methods:
        found.append(("finetune", tuned.batch_size, tuned.accumulate))
    if "supervised" in config.baselines:
        tuned = {**tuned, **config.scratch}
        found.append(("finetune", tuned["batch_size"], tuned["accumulate"]))
    if "dense" in config.methods:
        found.append(("dense", config.dense.batch_size, 1))
    for name, size, parts in found:
        least = jax.device_count() * parts
        if size % least:
            how = f" in accumulate={parts} parts" if parts > 1 else ""
            raise InputError(
                f"{name}.batch_size={size} does not divide over {jax.device_count()} "
                f"devices{how}; choose a multiple of {least}."
            )
