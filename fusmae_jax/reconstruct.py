"""Held-out reconstruction: its error beside simple predictors, and its pictures."""

import collections
import concurrent.futures
import json

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from data_pipeline import batches, sensors, sources
from fusmae_jax import (
    baselines,
    build,
    checkpoint,
    figures,
    losses,
    patches,
    run,
    sharding,
    train,
    views,
)
from fusmae_jax.masking import SENSORS
from fusmae_jax.objective import Objective, Outcome

PAIRS_AT_ONCE = 64
MODEL = "Fus-MAE"


class HeldOut:
    """Held-out pairs on the devices, and the compiled step that scores a model."""

    def __init__(self, graphdef, objective: Objective, mesh, source, *, seed, count):
        """Puts the first `count` pairs of `source` on the mesh.

        Args:
            graphdef: the model's graph definition.
            objective: what is hidden and asked for.
            mesh: the devices.
            source: random-access pairs, with `id` beside the pixels.
            seed: of the masks.
            count: pairs in use; the source's where it has fewer.
        """
        self.objective, self.source = objective, source
        self.count = min(count, len(source))
        devices = jax.device_count()
        self._batches = [
            sharding.to_devices(part, mesh)
            for part in batches.eval_batches(
                source,
                fields=sensors.fields(objective.contract),
                batch_size=-(-min(PAIRS_AT_ONCE, self.count) // devices) * devices,
                count=self.count,
                host=jax.process_index(),
                hosts=jax.process_count(),
            )
        ]
        self._step = train.make_eval_step(
            graphdef, objective, mesh, seed=seed, scene_size=source.size
        )

    def dispatch(self, params, draw: int = 0) -> list[tuple[dict, Outcome]]:
        """Starts scoring `params` under masks number `draw`; does not wait."""
        results = []
        for index, (fields, weight) in enumerate(self._batches):
            metrics, outcome = self._step(
                params, fields, weight, draw * len(self._batches) + index
            )
            results.append((metrics | {"pairs": weight.sum()}, outcome))
        return results

    @staticmethod
    def losses(results) -> dict[str, float]:
        """Waits for `results` and averages their losses over pairs."""
        rows = [jax.device_get(metrics) for metrics, _ in results]
        pairs = np.array([row.pop("pairs") for row in rows])
        return {
            f"eval_{name}": float(np.average([r[name] for r in rows], weights=pairs))
            for name in rows[0]
        }

    def figure(self, results, count: int, note: str):
        """Draws the first `count` pairs as `results` predicted them."""
        count = min(count, self.count, PAIRS_AT_ONCE)
        outcome = jax.tree.map(lambda x: np.asarray(x)[:count], results[0][1])
        pairs = [self.source[i] for i in range(count)]
        fraction = min(1.0, self.objective.image_size / self.source.size)
        edge = (1.0 - fraction) / 2
        drawn = {}
        for s in SENSORS:
            scene = scenes(pairs, self.objective.contract[s], self.source.size)
            drawn[s] = pictures(outcome, s, self.objective) | {"scene": scene}
        samples = [
            {"name": pair["id"], "box": (edge, edge, fraction, fraction)}
            | {s: {k: v[i] for k, v in drawn[s].items()} for s in SENSORS}
            for i, pair in enumerate(pairs)
        ]
        return figures.reconstruction_figure(
            samples, self.objective.contract, note=note
        )


class Evaluation:
    """Scores held-out pairs beside training, and draws them in the background."""

    def __init__(self, held_out: HeldOut, workdir, shown: int):
        self._held_out, self._workdir, self._shown = held_out, workdir, shown
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._jobs = collections.deque()

    def start(self, step: int, params) -> None:
        """Queues scoring of `params` behind the steps dispatched so far."""
        results = self._held_out.dispatch(params)
        self._jobs.append((step, self._thread.submit(self._finish, step, results)))

    def _finish(self, step: int, results):
        row = self._held_out.losses(results)
        if jax.process_index() != 0:
            return row, None
        fig = self._held_out.figure(results, self._shown, f"step {step}")
        name = f"reconstruction_{step:07d}.png"
        return row, figures.save(fig, self._workdir / "figures" / name)

    def collect(self, writer, wait: bool = False) -> None:
        """Writes what is finished; with `wait`, everything."""
        while self._jobs and (wait or self._jobs[0][1].done()):
            step, job = self._jobs.popleft()
            row, image = job.result()
            writer.write_now(step, row)
            if image is not None:
                writer.add_figure("reconstruction", image, step)


def scenes(pairs, sensor: sensors.Sensor, size: int) -> np.ndarray:
    """Whole scenes in native units on the finest grid, [B, H, W, C]."""
    fields = {
        grid.field: np.stack([pair[grid.field] for pair in pairs])
        for grid in sensor.grids
    }
    whole = views.center_view(len(pairs), 1.0)
    images = views.see(fields, whole, sensor, size=size)
    return np.asarray(views.native_units(images, sensor))


def pictures(outcome: Outcome, s: str, objective: Objective) -> dict[str, np.ndarray]:
    """One sensor's target and prediction as images in native units.

    A prediction of normalised targets is given each patch's own mean and deviation
    back; patches that were visible are shown as they are.

    Returns:
        `target` and `prediction` [B, H, W, C], and `hidden` [B, H, W] bool.
    """
    sensor = objective.contract[s]
    families = [band.family for band in sensor.bands]
    seen, hidden = outcome.patches[s], outcome.hidden[s]
    _, mean, std = losses.normalize_patches(seen, objective.normalize, families)
    predicted = losses.restore_patches(outcome.predicted[s], mean, std)
    predicted = jnp.where(hidden[..., None] == 1.0, predicted, seen)
    p = round((seen.shape[-1] / len(sensor.bands)) ** 0.5)

    def image(x):
        return views.native_units(patches.unpatchify(x, p), sensor)

    covered = jnp.broadcast_to(hidden[..., None], (*hidden.shape, p * p))
    return {
        "target": np.asarray(image(seen)),
        "prediction": np.asarray(image(predicted)),
        "hidden": np.asarray(patches.unpatchify(covered, p)[..., 0] == 1.0),
    }


def compare(results, objective: Objective) -> dict[str, dict[str, float]]:
    """Mean squared error on hidden patches, {predictor: {sensor: error}}.

    Everything is compared in the space of the loss: with normalised targets, what a
    simple predictor draws is normalised with its own statistics.

    Args:
        results: of `HeldOut.dispatch`, for any number of draws.
        objective: what was hidden and asked for.
    """
    errors = {name: {s: [] for s in SENSORS} for name in (MODEL, *baselines.PREDICTORS)}
    for metrics, outcome in results:
        pairs = int(metrics["pairs"])
        for s in SENSORS:
            sensor = objective.contract[s]
            families = [band.family for band in sensor.bands]

            def normalize(x):
                return np.asarray(
                    losses.normalize_patches(x, objective.normalize, families)[0]
                )

            shown = np.asarray(outcome.patches[s])[:pairs]
            hidden = np.asarray(outcome.hidden[s])[:pairs] == 1.0
            p = round((shown.shape[-1] / len(families)) ** 0.5)
            target = normalize(shown)
            guesses = {MODEL: np.asarray(outcome.predicted[s])[:pairs]}
            for name, predictor in baselines.PREDICTORS.items():
                filled = [predictor(x, m, p) for x, m in zip(shown, hidden)]
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

    Writes `scores.json` and `figures/reconstruction.png` into `workdir`.
    """
    objective = held_out.objective
    results = [r for i in range(draws) for r in held_out.dispatch(params, i)]
    errors = compare(results, objective)
    note = f"step {step}; hidden patches are grey, {objective.mask_mode} masks"
    if objective.normalize != "none":
        note += "; predictions carry the true mean and contrast of each patch"
    fig = held_out.figure(results, shown, note)
    if jax.process_index() != 0:
        return errors
    workdir = epath.Path(workdir)
    figures.save(fig, workdir / "figures" / "reconstruction.png")
    scores = {
        "task": "reconstruct",
        "step": step,
        "pairs": held_out.count,
        "draws": draws,
        "normalize": objective.normalize,
        "mean_squared_error": errors,
    }
    (workdir / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    title = (
        f"Error on hidden patches of {held_out.count} held-out pairs, {draws} masks "
        f"each\n(mean squared, of pixels normalised per band"
        f"{'' if objective.normalize == 'none' else ' and ' + objective.normalize}; "
        "less is better)"
    )
    print(table(errors, title=title), flush=True)
    return errors


def reconstruct(config, workdir) -> None:
    """Reports on a run's checkpoint, from its directory alone.

    Args:
        config: `checkpoint` (a run directory), `step` (0 for the latest), `data`,
            `split`, `pairs`, `draws`, `shown`.
        workdir: where the report goes.
    """
    trained = run.load_config(config.checkpoint)
    source = sources.open_split(config.data, config.split)
    mesh = sharding.make_mesh(1)
    graphdef, params = build.abstract_params(trained, mesh)
    step, params = checkpoint.restore_params(
        epath.Path(config.checkpoint) / "checkpoints", params, config.step or None
    )
    held_out = HeldOut(
        graphdef,
        build.objective(trained),
        mesh,
        source,
        seed=trained.seed,
        count=config.pairs,
    )
    report(
        held_out, params, workdir, step=step, draws=config.draws, shown=config.shown
    )
