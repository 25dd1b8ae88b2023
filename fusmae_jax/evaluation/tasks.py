"""The tasks an encoder is judged by, on features that are taken once."""

import logging

import numpy as np

from fusmae_jax.evaluation import knn, linear_probe, results, retrieval
from fusmae_jax.evaluation.labelled_data import Subset
from fusmae_jax.evaluation.scores import Scores
from fusmae_jax.evaluation.session import Session

log = logging.getLogger("fusmae_jax")

RETRIEVALS = ("s1->s2", "s2->s1", "s1->s1", "s2->s2", "both->both")


def on_features(session: Session) -> dict:
    """Runs kNN, linear probe and retrieval, with every encoder.

    Returns:
        The model's features of the test pairs, {sensor set: [N, D]}; empty where none
        of these tasks is wanted.
    """
    tasks = {"knn": run_knn, "probe": run_probe, "retrieval": run_retrieval}
    wanted = [tasks[name] for name in tasks if name in session.config.methods]
    shown = {}
    for encoder, (taker, params) in session.encoders().items() if wanted else ():
        features = session.features(encoder, taker, params)
        shown = shown or features["test"]
        for task in wanted:
            task(session, encoder, features)
        del features  # or two encoders' would be held at once
    return shown


def run_knn(session: Session, encoder: str, features) -> None:
    """Labels of the nearest training pairs: nothing is learnt, nothing chosen."""
    options, train = session.config.knn, session.data.train
    for subset in session.subsets:
        for s, x in features["train"].items():
            if session.done("knn", encoder, s, subset):
                continue
            k = min(options.k, len(subset.pairs))
            predicted = knn.predict(
                x[subset.pairs],
                train.labels[subset.pairs],
                features["test"][s],
                k=k,
                temperature=options.temperature,
            )
            found, width = session.score(predicted), x.shape[1]
            chosen = {} if k == options.k else {"k": k}
            session.add(
                *("knn", encoder, s, subset, found),
                width=width,
                chosen=chosen,
                predicted=predicted,
            )


def run_probe(session: Session, encoder: str, features) -> None:
    """A linear layer on frozen features: chosen on validation, tested once."""
    options, data = session.config.probe, session.data
    grid = linear_probe.Grid(options.learning_rates, options.weight_decays)
    for subset in session.subsets:
        for s, x in features["train"].items():
            if session.done("probe", encoder, s, subset):
                continue
            fit = linear_probe.fit(
                (x[subset.pairs], data.train.labels[subset.pairs]),
                (features["validation"][s], data.validation.labels),
                grid,
                session.mesh,
                single=data.single,
                norm=options.norm,
                epochs=options.epochs,
                batch_size=min(options.batch_size, len(subset.pairs)),
                seed=session.config.seed,
                name=f"probe, {encoder}, {s}, {results.percent(subset.fraction)}",
            )
            if fit.at_edge:
                log.warning(
                    "The best probe of %s (%s) has the %s of the grid; widen it with "
                    "--config.probe.learning_rates or weight_decays.",
                    *(encoder, s, " and the ".join(fit.at_edge)),
                )
            (predicted,) = fit.probe.predict(features["test"][s])
            session.add(
                *("probe", encoder, s, subset, session.score(predicted)),
                width=x.shape[1],
                chosen={
                    "learning_rate": fit.learning_rate,
                    "weight_decay": fit.weight_decay,
                    **session.validated(fit.score),
                },
                predicted=predicted,
            )


def run_retrieval(session: Session, encoder: str, features) -> None:
    """Does an image find its partner of the other sensor, and pairs like it?"""
    options, data = session.config.retrieval, session.data
    features = features["test"]
    # No training label is used; the setting stands for all of them.
    everything = Subset(1.0, 0, np.empty(0, int))
    for direction in RETRIEVALS:
        query, gallery = direction.split("->")
        if not {query, gallery} <= features.keys():
            continue
        # Statistics of radar and of optical images have no number in common.
        if encoder == results.STATISTICS and query != gallery:
            continue
        if session.done("retrieval", encoder, direction, everything):
            continue
        found = retrieval.score(
            features[query],
            features[gallery],
            data.test.labels,
            ks=options.ks,
            same=query == gallery,
            groups=session.groups,
            center=options.center,
            resamples=session.config.bootstrap,
            seed=session.config.seed,
        )
        session.add(
            *("retrieval", encoder, direction, everything, Scores(found, {}, None)),
            width=features[query].shape[1],
        )
