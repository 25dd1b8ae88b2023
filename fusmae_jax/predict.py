"""What heads that an evaluation trained say of pairs, and of whole scenes.

Heads that name the classes of pairs make a table of a dataset, and of a scene a map of
probabilities; heads that name those of pixels make a map of classes.
"""

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline import config_fields, safe_io, sources
from data_pipeline.building.preview import class_colors
from data_pipeline.classes import NO_CLASS
from data_pipeline.config_fields import choice, flag, location
from data_pipeline.errors import InputError
from fusmae_jax import embed, maps, patches, pretrained, scenes, tables
from fusmae_jax.evaluation import dense_task, encoder, features, heads, results
from fusmae_jax.evaluation.linear_probe import Probe, probabilities
from fusmae_jax.evaluation.store import ENCODER, FACTS, HEADS
from fusmae_jax.inputs import SENSORS
from fusmae_jax.pretrained import Model
from fusmae_jax.training import run_directory, sharding

log = logging.getLogger("fusmae_jax")

MAP, PICTURE, PROBABILITIES = "classes.tif", "classes.png", "probabilities.tif"
TABLE_FILE = "probabilities.parquet"
OF_PAIRS = ("probe", "finetune")  # heads that name the classes of pairs

# What the config may say.
TABLE = {
    "task": choice("predict", meaning="What launch.py does."),
    **embed.SHARED,
    "evaluation": location(
        meaning="Directory of the evaluation that trained heads, as dense_pairs does."
    ),
    "head": choice(
        *("auto", *OF_PAIRS, *heads.HEADS),
        meaning="Which head; auto for the one that did best on validation pairs, for a "
        "scene of those that name classes of pixels, if there are any.",
    ),
    "probabilities": flag(
        meaning="Whether a map of classes has one of their probabilities beside it."
    ),
}


class Head(NamedTuple):
    """What an evaluation has learnt.

    Attributes:
        params: of the head, by name.
        facts: what is said of it, see `Store.keep_head`.
        encoder: parameters of the encoder, by name; none if it was left as it is.
        path: of its file.
    """

    params: dict[str, np.ndarray]
    facts: dict
    encoder: dict[str, np.ndarray]
    path: pathlib.Path

    @property
    def probe(self) -> Probe:
        """The head, if it names classes of pairs.

        Raises:
            InputError: it is damaged.
        """
        try:
            norm, single = self.facts["norm"], self.facts["single"]
            return Probe(**self.params, norm=norm, single=single)
        except (KeyError, TypeError) as error:
            raise InputError(f"{self.path} is no head ({error!r}).") from error

    def module(self, model: Model) -> nnx.Module:
        """The head, if it names classes of pixels.

        Raises:
            InputError: it is damaged.
        """
        kind, count = self.facts["head"], len(self.facts["classes"])
        width, p = model.width * self.facts["blocks"], model.patch_size
        make = lambda: heads.make(kind, width, count, p, rngs=nnx.Rngs(0))
        graphdef, shapes = nnx.split(nnx.eval_shape(make))
        return nnx.merge(graphdef, self._fill(shapes, self.params))

    def encoder_params(self, params: nnx.State) -> nnx.State:
        """Parameters of the encoder that the head stands on.

        Args:
            params: as its pretraining left them.

        Raises:
            InputError: they are damaged.
        """
        return self._fill(params, self.encoder) if self.encoder else params

    def _fill(self, like, arrays: dict[str, np.ndarray]):
        """A tree of arrays, which has the names and shapes of another."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(like)
        named = {sharding.leaf_path(at): leaf for at, leaf in leaves}
        shapes = {name: leaf.shape for name, leaf in named.items()}
        if shapes != {name: x.shape for name, x in arrays.items()}:
            raise InputError(
                f"{self.path} is another head than it says; evaluate again."
            )
        filled = [jnp.asarray(arrays[name], leaf.dtype) for name, leaf in named.items()]
        return jax.tree.unflatten(structure, filled)


fields = config_fields.always(TABLE)


def check(config) -> None:
    """Refuses what no run, no scene and no data could make work.

    Raises:
        InputError: names the fields and their values.
    """
    config_fields.check(config, TABLE, like="configs/predict.py")
    if not config.evaluation:
        raise InputError(
            "Say what has trained a head: evaluation=DIR, the --workdir of "
            "dense_pairs, probe_bigearthnet or another evaluation."
        )
    embed.check_shared(config)
    if config.head in heads.HEADS and not any(config[s] for s in SENSORS):
        raise InputError(
            f"head={config.head} names the classes of pixels, of which a scene has a "
            f"map and pairs no table; name a scene, or one of {list(OF_PAIRS)}."
        )


def run(config, workdir) -> None:
    """What `launch.py` calls; writes into `config.out`.

    Raises:
        InputError: there is no such run, head, scene or dataset, or they do not fit.
    """
    del workdir
    check(config)
    config = config_fields.resolve(config, TABLE)
    _, contract = run_directory.load(config.evaluation)  # as its pairs were normalised
    if not any(config[s] for s in SENSORS):
        predict_pairs(config, contract)
        return
    model = pretrained.load(
        config.checkpoint,
        step=config.step,
        batch_size=config.batch_size,
        statistics=contract,
    )
    given = [s for s in SENSORS if config[s]]
    shown = given[0] if len(given) == 1 else "both"
    kinds = {"auto": (*heads.HEADS, *OF_PAIRS)}.get(config.head, (config.head,))
    head = load_head(config.evaluation, model.params, (shown,), kinds)
    model = dataclasses.replace(model, params=head.encoder_params(model.params))
    check_scale(head.facts, model.size)
    scene = scenes.open_scene(config, model.contract)
    if head.facts["head"] in OF_PAIRS:
        map_probabilities(config, model, scene, head)
    else:
        map_classes(config, model, scene, head)


def load_head(
    folder: str, params: nnx.State, shown: Sequence[str], kinds: Sequence[str]
) -> Head:
    """The head of an evaluation that fits an encoder and what it is shown.

    Of several one of the first sensor sets; then one that names classes of pixels, the
    one that learnt from most labels, and that did best on validation pairs.

    Args:
        folder: of the evaluation.
        params: of the encoder, as its pretraining left them.
        shown: sensor sets that may be shown.
        kinds: of heads.

    Raises:
        InputError: there is none, or it is damaged.
    """
    parameters, found = encoder.digest(params), []
    paths = sorted(pathlib.Path(folder).glob(f"{HEADS}/*.npz"))
    for path in paths:
        try:
            # Of all the facts alone: arrays of an encoder are large.
            facts = json.loads(str(safe_io.read_arrays(path, FACTS.__eq__)[FACTS]))
            rank = facts["head"] not in OF_PAIRS, facts["fraction"], facts["score"]
            fits = facts["parameters"] == parameters and facts["sensors"] in shown
            if fits and facts["head"] in kinds:
                found.append((-shown.index(facts["sensors"]), *rank, path, facts))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no head ({error}); evaluate again.") from error
    if not found:
        what = " or ".join(results.SENSORS[s] for s in shown)
        raise InputError(
            f"None of the {len(paths)} heads in {folder} was trained on this encoder, "
            f"shown {what}, and is of {' or '.join(kinds)}; evaluate it so in a new "
            "--workdir (earlier versions kept dense heads alone), or give the sensors "
            "that were shown then."
        )
    *_, path, facts = max(found, key=lambda one: one[:-1])
    try:
        arrays = safe_io.read_arrays(path, lambda name: name != FACTS)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no head ({error}); evaluate again.") from error
    log.info("The head is %s.", path)
    own = {k: x for k, x in arrays.items() if not k.startswith(ENCODER)}
    tuned = {k.removeprefix(ENCODER): x for k, x in arrays.items() if k not in own}
    return Head(own, facts, tuned, path)


def check_scale(facts: dict, size: int) -> None:
    """Warns where a head was shown pairs at another scale than windows of a scene are.

    Args:
        facts: of the head.
        size: of the encoder's images in pixels, which those of windows are.
    """
    side = facts.get("scene_size", size)  # heads of earlier versions do not say it
    whole = facts.get("features", {}).get("view") == "whole"
    if (side if whole else min(side, size)) != size:
        log.warning(
            "The head was shown pairs of %d px resampled to %d, and a scene is shown "
            "pixel by pixel: expect less.",
            *(side, size),
        )


def predict_pairs(config, contract) -> None:
    """Writes a table of the probabilities of each class of a dataset's pairs.

    Args:
        config: see `configs/predict.py`.
        contract: the sensors as the evaluation's pairs were normalised.
    """
    found = encoder.restore(config.checkpoint, sharding.make_mesh(), config.step)
    found = dataclasses.replace(found, contract=contract)
    there = encoder.sensor_sets(sources.describe(config.data))[::-1]
    kinds = OF_PAIRS if config.head == "auto" else (config.head,)
    head = load_head(config.evaluation, found.encoder_params, there, kinds)
    params, shown = head.encoder_params(found.encoder_params), head.facts["sensors"]
    recipe = features.Recipe(**head.facts["features"])
    source, taken = tables.take(config, found, params, recipe, shown, "Predicting")
    (said,) = head.probe.predict(taken)
    path, classes = pathlib.Path(config.out, TABLE_FILE), head.facts["classes"]
    # A name before each class, so that none is taken for the pair's id or place.
    tables.write(path, source, {f"p_{name}": p for name, p in zip(classes, said.T)})
    print(
        f"{path}: {len(source)} pairs, probabilities of {len(classes)} classes by "
        f"{results.TASKS[head.facts['task']]} on {tables.names(shown)}."
    )


def map_probabilities(config, model: Model, scene: scenes.Scene, head: Head) -> None:
    """Writes what a head of pairs says of the windows over a scene.

    Of a patch it is the mean over the windows that show it, by the weights of `Cover`:
    what is probable around it, on as much ground as a window has.
    """
    classes, out = head.facts["classes"], pathlib.Path(config.out)
    rows = scenes.map_scene(
        *(config, model, scene, window_step(model, head), len(classes)),
        title="Predicting",
        key={"head": head.facts},
    )
    shape = rows.values.shape[:2]
    grid = scenes.patch_grid(scene.grid, model.patch_size, shape)
    maps.write(
        out / PROBABILITIES,
        rows.values,
        grid,
        dtype="float16",
        bands=classes,
        tags=_tags(scene, head.facts),
    )
    rows.remove()
    print(
        f"{out / PROBABILITIES}: {shape[0]} x {shape[1]} patches of "
        f"{10 * model.patch_size} m, probabilities of {len(classes)} classes in the "
        f"{10 * model.size} m around each, by {results.TASKS[head.facts['task']]}."
    )


def map_classes(config, model: Model, scene: scenes.Scene, head: Head) -> None:
    """Writes the class of every pixel of a scene, and a picture of them."""
    p, classes, out = model.patch_size, head.facts["classes"], pathlib.Path(config.out)
    colors, key = class_colors(classes), {"head": head.facts}
    if config.probabilities:
        key["probabilities"] = True
    rows = scenes.map_scene(
        *(config, model, scene, logits_step(model, head), p * p * len(classes)),
        title="Predicting",
        key=key,
        depth=1 + config.probabilities * len(classes),
        to_pixels=lambda part: _classes(part, p, config.probabilities),
    )
    found, tags = rows.values[..., :1], _tags(scene, head.facts)
    options = dict(dtype="uint8", bands=["class"], tags=tags, colors=colors)
    maps.write(out / MAP, found, scene.grid, **options)
    if config.probabilities:
        options = dict(dtype="float16", bands=classes, tags=tags)
        maps.write(out / PROBABILITIES, rows.values[..., 1:], scene.grid, **options)
    _draw(out / PICTURE, found[..., 0], colors)
    counts = np.zeros(len(classes) + 1, int)
    for block in maps.blocks(found):
        at = np.nan_to_num(found[block], nan=len(classes)).astype(int)
        counts += np.bincount(at.ravel(), minlength=len(counts))
    height, width = scene.grid.shape
    rows.remove()
    print(f"{out / MAP}: {height} x {width} px, by the {head.facts['head']} head.")
    for name, count in zip([*classes, "not measured"], counts):
        print(f"{count * 1e-4:12.2f} km2  {count / counts.sum():6.1%}  {name}")


def _tags(scene: scenes.Scene, facts: dict) -> dict[str, str]:
    """What a map's file says of its making."""
    tags = {"SOFTWARE": "fusmae_jax", "ENCODER": facts["encoder"]}
    tags |= {f"CLASS_{i}": name for i, name in enumerate(facts["classes"])}
    return tags | {s.upper(): os.path.basename(x) for s, x in scene.paths.items()}


def window_step(model: Model, head: Head):
    """The compiled step for `map_rows` of probabilities, [side, side, C].

    All patches of a window have what the head says of it.
    """
    probe, recipe = head.probe, features.Recipe(**head.facts["features"])
    learnt, options = probe.arrays.values(), dict(norm=probe.norm, single=probe.single)

    def step(params, pixels):
        images, here = _see(model, pixels)
        encoded = model.encoder(params, images, here).last(recipe.blocks)
        pooled = features.pool(encoded, here, recipe.pool)
        (said,) = probabilities(*learnt, pooled, **options)
        side = (len(said), model.encoder.side, model.encoder.side)
        values = jnp.broadcast_to(said[:, None, None], (*side, said.shape[-1]))
        return values, (here["s1"] | here["s2"]).reshape(side)

    return jax.jit(step, out_shardings=sharding.rows(model.mesh))


def logits_step(model: Model, head: Head):
    """The compiled step for `map_rows` of logits, [side, side, P * P * C]."""
    module, blocks = head.module(model), head.facts["blocks"]

    def step(params, pixels):
        images, here = _see(model, pixels)
        x = dense_task.tokens(model.encoder, params, images, None, blocks)
        logits = heads.resize(module(x), model.size)
        side = (len(logits), model.encoder.side, model.encoder.side)
        values = patches.patchify(logits, model.patch_size).reshape(*side, -1)
        return values, (here["s1"] | here["s2"]).reshape(side)

    return jax.jit(step, out_shardings=sharding.rows(model.mesh))


def _see(model: Model, pixels: dict[str, jax.Array]):
    """Images of windows, and which of their patches show something."""
    contract = model.contract
    images = {s: pretrained.normalized(x, contract[s]) for s, x in pixels.items()}
    return images, model.encoder.present(images, None)


def _classes(part: np.ndarray, p: int, probable: bool = False) -> np.ndarray:
    """Indices of the likeliest classes of rows of patches, [P * h, P * w, 1] float32.

    With `probable` the probability of each class behind it. NaN where nothing was
    measured. The class is that of logits which the windows over a pixel share, and
    these come with other batches: it is known here first, and not on the devices.
    """
    logits = scenes.to_pixels(part, p)
    known = ~np.isnan(logits[..., :1])
    found = np.where(known, logits.argmax(axis=-1, keepdims=True), np.nan)
    if probable:
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares = powers / powers.sum(axis=-1, keepdims=True)
        found = np.concatenate([found, shares], axis=-1)
    return found.astype(np.float32)


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
