"""An exported encoder in PyTorch, in one file.

    import fusmae_torch  # this file, beside the weights

    model = fusmae_torch.load("FOLDER")
    features = model(s1=s1, s2=s2)  # [B, C, H, W], dB and DN
    features["pooled"]  # [B, D], one vector an image
    features["dense"]  # [B, h, w, D], one a patch

Needs `torch`, and `safetensors` to read the weights. Written by fusmae_jax, whose
`pretrained.Model.encode` says the same of images of the model's size.

B is the number of images, C a sensor's bands, H = W the side of the model's images in
pixels of 10 m, N = h * w their patches of P x P pixels, D the width of the encoder, M
and K numbers of tokens.
"""

import json
import pathlib
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

FORMAT = 1  # of the folder
SENSORS = ("s1", "s2")
OTHER = {"s1": "s2", "s2": "s1"}


# Layers, which encoders share.


def layer_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm over the last axis."""
    return nn.LayerNorm(dim, eps=1e-6)


def per_sensor(make: Callable[[], nn.Module]) -> nn.ModuleDict:
    """One module of its own for each sensor, by name."""
    return nn.ModuleDict({s: make() for s in SENSORS})


def tokens_per_sensor(dim: int) -> nn.ParameterDict:
    """A learned token [D] for each sensor, by name."""
    return nn.ParameterDict({s: nn.Parameter(torch.zeros(dim)) for s in SENSORS})


def sincos_2d(side: int, dim: int) -> torch.Tensor:
    """Fixed sine-cosine code of places in a grid, [side * side, dim], as in MAE.

    Half of the channels code the column, half the row.
    """
    omega = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(*(torch.arange(side).double(),) * 2, indexing="ij")
    angles = [torch.outer(place.flatten(), omega) for place in (x, y)]
    parts = [f(angle) for angle in angles for f in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1).float()


class Attention(nn.Module):
    """Multi-head attention from `x` to `context`, which may be `x` itself."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(
        self, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """From x [B, K, D] to context [B, M, D], mask [B, M] being what counts."""
        q, k, v = (
            layer(y).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, y in (
                (self.query, x),
                (self.key, context),
                (self.value, context),
            )
        )
        y = F.scaled_dot_product_attention(q, k, v, mask[:, None, None])
        return self.out(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two-layer perceptron with exact GELU, four times as wide inside."""

    def __init__(self, dim: int):
        super().__init__()
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps the last axis."""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Pre-norm transformer block with self-attention."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1, self.norm2 = layer_norm(dim), layer_norm(dim)
        self.attn, self.mlp = Attention(dim, num_heads), Mlp(dim)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Maps tokens [B, K, D], of which mask [B, K] says which are attended to."""
        y = self.norm1(x)
        x = x + self.attn(y, y, mask)
        return x + self.mlp(self.norm2(x))


class Pixels(nn.Module):
    """From pixels of a sensor to normalised patches, and which show anything."""

    def __init__(self, bands: Mapping, patch_size: int, zero_is_missing, least):
        super().__init__()
        self.patch_size, self.least = patch_size, least
        self.zero_is_missing = zero_is_missing
        for name in ("mean", "std"):
            values = torch.tensor([band[name] for band in bands.values()])
            self.register_buffer(name, values.reshape(-1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From x [B, C, H, W] to patches [B, N, P * P * C] and shown [B, N] bool.

        Pixels that were not measured count as the mean; what is darker than can be,
        and not 0, becomes the least there is.
        """
        x = x.float()
        measured = x.isfinite().all(dim=1, keepdim=True)
        if self.zero_is_missing:
            measured = measured & (x != 0).any(dim=1, keepdim=True)
        if self.least is not None:
            x = torch.where(x == 0, x, x.clamp(min=self.least))
        x = torch.where(measured, (x - self.mean) / self.std, 0.0)
        return self._patches(x), self._patches(measured).any(dim=-1)

    def _patches(self, x: torch.Tensor) -> torch.Tensor:
        p = self.patch_size
        x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [B, C, h, P, w, P]
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class Encoder(nn.Module):
    """Whatever makes tokens of both sensors' patches.

    Attributes:
        bands: names of the bands in the order of the channels, by sensor.
        size: side of the images in pixels.
        patch_size: side P of a patch in pixels.
        width: length D of a feature.
        reads: the sensors that it reads; others are absent, whatever is given.
    """

    reads = SENSORS

    def __init__(self, described: Mapping):
        super().__init__()
        model, contract = described["model"], described["contract"]
        self.bands = {s: tuple(contract[s]["bands"]) for s in SENSORS}
        self.size, self.patch_size = model["image_size"], model["patch_size"]
        self.width, self.side = model["dim"], self.size // self.patch_size
        self.pixels = nn.ModuleDict(
            {
                s: Pixels(
                    contract[s]["bands"], self.patch_size, **described["pixels"][s]
                )
                for s in SENSORS
            }
        )

    def encode(
        self, patches: dict[str, torch.Tensor], shown: dict[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Tokens {sensor: [B, N, D]} and one vector [B, D] of patches [B, N, E]."""
        raise NotImplementedError

    def forward(
        self, s1: torch.Tensor | None = None, s2: torch.Tensor | None = None
    ) -> dict:
        """Features of images; NaN where nothing was measured.

        Args:
            s1: Sentinel-1 in dB, [B, C, H, W], with the bands `self.bands["s1"]`; NaN
                in any band where nothing was measured; None for none.
            s2: Sentinel-2 in DN (reflectance x 10000), without the 1000 that processing
                baselines since 04.00 add, likewise, of the same places.

        Returns:
            pooled: the mean over all patches of all sensors, [B, D].
            summary: the global token, [B, D].
            dense: of each patch the mean over the sensors that show it, [B, h, w, D].
            sensors: the patches of each sensor, {sensor: [B, h, w, D]}.

        Raises:
            ValueError: no image is given, or one of another shape.
        """
        images = {"s1": s1, "s2": s2}
        given = [x for x in images.values() if x is not None]
        if not given:
            raise ValueError("Neither s1 nor s2 is given; pass one of them or both.")
        patches, shown = {}, {}
        for s, x in images.items():
            shape = (len(self.bands[s]), self.size, self.size)
            if x is None:
                x = given[0].new_full((1, *shape), torch.nan, dtype=torch.float32)
                x = x.expand(given[0].shape[0], *shape)
            if tuple(x.shape[1:]) != shape:
                raise ValueError(
                    f"{s} is {list(x.shape)}; pass [B, {', '.join(map(str, shape))}], "
                    f"with the bands {', '.join(self.bands[s])}."
                )
            patches[s], shown[s] = self.pixels[s](x)
            if s not in self.reads:
                shown[s] = torch.zeros_like(shown[s])
        tokens, summary = self.encode(patches, shown)
        known = torch.stack([shown[s] for s in SENSORS], dim=1)[..., None]
        both = torch.stack([tokens[s] for s in SENSORS], dim=1)  # [B, 2, N, D]
        both = torch.where(known, both, torch.nan)
        anything = known.flatten(1).any(dim=1, keepdim=True)
        grid = lambda x: x.unflatten(1, (self.side, self.side))
        return {
            "pooled": both.nanmean(dim=(1, 2)),
            "summary": torch.where(anything, summary, torch.nan),
            "dense": grid(both.nanmean(dim=1)),
            "sensors": {s: grid(both[:, i]) for i, s in enumerate(SENSORS)},
        }


# Fus-MAE (arXiv 2401.02764).


class XAttnEncoder(nn.Module):
    """Early fusion: each sensor's tokens attend to the other's, then one MLP."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1 = per_sensor(lambda: layer_norm(dim))
        self.attn = per_sensor(lambda: Attention(dim, num_heads))
        self.absent = tokens_per_sensor(dim)
        self.norm2, self.mlp = layer_norm(dim), Mlp(dim)

    def forward(
        self, tokens: dict[str, torch.Tensor], shown: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Fuses {sensor: [B, N, D]} into one sequence [B, 2 N, D].

        Where a sensor is absent as a whole its learned token is what is attended to.
        """
        y = {s: self.norm1[s](tokens[s]) for s in SENSORS}
        fused = []
        for s, other in OTHER.items():
            there = shown[other]
            context = torch.where(there[..., None], y[other], self.absent[other])
            mask = there | ~there.any(dim=1, keepdim=True)
            fused.append(tokens[s] + self.attn[s](y[s], context, mask))
        x = torch.cat(fused, dim=1)
        return x + self.mlp(self.norm2(x))


class FusMAE(Encoder):
    """Fus-MAE's encoder: early fusion, then blocks over the tokens of both sensors."""

    def __init__(self, described: Mapping):
        super().__init__(described)
        model, dim = described["model"], self.width
        size = lambda s: self.patch_size**2 * len(self.bands[s])
        code = sincos_2d(self.side, dim)
        self.register_buffer("code", code, persistent=False)
        self.embed = nn.ModuleDict({s: nn.Linear(size(s), dim) for s in SENSORS})
        self.absent = tokens_per_sensor(dim)
        self.global_token = nn.Parameter(torch.zeros(dim))
        early, heads = model.get("fuse_early", False), model["num_heads"]
        self.fuse = XAttnEncoder(dim, heads) if early else None
        blocks = [Block(dim, heads) for _ in range(model["depth"] - early)]
        self.blocks, self.norm = nn.ModuleList(blocks), layer_norm(dim)

    def encode(self, patches, shown):
        """See `Encoder`."""
        tokens = {}
        for s in SENSORS:
            x = self.embed[s](patches[s])
            x = torch.where(shown[s][..., None], x, self.absent[s])
            tokens[s] = x + self.code
        if self.fuse is None:
            x = torch.cat([tokens[s] for s in SENSORS], dim=1)
        else:
            x = self.fuse(tokens, shown)
        summary = self.global_token.expand(x.shape[0], 1, -1)
        x = torch.cat([x, summary], dim=1)
        seen = [shown[s] for s in SENSORS]
        mask = torch.cat([*seen, torch.ones_like(seen[0][:, :1])], dim=1)
        for block in self.blocks:
            x = block(x, mask)
        n = self.side**2
        s1, s2, summary = self.norm(x).split([n, n, 1], dim=1)
        return {"s1": s1, "s2": s2}, summary[:, 0]


# A plain masked autoencoder (He et al. 2022), as SatViT with both sensors stacked.


class MAE(Encoder):
    """One token of all that is shown of a patch, then blocks over the tokens."""

    def __init__(self, described: Mapping):
        super().__init__(described)
        model, dim = described["model"], self.width
        if model["sensors"] != "both":
            self.reads = (model["sensors"],)
        size = lambda s: self.patch_size**2 * len(self.bands[s])
        self.register_buffer("code", sincos_2d(self.side, dim), persistent=False)
        self.embed = nn.ModuleDict({s: nn.Linear(size(s), dim) for s in self.reads})
        blocks = [Block(dim, model["num_heads"]) for _ in range(model["depth"])]
        self.blocks, self.norm = nn.ModuleList(blocks), layer_norm(dim)

    def encode(self, patches, shown):
        """See `Encoder`."""
        x = sum(self.embed[s](patches[s]) for s in self.reads) + self.code
        known = torch.stack([shown[s] for s in self.reads]).any(dim=0)
        for block in self.blocks:
            # Where nothing is to be seen at all nothing is said of it either.
            x = block(x, known | ~known.any(dim=1, keepdim=True))
        x = self.norm(x)
        count = known.sum(dim=1, keepdim=True).clamp(min=1)
        summary = torch.where(known[..., None], x, 0.0).sum(dim=1) / count
        tokens = {s: x if s in self.reads else torch.zeros_like(x) for s in SENSORS}
        return tokens, summary


# Of folders, and whatever has their content.

# By method. MultiMAE's is Fus-MAE's without early fusion.
ENCODERS = {"fusmae": FusMAE, "mae": MAE, "multimae": FusMAE}


def build(described: Mapping, tensors: Mapping[str, torch.Tensor]) -> Encoder:
    """The encoder that `config.json` describes, with the tensors of a file.

    Raises:
        ValueError: the format or the method is unknown here.
        RuntimeError: tensors are missing, or have other shapes.
    """
    if described.get("format") != FORMAT:
        raise ValueError(
            f"config.json has format {described.get('format')!r}, and this file reads "
            f"{FORMAT}; take the fusmae_torch.py that was exported with it."
        )
    if described["method"] not in ENCODERS:
        raise ValueError(
            f"Nothing in PyTorch is known of the method {described['method']!r}, but "
            f"of {list(ENCODERS)}; load it with fusmae_jax."
        )
    model = ENCODERS[described["method"]](described)
    model.load_state_dict(dict(map(_as_here, tensors.items())))
    return model.eval()


def _as_here(item: tuple[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
    """A tensor under its name in this file, where linear layers are transposed."""
    *path, last = item[0].split("/")
    name = {"kernel": "weight", "scale": "weight"}.get(last, last)
    return ".".join([*path, name]), item[1].T if last == "kernel" else item[1]


def load(folder) -> Encoder:
    """The encoder in a folder, in evaluation mode, on the CPU.

    Raises:
        ValueError: see `build`.
    """
    from safetensors.torch import load_file

    folder = pathlib.Path(folder)
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return build(described, load_file(folder / "model.safetensors"))
