"""A whole scene as the model reconstructs it: patches it did not see, or a sensor."""

import logging
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline import config_fields, layout, sensors
from data_pipeline.archives.grids import Window
from data_pipeline.building import preview
from data_pipeline.config_fields import Field, choice, location, whole
from data_pipeline.errors import InputError
from fusmae_jax import build, embed, maps, patches, reconstruct, scenes, streams
from fusmae_jax.config import check_checkpoint
from fusmae_jax.evaluation import encoder as encoders
from fusmae_jax.inputs import SENSORS
from fusmae_jax.objectives.protocol import Objective
from fusmae_jax.pretrained import Model
from fusmae_jax.training import sharding

log = logging.getLogger("fusmae_jax")

_UNHIDDEN = 1e-6  # weight of a patch that a window was shown, beside those it was not
_LARGEST = 2048  # pixels along a picture's side

# What the config may say.
TABLE = {
    "task": choice("reconstruct_scene", meaning="What launch.py does."),
    "checkpoint": location(meaning="Run directory of a pretraining."),
    "step": whole(0, meaning="Which of its checkpoints; 0 for the latest."),
    "out": location(
        meaning="Folder of the result: empty, or with a map that was stopped."
    ),
    **scenes.FIELDS,
    "hide": reconstruct.TABLE["hide"],
    "mask_ratio": reconstruct.TABLE["mask_ratio"],
    "stride": embed.TABLE["stride"],
    "batch_size": whole(1, meaning="Windows that are reconstructed at a time."),
}


def fields(config) -> dict[str, Field]:
    """What each field of the config may hold, and means."""
    del config  # the same for all
    return TABLE


def check(config) -> None:
    """Refuses what no run and no scene could make work.

    Raises:
        InputError: names the fields and their values.
    """
    config_fields.check(config, TABLE, like="configs/reconstruct_scene.py")
    check_checkpoint(config.checkpoint)
    given = [s for s in SENSORS if config[s]]
    if not config.out or not given:
        raise InputError(
            "Name a scene and where its reconstruction goes: s1=FILE or s2=FILE or "
            "both, and out=DIR."
        )
    if given == [config.hide]:
        raise InputError(
            f"{config.hide} is hidden, and there is nothing else to draw it from; "
            "name the other sensor's image too, or pass hide=patches."
        )


def run(config, workdir) -> None:
    """What `launch.py` calls; writes into `config.out`.

    Raises:
        InputError: there is no such run or scene, or they do not fit.
    """
    del workdir
    check(config)
    config = config_fields.resolve(config, TABLE)
    mesh = sharding.make_mesh()
    found = encoders.restore(config.checkpoint, mesh, config.step)
    objective = _objective(found, config)
    model = Model(objective.encoder(), found.encoder_params, mesh, config.batch_size)
    model.check_given(s for s in SENSORS if config[s])
    scene = scenes.open_scene(config, model.contract)
    drawn = (config.hide,) if config.hide in SENSORS else tuple(scene.paths)
    if objective.normalize != "none" and set(drawn) - set(scene.paths):
        raise InputError(
            "This run predicts patches but for their mean and contrast, as its "
            f"loss.normalize is {objective.normalize}, which nothing but {config.hide} "
            f"itself tells; name its image too, {config.hide}=FILE, or take a "
            "run with loss.normalize=none."
        )
    draw(config, model, found.params, objective, scene, drawn)


def _objective(found: encoders.Pretrained, config) -> Objective:
    """The run's objective for windows as they are, with what is to be hidden.

    Raises:
        InputError: it reconstructs nothing.
    """
    size = found.config.model.image_size
    grids = layout.resampled(size, found.contract)
    seen = build.inputs(found.config, found.contract, grids, missing=True)
    objective = build.to_judge(found.config, seen, found.mesh)
    if not objective.redraws:
        raise InputError(
            f"A run of the method {found.config.method} reconstructs nothing; name one "
            "of a masked autoencoder."
        )
    return reconstruct.chosen_mask(objective, config.hide, config.mask_ratio)


def draw(
    config,
    model: Model,
    params: nnx.State,
    objective: Objective,
    scene: scenes.Scene,
    drawn: tuple[str, ...],
) -> None:
    """Writes a GeoTIFF and a picture of each reconstructed sensor, and prints errors.

    Args:
        config: see `configs/reconstruct_scene.py`.
        model: the encoder.
        params: of the whole network.
        objective: with what is hidden.
        scene: what is reconstructed.
        drawn: the sensors that are.
    """
    p, contract, out = model.patch_size, model.contract, pathlib.Path(config.out)
    counts = [len(contract[s].bands) for s in drawn]
    depth = sum(counts)

    def to_pixels(part: np.ndarray) -> np.ndarray:
        pixels, weight = np.split(part, [p * p * depth], axis=-1)
        weight = weight.repeat(p, 0).repeat(p, 1).repeat(counts, -1)
        return scenes.to_pixels(pixels, p) / weight

    step = reconstruction_step(model, objective, drawn)
    rows = scenes.map_scene(
        config,
        model,
        scene,
        lambda _, pixels: step(params, pixels),
        p * p * depth + len(drawn),
        title="Reconstructing",
        key={name: config[name] for name in ("hide", "mask_ratio")},
        depth=depth,
        to_pixels=to_pixels,
    )
    height, width = scene.grid.shape
    tags = {"SOFTWARE": "fusmae_jax", "HIDDEN": objective.hide or "patches"}
    tags |= {s.upper(): os.path.basename(x) for s, x in scene.paths.items()}
    for s, count, end in zip(drawn, counts, np.cumsum(counts)):
        values = rows.values[..., end - count : end]
        maps.write(
            out / f"{s}.tif",
            values,
            scene.grid,
            dtype="float16",
            bands=contract[s].band_names,
            tags=tags | {"UNIT": contract[s].unit},
        )
        print(f"{out / f'{s}.tif'}: {height} x {width} px in {contract[s].unit}.")
        report(out / f"{s}.png", values, scene, contract[s])
    rows.remove()
    if objective.normalize != "none":
        print("Every patch was given its true mean and contrast, see loss.normalize.")


def reconstruction_step(model: Model, objective: Objective, drawn: tuple[str, ...]):
    """The compiled step, of the whole network's parameters and of pixels.

    For `map_rows` of pixels in native units, [side, side, P * P * C + S].

    All windows have one mask. As they overlap, a patch of the scene lies elsewhere in
    each, so that hardly any is shown by all; one that is stays as it is. Pixels are
    multiplied by a weight, which is next to nothing where a window was shown them, and
    the weights of the S drawn sensors stand behind, for their mean to be divided by.
    """
    graphdef, _ = objective.abstract
    key, p, side = streams.key(0, "held_out"), model.patch_size, model.encoder.side

    def redraw(params, pixels):
        batch = len(pixels["s1"])
        images = {f"{s}_{sensors.FINEST_GSD}m": x for s, x in pixels.items()}
        masks = objective.draw_fixed(key, jnp.zeros(batch, jnp.int32))
        network = nnx.merge(graphdef, params)
        found = objective.pictures(objective.redraw(network, images, masks))
        bands, weights = [], []
        for s in drawn:
            hidden = found[s]["hidden"][:, ::p, ::p].reshape(batch, -1, 1)
            weights.append(jnp.where(hidden, 1.0, _UNHIDDEN))
            predicted = patches.patchify(found[s]["prediction"], p) * weights[-1]
            bands.append(predicted.reshape(batch, side**2, p * p, -1))
        bands = jnp.concatenate(bands, axis=-1).reshape(batch, side**2, -1)
        values = jnp.concatenate([bands, *weights], axis=-1)
        measured = [
            jnp.isfinite(x).all(axis=-1, keepdims=True) for x in pixels.values()
        ]
        there = [patches.patchify(1.0 * x, p).any(axis=-1) for x in measured]
        grid = batch, side, side
        return values.reshape(*grid, -1), (there[0] | there[1]).reshape(grid)

    return jax.jit(redraw, out_shardings=sharding.rows(model.mesh))


def report(
    path: pathlib.Path, values: np.ndarray, scene: scenes.Scene, sensor: sensors.Sensor
) -> None:
    """Draws a reconstruction beside what was measured, and prints its errors.

    Args:
        path: of the picture.
        values: of the reconstruction, [H, W, C] in native units.
        scene: that was reconstructed.
        sensor: that the values are of.
    """
    there = sensor.name in scene.paths
    step = -(-max(values.shape) // _LARGEST)
    sums, pictures = np.zeros((4, len(sensor.bands))), []
    for rows in maps.blocks(values):
        drawn = [np.asarray(values[rows], np.float32)]
        if there:
            window = Window(rows.start, 0, *drawn[0].shape[:2])
            measured = scene.read(window)[sensor.name]
            drawn.insert(0, measured)
            known = np.isfinite(measured) & np.isfinite(drawn[1])
            truth = np.where(known, measured, 0.0).astype(float)
            error = np.where(known, drawn[1] - measured, 0.0)
            parts = known, truth, truth**2, error.astype(float) ** 2
            sums += [part.sum(axis=(0, 1)) for part in parts]
        pictures.append([x[-rows.start % step :: step, ::step] for x in drawn])
    columns = [np.concatenate(parts) for parts in zip(*pictures)]
    _draw(path, columns, sensor)
    if not there:
        return
    count, total, squares, errors = sums
    count = np.maximum(count, 1)
    deviation = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
    print("      root mean square error   deviation of what was measured")
    for name, error, spread in zip(
        sensor.band_names, np.sqrt(errors / count), deviation
    ):
        print(f"{name:>4}  {error:22.4g}   {spread:.4g}")


def _draw(path: pathlib.Path, columns, sensor: sensors.Sensor) -> None:
    """Draws images [H, W, C] beside each other, with the colours of the first."""
    from matplotlib import image

    shown = [preview.picture(x, columns[0], sensor) for x in columns]
    gap = np.ones((len(shown[0]), max(len(shown[0]) // 64, 2), 3))
    parts = shown if len(shown) == 1 else [shown[0], gap, shown[1]]
    part = path.with_suffix(".part.png")
    image.imsave(part, np.concatenate(parts, axis=1))
    part.replace(path)
