"""The pretraining step in PyTorch: what ours is raced against, and checked against.

The same network, views, loss, and optimiser as `fusmae_jax`, as one writes them in
PyTorch: fused projections, `scaled_dot_product_attention`, fused AdamW, autocast. From
the same weights both give the same losses and gradients (tests/test_torch_peer.py).
Covers what `configs/pretrain_base.py` trains: no dropped sensors, targets normalised by
patch, linear resampling. Nothing here imports JAX.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import torch_views as views
from benchmarks.torch_network import PARTS, SENSORS, FusMAE

SIZES = (
    *("image_size", "patch_size", "dim", "depth", "num_heads"),
    *("decoder_dim", "decoder_depth", "decoder_heads"),
)


class Objective(nn.Module):
    """The loss of the autoencoder on stored fields.

    Args:
        bands: names of the bands in use, by sensor.
        model: the config's `model` fields.
        mask_ratio: share of patches hidden.
    """

    def __init__(
        self, bands: Mapping[str, Sequence[str]], model: Mapping, mask_ratio: float
    ):
        super().__init__()
        self.dtype = getattr(torch, model["dtype"])  # of matrix products
        self.patch_size = model["patch_size"]
        self.num_patches = (model["image_size"] // self.patch_size) ** 2
        hidden = int(round(self.num_patches * mask_ratio, 6))
        self.num_visible = self.num_patches - hidden
        view = lambda s: views.View(s, bands[s], model["image_size"])
        self.views = nn.ModuleDict({s: view(s) for s in SENSORS})
        counts = {s: len(bands[s]) for s in SENSORS}
        self.model = FusMAE(bands=counts, **{name: model[name] for name in SIZES})

    def forward(
        self, fields: dict[str, torch.Tensor], draw: views.Draw
    ) -> torch.Tensor:
        k, visible, target, shuffle = self.num_visible, {}, {}, {}
        for s in SENSORS:
            images = self.views[s](fields, draw.box, draw.turn)
            pixels = views.patchify(images, self.patch_size)
            shuffle[s] = draw.noise[s].argsort(dim=1)
            ids = shuffle[s][..., None].expand(-1, -1, pixels.shape[-1])
            visible[s], hidden = pixels.gather(1, ids).tensor_split([k], dim=1)
            variance, mean = torch.var_mean(hidden, -1, correction=0, keepdim=True)
            target[s] = (hidden - mean) / (variance + 1e-6).sqrt()
        narrow = self.dtype != torch.float32
        with torch.autocast(draw.box.device.type, self.dtype, enabled=narrow):
            predicted = self.model(visible, shuffle)
        return sum(F.mse_loss(predicted[s], target[s]) for s in SENSORS)


def make_step(
    objective: Objective,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    weight_decay: float = 0.05,
    compiled: bool = False,
):
    """Returns `step(fields, draw, rate) -> metrics`, which advances `objective`.

    Metrics are tensors, so that nothing waits for the device: the loss, the norm of
    the gradient, and the number of invalid pixels, as ours.
    """
    params = list(objective.parameters())
    matrices = [p for p in params if p.ndim > 1]
    others = [p for p in params if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(b1, b2), eps=1e-8, fused=True)
    loss_fn = torch.compile(objective) if compiled else objective

    def step(fields, draw, rate):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn(fields, draw)
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in params])
        optimizer.step()
        return {
            "loss": loss.detach(),
            "grad_norm": norm,
            "invalid_pixels": views.invalid_pixels(fields),
        }

    return step


def from_jax(params: Mapping, model: FusMAE) -> dict[str, torch.Tensor]:
    """Our parameters, or their gradients, under the peer's names.

    Args:
        params: those of `fusmae_jax.model.FusMAE` as nested dicts of arrays.
        model: the peer, which names what it wants.

    Returns:
        What `model.load_state_dict` takes. Tokens for absent sensors are left out.
    """
    ours = {}
    for path, value in _flatten(params):
        value = torch.tensor(np.asarray(value))
        value = value.T if path.endswith(".kernel") else value  # [in, out], transposed
        path = path.replace(".kernel", ".weight").replace(".scale", ".weight")
        ours |= zip(_parts(path), value.chunk(len(_parts(path))))
    return {
        path: torch.cat([ours[part] for part in _parts(path)])
        for path in model.state_dict()
    }


def _parts(path: str) -> list[str]:
    """The names of what a parameter is made of: three of a ".qkv." one."""
    for fused, parts in PARTS.items():
        if f".{fused}." in path:
            return [path.replace(f".{fused}.", f".{part}.") for part in parts]
    return [path]


def _flatten(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The leaves of nested dicts with their dotted paths."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
