"""Weights of an encoder and what they are of, as `export` leaves them.

`config.json` has the number of this format, the method, the model's arguments, the
input contract, and what of a training remains to be said. `model.safetensors` has the
parameters by their paths in the encoder, such as `blocks/0/attn/query/kernel`.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data_pipeline import atomic, offsets, safe_io, sensors
from data_pipeline.errors import InputError
from fusmae_jax import build
from fusmae_jax.config import TABLE
from fusmae_jax.evaluation.encoder import Pretrained
from fusmae_jax.objectives.protocol import Encoder
from fusmae_jax.training import run_directory, sharding

FORMAT, LIBRARY = 1, "fusmae_jax"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MOST_PATCHES = 256  # along the side of an image: attention to more fits nowhere


def needs(package: str) -> InputError:
    """What to say where a package of the extra is not installed."""
    return InputError(
        f"{package} is not installed; run pip install '.[export]' in the project, or "
        "pip install " + package + "."
    )


def describe(found: Pretrained) -> dict:
    """What `config.json` says of a run's encoder, as plain data."""
    config = found.config.to_dict()
    config.pop("data")  # where they lay on somebody's disk
    return {
        "format": FORMAT,
        "library_name": LIBRARY,
        "method": config.pop("method"),
        "model": config.pop("model"),
        "contract": run_directory.describe(found.contract),
        "pixels": {name: _pixels(s) for name, s in found.contract.items()},
        "parameters": sum(x.size for x in jax.tree.leaves(found.encoder_params)),
        "step": found.step,
        "data": run_directory.trained_with(found.directory),
        "training": config,
    }


def _pixels(sensor: sensors.Sensor) -> dict:
    """How pixels are read by those who do not have `data_pipeline`.

    Returns:
        Whether 0 in all bands says that nothing was measured; and what darker pixels
        become, but 0 in some bands alone, None where they stay as they are.
    """
    nothing = np.zeros((len(sensor.bands), 1, 1))
    return {
        "zero_is_missing": bool(sensor.expected.filled([nothing])[0].all()),
        "least": offsets.DARKEST if sensor.offsets else None,
    }


def named(params: nnx.State) -> dict[str, np.ndarray]:
    """Parameters by their paths, on the host."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    return {sharding.leaf_path(path): np.asarray(leaf) for path, leaf in leaves}


def save(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes tensors by name.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import numpy as safetensors

    # The format is named in the file too, as other libraries ask for it.
    atomic.write_whole(path, safetensors.save(tensors, {"format": "np"}))


def are_in(directory) -> bool:
    """Whether a folder is an export, of whatever format, not a run directory."""
    try:
        saved = safe_io.read_json(pathlib.Path(directory) / CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(saved, dict) and saved.get("library_name") == LIBRARY


def restore(
    directory, mesh: Mesh, statistics: Mapping[str, sensors.Sensor] | None = None
) -> tuple[Encoder, nnx.State]:
    """The encoder of an export, for images as they are, and its parameters.

    Nothing in the folder is executed.

    Args:
        directory: that `export` wrote, perhaps somebody else's.
        mesh: where the parameters go, whole.
        statistics: see `pretrained.load`.

    Raises:
        InputError: it is of a newer format or of an unknown method, or damaged.
    """
    path = pathlib.Path(directory) / CONFIG
    config, contract = read(path)
    with _opened(path.with_name(WEIGHTS)) as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    try:
        _check_size(path, config.model, shapes)
        encoder = build.image_encoder(config, statistics or contract, mesh)
        make = lambda key: encoder.init(nnx.Rngs(key))
        wanted = jax.eval_shape(make, jax.random.key(0))
    except InputError:
        raise  # says it better
    except (AttributeError, KeyError, MemoryError, TypeError, ValueError) as error:
        raise _damaged(path, repr(error)[:99]) from error
    if encoder.inputs.contract != (statistics or contract):
        raise _damaged(path, "its bands and its contract differ")
    return encoder, sharding.to_all(load(path.with_name(WEIGHTS), wanted), mesh)


def _damaged(path: pathlib.Path, why: str) -> InputError:
    return InputError(f"{path} describes no encoder ({why}); copy the export again.")


def _check_size(path: pathlib.Path, model, shapes: list[list[int]]) -> None:
    """Refuses at once what would take hours or all memory to build.

    An encoder has a tensor for each block at least, and one as long as it is wide.
    """
    longest = max((n for shape in shapes for n in shape), default=0)
    depth, dim = model.get("depth", 0), model.get("dim", 0)
    if depth > len(shapes) or dim > longest:
        raise _damaged(
            path,
            f"depth {depth} and dim {dim} are more than {WEIGHTS} has, {len(shapes)} "
            f"tensors of {longest} at most",
        )
    size, patch = model.get("image_size", 0), model.get("patch_size", 1)
    if size > MOST_PATCHES * patch:
        raise _damaged(path, f"images of {size} px are more than any network sees")


def read(
    path: pathlib.Path,
) -> tuple[ml_collections.ConfigDict, dict[str, sensors.Sensor]]:
    """What a `config.json` says: the config of a training, and the contract.

    Raises:
        InputError: see `restore`.
    """
    try:
        saved = safe_io.read_json(path)
        there = saved["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)[:99]) from error
    if there != FORMAT:
        raise InputError(
            f"{path} has format {there!r:.50} and this version reads {FORMAT}; update "
            "fusmae_jax."
        )
    try:
        config = dict(saved["training"], method=saved["method"], model=saved["model"])
        contract = {s: sensors.restore(x) for s, x in saved["contract"].items()}
        config = ml_collections.ConfigDict(config).lock()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, repr(error)[:99]) from error
    method = TABLE["method"]
    if not method.fits(config.method):
        raise InputError(
            f"{path} is of the method {config.method!r:.50}, and this version has "
            f"{list(method.choices)}; update fusmae_jax."
        )
    return config, contract


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator:
    """A file of tensors.

    Raises:
        InputError: it cannot be read.
    """
    try:
        import safetensors
    except ImportError as error:
        raise needs("safetensors") from error
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); copy the export again."
        ) from error


def load(path: pathlib.Path, wanted: nnx.State) -> nnx.State:
    """The tensors of a file, in the place of the shapes that are wanted.

    Raises:
        InputError: it has others, or cannot be read.
    """
    leaves = jax.tree_util.tree_leaves_with_path(wanted)
    shapes = {sharding.leaf_path(key): list(leaf.shape) for key, leaf in leaves}
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        there = {
            name: x.get_shape() if x.get_dtype() == "F32" else x.get_dtype()
            for name, x in slices.items()
        }
        for name in sorted(shapes.keys() | there.keys()):
            if shapes.get(name) != there.get(name):
                raise InputError(
                    f"{path} has {name} as {there.get(name, 'nothing')}, where "
                    f"{CONFIG} describes {shapes.get(name, 'nothing')}; copy both "
                    "files again."
                )
        found = lambda key, _: file.get_tensor(sharding.leaf_path(key))
        return jax.tree_util.tree_map_with_path(found, wanted)
