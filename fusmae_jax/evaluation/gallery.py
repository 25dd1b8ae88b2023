"""The figures of an evaluation, and what goes into each."""

import numpy as np

from fusmae_jax import figures
from fusmae_jax.evaluation import plots, results
from fusmae_jax.evaluation.store import Store
from fusmae_jax.objectives.protocol import Encoder

# The metric of a task that is drawn; retrieval has none by class.
METRICS = ("map_micro", "miou", "oa")


def draw(
    store: Store,
    labels: np.ndarray,
    encoder: Encoder,
    features: dict[str, np.ndarray],
    *,
    title: str,
    note: str,
) -> None:
    """Draws into `figures/` what people would rather see than read.

    Args:
        store: what was found.
        labels: of the test pairs, [N, C].
        encoder: that was judged.
        features: of the test pairs by sensor set, [N, D]; may be empty.
        title: dataset and split.
        note: what is to be known of numbers of one sensor; "" for nothing.
    """
    folder, classes = store.workdir / "figures", store.classes
    for task in dict.fromkeys(row.task for row in store.rows):
        judged = [row for row in store.rows if row.task == task]
        alone = note if any(map(results.shows_one_sensor, judged)) else ""
        said = dict(where=title, note=alone)
        metric = next((m for m in METRICS if m in judged[0].scores.overall), None)
        if metric is None:
            continue
        made = {"sensors": plots.sensors_figure(judged, metric, **said)}
        if len({row.fraction for row in judged}) > 1:
            made["fractions"] = plots.fractions_figure(judged, metric, **said)
        best = best_setting(judged)
        made["per_class"] = plots.per_class_figure(best, classes, **said)
        made["confusion"] = confusion(store, labels, best[-1], title)
        for kind, figure in made.items():
            if figure is not None:
                figures.save(figure, folder / f"{task}_{kind}.png")
    for s, x in features.items():
        figure = plots.projection_figure(
            x,
            labels,
            classes,
            title=f"{title}; {encoder.name}, {results.SENSORS[s]}",
            note="" if s == "both" else note,
        )
        figures.save(figure, folder / f"projection_{s}.png")


def best_setting(judged: list[results.Row]) -> list[results.Row]:
    """The model's rows of one setting, a row a sensor set, with the most labels.

    Of several kinds of features, those that did best on the validation pairs; of a
    task that the model itself was not judged by, the rows of what was.
    """
    most = max(row.fraction for row in judged)
    judged = [r for r in judged if r.fraction == most and r.subset_seed == 0]
    judged = [r for r in judged if r.encoder not in results.RIVALS] or judged
    best = max(judged, key=lambda row: row.chosen.get("validation", 0.0))
    return [
        row
        for row in judged
        if (row.encoder, row.features) == (best.encoder, best.features)
    ]


def confusion(store: Store, labels: np.ndarray, row: results.Row, title: str):
    """What is taken for what, None where predictions are gone.

    A confusion matrix; where pairs have several labels, which classes are predicted
    for the pairs of a class.
    """
    title = (
        f"{title}; {results.TASKS[row.task]}, {row.encoder}, "
        f"{results.SENSORS[row.sensors]}, {results.percent(row.fraction)} of the labels"
    )
    if row.scores.confusion is not None:
        return plots.confusion_figure(row.scores.confusion, store.classes, title=title)
    predicted = results.read_predictions(store.workdir, results.prediction_key(row))
    if not predicted:
        return None
    (predicted,) = predicted.values()
    shares = plots.cooccurrence(predicted, labels)
    return plots.cooccurrence_figure(shares, store.classes, title=title)
