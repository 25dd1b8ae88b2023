"""Held-out reconstruction: its error beside simple predictors."""

import concurrent.futures
import dataclasses
import itertools
import json
import logging
import pathlib

import jax
import numpy as np
import scipy

from data_pipeline import atomic, batches, config_fields, data_fields, sources
from data_pipeline.config_fields import choice, number, whole
from data_pipeline.dataset_card import SPLITS
from data_pipeline.errors import InputError
from fusmae_jax import build, figures
from fusmae_jax.config import CHECKPOINT, check_checkpoint
from fusmae_jax.inputs import SENSORS
from fusmae_jax.objectives.reconstruction import Outcome, Reconstruction
from fusmae_jax.training import checkpoint, run_directory, sharding
from fusmae_jax.training.heldout import HeldOut
from fusmae_jax.training.progress import Progress

log = logging.getLogger("fusmae_jax")

FLOOR = "floor, an estimate"

# What the config may say.
TABLE = {
    "task": choice("reconstruct", meaning="What launch.py does."),
    **CHECKPOINT,
    **data_fields.rows(("source", "dir", "count", "size", "seed")),
    "split": choice(*SPLITS, meaning="Split whose pairs are reconstructed."),
    "pairs": whole(1, meaning="How many pairs are scored, at most."),
    "draws": whole(1, meaning="Masks of each pair."),
    "hide": choice(
        "patches",
        *SENSORS,
        meaning="What is hidden of pairs: patches of both sensors, or one sensor whole "
        "too, which is then drawn from the other alone.",
    ),
    "mask_ratio": number(
        least=0.0,
        below=1.0,
        meaning="Share of patches hidden; 0 for as many as in training.",
    ),
    "shown": whole(1, meaning="Pairs in the figure, at most."),
}


# Simple predictors, for a reconstruction to be held against. Each fills the hidden
# patches of one image from that image's visible ones, band by band, without learning.
# NaN in visible patches was not measured; where there is nothing to see all are zeros,
# the mean of the data.


def visible_mean(patches: np.ndarray, hidden: np.ndarray, patch_size: int):
    """Fills hidden patches [N, E] with each band's mean over the visible pixels."""
    n, e = patches.shape
    x = patches.reshape(n, patch_size**2, -1)
    filled = x.copy()
    seen = x[~hidden].reshape(-1, x.shape[-1])
    seen = seen[~np.isnan(seen).any(axis=1)]
    filled[hidden] = seen.mean(axis=0) if len(seen) else 0.0
    return filled.reshape(n, e)


def nearest_patch(patches: np.ndarray, hidden: np.ndarray, patch_size: int):
    """Fills each hidden patch with a copy of the nearest visible one without a hole.

    Where every one has a hole, with the mean of what is visible.
    """
    side = round(len(patches) ** 0.5)
    places = np.indices((side, side)).reshape(2, -1).T
    whole = ~hidden & ~np.isnan(patches).any(axis=1)
    if not whole.any():
        return visible_mean(patches, hidden, patch_size)
    _, nearest = scipy.spatial.cKDTree(places[whole]).query(places[hidden])
    filled = patches.copy()
    filled[hidden] = patches[whole][nearest]
    return filled


def inverse_distance(
    patches: np.ndarray, hidden: np.ndarray, patch_size: int, neighbours: int = 12
):
    """Fills each hidden pixel from its nearest visible pixels, weighted by 1/d^2."""
    n, e = patches.shape
    side = round(n**0.5)
    rows, cols = np.indices((side, side)).reshape(2, -1, 1) * patch_size
    y, x = np.indices((patch_size, patch_size)).reshape(2, 1, -1)
    places = np.stack([rows + y, cols + x], axis=-1)  # [N, P*P, 2]
    pixels = patches.reshape(n, patch_size**2, -1)
    seen = pixels[~hidden].reshape(-1, pixels.shape[-1])
    there = ~np.isnan(seen).any(axis=1)
    if not there.any():
        return visible_mean(patches, hidden, patch_size)
    seen = seen[there]
    tree = scipy.spatial.cKDTree(places[~hidden].reshape(-1, 2)[there])
    k = np.arange(1, min(neighbours, tree.n) + 1)
    distance, nearest = tree.query(places[hidden].reshape(-1, 2), k=k)
    weight = 1.0 / distance**2
    weight /= weight.sum(axis=1, keepdims=True)
    filled = pixels.copy()
    drawn = np.einsum("pk,pkc->pc", weight, seen[nearest])
    filled[hidden] = drawn.reshape(filled[hidden].shape)
    return filled.reshape(n, e)


PREDICTORS = {
    "mean of visible pixels": visible_mean,
    "nearest visible patch": nearest_patch,
    "inverse distance": inverse_distance,
}


def compare(outcome: Outcome, objective: Reconstruction) -> dict[str, dict[str, list]]:
    """Mean squared errors on hidden patches, {predictor: {sensor: one for each pair}}.

    Everything is compared in the space of the loss: with normalised targets, what a
    simple predictor draws is normalised with its own statistics. Pairs in which nothing
    that is hidden was measured are left out.
    """
    model = objective.encoder().name
    errors = {name: {} for name in (model, *PREDICTORS)}
    for s in objective.sensors:

        def normalize(x, s=s):
            return np.asarray(objective.target(s, x)[0])

        seen = np.asarray(outcome.patches[s])
        hidden = np.asarray(outcome.hidden[s]) == 1.0
        target = normalize(seen)
        guesses = {model: np.asarray(outcome.predicted[s])}
        sizes = itertools.repeat(objective.patch_size)
        with concurrent.futures.ThreadPoolExecutor(batches.cores()) as pool:
            for name, predictor in PREDICTORS.items():
                filled = pool.map(predictor, seen, hidden, sizes)
                filled = np.where(np.isnan(seen), np.nan, np.stack(list(filled)))
                guesses[name] = normalize(filled)
        measured = ~np.isnan(target)
        counts = (hidden * measured.mean(axis=-1)).sum(1)
        for name, guess in guesses.items():
            error = np.where(measured, np.square(guess - target), 0.0).mean(axis=-1)
            error = (error * hidden).sum(1)
            errors[name][s] = list(error[counts > 0.0] / counts[counts > 0.0])
    return errors


def compare_all(held_out: HeldOut, params, draws: int) -> dict[str, dict[str, float]]:
    """The mean of `compare` over all pairs and draws; nothing but on the first host."""
    total = {}
    work = [(i, draw) for i in range(len(held_out)) for draw in range(draws)]
    with Progress("Comparing with simple predictors", len(work), "batch") as bar:
        for i, draw in work:
            outcome = held_out.redraw(params, index=i, draw=draw)
            if jax.process_index() == 0:
                pairs = held_out.pairs_in(i)
                outcome = jax.tree.map(lambda x: x[:pairs], jax.device_get(outcome))
                for name, found in compare(outcome, held_out.objective).items():
                    for s, errors in found.items():
                        total.setdefault(name, {}).setdefault(s, []).extend(errors)
            bar.update()
    return {
        name: {s: float(np.mean(e)) if e else None for s, e in found.items()}
        for name, found in total.items()
    }


def table(errors: dict[str, dict[str, float]], *, title: str) -> str:
    """The comparison as text."""
    width = max(map(len, errors)) + 2
    lines = [title, " " * width + "Sentinel-1  Sentinel-2"]
    for name, by_sensor in errors.items():
        errors = (by_sensor.get(s) for s in SENSORS)
        values = "".join(f"{'-' if e is None else f'{e:.4f}':>10}  " for e in errors)
        lines.append(name.ljust(width) + values.rstrip())
    return "\n".join(lines)


def report(held_out: HeldOut, params, workdir, *, step: int, draws: int, shown: int):
    """Scores `params` beside simple predictors; prints, saves, and draws.

    Writes `scores.json` and `figures/reconstruction.png` into `workdir`.

    Args:
        held_out: the pairs.
        params: of the model.
        workdir: the run directory.
        step: that `params` come from.
        draws: masks of each pair.
        shown: pairs in the picture.
    """
    objective, pairs = held_out.objective, held_out.count
    shown = min(shown, held_out.pairs_in(0))
    seen = held_out.scenes(shown)
    drawn = held_out.pictures(held_out.redraw(params), shown)
    floor, errors = held_out.floor, compare_all(held_out, params, draws)
    if jax.process_index() != 0:
        return
    note = f"step {step}; hidden patches are grey"
    if objective.mask_mode:
        note += f", {objective.mask_mode} masks"
    if objective.hide:
        other = next(s for s in SENSORS if s != objective.hide)
        hidden, shown_one = (
            objective.inputs.contract[s].title for s in (objective.hide, other)
        )
        note += f"; {hidden} is drawn from {shown_one} alone"
    if objective.normalize != "none":
        note += "; predictions carry the true mean and contrast of each patch"
    workdir = pathlib.Path(workdir)
    fig = held_out.figure(seen, jax.device_get(drawn), note)
    figures.save(fig, workdir / "figures" / "reconstruction.png")
    scores = {
        "task": "reconstruct",
        "step": step,
        "pairs": pairs,
        "draws": draws,
        "normalize": objective.normalize,
        "hide": objective.hide or "patches",
        "mask_ratio": objective.mask_ratio,
        "mean_squared_error": errors,
        "floor": floor,
    }
    atomic.write_whole(workdir / "scores.json", json.dumps(scores, indent=2) + "\n")
    space = {"none": "", "patch": " and patch", "group": ", patch and family of bands"}
    title = (
        f"Error on hidden patches of {pairs} held-out pairs, {draws} masks each\n"
        f"(mean squared, of pixels normalised per band{space[objective.normalize]}; "
        "less is better)"
    )
    there = {
        s for s, error in errors[objective.encoder().name].items() if error is not None
    }
    floor = {s: floor[f"floor_{s}"] for s in there}
    print(table(errors | {FLOOR: floor}, title=title), flush=True)


def chosen_mask(objective: Reconstruction, hide: str, ratio: float) -> Reconstruction:
    """The objective with what is to be hidden of held-out pairs.

    Args:
        objective: of the run.
        hide: a sensor that is hidden whole, or "patches".
        ratio: share of the patches that is hidden; 0 for that of the run.
    """
    if hide != "patches" and len(objective.sensors) == 1:
        raise InputError(
            f"hide is {hide!r}, and this model reads {objective.encoder().reads} "
            "alone, from which it draws nothing else; set hide=patches."
        )
    if hide != "patches" and not objective.drop_sensor:
        log.warning(
            "This run has never drawn one sensor from the other alone, as its "
            "mask.drop_sensor is 0: expect little."
        )
    return dataclasses.replace(
        objective,
        hide="" if hide == "patches" else hide,
        mask_ratio=ratio or objective.mask_ratio,
    )


fields = config_fields.always(TABLE)


def check(config) -> None:
    """Refuses what no run and no data could make work.

    Raises:
        InputError: names the fields and their values.
    """
    config_fields.check(config, TABLE, like="configs/reconstruct.py")
    check_checkpoint(config.checkpoint)
    data_fields.check(config.data)


def run(config, workdir) -> None:
    """Reports on a run's checkpoint, from its directory alone.

    Args:
        config: see `configs/reconstruct.py`.
        workdir: where the report goes.

    Raises:
        InputError: there is no such run, checkpoint or data.
    """
    check(config)
    workdir = atomic.absolute(workdir)
    trained_in = pathlib.Path(atomic.absolute(config.checkpoint))
    trained, contract = run_directory.load(trained_in)
    description = sources.describe(config.data)
    wanted = build.check_data(contract, description)
    source = sources.open_split(config.data, config.split, (*wanted, "id"))
    missing = sources.has_missing(config.data)
    inputs = build.inputs(trained, contract, description.layout, missing)
    seen = run_directory.trained_on(trained_in, sources.place_codes(source))
    if seen:
        log.warning(
            "%d of these %d pairs show ground that was trained on.", seen, len(source)
        )
    mesh = sharding.make_mesh(1)
    objective = build.to_judge(trained, inputs, mesh)
    objective = chosen_mask(objective, config.hide, config.mask_ratio)
    step, params = checkpoint.restore_params(
        trained_in / "checkpoints",
        build.abstract_params(objective, mesh),
        config.step or None,
    )
    held_out = HeldOut(objective, mesh, source, seed=trained.seed, count=config.pairs)
    run_directory.open_workdir(
        workdir,
        config,
        inputs.contract,
        source.fingerprint(),
        dtype=trained.model.dtype,
    )
    report(held_out, params, workdir, step=step, draws=config.draws, shown=config.shown)
