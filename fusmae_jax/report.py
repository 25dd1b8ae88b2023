"""A run, and perhaps an evaluation of it, as one HTML page that needs nothing else."""

import base64
import hashlib
import html
import logging
import math
import pathlib
import string
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from data_pipeline import atomic, config_fields, safe_io, sources, subsets
from data_pipeline.building.preview import picture
from data_pipeline.config_fields import choice, location, whole
from data_pipeline.errors import InputError
from data_pipeline.sensors import SENSORS as SENSORS_BY_NAME
from fusmae_jax import build
from fusmae_jax.evaluation import encoder, features, loop, plots, results
from fusmae_jax.figures import GREY
from fusmae_jax.inputs import SENSORS
from fusmae_jax.page_parts import (
    EDGE,
    HEIGHT,
    WIDTH,
    chart,
    compare,
    data_uri,
    paragraph,
    section,
    table,
)
from fusmae_jax.training import metrics, run_directory, sharding
from fusmae_jax.training.heldout import HeldOut

log = logging.getLogger("fusmae_jax")

HERE = pathlib.Path(__file__).parent
MARK = b'<meta name="generator" content="fusmae_jax report">'
BATCH = 32  # pairs that are encoded at a time
THUMB = 56  # side of a thumbnail in pixels

# What the config may say.
TABLE = {
    "task": choice("report", meaning="What launch.py does."),
    "run": location(meaning="Run directory of a pretraining."),
    "step": whole(0, meaning="Which of its checkpoints; 0 for the latest."),
    "evaluation": location(
        meaning="Directory of an evaluation, whose scores are shown; empty for none."
    ),
    "out": location(
        meaning="HTML file to be written; empty for report.html in the run directory."
    ),
    "data_dir": location(
        many=True,
        meaning="Folder of the run's held-out pairs, if it has moved; empty for where "
        "the run found it.",
    ),
    "pairs": whole(1, meaning="Held-out pairs whose features are drawn, at most."),
    "shown": whole(1, meaning="Held-out pairs that are reconstructed, at most."),
}
fields = config_fields.always(TABLE)


def check(config) -> None:
    """Refuses what could not work with any run.

    Raises:
        InputError: names the fields and their values.
    """
    config_fields.check(config, TABLE, like="configs/report.py")
    if not config.run:
        raise InputError("Name a run directory: run=runs/quickstart.")


def run(config, workdir) -> None:
    """What `launch.py` calls; writes `config.out`.

    Raises:
        InputError: there is no such run or evaluation, or the file to be written is
            something else.
    """
    del workdir
    check(config)
    config = config_fields.resolve(config, TABLE)
    out = pathlib.Path(config.out or pathlib.Path(config.run) / "report.html")
    if out.is_dir() or (out.exists() and MARK not in out.read_bytes()[:1000]):
        raise InputError(
            f"{out} exists and is no report, and is not overwritten; pass another "
            "out=FILE.html."
        )
    page = write_page(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_whole(out, page)
    print(f"{out}: {len(page) / 1e6:.1f} MB, open it in any browser.")


def write_page(config) -> str:
    """The page as text."""
    mesh = sharding.make_mesh()
    found = encoder.restore(config.run, mesh, config.step)
    about = run_directory.about(config.run)
    parts = [facts(found, about), curves(config.run)]
    try:
        pairs = open_pairs(config, found)
    except InputError as error:
        if config.data_dir:
            raise
        log.warning("The report has no pictures of held-out pairs: %s", error)
        parts.append(section("Held-out pairs", paragraph(f"Not drawn: {error}")))
    else:
        parts += [reconstructions(config, found, pairs), scatter(found, pairs)]
    judged = scores(config.evaluation, encoder.digest(found.params))
    parts += [errors(config.run), judged, settings(about)]
    script = (HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = string.Template((HERE / "report.html").read_text(encoding="utf-8"))
    title = html.escape(f"{pathlib.Path(config.run).name}, step {found.step}")
    body = "\n".join(part for part in parts if part)
    return template.substitute(title=title, body=body, script=script, hash=digest)


def facts(found: encoder.Pretrained, about: dict) -> str:
    """What the run is, and what it has learnt from."""
    judged, data = found.objective.encoder(), about["data"]
    count = sum(x.size for x in jax.tree.leaves(found.params))
    depth = found.config.model.get("depth", judged.depth)  # as it was asked for
    rows = [
        ("method", found.config.method),
        ("parameters", f"{count:,}"),
        (
            "encoder",
            f"width {judged.width}, depth {depth}, patches of "
            f"{judged.patch_size} px, images of {judged.inputs.size} px",
        ),
        *(
            (f"data: {name}", value)
            for name, value in run_directory.flatten(data).items()
        ),
        *(
            (f"{sensor.title}, {sensor.unit}", " ".join(sensor.band_names))
            for sensor in found.contract.values()
        ),
        *((f"{s.title}, statistics", s.source) for s in found.contract.values()),
        ("devices", f"{about.get('devices', '?')} x {about.get('device', '?')}"),
    ]
    return section("The run", table(rows))


def settings(about: dict) -> str:
    """The config and versions, folded."""
    rows = run_directory.flatten(about["config"]).items()
    versions = run_directory.flatten(about.get("versions", {})).items()
    return section(
        "Settings",
        f"<details><summary>All {len(rows)} fields</summary>{table(rows)}</details>",
        f"<details><summary>Versions</summary>{table(versions)}</details>",
    )


def curves(directory) -> str:
    """Losses in training and on held-out pairs by step, a chart each."""
    try:
        rows = metrics.read_metrics(directory)
    except FileNotFoundError:
        rows = []
    titles = {f"loss_{s}": SENSORS_BY_NAME[s].title for s in SENSORS}
    titles["loss"] = "All that is trained for"
    charts = []
    for name, title in titles.items():
        lines = {
            "training": ("train", _points(rows, name)),
            "held out": ("held", _points(rows, f"eval_{name}")),
            "floor (estimate)": (
                "floor",
                _points(rows, f"eval_{name.replace('loss', 'floor')}"),
            ),
        }
        lines = {label: line for label, line in lines.items() if line[1]}
        if lines:
            charts.append(chart(title, lines))
    if not charts:
        return section("Loss", paragraph("Nothing was logged yet."))
    return section("Loss", f'<div class="grid">{"".join(charts)}</div>')


def _points(rows: list[dict], name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric, those that are numbers."""
    found = ((row["step"], row.get(name)) for row in rows)
    return [
        (step, float(value))
        for step, value in found
        if isinstance(value, int | float) and math.isfinite(value)
    ]


class Pairs(NamedTuple):
    """Held-out pairs of a run.

    Attributes:
        source: the pairs, with ids.
        encoder: ready for them.
        shown: what they have, of `encoder.SENSOR_SETS`.
        held_out: the same with masks, None where the method predicts no images.
    """

    source: subsets.Subset
    encoder: encoder.Encoder
    shown: str
    held_out: HeldOut | None


def open_pairs(config, found: encoder.Pretrained) -> Pairs:
    """Opens what the run held out.

    Raises:
        InputError: it is not there, or is something else.
    """
    data = found.config.data.copy_and_resolve_references()
    with data.unlocked():
        if config.data_dir:
            data.dir, data.eval_dir = config.data_dir, ""
    description = sources.describe(data, data.eval_split)
    judged = found.look_at(description, "run", sources.has_missing(data))
    wanted = description.layout.fields(judged.inputs.contract)
    source = sources.open_split(data, data.eval_split, (*wanted, "id"))
    *_, shown = encoder.sensor_sets(description, reads=judged.sensors)
    held_out = None
    if found.objective.redraws:
        objective = build.to_judge(found.config, judged.inputs, found.mesh)
        held_out = HeldOut(
            objective, found.mesh, source, seed=found.config.seed, count=config.shown
        )
    source = subsets.spread(source, config.pairs)
    return Pairs(source, judged, shown, held_out)


def reconstructions(config, found: encoder.Pretrained, pairs: Pairs) -> str:
    """Held-out images, and behind a slider what is predicted of hidden patches."""
    if pairs.held_out is None:
        return ""
    count = min(config.shown, pairs.held_out.pairs_in(0))
    names = pairs.held_out.scenes(count).names
    redrawn = pairs.held_out.redraw(found.params)
    drawn = jax.device_get(pairs.held_out.pictures(redrawn, count))
    shown = []
    for i, name in enumerate(names):
        for s in reversed(drawn):
            images = {kind: x[i] for kind, x in drawn[s].items()}
            missing = np.isnan(images["target"]).any(axis=-1)
            if missing.all():
                continue
            target, predicted = (
                picture(images[kind], images["target"], found.contract[s])
                for kind in ("target", "prediction")
            )
            grey = images["hidden"] & ~missing
            masked = np.where(grey[..., None], GREY, target)
            title = f"{name}, {found.contract[s].title}"
            shown.append(compare(title, target, predicted, masked))
    note = (
        "Held-out pairs, which training never saw. Drag the slider from the image to "
        "what the model predicts of its hidden patches, grey in the small picture. "
        "Radar is drawn by its bands and their difference; pink was not measured."
    )
    if pairs.held_out.objective.normalize != "none":
        note += " Predictions carry the true mean and contrast of each patch."
    grid = f'<div class="grid">{"".join(shown)}</div>'
    return section("Reconstructions", paragraph(note), grid)


def scatter(found: encoder.Pretrained, pairs: Pairs) -> str:
    """Pooled features on their two principal components, thumbnails on hover."""
    extractor = features.Extractor(
        pairs.encoder,
        found.encoder_params,
        features.Recipe(),
        found.mesh,
        (pairs.shown,),
    )
    seen = pairs.encoder.inputs
    scenes = jax.jit(seen.native_scenes, out_shardings=sharding.whole(found.mesh))
    taken, thumbs = [], []
    for count, (encoded, images) in loop.over_pairs(
        lambda fields: (extractor(fields)[pairs.shown], scenes(fields)),
        pairs.source,
        extractor.fields(pairs.source),
        batch_size=BATCH,
        mesh=found.mesh,
    ):
        taken.append(encoded[:count])
        thumbs += [
            thumbnail({s: x[i] for s, x in images.items()}, seen.contract)
            for i in range(count)
        ]
    xy, shares = plots.principal(np.concatenate(taken).astype(np.float64))
    low, high = xy.min(axis=0), xy.max(axis=0)
    xy = (xy - low) / np.where(high > low, high - low, 1.0)
    size = np.array((WIDTH, HEIGHT)) - 2 * EDGE
    names = [str(name) for name in pairs.source.index["id"]]
    points = "".join(
        f'<circle data-i="{i}" cx="{x:.1f}" cy="{y:.1f}" r="4" role="img" '
        f'aria-label="{html.escape(name)}"/>'
        for i, (name, (x, y)) in enumerate(zip(names, EDGE + xy * size))
    )
    columns = math.ceil(math.sqrt(len(thumbs)))
    blank = [np.zeros_like(thumbs[0])] * (columns**2 - len(thumbs))
    sheet = np.stack(thumbs + blank).reshape(columns, columns, THUMB, THUMB, 3)
    sheet = sheet.swapaxes(1, 2).reshape(columns * THUMB, columns * THUMB, 3)
    note = (
        f"Pooled features of {len(names)} held-out pairs, by "
        f"{results.SENSORS[pairs.shown]}, on their two principal components, "
        f"{100 * shares[0]:.1f} % and {100 * shares[1]:.1f} % of the variance. Point "
        "at one, or tap it, to see it."
    )
    return section(
        "Features",
        paragraph(note),
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" id="scatter">{points}</svg>',
        f'<div id="thumb" data-side="{THUMB}" data-columns="{columns}">'
        f'<i style="background-image:url({data_uri(sheet, "jpeg")})"></i>'
        "<span></span></div>",
    )


def thumbnail(images, contract) -> np.ndarray:
    """A small picture [T, T, 3] of a scene, of optics where it was measured."""
    measured = [s for s in reversed(SENSORS) if not np.isnan(images[s]).all()]
    s = (*measured, "s2")[0]
    drawn = picture(images[s], images[s], contract[s])
    rows, columns = (
        np.linspace(0, side - 1, THUMB).round().astype(int) for side in drawn.shape[:2]
    )
    return drawn[rows][:, columns]


def errors(directory) -> str:
    """The run's own comparison of reconstructions with simple predictors."""
    path = pathlib.Path(directory) / "scores.json"
    if not path.exists():
        return ""
    try:
        found = safe_io.read_json(path)
        rows = [
            (name, *(_decimals(by_sensor.get(s)) for s in SENSORS))
            for name, by_sensor in found["mean_squared_error"].items()
        ]
        floor = [_decimals(found["floor"].get(f"floor_{s}")) for s in SENSORS]
        note = (
            f"Mean squared error on hidden patches of {found['pairs']} held-out pairs, "
            f"{found['draws']} masks each, step {found['step']}; less is better."
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error!r:.99}); delete it, and the command of the run "
            "writes it again."
        ) from error
    rows.append(("floor, an estimate", *floor))
    head = ["predictor", *(SENSORS_BY_NAME[s].title for s in SENSORS)]
    return section("Errors", paragraph(note), table(rows, head, "numbers"))


def _decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def scores(directory: str, parameters: str) -> str:
    """Scores of an evaluation with their intervals, a table a task.

    Args:
        directory: of the evaluation; "" for none.
        parameters: the checksum of those that the page is about.
    """
    if not directory:
        return ""
    rows, (_, meta) = results.read(directory), results.read_shared(directory)
    try:
        tables = [task_table(task, rows) for task in results.TASKS]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The rows of scores.json in {directory} are damaged ({error!r:.99}); copy "
            "it again."
        ) from error
    said = {
        key: meta.get(key, "?") for key in ("dataset", "split", "checkpoint", "step")
    }
    where = (
        "{dataset}, split {split}; checkpoint {checkpoint}, step {step}. Percent, with "
        "95 % intervals in brackets, or ± one standard deviation over subsets."
    )
    notes = [meta["note"]] if meta.get("note") else []
    if run_directory.about(directory)["data"].get("parameters") != parameters:
        notes.append("These are scores of other parameters than those of this page.")
        log.warning("%s is an evaluation of other parameters.", directory)
    notes = map(paragraph, notes)
    return section("Evaluation", paragraph(where.format(**said)), *tables, *notes)


def task_table(task: str, rows: Sequence[results.Row]) -> str:
    """The scores of one task by sensors; "" for none."""
    cells = results.group([row for row in rows if row.task == task])
    sets = [s for s in results.SENSORS if any(s in cell for cell in cells.values())]
    lines = []
    for (_, fraction, name), cell in cells.items():
        judged = [row for of_set in cell.values() for row in of_set]
        for metric in dict.fromkeys(m for row in judged for m in row.scores.overall):
            of_sets = (
                [row for row in cell.get(s, ()) if metric in row.scores.overall]
                for s in sets
            )
            title = results.METRICS.get(metric, metric)
            values = [results.shown(found, metric) for found in of_sets]
            lines.append((name, results.percent(fraction), title, *values))
    if not lines:
        return ""
    head = ["encoder", "labels", "score", *(results.SENSORS[s] for s in sets)]
    title = html.escape(results.TASKS[task])
    return f"<h3>{title}</h3>{table(lines, head, 'numbers')}"
