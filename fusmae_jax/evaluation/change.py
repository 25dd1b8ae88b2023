"""Change between two dates: heads on the tokens of both, in regions never seen.

The pairs of a place at two dates are encoded once, by an encoder that stays as it is.
A head tells from what differs between them which pixels have changed. Regions are
split into folds; each fold is tested once by heads that learnt from others, whose
settings one more fold has chosen, and the pixels of all folds are scored together.
"""

import itertools
import logging
import pathlib
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline import (
    atomic,
    config_fields,
    data_fields,
    ground,
    safe_io,
    sources,
)
from data_pipeline.building import preview
from data_pipeline.config_fields import (
    choice,
    number,
    rows_of,
    seed,
    several,
    text,
    whole,
    within,
)
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError
from data_pipeline.sensors import NAMED
from fusmae_jax.config import CHECKPOINT, check_checkpoint
from fusmae_jax.evaluation import (
    change_heads,
    dense_task,
    encoder,
    evaluate,
    heads,
    labelled_data,
    results,
    scores,
)
from fusmae_jax.evaluation.encoder import SENSOR_SETS
from fusmae_jax.evaluation.labelled_data import Split
from fusmae_jax.evaluation.store import Found, Setting, Store
from fusmae_jax.evaluation.tasks import EVERYTHING, Candidate
from fusmae_jax.objectives.protocol import Encoder
from fusmae_jax.training import run_directory, sharding

log = logging.getLogger("fusmae_jax")

SHOWN = 6  # places in the picture
OUTCOMES = (("found", "0.15"), ("missed", "#3d7ea6"), ("wrong", "#e07a3f"))


TABLE = {
    "task": choice("change", meaning="What launch.py does."),
    **CHECKPOINT,
    "seed": seed("Seed of heads and resamples."),
    **data_fields.rows(("source", "dir", "split", "statistics", "allow_overlap")),
    **data_fields.rows(("count", "size", "seed")),
    "field": text(
        filled=True,
        meaning="Pixel labels of two classes, the second of which is change; a place's "
        "are those of its later date.",
    ),
    "normalize": choice(
        "run", "data", meaning="Whose statistics normalise bands, see evaluation."
    ),
    "sensors": several(
        choice(*SENSOR_SETS), least=1, meaning="Which sensors are shown, in turn."
    ),
    "baselines": several(
        choice("random", "statistics"),
        meaning="What the encoder is compared with: a random encoder, or the pixels.",
    ),
    "ways": several(
        choice(*change_heads.WAYS),
        least=1,
        meaning="What heads see of the tokens of two dates, in turn: the absolute "
        "difference, or both side by side.",
    ),
    "heads": several(
        choice(*heads.HEADS),
        least=1,
        meaning="One linear layer for all tokens, or a small upsampling network.",
    ),
    "blocks": whole(1, meaning="Outputs of how many of the last blocks make a token."),
    "folds": whole(3, meaning="Parts into which the regions are split."),
    "apart": number(
        least=0.0,
        meaning="Metres between places up to which they are of one region, and fall "
        "into one fold.",
    ),
    "batch_size": whole(1, meaning="Pairs that are encoded at once."),
    "bootstrap": whole(0, meaning="Resamples behind each interval; 0 for none."),
    **within("fit", rows_of(change_heads.Recipe)),
}

# As in `evaluate`: these say what is done, or how.
MAY_CHANGE = (
    *("checkpoint", "step", "batch_size", "baselines", "sensors", "ways", "heads"),
    *("data.dir", "data.allow_overlap"),
)

fields = config_fields.always(TABLE)


def check(config) -> None:
    """Refuses what no run and no data could make work.

    Raises:
        InputError: names the fields and their values.
    """
    config_fields.check(config, TABLE, like="configs/change_pairs.py")
    check_checkpoint(config.checkpoint)
    data_fields.check(config.data)
    if config.data.statistics != "published" and config.normalize == "run":
        raise InputError(
            f"data.statistics is {config.data.statistics!r}, but normalize=run takes "
            "the statistics of the pretraining; set normalize=data too."
        )


class Places(NamedTuple):
    """What is shown of P places at two dates.

    Attributes:
        before, after: indices of the pairs, [P].
        regions: of the places, numbers from 0, [P].
        folds: likewise.
    """

    before: np.ndarray
    after: np.ndarray
    regions: np.ndarray
    folds: np.ndarray


def find_places(source, labelled: np.ndarray, folds: int, apart: float) -> Places:
    """Matches pairs of the same ground, each with the next in time.

    Where no time is known, ids are in its order.

    Args:
        source: random-access pairs with `places`.
        labelled: which pairs have a labelled pixel, [N] bool; a place counts if its
            later date has.
        folds: into which regions are split, so that they have places alike.
        apart: see `ground.regions`.

    Raises:
        InputError: no ground is shown twice, or there are too few regions.
    """
    times = [ground.time(place) for place in getattr(source, "places", ())]
    times = times or [""] * len(source)
    order = sorted(range(len(source)), key=lambda i: (times[i], source.index["id"][i]))
    grounds, last, found = ground.groups(source), {}, []
    for i in order:
        if grounds[i] in last and labelled[i]:
            found.append((last[grounds[i]], i))
        last[grounds[i]] = i
    if not found:
        raise InputError(
            f"No place of these {len(source)} pairs is shown at two dates, with a mask "
            "at the later; build the dataset from images of two dates on one grid."
        )
    before, after = np.array(sorted(found, key=lambda dates: dates[1])).T
    regions = np.unique(ground.regions(source, apart)[after], return_inverse=True)[1]
    sizes = np.bincount(regions)
    if len(sizes) < folds:
        raise InputError(
            f"The {len(after)} places are of {len(sizes)} regions, {apart:g} m or more "
            f"apart, which make no {folds} folds; lower folds, or apart."
        )
    count, fold_of = np.zeros(folds, int), np.zeros(len(sizes), int)
    for region in np.argsort(-sizes, kind="stable"):  # the largest first
        fold_of[region] = count.argmin()
        count[fold_of[region]] += sizes[region]
    return Places(before, after, regions, fold_of[regions])


def run(config, workdir) -> list[results.Row]:
    """Judges an encoder by the change that heads find with it, and reports.

    Args:
        config: see `configs/change_pairs.py`.
        workdir: where the report goes; what it holds already is not done again.

    Returns:
        What was found, also written to `scores.json` and `scores.csv`.

    Raises:
        InputError: the run, the data and the config do not fit together.
    """
    check(config)
    workdir, mesh = atomic.absolute(workdir), sharding.make_mesh(1)
    pretrained = encoder.restore(atomic.absolute(config.checkpoint), mesh, config.step)
    work = open_work(config, workdir, pretrained, mesh)
    for rival in evaluate.candidates(config, pretrained, work.judged):
        for s in config.sensors:
            judge(work, rival, s)
    return report(work)


class Work(NamedTuple):
    """What all settings share.

    Attributes:
        config: see `configs/change_pairs.py`.
        mesh: the devices.
        judged: the encoder as it sees the data.
        source: the pairs.
        labels: of the places, [P, S, S].
        ids: of their later pairs, [P].
        places: what is shown of them.
        store: what was found.
        note: what is to be known of numbers of one sensor; "" for nothing.
    """

    config: object
    mesh: Mesh
    judged: Encoder
    source: object
    labels: np.ndarray
    ids: np.ndarray
    places: Places
    store: Store
    note: str


def open_work(config, workdir, pretrained, mesh: Mesh) -> Work:
    """Opens the data and `workdir`, which may hold a part of the same evaluation.

    Raises:
        InputError: they do not fit together.
    """
    description, split = sources.describe(config.data), config.data.split
    check_classes(description, config.field)
    wanted = description.layout.fields(pretrained.contract)
    source = sources.open_split(config.data, split, (*wanted, config.field))
    labelled_data.check_unseen(source, pretrained, allow=config.data.allow_overlap)
    masks = sources.open_split(config.data, split, (config.field,))
    labels = np.stack([masks[i][config.field] for i in range(len(masks))])
    known = (labels < 2).any(axis=(1, 2))
    places = find_places(source, known, config.folds, config.apart)
    labels = labels[places.after]
    missing = sources.has_missing(config.data)
    judged = pretrained.look_at(description, config.normalize, missing)
    encoder.check_sensors("sensors", config.sensors, judged)
    encoder.check_blocks("blocks", config.blocks, judged.depth)
    parameters = encoder.digest(pretrained.params)
    run_directory.open_workdir(
        workdir,
        config,
        judged.inputs.contract,
        {"parameters": parameters, split: source.fingerprint()},
        free=MAY_CHANGE,
        dtype=pretrained.config.model.dtype,
    )
    meta = {
        "task": "change",
        "dataset": description.name,
        "split": split,
        "checkpoint": str(pretrained.directory),
        "step": pretrained.step,
        "dtype": pretrained.config.model.dtype,
        "note": evaluate.note(pretrained, judged),
        "config": config.to_dict(),
    }
    ids = source.index["id"][places.after]
    shown = Split(split, source, ids, np.zeros((len(ids), 0), np.uint8))
    store = Store(workdir, description.maps[config.field], shown, meta)
    share = (labels == 1).sum() / (labels < 2).sum()
    log.info(
        "%s, step %d: change at %d places of %s, in %d regions; %.2f %% of the pixels "
        "have changed, and F1 is %.1f %% where all are said to have.",
        *(pretrained.directory, pretrained.step, len(ids), description.name),
        *(places.regions.max() + 1, 100 * share, 200 * share / (1 + share)),
    )
    note = meta["note"]
    return Work(config, mesh, judged, source, labels, ids, places, store, note)


def check_classes(description: Description, field: str) -> None:
    """Refuses pixel labels that are no map of change.

    Raises:
        InputError: there are none, or of another number of classes.
    """
    labelled_data.check_maps(description, field, "field")
    classes = description.maps[field]
    if len(classes) != 2:
        raise InputError(
            f"{field!r} of {description.name} has {len(classes)} classes; a map of "
            "change has two, of which the second is change."
        )


def judge(work: Work, rival: Candidate, sensor_set: str) -> None:
    """Judges one encoder by one sensor set, in every way and by every kind of head."""
    config, store, places = work.config, work.store, work.places
    name = rival.name if rival.encoder.trained else results.PIXELS
    subset = EVERYTHING._replace(pairs=np.arange(len(places.after)))
    settings = {
        (way, head): Setting("change", name, sensor_set, subset, f"{way}, {head} head")
        for way, head in itertools.product(config.ways, config.heads)
    }
    settings = {how: at for how, at in settings.items() if not store.done(at)}
    if not settings:
        return
    task = dense_task.Task(
        *(rival.encoder, rival.params, work.source, config.field, work.mesh),
        head="linear",
        blocks=config.blocks,
    )
    what = f"{name}, {results.SENSORS[sensor_set]}"
    title = f"tokens, {what}"
    x = change_heads.take_tokens(
        task, work.source, sensor_set, config.batch_size, title
    )
    dates = change_heads.Dates(x[places.before], x[places.after], work.labels)
    for (way, head), setting in settings.items():
        recipe, width = change_heads.Recipe(**config.fit), x.shape[-1]
        made = change_heads.Heads(
            task, head, way, recipe, width=width, seed=config.seed
        )
        title = f"{way}, {head} head, {what}"
        said, chosen = change_heads.cross_validate(
            made, dates, places.folds, work.mesh, title
        )
        keep(work, setting, said)
        found = scores.detection(
            change_heads.confusions(work.labels, said),
            resamples=config.bootstrap,
            seed=config.seed,
            groups=places.regions,
        )
        rates, weights, f1 = zip(*chosen)
        warn_at_edge(title, "learning_rates", rates, recipe.learning_rates)
        warn_at_edge(title, "class_weights", weights, recipe.class_weights)
        chosen = {
            "learning_rate": rates,
            "class_weight": weights,
            "validation": float(np.mean(f1)),
        }
        store.add(setting, Found(found, made.width, chosen))


def warn_at_edge(title: str, field: str, chosen: Sequence, grid: Sequence) -> None:
    """Says so if most folds have chosen an end of a grid: better may lie beyond."""
    for end in {min(grid), max(grid)}:
        if len(set(grid)) > 1 and 2 * chosen.count(end) > len(chosen):
            log.warning(
                "Most heads of %s have %g of fit.%s; widen it there.", title, end, field
            )


def keep(work: Work, setting: Setting, said: np.ndarray) -> None:
    """Keeps which pixels were said to have changed."""
    if jax.process_index() == 0:
        path = _kept(work, setting.encoder, setting.sensors, setting.features)
        path.parent.mkdir(exist_ok=True)
        part = atomic.aside(path)
        with atomic.whole(path, part), part.open("wb") as file:
            np.savez_compressed(file, ids=np.asarray(work.ids, str), changed=said)


def _kept(work: Work, *names: str) -> pathlib.Path:
    name = "-".join(names).replace(", ", "-").replace(" ", "_")
    return work.store.workdir / "changed" / f"{name}.npz"


def report(work: Work) -> list[results.Row]:
    """Writes, draws and prints what was found."""
    rows, config = work.store.rows, work.config
    if jax.process_index() != 0:
        return rows
    work.store.write()
    where = f"{work.source.description.name}, {config.folds} folds of regions"
    said = dict(where=where, note=work.note)
    from fusmae_jax import figures  # Matplotlib, only now
    from fusmae_jax.evaluation import plots

    folder = work.store.workdir / "figures"
    figures.save(plots.sensors_figure(rows, "f1", **said), folder / "change_f1.png")
    own = [row for row in rows if row.encoder not in results.RIVALS] or rows
    best = max(own, key=lambda row: row.chosen["validation"])
    path = _kept(work, best.encoder, best.sensors, best.features)
    if path.exists():
        changed = safe_io.read_arrays(path, lambda key: key == "changed")["changed"]
        figures.save(draw(work, best, changed), folder / "changed.png")
    tables = [results.table(rows, m, **said) for m in ("f1", "precision", "recall")]
    print("\n\n".join(tables), flush=True)
    return rows


def draw(work: Work, row: results.Row, changed: np.ndarray):
    """Draws places at both dates, and which pixels were said to have changed.

    Those with the most changed pixels, one of each region first.

    Args:
        work: what was judged.
        row: the setting that is drawn.
        changed: what it said, [P, S, S] bool.
    """
    from matplotlib import colors, figure, patches

    share = (work.labels == 1).mean(axis=(1, 2))
    order = np.argsort(-share, kind="stable")
    _, first = np.unique(work.places.regions[order], return_index=True)
    rest = np.setdiff1d(np.arange(len(order)), first)
    shown = order[[*sorted(first), *rest][:SHOWN]]
    fig = figure.Figure(figsize=(6, 2 * len(shown) + 0.7), layout="constrained")
    axes = fig.subplots(len(shown), 3, squeeze=False)
    for line, place in zip(axes, shown):
        dates = [work.places.before[place], work.places.after[place]]
        images = [_picture(work, i) for i in dates]
        label, said = work.labels[place], changed[place]
        true, false = label == 1, label == 0
        drawn = np.where((label > 1)[..., None], 0.8, np.ones((*label.shape, 3)))
        outcomes = (true & said, true & ~said, false & said)
        for (_, color), where in zip(OUTCOMES, outcomes):
            drawn[where] = colors.to_rgb(color)
        for ax, image in zip(line, (*images, drawn)):
            ax.imshow(image, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(textwrap.fill(str(work.ids[place]), 24), fontsize=6)
    for ax, title in zip(axes[0], ("earlier", "later", "change")):
        ax.set_title(title, fontsize=9)
    handles = [patches.Patch(color=color, label=name) for name, color in OUTCOMES]
    fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    seen = results.SENSORS[row.sensors]
    fig.suptitle(f"{row.encoder}, {seen}; {row.features}", fontsize=9)
    return fig


def _picture(work: Work, i: int) -> np.ndarray:
    """A pair's optical image, or where there is none radar, [S, S, 3] in [0, 1]."""
    description = work.source.description
    there = (s for s in NAMED if s in work.judged.inputs.contract)
    sensor = description.sensors[next(there)]
    sensor = sensor.select(preview.drawn_bands(sensor))
    pixels = preview.on_finest_grid(description, work.source[i], sensor)
    return preview.picture(pixels, pixels, sensor)
