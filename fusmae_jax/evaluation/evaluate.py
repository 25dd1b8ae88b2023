"""Judges a pretrained encoder, from its run directory alone."""

import logging

import jax

from data_pipeline import atomic
from fusmae_jax.evaluation import checks, encoder, results, tasks, trainings
from fusmae_jax.evaluation.labelled_data import open_labelled
from fusmae_jax.evaluation.session import Session
from fusmae_jax.training import sharding

log = logging.getLogger("fusmae_jax")

fields, check = checks.fields, checks.check_config


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
    trainings.check_encoder(config, pretrained.objective.encoder().depth)
    data = open_labelled(config, pretrained)
    session = Session(config, workdir, mesh, pretrained, data)
    log.info(describe(session))
    features = tasks.on_features(session)
    trainings.run(session)
    if jax.process_index() == 0:
        session.write()
        session.pack_predictions()
        from fusmae_jax.evaluation import gallery

        gallery.draw(session, features, title=where(session))
        print(tables(session), flush=True)
    return session.rows


def describe(session: Session) -> str:
    """What is about to happen, in a few words."""
    data, model = session.data, session.pretrained
    return (
        f"{model.directory}, step {model.step}: {', '.join(session.config.methods)} on "
        f"{len(data.classes)} classes of {data.description.name}; {len(data.train)} "
        f"pairs to learn from, {len(data.validation)} to choose on, {len(data.test)} "
        "to test on"
    )


def where(session: Session) -> str:
    """Dataset and split, for titles."""
    return f"{session.data.description.name}, {session.data.test.name} split"


def tables(session: Session) -> str:
    """The tables that are printed in the end."""
    title, judged, note = where(session), session.rows, session.note
    names = {name for row in judged for name in row.scores.overall}
    metrics = [m for m in ("map_micro", "map_macro", "oa", "aa", "miou") if m in names]
    parts = []
    for metric in metrics:
        # Accuracy of pixels does not belong beside that of pairs.
        alike = [r for r in judged if metric == "miou" or r.task != "dense"]
        if any(metric in row.scores.overall for row in alike):
            parts.append(results.table(alike, metric, where=title, note=note))
    if any(row.task == "retrieval" for row in judged):
        parts.append(results.retrieval_table(judged, where=title, note=note))
    return "\n\n".join(parts)
