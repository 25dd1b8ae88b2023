"""One setting that was judged, and settings brought together to be compared."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from data_pipeline.errors import InputError
from fusmae_jax.evaluation.scores import Score, Scores

# What a pretrained encoder is compared with; any other name is that of one.
RANDOM, STATISTICS = "random initialisation", "image statistics"
SUPERVISED, PIXELS = "supervised from scratch", "pixels of the patch"
RIVALS = (RANDOM, STATISTICS, SUPERVISED, PIXELS)
# What tables and figures call things.
TASKS = {
    "knn": "kNN",
    "probe": "linear probe",
    "finetune": "fine-tuning",
    "dense": "dense probe",
    "retrieval": "retrieval",
}
SENSORS = {
    "s1": "S1",
    "s2": "S2",
    "both": "both",
    "s1->s2": "S1 -> S2",
    "s2->s1": "S2 -> S1",
    "s1->s1": "S1 -> S1",
    "s2->s2": "S2 -> S2",
    "both->both": "both -> both",
}
METRICS = {
    "map_micro": "mAP (micro)",
    "map_macro": "mAP (macro)",
    "map_micro_per_batch": "mAP (micro, mean over batches)",
    "f1_micro": "F1 (micro)",
    "f1_macro": "F1 (macro)",
    "oa": "Overall accuracy",
    "aa": "Average accuracy",
    "miou": "Mean IoU",
    "ap": "Average precision",
    "recall": "Recall",
    "iou": "IoU",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting that was judged; `report.SCHEMA` says what the fields mean."""

    task: str
    encoder: str
    sensors: str
    fraction: float
    subset_seed: int
    train_pairs: int
    test_pairs: int
    features: str
    feature_dim: int
    chosen: dict
    scores: Scores


# What is to be known of numbers of one sensor, where pretraining always showed both.
NEVER_ALONE = (
    "This encoder never lacked a sensor in pretraining (as with mask.drop_sensor=0): "
    "S1 alone or S2 alone is what it had not met there."
)


def shows_one_sensor(row: Row) -> bool:
    """Whether the pretrained model was shown images of one sensor alone."""
    return row.encoder not in RIVALS and set(row.sensors.split("->")) != {"both"}


SETTING = tuple(f.name for f in dataclasses.fields(Row) if f.name != "scores")


def over_seeds(rows: Sequence[Row], metric: str) -> Score:
    """One row's score; of several, mean and standard deviation over their subsets."""
    if len(rows) == 1:
        return rows[0].scores.overall[metric]
    values = np.array([row.scores.overall[metric].value for row in rows])
    mean, std = float(values.mean()), float(values.std(ddof=1))
    return Score(mean, mean - std, mean + std)


def having(rows: Iterable[Row], metric: str) -> list[Row]:
    """The rows that were judged by a metric.

    Raises:
        InputError: none was.
    """
    rows = list(rows)
    found = [row for row in rows if metric in row.scores.overall]
    if not found:
        known = sorted({name for row in rows for name in row.scores.overall})
        raise InputError(
            f"No setting was judged by {metric}; choose from {', '.join(known)}."
        )
    return found


def group(rows: Sequence[Row]) -> dict[tuple, dict[str, list[Row]]]:
    """Rows by setting, {(task, fraction, encoder): {sensors: rows}}, in order.

    The rows of one cell differ in their subset alone: an encoder whose features were
    taken in several ways counts as several, with the way in its name.
    """
    ways = collections.defaultdict(set)
    for row in rows:
        ways[row.task, row.encoder, row.sensors].add(row.features)
    several = {key[:2] for key, features in ways.items() if len(features) > 1}
    encoders = [row.encoder for row in rows if row.encoder not in RIVALS] + [*RIVALS]

    def place(row):
        task, encoder = list(TASKS).index(row.task), encoders.index(row.encoder)
        return task, row.fraction, encoder, row.features

    cells = {}
    for row in sorted(rows, key=place):
        name = row.encoder
        if (row.task, row.encoder) in several:
            name += f", {row.features}"
        cell = cells.setdefault((row.task, row.fraction, name), {})
        cell.setdefault(row.sensors, []).append(row)
    return cells


def shown(rows: Sequence[Row], metric: str) -> str:
    """A score as percent, `71.2 [69.8, 72.5]`, or `71.2 ± 0.4 (n = 5)` over subsets."""
    if not rows:
        return "-"
    value, low, high = (100 * x for x in over_seeds(rows, metric))
    if value != value:
        return "undefined"
    if len(rows) > 1:
        return f"{value:.1f} ± {high - value:.1f} (n = {len(rows)})"
    return f"{value:.1f}" + (f" [{low:.1f}, {high:.1f}]" if low == low else "")


def percent(fraction: float) -> str:
    """A share of the labels as text: `1 %`."""
    return f"{100 * fraction:g} %"
