"""Weights of a plain ViT, as timm and MAE name them, for the blocks of an encoder.

Their blocks compute what ours do; their queries, keys and values are one layer, and
their linear layers are transposed. An XAttnEncoder takes the weights of their first
block, for both its attentions: each sensor reads the other as a picture reads itself.
"""

import argparse
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from data_pipeline.errors import InputError

# What their three channels are of Sentinel-2.
COLORS = ("B04", "B03", "B02")

# Layers of a block by ours and theirs.
LAYERS = {"out": "proj", "up": "fc1", "down": "fc2"}
FUSED = ("query", "key", "value")
PARAMETER = re.compile(
    r"(?:(fuse)/|blocks/(\d+)/)?(norm\d?|attn|mlp)/(?:s[12]/)?"
    rf"(?:({'|'.join((*FUSED, *LAYERS))})/)?(kernel|bias|scale)"
)


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Tensors of a file by name, float32.

    Nothing of the file is executed: of a pickle, tensors and plain data alone are read.

    Args:
        path: of PyTorch, `{"model": tensors}` or tensors alone; or of safetensors, if
            its name says so.

    Raises:
        InputError: it cannot be read, has no tensors or some that are not finite, or a
            package is missing.
    """
    try:
        if path.suffix == ".safetensors":
            found = _read_safetensors(path)
        else:
            found = _read_torch(path)
    except ImportError as error:
        raise InputError(
            f"{path} needs {error.name}; run pip install {error.name}."
        ) from error
    if not found:
        raise InputError(
            f"{path} has no tensors by name, itself or as its 'model'; save a "
            "state_dict."
        )
    if bad := [name for name, x in found.items() if not np.isfinite(x).all()]:
        raise InputError(
            f"{path} has numbers in {bad[0]} that are not finite; take another file."
        )
    return found


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {k: np.float32(file.get_tensor(k)) for k in file.keys()}
    except (OSError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); copy it again, or save it as float32."
        ) from error


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    import torch

    try:
        # MAE's own checkpoints have their command line beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of its reader
        raise InputError(
            f"{path} cannot be read as tensors alone ({type(error).__name__}), and "
            "nothing else of it is run; save its state_dict with safetensors."
        ) from error
    if isinstance(saved, dict) and isinstance(saved.get("model"), dict):
        saved = saved["model"]
    if not isinstance(saved, dict):
        return {}
    tensors = {k: x for k, x in saved.items() if isinstance(x, torch.Tensor)}
    return {str(k): x.detach().float().numpy() for k, x in tensors.items()}


def place(
    tensors: Mapping[str, np.ndarray],
    wanted: Mapping[str, tuple[int, ...]],
    name: str = "the file",
) -> dict[str, np.ndarray]:
    """Parameters of an encoder's blocks and of its last norm.

    Args:
        tensors: of a ViT by name.
        wanted: shapes of the encoder's parameters by path, such as
            `blocks/0/attn/query/kernel`; others than those of blocks are passed over.
        name: what to call the tensors where they do not fit.

    Returns:
        By path, those that there are.

    Raises:
        InputError: it has another depth or width, or blocks of another kind.
    """
    early = any(path.startswith("fuse/") for path in wanted)
    asked = {}  # by path, the tensor and which third of it
    for path in wanted:
        if found := PARAMETER.fullmatch(path):
            asked[path] = _source(*found.groups(), early)
    _check_size(tensors, wanted, asked, name)
    blocks = {source for source in tensors if source.startswith("blocks.")}
    if others := blocks - {source for source, _, _ in asked.values()}:
        raise InputError(
            f"{name} has {min(others)}, which blocks here have no place for; take a "
            "plain ViT, of norm1, attn, norm2 and mlp alone."
        )
    placed = {}
    for path, (source, third, transposed) in asked.items():
        x = given = tensors.get(source)
        shape = tuple(wanted[path])
        if x is None and source.startswith("norm."):
            continue  # they end with a norm of pooled features instead
        if x is None and source.endswith("attn.qkv.bias"):
            x = np.zeros(len(FUSED) * shape[0], np.float32)  # theirs have none
        x = np.empty(0) if x is None else x
        if third is not None and x.shape[:1] == (len(FUSED) * shape[-1],):
            x = np.split(x, len(FUSED))[third]
        x = x.T if transposed else x
        if x.shape != shape:
            there = "nothing" if given is None else list(given.shape)
            raise InputError(
                f"{name} has {source} as {there}, where {path} is {list(shape)}; take "
                "a plain ViT, with an MLP four times as wide."
            )
        placed[path] = x
    return placed


def embedding(tensors: Mapping[str, np.ndarray], shape, bands) -> np.ndarray | None:
    """The patch embedding of Sentinel-2 that theirs of colours is.

    Args:
        tensors: of a ViT by name.
        shape: of the kernel here, [P * P * C, D].
        bands: names of the C bands.

    Returns:
        The kernel, NaN for other bands than `COLORS`, as they were learnt: for colours
        of mean 0 and deviation 1. None where the patches are not as large, or there are
        none of colours.
    """
    weight = tensors.get("patch_embed.proj.weight")
    if weight is None or weight.ndim != 4 or not set(COLORS) & set(bands):
        return None
    dim, colors, *patch = weight.shape
    if (
        colors != len(COLORS)
        or "patch_embed.proj.bias" not in tensors
        or (patch[0] * patch[1] * len(bands), dim) != tuple(shape)
    ):
        return None
    kernel = np.full((*patch, len(bands), dim), np.nan, np.float32)
    for i, band in enumerate(COLORS):
        if band in bands:
            kernel[:, :, bands.index(band)] = weight[:, i].transpose(1, 2, 0)
    return kernel.reshape(shape)


def _source(fuse, number, part, layer, kind, early: bool) -> tuple:
    """Their tensor, which third of it or None, and whether it is transposed."""
    third = FUSED.index(layer) if layer in FUSED else None
    layer = LAYERS.get(layer) if third is None else "qkv"
    block = "blocks.0" if fuse else number and f"blocks.{int(number) + early}"
    parts = (block, part, layer, "bias" if kind == "bias" else "weight")
    return ".".join(filter(None, parts)), third, kind == "kernel"


def _check_size(tensors, wanted, asked, name) -> None:
    """Refuses another depth or width.

    Raises:
        InputError: with both.
    """
    depth = lambda names: len(
        {x.split(".")[1] for x in names if x.startswith("blocks.")}
    )
    paths = {source: path for path, (source, _, _) in asked.items()}
    first = "blocks.0.norm1.weight"
    if first not in paths:
        raise InputError(
            f"The encoder has no blocks that {name} could have weights for; leave out "
            "init_from."
        )
    if first not in tensors:
        raise InputError(
            f"{name} has no {first}, so it is no ViT as timm and MAE name it; convert "
            "its names first."
        )
    there = depth(tensors), tensors[first].size
    here = depth(paths), wanted[paths[first]][0]
    if there != here:
        raise InputError(
            f"{name} has {there[0]} blocks of {there[1]} channels, and this model "
            f"{here[0]} of {here[1]}; pass model.depth={there[0]} "
            f"model.dim={there[1]}, or choose another init_from."
        )
