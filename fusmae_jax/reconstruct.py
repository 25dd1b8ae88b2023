"""Held-out reconstruction: its error beside simple predictors."""

import json
import logging
import pathlib
from collections.abc import Iterable

import jax
import numpy as np

from data_pipeline import data_fields, fields, files, sources
from data_pipeline.description import SPLITS
from data_pipeline.fields import choice, text, whole
from fusmae_jax import baselines, build, checkpoint, checks, figures, losses, run
from fusmae_jax import sharding
from fusmae_jax.heldout import HeldOut
from fusmae_jax.masking import SENSORS
from fusmae_jax.objective import Objective, Outcome

log = logging.getLogger("fusmae_jax")

MODEL = "Fus-MAE"

# What the config may say.
TABLE = {
    "task": choice("reconstruct"),
    "checkpoint": text(),
    "step": whole(0),
    **data_fields.rows(("source", "dir", "count", "size", "seed")),
    "split": choice(*SPLITS),
    "pairs": whole(1),
    "draws": whole(1),
    "shown": whole(1),
}


def compare(
    outcomes: Iterable[Outcome], objective: Objective
) -> dict[str, dict[str, float]]:
    """Mean squared error on hidden patches, {predictor: {sensor: error}}.

    Everything is compared in the space of the loss: with normalised targets, what a
    simple predictor draws is normalised with its own statistics.
    """
    errors = {name: {s: [] for s in SENSORS} for name in (MODEL, *baselines.PREDICTORS)}
    for outcome in outcomes:
        for s in SENSORS:
            families = objective.contract[s].families

            def normalize(x):
                target, _, _ = losses.normalize_patches(
                    x, objective.normalize, families
                )
                return np.asarray(target)

            seen = np.asarray(outcome.patches[s])
            hidden = np.asarray(outcome.hidden[s]) == 1.0
            target = normalize(seen)
            guesses = {MODEL: np.asarray(outcome.predicted[s])}
            for name, predictor in baselines.PREDICTORS.items():
                filled = [
                    predictor(x, m, objective.patch_size) for x, m in zip(seen, hidden)
                ]
                guesses[name] = normalize(np.stack(filled))
            for name, guess in guesses.items():
                error = np.square(guess - target).mean(axis=-1)
                errors[name][s] += list((error * hidden).sum(1) / hidden.sum(1))
    return {
        name: {s: float(np.mean(values)) for s, values in by_sensor.items()}
        for name, by_sensor in errors.items()
    }


def table(errors: dict[str, dict[str, float]], *, title: str) -> str:
    """The comparison as text."""
    width = max(map(len, errors)) + 2
    lines = [title, " " * width + "Sentinel-1  Sentinel-2"]
    for name, by_sensor in errors.items():
        values = "".join(f"{by_sensor[s]:>10.4f}  " for s in SENSORS)
        lines.append(name.ljust(width) + values.rstrip())
    return "\n".join(lines)


def report(held_out: HeldOut, params, workdir, *, step: int, draws: int, shown: int):
    """Scores `params` beside simple predictors; prints, saves, and draws.

    Uses the pairs of the first held-out batch, at most 64: simple predictors are slow.
    Writes `scores.json` and `figures/reconstruction.png` into `workdir`.

    Args:
        held_out: the pairs.
        params: of the model.
        workdir: the run directory.
        step: that `params` come from.
        draws: masks of each pair.
        shown: pairs in the picture.
    """
    objective, pairs = held_out.objective, held_out.first
    outcomes = [held_out.score(params, draw=i, rows=pairs)[1] for i in range(draws)]
    shown = min(shown, pairs)
    seen, drawn = held_out.scenes(shown), held_out.pictures(outcomes[0], shown)
    if jax.process_index() != 0:
        return
    log.info("Comparing with simple predictors: %d pairs, %d masks.", pairs, draws)
    errors = compare(outcomes, objective)
    note = f"step {step}; hidden patches are grey, {objective.mask_mode} masks"
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
        "mean_squared_error": errors,
    }
    files.write_whole(workdir / "scores.json", json.dumps(scores, indent=2) + "\n")
    space = {"none": "", "patch": " and patch", "group": ", patch and family of bands"}
    title = (
        f"Error on hidden patches of {pairs} held-out pairs, {draws} masks each\n"
        f"(mean squared, of pixels normalised per band{space[objective.normalize]}; "
        "less is better)"
    )
    print(table(errors, title=title), flush=True)


def check_config(config) -> None:
    """Refuses what no run and no data could make work.

    Raises:
        InputError: names the fields and their values.
    """
    fields.check(config, TABLE, like="configs/reconstruct.py")
    checks.check_checkpoint(config.checkpoint)
    data_fields.check(config.data)


def reconstruct(config, workdir) -> None:
    """Reports on a run's checkpoint, from its directory alone.

    Args:
        config: see `configs/reconstruct.py`.
        workdir: where the report goes.

    Raises:
        InputError: there is no such run, checkpoint or data.
    """
    check_config(config)
    trained, contract = run.load(config.checkpoint)
    description = sources.describe(config.data)
    wanted = build.check_data(contract, description)
    source = sources.open_split(config.data, config.split, (*wanted, "id"))
    objective = build.objective(trained, contract, description.layout)
    seen = run.trained_on(config.checkpoint, sources.place_codes(source))
    if seen:
        log.warning(
            "%d of these %d pairs show ground that was trained on.", seen, len(source)
        )
    mesh = sharding.make_mesh(1)
    graphdef, params = build.abstract_params(trained, mesh)
    step, params = checkpoint.restore_params(
        pathlib.Path(config.checkpoint) / "checkpoints", params, config.step or None
    )
    held_out = HeldOut(
        graphdef, objective, mesh, source, seed=trained.seed, count=config.pairs
    )
    run.open_workdir(
        workdir,
        config,
        objective.contract,
        source.fingerprint(),
        dtype=trained.model.dtype,
    )
    report(
        held_out, params, workdir, step=step, draws=config.draws, shown=config.shown
    )
