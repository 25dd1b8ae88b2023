"""Judges a pretrained encoder, from its run directory alone."""

import functools
import itertools
import logging
from collections.abc import Callable, Iterator

import jax
import numpy as np
from flax import nnx

from data_pipeline import atomic, ground, sources
from fusmae_jax import build
from fusmae_jax.evaluation import (
    checks,
    encoder,
    features,
    neighbours,
    results,
    tasks,
)
from fusmae_jax.evaluation.encoder import Pretrained, check_blocks
from fusmae_jax.evaluation.labelled_data import (
    SPLITS,
    Labelled,
    open_labelled,
    tunes_on_masks,
)
from fusmae_jax.evaluation.store import Found, Setting, Store
from fusmae_jax.evaluation.tasks import Candidate, Setup
from fusmae_jax.objectives.protocol import Encoder
from fusmae_jax.training import run_directory, sharding

log = logging.getLogger("fusmae_jax")

fields, check = checks.fields, checks.check_config

# These say what is done, or how; all others say what a score means.
MAY_CHANGE = (
    "checkpoint",
    "step",
    "cache",
    "batch_size",
    "methods",
    "baselines",
    "sensors",
    "fractions",
    "repeats",
    "finetune.remat",
    "finetune.accumulate",
    "dense.encoders",
    "scratch.remat",
    "scratch.accumulate",
    "data.dir",
    "data.eval_dir",
    "data.allow_overlap",
)
STATISTICS = "mean, deviation and 5 percentiles of every band"


def run(config, workdir) -> list[results.Row]:
    """Runs every task that `config.methods` names, and reports.

    Args:
        config: see `configs/probe_bigearthnet.py`.
        workdir: where the report goes; what it holds already is not done again.

    Returns:
        What was found, also written to `scores.json` and `scores.csv`.

    Raises:
        InputError: the run, the data and the config do not fit together; nothing has
            been written then.
    """
    checks.check_config(config)
    checks.check_data(config)
    checks.check_devices(config)
    workdir = atomic.absolute(workdir)
    mesh = sharding.make_mesh(1)
    checkpoint = atomic.absolute(config.checkpoint)
    pretrained = encoder.restore(checkpoint, mesh, config.step)
    check_depth(config, pretrained.objective.encoder().depth)
    data = open_labelled(config, pretrained)
    setup, judged = open_setup(config, workdir, mesh, pretrained, data)
    log.info(describe(config, pretrained, data))
    for setting, judge in plan(setup, pretrained, judged):
        if not setup.store.done(setting):
            setup.store.add(setting, judge(setting))
    return report(setup, pretrained, judged)


def check_depth(config, depth: int) -> None:
    """Refuses outputs of more blocks than an encoder has."""
    check_blocks("features.blocks", config.features.blocks, depth)
    if "dense" in config.methods:
        check_blocks("dense.blocks", config.dense.blocks, depth)


def open_setup(
    config, workdir, mesh, pretrained: Pretrained, data: Labelled
) -> tuple[Setup, Encoder]:
    """Opens `workdir`, which may hold a part of the same evaluation.

    Returns:
        What all tasks share, and the encoder as it sees the data.

    Raises:
        InputError: it holds something else, or an option cannot work.
    """
    missing = sources.has_missing(config.data)
    judged = pretrained.look_at(data.description, config.normalize, missing)
    encoder.check_sensors("sensors", config.sensors, judged)
    if config.features.pool == "global" and not judged.summarizes:
        log.warning(
            "Nothing has taught this encoder's global token what to say, as its "
            "pretraining asked it for nothing; pool the mean instead."
        )
    groups = ground.groups(data.test.source)
    if "retrieval" in config.methods:
        neighbours.check_enough(groups, config.retrieval.ks)
    splits = {name: getattr(data, name).source.fingerprint() for name in SPLITS}
    run_directory.open_workdir(
        workdir,
        config,
        judged.inputs.contract,
        {"parameters": encoder.digest(pretrained.params), **splits},
        free=MAY_CHANGE,
        dtype=pretrained.config.model.dtype,
    )
    meta = {
        "task": "evaluate",
        "dataset": data.description.name,
        "split": data.test.name,
        "checkpoint": str(pretrained.directory),
        "step": pretrained.step,
        "dtype": pretrained.config.model.dtype,
        "note": note(pretrained, judged),
        "config": config.to_dict(),
    }
    store = Store(workdir, told_apart(config, data), data.test, meta)
    parameters = encoder.digest(pretrained.encoder_params)
    return Setup(config, mesh, data, groups, store, parameters), judged


def told_apart(config, data: Labelled) -> tuple[str, ...]:
    """Names of the classes of pairs or, where these alone are judged, of pixels."""
    if set(config.methods) == {"dense"}:
        return data.description.maps[config.dense.field]
    return data.classes


def note(pretrained: Pretrained, judged: Encoder) -> str:
    """What is to be known of numbers of one sensor; "" for nothing."""
    sensors = pretrained.contract.values()
    unseen = [sensor.title for sensor in sensors if sensor.source == build.LACKING]
    if unseen:
        return (
            f"This encoder was pretrained without {' and '.join(unseen)}: nothing has "
            "taught it what to make of that."
        )
    return "" if judged.knows_one_sensor else results.NEVER_ALONE


def candidates(config, pretrained: Pretrained, judged: Encoder) -> Iterator[Candidate]:
    """Yields what features are taken with: the encoder, and its rivals."""
    yield Candidate(judged.name, judged, pretrained.encoder_params)
    for name in config.baselines:
        if name == "random":
            yield Candidate(results.RANDOM, judged, pretrained.fresh(config.seed))
        elif name == "statistics":
            bare = encoder.Statistics(judged.inputs, judged.patch_size)
            yield Candidate(results.STATISTICS, bare, nnx.State({}))


def take_features(
    setup: Setup, pretrained: Pretrained, candidate: Candidate, splits=SPLITS
) -> dict[str, dict[str, np.ndarray]]:
    """Features of some splits by one encoder, {split: {sensor set: [N, D]}}."""
    config = setup.config
    recipe = features.Recipe(**config.features)
    extractor = features.Extractor(
        candidate.encoder, candidate.params, recipe, setup.mesh, config.sensors
    )
    folder = atomic.absolute(config.cache) or pretrained.directory / "features"
    return {
        split: features.extract(
            extractor,
            getattr(setup.data, split).source,
            folder=folder,
            batch_size=config.batch_size,
            title=f"{candidate.name}, {split}",
        )
        for split in splits
    }


def plan(
    setup: Setup, pretrained: Pretrained, judged: Encoder
) -> Iterator[tuple[Setting, Callable[[Setting], Found]]]:
    """Yields all that is to be judged, and what judges it.

    Features of one encoder are held at a time, and only if something needs them.
    """
    config, data = setup.config, setup.data
    subsets = [
        data.subset(fraction, seed)
        for fraction, repeats in zip(config.fractions, config.repeats)
        for seed in range(repeats)
    ]
    every = list(itertools.product(subsets, config.sensors))
    for rival in candidates(config, pretrained, judged):
        taken = functools.cache(
            functools.partial(take_features, setup, pretrained, rival)
        )
        recipe = str(features.Recipe(**config.features))
        recipe = recipe if rival.encoder.trained else STATISTICS
        for task, judge in tasks.ON_FEATURES.items():
            if task not in config.methods:
                continue
            wanted = every
            if task == "retrieval":
                labelled = bool(data.classes)
                found = tasks.directions(config.sensors, rival.encoder, labelled)
                wanted = [(tasks.EVERYTHING, direction) for direction in found]
            for subset, s in wanted:
                setting = Setting(task, rival.name, s, subset, recipe)
                yield setting, functools.partial(judge_taken, judge, setup, taken)
    yield from plan_trainings(setup, pretrained, judged, every)


def judge_taken(judge, setup: Setup, taken: Callable, setting: Setting) -> Found:
    """Judges by a task of `tasks.ON_FEATURES`, with features that are taken now."""
    return judge(setup, setting, taken())


def plan_trainings(
    setup: Setup, pretrained: Pretrained, judged: Encoder, every: list
) -> Iterator[tuple[Setting, Callable[[Setting], Found]]]:
    """The same of the tasks that train with the encoder in the loop.

    Args:
        setup, pretrained, judged: see `plan`.
        every: subsets of labels and sensor sets, `(Subset, str)`.
    """
    config = setup.config
    pairs, masks = "finetune" in config.methods, tunes_on_masks(config)
    began = [(Candidate(judged.name, judged, pretrained.encoder_params), {})]
    if "supervised" in config.baselines:
        fresh = Candidate(results.SUPERVISED, judged, pretrained.fresh(config.seed))
        began.append((fresh, config.scratch))
    tuned = []
    for model, changes in began:
        # From scratch also where nothing else is fine-tuned.
        if pairs or (not masks and model.name == results.SUPERVISED):
            tuned.append(("finetune", tasks.FineTuning(setup, model, changes)))
        if masks:
            tuned += [
                ("dense", tasks.MaskTuning(setup, model, changes, recipe))
                for recipe in tasks.dense_recipes(config)
            ]
    for task, tuning in tuned:
        for subset, s in every:
            yield Setting(task, tuning.name, s, subset, tuning.how), tuning
    if "dense" not in config.methods or "frozen" not in config.dense.encoders:
        return
    for rival in candidates(config, pretrained, judged):
        name = rival.name if rival.encoder.trained else results.PIXELS
        seen = "tokens" if rival.encoder.trained else "pixels"
        for subset, s in every:
            for recipe in tasks.dense_recipes(config):
                how = f"{recipe.head} head on {seen}"
                judge = functools.partial(
                    tasks.judge_densely, setup, candidate=rival, recipe=recipe
                )
                yield Setting("dense", name, s, subset, how), judge


def report(setup: Setup, pretrained: Pretrained, judged: Encoder) -> list[results.Row]:
    """Writes, draws and prints what was found; all hosts must call."""
    config, store = setup.config, setup.store
    shown = {}
    if setup.data.classes and set(config.methods) & tasks.ON_FEATURES.keys():
        model = Candidate(judged.name, judged, pretrained.encoder_params)
        shown = take_features(setup, pretrained, model, ("test",))["test"]
    if jax.process_index() == 0:
        store.write()
        store.pack_predictions()
        from fusmae_jax.evaluation import gallery  # Matplotlib, only now

        where = f"{setup.data.description.name}, {setup.data.test.name} split"
        said = dict(title=where, note=note(pretrained, judged))
        gallery.draw(store, setup.data.test.labels, judged, shown, **said)
        print(tables(store.rows, where, said["note"]), flush=True)
    return store.rows


def describe(config, pretrained: Pretrained, data: Labelled) -> str:
    """What is about to happen, in a few words."""
    return (
        f"{pretrained.directory}, step {pretrained.step}: {', '.join(config.methods)} "
        f"on {len(told_apart(config, data))} classes of {data.description.name}; "
        f"{len(data.train)} pairs to learn from, {len(data.validation)} to choose on, "
        f"{len(data.test)} to test on"
    )


def tables(judged: list[results.Row], where: str, note: str) -> str:
    """The tables that are printed in the end."""
    names = {name for row in judged for name in row.scores.overall}
    metrics = [m for m in ("map_micro", "map_macro", "oa", "aa", "miou") if m in names]
    parts = []
    for metric in metrics:
        # Accuracy of pixels does not belong beside that of pairs.
        alike = [r for r in judged if metric == "miou" or r.task != "dense"]
        if any(metric in row.scores.overall for row in alike):
            parts.append(results.table(alike, metric, where=where, note=note))
    if any(row.task == "retrieval" for row in judged):
        parts.append(results.retrieval_table(judged, where=where, note=note))
    return "\n\n".join(parts)
