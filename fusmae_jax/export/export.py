"""Export of a run's encoder: what is asked for, and the folder that it becomes."""

import contextlib
import importlib.util
import json
import logging
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator

import jax
import jax.export
import jax.numpy as jnp

from data_pipeline import atomic, config_fields, sensors
from data_pipeline.config_fields import choice, location, several, text
from data_pipeline.errors import InputError
from fusmae_jax import build
from fusmae_jax.config import CHECKPOINT, check_checkpoint
from fusmae_jax.evaluation import encoder as encoders
from fusmae_jax.export import card, weights
from fusmae_jax.pretrained import normalized
from fusmae_jax.training import sharding

log = logging.getLogger("fusmae_jax")

# By format, what has to be installed for it.
PACKAGES = {
    "safetensors": ("safetensors",),
    "torch": ("torch",),
    "onnx": ("torch", "onnx", "onnxscript"),
    "stablehlo": ("flatbuffers",),
}
PLATFORMS = ("cpu", "cuda", "tpu")  # that StableHLO is lowered for

ONNX_OUTPUTS = ["pooled", "summary", "dense", "dense_s1", "dense_s2"]

# What the config may say.
TABLE = {
    "task": choice("export", meaning="What launch.py does."),
    **CHECKPOINT,
    "out": location(meaning="Folder that the export becomes, new or empty."),
    "formats": several(
        choice(*PACKAGES),
        least=1,
        meaning="What is written: the weights, a PyTorch module and a JAX program that "
        "read them, and a graph of ONNX, which has them.",
    ),
    "license": text(
        filled=True,
        meaning="Licence of the weights in the model card, in Hugging Face's words.",
    ),
}

# What must hold between fields, and what is said where it does not.
RULES = (
    (
        lambda c: (
            "safetensors" in c.formats or not {"torch", "stablehlo"} & set(c.formats)
        ),
        "formats={c.formats} lacks the weights, which torch and stablehlo read; add "
        "safetensors.",
    ),
)

fields = config_fields.always(TABLE)


def check(config) -> None:
    """Refuses what no run could make work.

    Raises:
        InputError: names the fields and their values.
    """
    config_fields.check(config, TABLE, like="configs/export.py")
    config_fields.check_rules(config, RULES)
    check_checkpoint(config.checkpoint)
    if not config.out:
        raise InputError("Name a folder to write: out=exports/quickstart.")
    out = pathlib.Path(atomic.absolute(config.out))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(
            f"{out} is there already and not an empty folder; choose another "
            "out=DIR, or remove it."
        )


def run(config, workdir) -> None:
    """What `launch.py` calls; writes `config.out`, and not a run directory.

    Args:
        config: see `configs/export.py`.
        workdir: not used.

    Raises:
        InputError: there is no such run or checkpoint, `out` is not empty or cannot
            be written, or a package is not installed.
    """
    del workdir
    check(config)
    for package in (name for x in config.formats for name in PACKAGES[x]):
        if importlib.util.find_spec(package) is None:
            raise weights.needs(package)
    mesh = sharding.make_mesh()
    found = encoders.restore(atomic.absolute(config.checkpoint), mesh, config.step)
    if jax.process_index() != 0:
        return  # every host has all of it
    out = pathlib.Path(atomic.absolute(config.out))
    with _becoming(out) as folder:
        write(found, folder, config.formats, license=config.license, name=out.name)
        written = sorted((path.name, path.stat().st_size) for path in folder.iterdir())
    log.info("Wrote %s:", out)
    for name, size in written:
        log.info("  %-18s %9.2f MB", name, size / 1e6)


@contextlib.contextmanager
def _becoming(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into, which becomes `out` when it is complete, or nothing.

    Raises:
        InputError: it cannot be written.
    """
    folder = atomic.aside(out)
    try:
        folder.mkdir(parents=True)
        yield folder
        os.replace(folder, out)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror or error}); "
            f"{atomic.advice(error)}, or choose another out=DIR."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(
    found: encoders.Pretrained,
    folder: pathlib.Path,
    formats: tuple[str, ...],
    *,
    license: str,
    name: str,
) -> None:
    """Writes an encoder into a folder, in some formats.

    Args:
        found: the run's encoder.
        folder: to write into.
        formats: see `TABLE`.
        license: of the weights.
        name: of the model.
    """
    described, tensors = weights.describe(found), weights.named(found.encoder_params)
    said = json.dumps(described, indent=2) + "\n"
    atomic.write_whole(folder / weights.CONFIG, said)
    if "safetensors" in formats:
        weights.save(folder / weights.WEIGHTS, tensors)
    if {"torch", "onnx"} & set(formats):
        torch_module = _torch_module(found.config.method)
        if "torch" in formats:
            shutil.copyfile(torch_module.__file__, folder / "fusmae_torch.py")
        if "onnx" in formats:
            _write_onnx(torch_module, described, tensors, folder / "model.onnx")
    if "stablehlo" in formats:
        _write_stablehlo(
            found, tensors, described["pixels"], folder / "model.stablehlo"
        )
    encoder = found.objective.encoder()
    page = card.make(described, encoder, formats, PLATFORMS, license, name)
    atomic.write_whole(folder / card.FILE, page)
    catalogued = card.item(described, encoder, formats, license, name)
    atomic.write_whole(folder / card.ITEM, json.dumps(catalogued, indent=2) + "\n")


def _torch_module(method: str):
    """What is known of encoders in PyTorch, which has this one.

    Raises:
        InputError: it has not.
    """
    from fusmae_jax.export import torch_module

    if method not in torch_module.ENCODERS:
        raise InputError(
            f"PyTorch and ONNX are written of {list(torch_module.ENCODERS)}, and this "
            f"run's method is {method}; pass formats without them."
        )
    return torch_module


def _write_onnx(torch_module, described: dict, tensors: dict, path: pathlib.Path):
    """Writes the graph of the PyTorch module, of batches of any size.

    It takes s1 and s2, both there, all NaN for one that is absent, and returns what the
    module does, `ONNX_OUTPUTS`.
    """
    import torch

    class Flat(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, s1, s2):
            found = self.model(s1, s2)
            dense = found["sensors"].values()
            return found["pooled"], found["summary"], found["dense"], *dense

    on_torch = {name: torch.tensor(x) for name, x in tensors.items()}
    model = torch_module.build(described, on_torch)
    images = [
        torch.zeros(2, len(bands), model.size, model.size)  # 1 would not stay any
        for bands in model.bands.values()
    ]
    any_number = {0: torch.export.Dim("batch")}
    # PyTorch warns of itself, and of torchvision, which nothing here has a use for.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Flat(model).eval(),
            tuple(images),
            input_names=list(model.bands),
            output_names=ONNX_OUTPUTS,
            dynamic_shapes=(any_number,) * len(images),
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props[weights.CONFIG] = json.dumps(described)
    program.save(path)


def _write_stablehlo(
    found: encoders.Pretrained, tensors: dict, how: dict, path: pathlib.Path
) -> None:
    """Writes a JAX program, of batches of any size, for all `PLATFORMS`.

    It takes the tensors of `model.safetensors` by name, and s1= and s2= [B, S, S, C]
    with NaN where nothing was measured, and returns what the PyTorch module does.
    """
    contract = found.contract
    encoder = build.image_encoder(found.config, contract, None)

    def say(tensors, **given):
        params = jax.tree_util.tree_map_with_path(
            lambda key, _: tensors[sharding.leaf_path(key)], found.encoder_params
        )
        images = {s: _read(x, contract[s], **how[s]) for s, x in given.items()}
        present = encoder.present(images, None)
        encoded = encoder(params, images, present)
        maps = {
            s: jnp.where(present[s][..., None], encoded.tokens[s], jnp.nan)
            for s in given
        }
        both = jnp.stack(list(maps.values()), axis=1)  # [B, 2, N, D]
        known = jnp.concatenate(list(present.values()), axis=1)
        grid = (both.shape[0], encoder.side, encoder.side, encoder.width)
        return {
            "pooled": jnp.nanmean(both, axis=(1, 2)),
            "summary": jnp.where(
                known.any(axis=1, keepdims=True), encoded.summary, jnp.nan
            ),
            "dense": jnp.nanmean(both, axis=1).reshape(grid),
            "sensors": {s: x.reshape(grid) for s, x in maps.items()},
        }

    (rows,) = jax.export.symbolic_shape("B")
    shape = (rows, encoder.inputs.size, encoder.inputs.size)
    images = {
        s: jax.ShapeDtypeStruct((*shape, len(sensor.bands)), jnp.float32)
        for s, sensor in contract.items()
    }
    program = jax.export.export(jax.jit(say), platforms=PLATFORMS)(tensors, **images)
    atomic.write_whole(path, bytes(program.serialize()))


def _read(
    x: jax.Array, sensor: sensors.Sensor, zero_is_missing: bool, least
) -> jax.Array:
    """What a network sees of images [B, S, S, C], see `weights.describe`."""
    measured = jnp.isfinite(x).all(axis=-1, keepdims=True)
    if zero_is_missing:
        measured &= (x != 0).any(axis=-1, keepdims=True)
    if least is not None:
        x = jnp.where(x == 0, x, jnp.maximum(x, least))
    return normalized(jnp.where(measured, x, jnp.nan), sensor)
