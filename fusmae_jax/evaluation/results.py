"""What was found: the rows of an evaluation, as files and as printed tables.

`scores.json` holds everything and is read back; `scores.csv` is the same in long form
for other programs, with the columns of `SCHEMA`; `predictions.npz` holds what each
setting said about each test pair.
"""

import collections
import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data_pipeline import atomic, safe_io
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
    "dense": "dense",
    "retrieval": "retrieval",
    "change": "change",
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
    "f1": "F1",
    "precision": "Precision",
    "recall": "Recall",
    "iou": "IoU",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting that was judged; `results.SCHEMA` says what the fields mean."""

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


SCHEMA = {
    "dataset": "name of the labelled pairs",
    "split": "the pairs that were judged on",
    "task": "knn, probe, finetune, dense, retrieval or change",
    "encoder": "what made the features: the model, or what it is compared with",
    "sensors": "s1, s2 or both; of retrieval the query's -> the gallery's",
    "fraction": "of the training pairs whose labels were used, in (0, 1]",
    "subset_seed": "which draw of that fraction",
    "train_pairs": "number of pairs whose labels were used",
    "test_pairs": "number of pairs that were judged on",
    "features": "how an image became a vector",
    "feature_dim": "length of that vector",
    "chosen": "what the validation pairs chose, a JSON object",
    "class": "the class that the value is about; empty for all together",
    "metric": "name of the value",
    "value": "in [0, 1]; empty where undefined, as for a class without test pairs",
    "ci_low": "lower end of the 95 % bootstrap interval; empty where none was asked",
    "ci_high": "upper end of it",
    "checkpoint": "run directory of the model, on the lines of its rivals too",
    "step": "of that checkpoint",
    "note": "what is to be known of the value, or nothing",
}


def write(workdir, rows: Iterable[Row], *, classes: Sequence[str], meta: dict) -> None:
    """Writes `scores.json` and `scores.csv`, each whole.

    Args:
        workdir: an existing directory.
        rows: every setting judged so far; files of an earlier call are replaced.
        classes: their names, in the order of `per_class` and `confusion`.
        meta: what all rows share: `dataset`, `split`, `checkpoint`, `step`, perhaps
            the `note` on images of one sensor, and whatever else JSON can hold, such as
            the config.
    """
    workdir, rows = pathlib.Path(workdir), list(rows)
    content = {"meta": meta, "classes": classes, "rows": list(map(_to_json, rows))}
    text = json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"
    table = io.StringIO()
    writer = csv.DictWriter(table, SCHEMA, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        shared = {k: meta[k] for k in ("dataset", "split", "checkpoint", "step")}
        shared["note"] = meta.get("note", "") if shows_one_sensor(row) else ""
        writer.writerows(one | shared for one in long_form(row, classes))
    atomic.write_whole(workdir / "scores.csv", table.getvalue())
    atomic.write_whole(workdir / "scores.json", text)


def read(workdir) -> list[Row]:
    """The rows that `write` left in a directory.

    Raises:
        InputError: there are none.
    """
    try:
        return [_from_json(row) for row in _load(workdir)["rows"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The rows of scores.json in {workdir} are damaged ({error!r}); delete it, "
            "and they are judged again."
        ) from error


def read_shared(workdir) -> tuple[tuple[str, ...], dict]:
    """The classes and the meta that the rows of a directory share.

    Raises:
        InputError: there are none.
    """
    content = _load(workdir)
    return tuple(content["classes"]), content["meta"]


def _load(workdir) -> dict:
    path = pathlib.Path(workdir) / "scores.json"
    try:
        content = safe_io.read_json(path)
    except FileNotFoundError:
        raise InputError(f"There is no {path}: evaluate a run there first.") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); delete it.") from None
    known = {"meta": dict, "classes": list, "rows": list}
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), kind) for key, kind in known.items()
    ):
        raise InputError(
            f"{path} is no evaluation's: it lacks meta, classes or rows; name the "
            "directory of an evaluation."
        )
    return content


def _to_json(row: Row) -> dict:
    scores = {
        "overall": {k: v._asdict() for k, v in row.scores.overall.items()},
        "per_class": {
            k: [score._asdict() for score in v] for k, v in row.scores.per_class.items()
        },
        "confusion": row.scores.confusion,
    }
    return {name: getattr(row, name) for name in SETTING} | scores


def _from_json(row: dict) -> Row:
    def score(ends):
        return Score(*(np.nan if ends[k] is None else ends[k] for k in Score._fields))

    confusion = row["confusion"]
    scores = Scores(
        overall={k: score(v) for k, v in row["overall"].items()},
        per_class={k: list(map(score, v)) for k, v in row["per_class"].items()},
        confusion=None if confusion is None else np.array(confusion),
    )
    return Row(*(row[name] for name in SETTING), scores)


def _plain(x):
    """`x` as JSON can hold it: no arrays, and null for NaN."""
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(v) for v in x]
    if isinstance(x, (np.ndarray, np.generic)):
        return _plain(x.tolist())
    return None if x != x else x


def long_form(row: Row, classes: Sequence[str]) -> Iterator[dict]:
    """A row as one plain dict for each of its scores; `SCHEMA` says what is in them."""
    setting = _plain({name: getattr(row, name) for name in SETTING})
    setting["chosen"] = json.dumps(setting["chosen"])
    whole = [("", metric, score) for metric, score in row.scores.overall.items()]
    parts = [
        (name, metric, score)
        for metric, of_classes in row.scores.per_class.items()
        for name, score in zip(classes, of_classes, strict=True)
    ]
    for name, metric, score in whole + parts:
        value, low, high = _plain(list(score))  # csv writes None as nothing
        yield setting | {
            "class": name,
            "metric": metric,
            "value": value,
            "ci_low": low,
            "ci_high": high,
        }


def prediction_key(row: Row) -> str:
    """Where `predictions.npz` holds a setting, such as `probe/both/0.1/0`.

    What the model is compared with stands behind: `probe/both/0.1/0/image statistics`.
    """
    parts = [row.task, row.sensors, f"{row.fraction:g}", str(row.subset_seed)]
    return "/".join(parts + [row.encoder] * (row.encoder in RIVALS))


def write_predictions(workdir, ids, classes, labels, scores: dict) -> None:
    """Writes `predictions.npz` whole.

    Args:
        workdir: an existing directory.
        ids: names of the N test pairs.
        classes: names of the C classes.
        labels: [N, C], one where a pair has the class.
        scores: [N, C] by `prediction_key`.
    """
    path = pathlib.Path(workdir) / "predictions.npz"
    arrays = {
        "ids": np.asarray(ids, str),
        "classes": np.asarray(classes, str),
        "labels": np.asarray(labels, np.uint8),
    }
    arrays |= {key: np.asarray(x, np.float32) for key, x in scores.items()}
    part = atomic.aside(path)
    with atomic.whole(path, part), part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_predictions(workdir, only: str = "") -> dict[str, np.ndarray]:
    """The scores that `write_predictions` left in a directory, if any.

    Args:
        workdir: the directory.
        only: the key of those that are wanted; "" for all.
    """
    path = pathlib.Path(workdir) / "predictions.npz"
    if not path.exists():
        return {}
    try:
        return safe_io.read_arrays(
            path, lambda key: "/" in key and key == (only or key)
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); delete it: what it held is lost, the "
            "scores are not."
        ) from error


def table(rows: Iterable[Row], metric: str, *, where: str, note: str = "") -> str:
    """One metric as text: a line per task, share of labels and encoder.

    Args:
        rows: of one evaluation; those without the metric are left out.
        metric: a name in `Scores.overall`.
        where: dataset and split, for the title.
        note: on images of one sensor, printed below where there are such rows.

    Raises:
        InputError: no row has the metric.
    """
    cells = group(having(rows, metric))
    sensors = [s for s in SENSORS if any(s in cell for cell in cells.values())]
    lines = [["task", "labels", "encoder", *(SENSORS[s] for s in sensors)]]
    for (task, fraction, encoder), cell in cells.items():
        scores = [shown(cell.get(s, ()), metric) for s in sensors]
        lines.append([TASKS[task], percent(fraction), encoder, *scores])
    several = any(len(seeds) > 1 for cell in cells.values() for seeds in cell.values())
    title = _title(METRICS.get(metric, metric), cells, where, several)
    return "\n".join([title, *_aligned(lines), *_below(note, cells)])


def retrieval_table(rows: Iterable[Row], *, where: str, note: str = "") -> str:
    """Retrieval as text: a line per encoder and direction, a column per metric.

    Args:
        rows: of one evaluation; those of other tasks are left out.
        where: dataset and split, for the title.
        note: as of `table`.
    """
    rows = [row for row in rows if row.task == "retrieval"]
    metrics = list(dict.fromkeys(m for row in rows for m in row.scores.overall))
    cells = group(rows)
    lines = [["encoder", "query -> gallery", *metrics]]
    for (_, _, encoder), cell in cells.items():
        for s, of_direction in cell.items():
            known = of_direction[0].scores.overall
            scores = [shown(of_direction, m) if m in known else "-" for m in metrics]
            lines.append([encoder, SENSORS.get(s, s), *scores])
    title = _title("Retrieval", cells, where, False)
    return "\n".join([title, *_aligned(lines), *_below(note, cells)])


def _rows(cells) -> list[Row]:
    return [row for cell in cells.values() for seeds in cell.values() for row in seeds]


def _below(note: str, cells) -> list[str]:
    return [f"({note})"] if note and any(map(shows_one_sensor, _rows(cells))) else []


def _title(what: str, cells, where: str, several: bool) -> str:
    rows = _rows(cells)
    pairs = " or ".join(f"{n:,}" for n in sorted({row.test_pairs for row in rows}))
    brackets = "[95 % interval]"
    if several:
        brackets += ", or ± standard deviation over n subsets of the labels"
    return f"{what} on {pairs} pairs of {where}\n(percent {brackets})"


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip()
        for line in lines
    ]
