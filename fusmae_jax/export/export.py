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

from data_pipeline import atomic, config_fields
from data_pipeline.config_fields import Field, choice, location, several, text, whole
from data_pipeline.errors import InputError
from fusmae_jax.config import check_checkpoint
from fusmae_jax.evaluation import encoder as encoders
from fusmae_jax.export import card, weights
from fusmae_jax.training import run_directory, sharding

log = logging.getLogger("fusmae_jax")

# By format, what has to be installed for it.
PACKAGES = {
    "safetensors": ("safetensors",),
    "torch": ("torch",),
    "onnx": ("torch", "onnx", "onnxscript"),
}

# What the config may say.
TABLE = {
    "task": choice("export", meaning="What launch.py does."),
    "checkpoint": location(meaning="Run directory of a pretraining."),
    "step": whole(0, meaning="Which of its checkpoints; 0 for the latest."),
    "out": location(meaning="Folder that the export becomes, new or empty."),
    "formats": several(
        choice(*PACKAGES),
        least=1,
        meaning="What is written: the weights, a PyTorch module that reads them, and "
        "a graph of ONNX.",
    ),
    "license": text(
        filled=True,
        meaning="Licence of the weights in the model card, in Hugging Face's words.",
    ),
}

ONNX_OUTPUTS = ["pooled", "summary", "dense", "dense_s1", "dense_s2"]

RULES = (
    (
        lambda c: "safetensors" in c.formats or "torch" not in c.formats,
        "formats={c.formats} lacks the weights that torch reads; add safetensors.",
    ),
)


def fields(config) -> dict[str, Field]:
    """What each field of the config may hold, and means."""
    del config  # the same for all
    return TABLE


def check(config) -> None:
    """Refuses what no run could make work.

    Raises:
        InputError: names the fields and their values.
    """
    config_fields.check(config, TABLE, like="configs/export.py")
    config_fields.check_rules(config, RULES)
    check_checkpoint(config.checkpoint)
    if not config.out:
        raise InputError("Name a folder to write: --config.out=exports/quickstart.")
    out = pathlib.Path(atomic.absolute(config.out))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(
            f"{out} is there already and not an empty folder; choose another "
            "--config.out, or remove it."
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
        return
    out = pathlib.Path(atomic.absolute(config.out))
    with run_directory.writing(), _becoming(out) as folder:
        write(found, folder, config.formats, license=config.license, name=out.name)
        written = sorted((path.name, path.stat().st_size) for path in folder.iterdir())
    log.info("Wrote %s:", out)
    for name, size in written:
        log.info("  %-18s %9.2f MB", name, size / 1e6)


@contextlib.contextmanager
def _becoming(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into, which becomes `out` when it is complete, or nothing."""
    folder = atomic.aside(out)
    folder.mkdir(parents=True)
    try:
        yield folder
        os.replace(folder, out)
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
    page = card.make(described, found.objective.encoder(), formats, license, name)
    atomic.write_whole(folder / card.FILE, page)


def _torch_module(method: str):
    """What is known of encoders in PyTorch, which has this one.

    Raises:
        InputError: it has not.
    """
    from fusmae_jax.export import torch_module

    if method not in torch_module.ENCODERS:
        raise InputError(
            f"PyTorch and ONNX are written of {list(torch_module.ENCODERS)}, and this "
            f"run's method is {method}; pass --config.formats without them."
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
    torch_log, level = logging.getLogger("torch.onnx"), logging.ERROR
    before = torch_log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of itself
        torch_log.setLevel(level)
        try:
            program = torch.onnx.export(
                Flat(model).eval(),
                tuple(images),
                input_names=list(model.bands),
                output_names=ONNX_OUTPUTS,
                dynamic_shapes=(any_number,) * len(images),
                dynamo=True,
                verbose=False,
            )
        finally:
            torch_log.setLevel(before)
    program.model.metadata_props[weights.CONFIG] = json.dumps(described)
    program.save(path)
