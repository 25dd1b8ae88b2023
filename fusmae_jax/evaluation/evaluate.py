"""Judges a pretrained encoder, from its run directory alone."""

import logging

import jax
import numpy as np

from fusmae_jax import figures, sharding
from fusmae_jax.evaluation import (
    backbone,
    matrices,
    plots,
    report,
    rows,
    tasks,
    trainings,
)
from fusmae_jax.evaluation.session import Session, check_config
from fusmae_jax.evaluation.splits import open_labelled

log = logging.getLogger("fusmae_jax")

# The metric of every task in which it is printed and drawn, and its parts by class.
PER_CLASS = {"map_micro": "ap", "oa": "recall", "miou": "iou"}


def evaluate(config, workdir) -> list[rows.Row]:
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
    check_config(config)
    trainings.check_config(config)
    mesh = sharding.make_mesh(1)
    pretrained = backbone.restore(config.checkpoint, mesh, config.step)
    data = open_labelled(config, pretrained)
    session = Session(config, workdir, mesh, pretrained, data)
    log.info(describe(session))
    features = tasks.on_features(session)
    trainings.run(session)
    if jax.process_index() == 0:
        session.write()
        session.pack_predictions()
        draw(session, features)
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
    title, judged = where(session), session.rows
    names = {name for row in judged for name in row.scores.overall}
    metrics = [m for m in ("map_micro", "map_macro", "oa", "aa", "miou") if m in names]
    parts = [report.table(judged, m, where=title) for m in metrics]
    if any(row.task == "retrieval" for row in judged):
        parts.append(report.retrieval_table(judged, where=title))
    return "\n\n".join(parts)


def best_setting(judged: list[rows.Row], metric: str) -> list[rows.Row]:
    """The model's rows of one setting, a row a sensor set: most labels, best features.

    Of a task that the model itself was not judged by, the rows of what was.
    """
    most = max(row.fraction for row in judged)
    judged = [r for r in judged if r.fraction == most and r.subset_seed == 0]
    judged = [r for r in judged if r.encoder == rows.MODEL] or judged
    best = max(judged, key=lambda row: row.scores.overall[metric].value)
    return [
        row
        for row in judged
        if (row.encoder, row.features) == (best.encoder, best.features)
    ]


def named(row: rows.Row) -> str:
    """What made a row, for titles."""
    return f"{row.encoder}, {rows.percent(row.fraction)} of the labels"


def draw(session: Session, features: dict[str, np.ndarray]) -> None:
    """Draws what people would rather see than read, into `figures/`."""
    title, folder = where(session), session.workdir / "figures"
    data, classes = session.data, session.data.classes
    for task in dict.fromkeys(row.task for row in session.rows):
        judged = [row for row in session.rows if row.task == task]
        metric = next((m for m in PER_CLASS if m in judged[0].scores.overall), None)
        if metric is None:
            continue  # retrieval has no classes
        name = f"{title}; {rows.TASKS[task]}"
        figure = plots.sensors_figure(judged, metric, where=name)
        figures.save(figure, folder / f"{task}_sensors.png")
        if len({row.fraction for row in judged}) > 1:
            figure = plots.fractions_figure(judged, metric, where=name)
            figures.save(figure, folder / f"{task}_fractions.png")
        best = best_setting(judged, metric)
        shown = f"{name}, {named(best[0])}"
        figure = plots.per_class_figure(best, classes, where=shown)
        figures.save(figure, folder / f"{task}_per_class.png")
        confusion = best[-1].scores.confusion
        if confusion is not None:
            shown += f", {rows.SENSORS[best[-1].sensors]}"
            figure = matrices.confusion_figure(confusion, classes, title=shown)
            figures.save(figure, folder / f"{task}_confusion.png")
    for s, x in features.items():
        figure = plots.projection_figure(
            x, data.test.labels, classes, title=f"{title}; {rows.SENSORS[s]}"
        )
        figures.save(figure, folder / f"projection_{s}.png")
