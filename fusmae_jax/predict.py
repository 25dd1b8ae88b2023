"""The class of every pixel of a scene, by a head that a dense probe has trained."""

import json
import logging
import os
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline import config_fields, safe_io
from data_pipeline.building.preview import class_colors
from data_pipeline.classes import NO_CLASS
from data_pipeline.config_fields import Field, choice, location, whole
from data_pipeline.errors import InputError
from fusmae_jax import embed, maps, patches, pretrained, scenes
from fusmae_jax.config import check_checkpoint
from fusmae_jax.evaluation import dense_task, encoder, heads, results
from fusmae_jax.evaluation.progress import Progress
from fusmae_jax.evaluation.store import FACTS, HEADS
from fusmae_jax.inputs import SENSORS
from fusmae_jax.pretrained import Model
from fusmae_jax.training import run_directory, sharding

log = logging.getLogger("fusmae_jax")

MAP, PICTURE = "classes.tif", "classes.png"

# What the config may say.
TABLE = {
    "task": choice("predict", meaning="What launch.py does."),
    "checkpoint": location(meaning="Run directory of the pretraining."),
    "step": whole(0, meaning="Which of its checkpoints; 0 for the latest."),
    "evaluation": location(
        meaning="Directory of the evaluation that trained heads, as dense_pairs does."
    ),
    "head": choice(
        "auto",
        *heads.HEADS,
        meaning="Which head; auto for the one that did best on validation pairs.",
    ),
    "out": location(
        meaning="Folder of the result: empty, or with a map that was stopped."
    ),
    **scenes.FIELDS,
    "stride": embed.TABLE["stride"],
    "batch_size": whole(1, meaning="Windows that are encoded at a time."),
}


class Head(NamedTuple):
    """What an evaluation has learnt.

    Attributes:
        module: the head.
        facts: what is said of it, see `Store.keep_head`.
    """

    module: nnx.Module
    facts: dict


def fields(config) -> dict[str, Field]:
    """What each field of the config may hold, and means."""
    del config  # the same for all
    return TABLE


def check(config) -> None:
    """Refuses what no run and no scene could make work.

    Raises:
        InputError: names the fields and their values.
    """
    config_fields.check(config, TABLE, like="configs/predict.py")
    check_checkpoint(config.checkpoint)
    if not config.evaluation:
        raise InputError(
            "Say what has trained a head: --config.evaluation=DIR, the --workdir of "
            "dense_pairs or another dense evaluation."
        )
    if not config.out or not any(config[s] for s in SENSORS):
        raise InputError(
            "Name a scene and where its map goes: --config.s1 or --config.s2 or both, "
            "and --config.out=DIR."
        )


def run(config, workdir) -> None:
    """What `launch.py` calls; writes into `config.out`.

    Raises:
        InputError: there is no such run, head or scene, or they do not fit.
    """
    del workdir
    check(config)
    config = config_fields.resolve(config, TABLE)
    _, contract = run_directory.load(config.evaluation)  # as its pairs were normalised
    model = pretrained.load(
        config.checkpoint,
        step=config.step,
        batch_size=config.batch_size,
        statistics=contract,
    )
    shown = [s for s in SENSORS if config[s]]
    shown = shown[0] if len(shown) == 1 else "both"
    head = load_head(config.evaluation, model, shown, config.head)
    scene = scenes.open_scene(config, model.contract)
    predict(config, model, scene, head)


def load_head(folder: str, model: Model, shown: str, kind: str = "auto") -> Head:
    """The head of an evaluation that fits a model and the sensors that are shown.

    Of several the one that learnt from most labels, and then did best on validation
    pairs.

    Raises:
        InputError: there is none, or it is damaged.
    """
    parameters, found = encoder.digest(model.params), []
    paths = sorted(pathlib.Path(folder).glob(f"{HEADS}/*.npz"))
    for path in paths:
        try:
            arrays = safe_io.read_arrays(path)
            facts = json.loads(str(arrays.pop(FACTS)))
            order = (facts["fraction"], facts["score"])
            fits = facts["parameters"] == parameters and facts["sensors"] == shown
            fits &= facts["head"] in (heads.HEADS if kind == "auto" else (kind,))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no head ({error}); evaluate again.") from error
        if fits:
            found.append((order, path, arrays, facts))
    if not found:
        raise InputError(
            f"None of the {len(paths)} heads in {folder} was trained on this encoder, "
            f"shown {results.SENSORS.get(shown, shown)}; evaluate it so with "
            "configs/dense_pairs.py, or give the sensors that were shown then."
        )
    _, path, arrays, facts = max(found, key=lambda one: one[:2])
    width, p = model.width * facts["blocks"], model.patch_size
    make = lambda: heads.make(
        facts["head"], width, len(facts["classes"]), p, rngs=nnx.Rngs(0)
    )
    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    names = {
        sharding.leaf_path(at): leaf
        for at, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    if {k: x.shape for k, x in names.items()} != {
        k: x.shape for k, x in arrays.items()
    }:
        raise InputError(f"{path} is another head than it says; evaluate again.")
    params = jax.tree.unflatten(
        jax.tree.structure(shapes), [jnp.asarray(arrays[name]) for name in names]
    )
    log.info("The head is %s.", path)
    return Head(nnx.merge(graphdef, params), facts)


def predict(config, model: Model, scene: scenes.Scene, head: Head) -> None:
    """Writes the class of every pixel of a scene, and a picture of them."""
    stride = config.stride or max(model.encoder.side // 4, 1)
    cover, out = scenes.cover(scene, model, stride), pathlib.Path(config.out)
    p, classes = model.patch_size, head.facts["classes"]
    height, width = scene.grid.shape
    key = embed.key(config, model, scene, stride) | {"head": head.facts}
    rows = maps.Rows(out, (height, width, 1), key)
    area = width * 1e-4  # km2 of a row of pixels
    with Progress(
        "Predicting", round(height * area), "km2", done=round(rows.done * area)
    ) as bar:
        if rows.done < height:
            step = logits_step(model, head)
            depth = p * p * len(classes)
            for first, part in scenes.map_rows(
                scene, model, cover, step, depth, rows.done // p
            ):
                found = _classes(part, p)[: height - first * p, :width]
                rows.add(first * p, found[..., None])
                bar.update(len(found) * area)
    tags = {"SOFTWARE": "fusmae_jax", "ENCODER": head.facts["encoder"]}
    tags |= {f"CLASS_{i}": name for i, name in enumerate(classes)}
    maps.write(
        out / MAP,
        rows.values,
        scene.grid,
        dtype="uint8",
        bands=["class"],
        tags=tags | {s.upper(): os.path.basename(x) for s, x in scene.paths.items()},
        colors=class_colors(classes),
    )
    _draw(out / PICTURE, rows.values[..., 0], class_colors(classes))
    counts = np.zeros(len(classes) + 1, int)
    for block in maps.blocks(rows.values):
        at = np.nan_to_num(rows.values[block], nan=len(classes)).astype(int)
        counts += np.bincount(at.ravel(), minlength=len(counts))
    rows.remove()
    print(f"{out / MAP}: {height} x {width} px, by the {head.facts['head']} head.")
    for name, count in zip([*classes, "not measured"], counts):
        print(f"{count * 1e-4:12.2f} km2  {count / counts.sum():6.1%}  {name}")


def logits_step(model: Model, head: Head):
    """The compiled step for `map_rows` of logits, [side, side, P * P * C]."""

    def step(params, pixels):
        images = {
            s: pretrained.normalized(x, model.contract[s]) for s, x in pixels.items()
        }
        here = model.encoder.present(images, None)
        blocks = head.facts["blocks"]
        x = dense_task.tokens(model.encoder, params, images, None, blocks)
        logits = heads.resize(head.module(x), model.size)
        side = (len(logits), model.encoder.side, model.encoder.side)
        values = patches.patchify(logits, model.patch_size).reshape(*side, -1)
        return values, (here["s1"] | here["s2"]).reshape(side)

    return jax.jit(step, out_shardings=sharding.rows(model.mesh))


def _classes(part: np.ndarray, p: int) -> np.ndarray:
    """Indices of the likeliest classes of rows of patches, [P * h, P * w] float32.

    NaN where nothing was measured.
    """
    h, w, _ = part.shape
    logits = part.reshape(h, w, p, p, -1).transpose(0, 2, 1, 3, 4)
    logits = logits.reshape(h * p, w * p, -1)
    known = ~np.isnan(logits[..., 0])
    return np.where(known, logits.argmax(axis=-1), np.nan).astype(np.float32)


def _draw(path: pathlib.Path, found: np.ndarray, colors: np.ndarray) -> None:
    """Draws classes in their colours, transparent where nothing was measured."""
    from matplotlib import image

    step = -(-max(found.shape) // 4096)  # of larger ones every second pixel, or third
    found = np.asarray(found[::step, ::step], np.float32)
    at = np.nan_to_num(found, nan=NO_CLASS).astype(int)
    table = np.zeros((NO_CLASS + 1, 4), np.uint8)
    table[: len(colors), :3], table[: len(colors), 3] = colors[:, :3], 255
    part = path.with_suffix(".part.png")
    image.imsave(part, table[at])
    part.replace(path)
