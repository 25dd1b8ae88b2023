"""The tasks that train with the encoder in the loop: fine-tuning and dense probing."""

import logging
import math

import numpy as np

from data_pipeline import subsets
from fusmae_jax.evaluation import classifier, dense, features, finetune, results, scores
from fusmae_jax.evaluation.encoder import check_blocks
from fusmae_jax.evaluation.labelled_data import Split, Subset
from fusmae_jax.evaluation.session import Session
from fusmae_jax.training import metrics

log = logging.getLogger("fusmae_jax")


def check_encoder(config, blocks: int) -> None:
    """Refuses more blocks than an encoder has."""
    if "dense" in config.methods:
        check_blocks("dense.blocks", config.dense.blocks, blocks)


def finetune_recipes(config, changes) -> list[finetune.Recipe]:
    """The recipes of which validation chooses one: one for each learning rate."""
    fields = {**config.finetune, **changes}
    shown = dict(pool=config.features.pool, view=config.features.view)
    rates = fields.pop("base_lr")
    return [finetune.Recipe(base_lr=rate, **fields, **shown) for rate in rates]


def dense_recipes(config) -> list[dense.Recipe]:
    """The recipes that are compared: one for each kind of head."""
    fields = dict(config.dense)
    fields.pop("field")
    return [dense.Recipe(head=head, **fields) for head in fields.pop("heads")]


def run(session: Session) -> None:
    """Runs fine-tuning, its rival from scratch, and dense probing, where wanted."""
    config = session.config
    if "finetune" in config.methods:
        name, params = session.encoder.name, session.pretrained.encoder_params
        run_finetune(session, name, params, {})
    if "supervised" in config.baselines:
        fresh = session.pretrained.fresh(config.seed)
        run_finetune(session, results.SUPERVISED, fresh, config.scratch)
    if "dense" in config.methods:
        run_dense(session)


def some(split: Split, subset: Subset):
    """The pairs of a split that are learnt from."""
    if len(subset.pairs) == len(split):
        return split.source
    return subsets.Subset(split.source, subset.pairs)


def run_finetune(session: Session, encoder: str, params, changes) -> None:
    """Trains everything, for each sensor set apart; tests once."""
    recipes = finetune_recipes(session.config, changes)
    tuners = [tuner(session, params, recipe) for recipe in recipes]
    shown = features.Recipe(recipes[0].pool, view=recipes[0].view)
    extractor = features.Extractor(
        session.encoder, params, shown, session.mesh, session.config.sensors
    )
    width = session.encoder.width * shown.copies
    for subset in session.subsets:
        for s in session.config.sensors:
            if session.done("finetune", encoder, s, subset):
                continue
            names = [
                name_of("finetune", encoder, s, subset, recipe.base_lr)
                for recipe in recipes
            ]
            tuned, chosen = tune(session, tuners, names, extractor, subset, s, encoder)
            predicted = predict(session, extractor, tuned, session.data.test, s)
            session.add(
                *("finetune", encoder, s, subset, session.score(predicted)),
                width=width,
                features=str(shown),
                chosen=chosen,
                predicted=predicted,
            )
            for name in names:
                session.forget(name)


def tune(session: Session, tuners, names, extractor, subset: Subset, s: str, encoder):
    """Trains by every recipe; validation chooses where there are several.

    Returns:
        The classifier, and what was chosen.

    Raises:
        Diverged: no training stayed finite.
    """
    best, highest, chosen = None, -math.inf, {}
    for train, name in zip(tuners, names):
        rate = train.recipe.base_lr
        what = f"{encoder}, {s}, {results.percent(subset.fraction)}, rate {rate:g}"
        try:
            tuned = train(
                some(session.data.train, subset),
                sensor_set=s,
                seed=session.config.seed,
                directory=session.training(name),
                title=f"fine-tuning {what}",
            )
        except metrics.Diverged as error:
            session.forget(name)
            log.warning("Fine-tuning %s: %s", what, error)
            if best is None and name == names[-1]:
                raise
            continue
        if len(tuners) == 1:
            return tuned, {"base_lr": rate}
        split = session.data.validation
        predicted = predict(session, extractor, tuned, split, s)
        score = scores.headline(predicted, split.labels, session.data.single)
        if score > highest:
            best, highest = tuned, score
            chosen = {"base_lr": rate, **session.validated(score)}
    return best, chosen


def name_of(task: str, encoder: str, sensors: str, subset: Subset, which) -> str:
    """A folder's name for one training."""
    parts = (task, encoder, sensors, f"{subset.fraction:g}", subset.seed, which)
    return "-".join(map(str, parts)).replace(" ", "_")


def tuner(session: Session, params, recipe: finetune.Recipe) -> finetune.Finetuner:
    """Trains by one recipe, on any pairs and sensors."""
    data = session.data
    return finetune.Finetuner(
        session.encoder,
        params,
        recipe,
        session.mesh,
        session.config.labels,
        classes=len(data.classes),
        single=data.single,
    )


def predict(session: Session, extractor, tuned, split: Split, s: str) -> np.ndarray:
    """Probabilities of a fine-tuned encoder for the pairs of a split, [N, C]."""
    return classifier.predict(
        extractor,
        tuned,
        split.source,
        sensor_set=s,
        batch_size=session.config.batch_size,
        title=f"fine-tuned, {s}, {split.name}",
    )


def run_dense(session: Session) -> None:
    """Heads on frozen tokens, or on bare pixels: chosen on validation, tested once."""
    recipes = dense_recipes(session.config)
    for name, encoder in session.encoders().items():
        if name == results.STATISTICS:
            name = results.PIXELS
        for subset in session.subsets:
            for s in session.config.sensors:
                for recipe in recipes:
                    probe_densely(session, name, encoder, subset, s, recipe)


def probe_densely(
    session: Session, name: str, encoder, subset: Subset, s: str, recipe
) -> None:
    """Trains and judges one kind of head on an encoder and its parameters."""
    config, data = session.config, session.data
    seen = f"{recipe.head} head on {'tokens' if encoder[0].trained else 'pixels'}"
    if session.done("dense", name, s, subset, seen):
        return
    training = name_of("dense", name, s, subset, recipe.head)
    title = f"dense, {name}, {s}, {recipe.head}"
    shared = dict(sensor_set=s, mesh=session.mesh)
    fitted = dense.fit(
        *encoder,
        some(data.train, subset),
        data.validation.source,
        config.dense.field,
        recipe=recipe,
        seed=config.seed,
        directory=session.training(training),
        title=title,
        **shared,
    )
    if fitted.at_edge:
        log.warning(
            "The best %s has the %s of the grid; widen it with "
            "--config.dense.learning_rates.",
            *(title, " and the ".join(fitted.at_edge)),
        )
    confusions = dense.confusions(
        *encoder,
        fitted,
        data.test.source,
        config.dense.field,
        batch_size=config.batch_size,
        title=f"test, {title}",
        **shared,
    )
    options = dict(resamples=config.bootstrap, seed=config.seed, groups=session.groups)
    session.add(
        *("dense", name, s, subset, scores.segmentation(confusions, **options)),
        width=fitted.width,
        features=seen,
        chosen={
            "learning_rate": fitted.learning_rate,
            **session.validated(fitted.score),
        },
    )
    session.forget(training)
