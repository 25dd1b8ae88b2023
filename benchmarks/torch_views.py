"""The data side of the PyTorch peer: draws, and from stored pixels to images.

What `fusmae_jax.inputs` and `fusmae_jax.patches` do, written for PyTorch; see there for
what things mean. Nothing here imports JAX.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from data_pipeline import sensors


class Draw(NamedTuple):
    """Everything random about a batch.

    Attributes:
        box: top, left, height and width of the crops, fractions of a side, [B, 4].
        turn: whether to flip rows, flip columns, and transpose, [B, 3] bool.
        noise: what decides the masks, {sensor: [B, N]}.
    """

    box: torch.Tensor
    turn: torch.Tensor
    noise: dict[str, torch.Tensor]


def draw(
    batch: int,
    num_patches: int,
    device: torch.device,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Draw:
    """Draws crops, turns, and independent masks for both sensors."""
    area, aspect, top, left = torch.rand(4, batch, device=device)
    area = scale[0] + (scale[1] - scale[0]) * area
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * aspect).exp()
    height = (area / aspect).sqrt().clamp(max=1.0)
    width = (area * aspect).sqrt().clamp(max=1.0)
    box = torch.stack([top * (1 - height), left * (1 - width), height, width], dim=1)
    turn = torch.rand(batch, 3, device=device) < 0.5
    noise = torch.rand(len(sensors.SENSORS), batch, num_patches, device=device)
    return Draw(box, turn, dict(zip(sensors.SENSORS, noise)))


def invalid_pixels(fields: dict[str, torch.Tensor]) -> torch.Tensor:
    """The number of stored values that are not finite."""
    floats = [x for x in fields.values() if x.is_floating_point()]
    return sum((~x.isfinite()).sum() for x in floats)


def triangle_weights(
    start: torch.Tensor, length: torch.Tensor, native: int, size: int
) -> torch.Tensor:
    """What each stored pixel counts in each pixel of the crop, [B, size, native].

    Args:
        start: where the crops begin, as fractions of the side, [B].
        length: how long they are, likewise.
        native: stored pixels along the side.
        size: pixels along the crop's side.
    """
    step = (length * native / size)[:, None]
    pixels = torch.arange(max(native, size), device=start.device)
    at = start[:, None] * native + (pixels[:size] + 0.5) * step - 0.5  # [B, size]
    distance = (at[..., None] - pixels[:native]).abs()
    # Shrinking widens the triangle, so that every stored pixel counts somewhere.
    weights = (1 - distance / step.clamp(min=1.0)[..., None]).clamp(min=0.0)
    return weights / weights.sum(dim=-1, keepdim=True)


class View(nn.Module):
    """One sensor's images of a draw, normalised, cropped, and turned."""

    def __init__(self, name: str, bands: Sequence[str], size: int):
        super().__init__()
        self.size = size
        sensor = sensors.SENSORS[name]
        self.grids = [g for g in sensor.grids if set(g.bands) & set(bands)]
        stored = [name for grid in self.grids for name in grid.bands]
        known = {band.name: band for band in sensor.bands}
        # Buffers, because a tensor made in the step is a copy to the device each time.
        for name, values in (
            ("mean", [known[name].mean for name in stored]),
            ("std", [known[name].std for name in stored]),
            ("order", [stored.index(name) for name in bands]),
        ):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def forward(
        self, fields: dict[str, torch.Tensor], box: torch.Tensor, turn: torch.Tensor
    ) -> torch.Tensor:
        """From stored fields {name: [B, H, W, C]} to images [B, size, size, C]."""
        counts = [len(grid.bands) for grid in self.grids]
        statistics = zip(self.mean.split(counts), self.std.split(counts))
        top, left, height, width = box.unbind(dim=1)
        images = []
        for grid, (mean, std) in zip(self.grids, statistics):
            x = (fields[grid.field].float() - mean) / std
            x = x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            rows = triangle_weights(top, height, x.shape[1], self.size)
            columns = triangle_weights(left, width, x.shape[2], self.size)
            x = torch.einsum("bih,bhwc->biwc", rows, x)
            images.append(torch.einsum("bjw,biwc->bijc", columns, x))
        x = torch.cat(images, dim=-1)[..., self.order]
        flip_rows, flip_columns, transpose = turn[..., None, None, None].unbind(dim=1)
        x = torch.where(flip_rows, x.flip(1), x)
        x = torch.where(flip_columns, x.flip(2), x)
        return torch.where(transpose, x.transpose(1, 2), x)


def patchify(images: torch.Tensor, p: int) -> torch.Tensor:
    """Splits images [B, H, W, C] into row-major patches [B, N, P*P*C]."""
    b, h, w, c = images.shape
    x = images.view(b, h // p, p, w // p, p, c).transpose(2, 3)
    return x.reshape(b, -1, p * p * c)
