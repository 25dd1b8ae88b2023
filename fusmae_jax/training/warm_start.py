"""A pretraining that begins with the parameters of another run, or of a ViT."""

import functools
import logging
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline import sources
from data_pipeline.errors import InputError
from fusmae_jax import build
from fusmae_jax.evaluation import encoder
from fusmae_jax.objectives.protocol import Objective
from fusmae_jax.training import (
    checkpoint,
    cluster,
    run_directory,
    sharding,
    vit_weights,
)

log = logging.getLogger("fusmae_jax")

# Fields of config.model in which the runs may differ: they say how programs compute, or
# change no parameters but those that meet pixels.
MAY_DIFFER = (
    *("model.image_size", "model.patch_size", "model.global_token"),
    *("model.dtype", "model.attention", "model.remat"),
)


class WarmStart(NamedTuple):
    """What is taken of another run.

    Attributes:
        params: by path, of the new shapes; NaN where the other run knows nothing.
        origin: their checksum and, of a run, their step, for config.json; or None.
        places: where the other run was trained, see `run_directory.places`.
    """

    params: dict[str, jax.Array]
    origin: dict | None
    places: np.ndarray


NONE = WarmStart({}, None, np.empty((0, 2), np.uint64))


def begun(workdir) -> bool:
    """Whether a run has saved a checkpoint, from which it goes on; host 0 decides."""
    with cluster.together(f"read {workdir}"), run_directory.writing():
        steps = checkpoint.saved_steps(pathlib.Path(workdir) / "checkpoints")
    return bool(cluster.gather(bool(steps))[0])


def load(config, objective: Objective, mesh, held) -> WarmStart:
    """Takes the parameters of the last checkpoint of `config.init_from`.

    Those that meet pixels are taken band by band, by name, and stay fresh for other
    bands and for patches of another size; the log says which. Of a file it takes the
    blocks, see `vit_weights`.

    Args:
        config: see `configs/pretrain_base.py`.
        objective: what the new run trains for.
        mesh: the devices, over which parameters are laid out as in training.
        held: the held-out pairs.

    Raises:
        InputError: there is no such run or checkpoint, its model is another, or it was
            trained on the held-out pairs; or see `vit_weights`.
    """
    directory = config.init_from
    vit = None
    with cluster.together(f"read {directory}"):
        if pathlib.Path(directory).is_file():
            vit = vit_weights.read(pathlib.Path(directory))
        else:
            run_directory.load(directory)
            places = _check_places(directory, held, config.data.allow_overlap)
    if vit:
        return _of_vit(vit, config, objective, mesh)
    found = encoder.restore(directory, mesh, min_size=config.fsdp_min_size)
    _check_model(directory, found.config, config)
    known = _named(found.params)
    wanted = _named(build.abstract_params(objective, mesh, config.fsdp_min_size))
    _check_shapes(directory, known, wanted, objective)
    same_patches = (
        found.objective.encoder().patch_size == objective.encoder().patch_size
    )
    params, fresh = {}, []
    for path, want in wanted.items():
        if (meets := objective.pixels_of(path)) is None:
            params[path] = known[path]
            continue
        sensor, axis = meets
        bands = [
            x.inputs.contract[sensor].band_names for x in (found.objective, objective)
        ]
        both = [x for x in bands[1] if x in bands[0] and same_patches]
        if both:
            carry = functools.partial(_carry, axis=axis, there=bands[0], here=bands[1])
            params[path] = jax.jit(carry, out_shardings=want.sharding)(known[path])
        if new := [x for x in bands[1] if x not in both]:
            fresh.append(f"{path} of {' '.join(new)}")
    log.info("Beginning with the parameters of step %d of %s.", found.step, directory)
    if fresh:
        log.info("Fresh, as it has no such bands or patches: %s.", ", ".join(fresh))
    origin = {"step": found.step, "parameters": encoder.digest(params)}
    return WarmStart(params, origin, places)


def _of_vit(vit, config, objective: Objective, mesh) -> WarmStart:
    """Takes the blocks of a ViT, and its embedding of colours if patches are as large.

    Args:
        vit: its tensors by name.
        config, objective, mesh: see `load`.

    Raises:
        InputError: they do not fit.
    """
    name = config.init_from
    abstract = build.abstract_params(objective, mesh, config.fsdp_min_size)
    wanted = _named(abstract)
    paths = jax.tree_util.tree_map_with_path(
        lambda path, _: sharding.leaf_path(path), abstract
    )
    paths = _named(objective.encoder_params(paths))  # by those within the encoder
    shapes = {path: wanted[whole].shape for path, whole in paths.items()}
    placed = vit_weights.place(vit, shapes, name)
    found, fresh = {paths[path]: x for path, x in placed.items()}, []
    bands = objective.inputs.contract["s2"].band_names
    for path in paths.values():
        if objective.pixels_of(path) != ("s2", 0):
            continue
        kernel = vit_weights.embedding(vit, wanted[path].shape, bands)
        if kernel is not None:
            found[path] = kernel
            found[path.replace("/kernel", "/bias")] = vit["patch_embed.proj.bias"]
            if others := [x for x in bands if x not in vit_weights.COLORS]:
                fresh.append(f"{path} of {' '.join(others)}")
    params = {path: _laid_out(x, wanted[path].sharding) for path, x in found.items()}
    fresh += _parts(wanted.keys() - found.keys(), found)
    log.info(
        "Beginning with %d parameters of the ViT in %s, taken to have %d heads, as no "
        "file says how many.",
        *(len(found), name, config.model.num_heads),
    )
    log.info("Fresh, as it has none that fit: %s.", ", ".join(sorted(fresh)))
    log.warning("On which ground %s was trained is not known.", name)
    return WarmStart(params, {"parameters": encoder.digest(params)}, NONE.places)


def _laid_out(x: np.ndarray, layout) -> jax.Array:
    """What every host has, in its parts."""
    return jax.make_array_from_callback(x.shape, layout, lambda at: x[at])


def _parts(paths, known) -> list[str]:
    """Paths, those of a part together of which nothing is known."""

    def part(path):
        steps = path.split("/")
        starts = ("/".join(steps[:i]) for i in range(1, len(steps) + 1))
        alone = lambda start: not any(f"{x}/".startswith(f"{start}/") for x in known)
        return next(filter(alone, starts))

    return sorted(set(map(part, paths)))


def _named(params) -> dict:
    """Parameters, or their shapes, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {sharding.leaf_path(path): leaf for path, leaf in leaves}


def _carry(x: jax.Array, *, axis: int, there, here) -> jax.Array:
    """Moves what an array says of bands to their new places; NaN for other bands.

    Args:
        x: with the pixels of a patch along one axis, bands fastest, P * P * C.
        axis: which.
        there: names of these bands.
        here: names of the bands that are wanted.
    """
    split = lambda bands: (*x.shape[:axis], -1, bands, *x.shape[axis + 1 :])
    both = [band for band in here if band in there]
    old, new = ([names.index(band) for band in both] for names in (there, here))
    x = jnp.moveaxis(x.reshape(split(len(there))), axis + 1, 0)
    moved = jnp.full((len(here), *x.shape[1:]), jnp.nan, x.dtype)
    moved = moved.at[np.array(new)].set(x[np.array(old)])
    moved = jnp.moveaxis(moved, 0, axis + 1)
    pixels = moved.shape[axis] * len(here)
    return moved.reshape(*moved.shape[:axis], pixels, *moved.shape[axis + 2 :])


def _check_model(directory, there, here) -> None:
    """Refuses a model whose parameters mean something else, by its config.

    Raises:
        InputError: naming the fields.
    """
    there, here = (
        {"method": x.method, "model": x.model.to_dict()} for x in (there, here)
    )
    # Versions add fields; what they change shows in the shapes.
    mine = {k: x for k, x in here["model"].items() if k in there["model"]}
    there["model"] = {k: x for k, x in there["model"].items() if k in mine}
    differing = run_directory.differences(there, here | {"model": mine}, MAY_DIFFER)
    if differing:
        raise InputError(
            f"The parameters of {directory} do not fit, as it differs in "
            f"{', '.join(differing)}; launch with that run's values, or choose another "
            "init_from."
        )


def _check_shapes(directory, known: dict, wanted: dict, objective: Objective) -> None:
    """Refuses parameters of other shapes, but for pixels of other bands.

    Raises:
        InputError: naming one of them.
    """

    def fixed(leaves, path):
        shape = list(leaves[path].shape) if path in leaves else None
        if shape and (meets := objective.pixels_of(path)):
            del shape[meets[1]]
        return shape

    for path in sorted(known.keys() | wanted.keys()):
        there, here = fixed(known, path), fixed(wanted, path)
        if there != here:
            raise InputError(
                f"The parameters of {directory} do not fit, as {path} is {there} there "
                f"and {here} here; choose another init_from."
            )


def _check_places(directory, held, allow: bool) -> np.ndarray:
    """Where another run was trained; refuses held-out pairs of that ground.

    Raises:
        InputError: there are some, and that is not allowed.
    """
    seen = run_directory.trained_on(directory, sources.place_codes(held))
    if seen and not allow:
        raise InputError(
            f"{seen} of the {len(held)} held-out pairs show ground that {directory} "
            "was trained on; hold out others, or pass data.allow_overlap=True."
        )
    places = run_directory.places(directory)
    if places is None:
        log.warning("On which ground %s was trained is not known.", directory)
        return NONE.places
    return places
