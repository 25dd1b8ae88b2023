"""An exported encoder in PyTorch, in one file.

    import fusmae_torch  # this file, beside the weights

    model = fusmae_torch.load("FOLDER")
    features = model(s1=s1, s2=s2)  # [B, C, H, W], dB and DN
    features = model(s2={"B04": red, "B8A": infrared})  # [B, h, w], each on its grid
    features["pooled"]  # [B, D], one vector an image
    features["dense"]  # [B, h, w, D], one a patch

    maps = fusmae_torch.FeatureMaps(model, ["VV", "VH", "B04"], blocks=[5, 10])
    maps(image)  # of an image [B, 3, H, W] a list of two maps [B, D, h, w]

Needs `torch`, and `safetensors` to read the weights. Written by fusmae_jax, whose
`pretrained.Model.encode` says the same of images of the model's size.

B is the number of images, C a sensor's bands, H = W the side of the model's images in
pixels of 10 m, N = h * w their patches of P x P pixels, D the width of the encoder, M
and K numbers of tokens.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

FORMAT = 1  # of the folder
SENSORS = ("s1", "s2")
OTHER = {"s1": "s2", "s2": "s1"}


# Pixels.


def decibels(power: torch.Tensor) -> torch.Tensor:
    """Backscatter in dB; NaN where the linear power is not positive."""
    return 10.0 * torch.where(power > 0, power, torch.nan).log10()


def numbers(reflectance: torch.Tensor) -> torch.Tensor:
    """DN of reflectance, of which 0 alone, which is not measured, stays 0."""
    dn = (reflectance * 10_000.0).round()
    return torch.where((reflectance != 0) & (dn == 0), 1.0, dn)


# What makes dB and DN of pixels in other units, by sensor; its own is the first.
UNITS = {
    "s1": {
        "dB": lambda x: x,
        "linear": decibels,
        "amplitude": lambda x: 2.0 * decibels(x),
    },
    "s2": {"DN": lambda x: x, "reflectance": numbers},
}


def resample(x: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """Bands [B, C, h, w] of one grid on the model's, [B, C, size, size].

    NaN where more than half of what a pixel is made of was not measured.
    """
    known = (x.isfinite().all(dim=1) & (x != 0).any(dim=1))[:, None]
    x = torch.cat([torch.where(known, x, 0.0), known.to(x.dtype)], dim=1)
    if x.shape[2:] != (size, size):
        x = F.interpolate(x, (size, size), mode=mode, antialias=True)
    weight = x[:, -1:]
    return torch.where(weight >= 0.5, x[:, :-1] / weight.clamp(min=0.5), torch.nan)


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


def behind(blocks, x: torch.Tensor, mask: torch.Tensor, wanted: Sequence[int]):
    """Tokens x [B, K, D] behind each of the wanted blocks, and behind all of them."""
    found = []
    for block in blocks:
        x = block(x, mask)
        found.append(x)
    return [*(found[i] for i in wanted), x]


class Pixels(nn.Module):
    """From pixels of a sensor to normalised patches, and which show anything."""

    def __init__(
        self, bands: Mapping, patch_size: int, mode: str, zero_is_missing, least
    ):
        super().__init__()
        self.bands, self.patch_size, self.mode = tuple(bands), patch_size, mode
        self.zero_is_missing, self.least = zero_is_missing, least
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

    def stack(self, given: Mapping[str, torch.Tensor], size: int) -> torch.Tensor:
        """Bands [B, h, w] of one ground, by name, as one image [B, C, size, size].

        Those that are not there are the mean of the training data.

        Raises:
            ValueError: the model does not know a band, or one is larger than its
                images.
        """
        for name, x in given.items():
            if x.ndim != 3 or max(x.shape[1:]) > size or x.shape[1] != x.shape[2]:
                raise ValueError(
                    f"{name} is {list(x.shape)}; pass [B, {size}, {size}], or a "
                    "coarser grid over the same ground."
                )
        if others := given.keys() - set(self.bands):
            raise ValueError(
                f"The model knows no band {', '.join(sorted(others))}; pass some of "
                f"{', '.join(self.bands)}."
            )
        grids = {}
        for name, x in given.items():
            grids.setdefault(tuple(x.shape[1:]), []).append(name)
        found = {}
        for names in grids.values():  # one grid is measured or not as a whole
            x = torch.stack([given[name].float() for name in names], dim=1)
            x = resample(x, size, self.mode)
            found |= {name: x[:, i] for i, name in enumerate(names)}
        known = sum(found.values())  # NaN where any is
        means = (torch.where(known.isnan(), known, mean) for mean in self.mean)
        return torch.stack(
            [found.get(name, mean) for name, mean in zip(self.bands, means)], dim=1
        )

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
        depth: how many blocks there are whose features can be asked for.
    """

    depth: int
    reads = SENSORS

    def __init__(self, described: Mapping):
        super().__init__()
        model, contract = described["model"], described["contract"]
        self.bands = {s: tuple(contract[s]["bands"]) for s in SENSORS}
        self.size, self.patch_size = model["image_size"], model["patch_size"]
        self.width, self.side = model["dim"], self.size // self.patch_size
        resampling = described["training"]["view"]["resampling"]
        mode = {"linear": "bilinear", "cubic": "bicubic"}[resampling]
        pixels = {
            s: Pixels(
                contract[s]["bands"], self.patch_size, mode, **described["pixels"][s]
            )
            for s in SENSORS
        }
        self.pixels = nn.ModuleDict(pixels)

    def encode(
        self,
        patches: dict[str, torch.Tensor],
        shown: dict[str, torch.Tensor],
        blocks: Sequence[int] = (),
    ) -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """Tokens {sensor: [B, N, D]} and one vector [B, D] of patches [B, N, E].

        Behind each of some blocks, 0 to `depth - 1`, and at last behind all of them.
        """
        raise NotImplementedError

    def forward(
        self,
        s1: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
        s2: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
        *,
        units: Mapping[str, str] | None = None,
        offset: int = 0,
        blocks: Sequence[int] = (),
    ) -> dict:
        """Features of images; NaN where nothing was measured.

        Args:
            s1: Sentinel-1 backscatter, [B, C, H, W] with the bands `self.bands["s1"]`;
                or some of these by name, {band: [B, h, w]}, each on a grid of its own
                over the same ground, which are resampled as in training. NaN in any
                band where nothing was measured; None for none.
            s2: Sentinel-2, likewise, of the same places.
            units: of the pixels, {sensor: unit}: "dB" (the default), "linear" or
                "amplitude" of s1, "DN" (the default) or "reflectance" of s2.
            offset: what the processing baseline of s2 added to each DN: 1000 since
                January 2022, unless somebody took it away again.
            blocks: numbers of blocks, from 0 to `depth - 1`, whose features are wanted
                too.

        Returns:
            pooled: the mean over all patches of all sensors, [B, D].
            summary: the global token, [B, D].
            dense: of each patch the mean over the sensors that show it, [B, h, w, D].
            sensors: the patches of each sensor, {sensor: [B, h, w, D]}.
            blocks: what `dense` would be behind each of `blocks`, where any are wanted.

        Raises:
            ValueError: no image is given, or one of another shape, or in an unknown
                unit or band; or there is no such block.
        """
        if others := set(blocks) - set(range(self.depth)):
            raise ValueError(
                f"There is no block {min(others)}; ask for some of 0 to "
                f"{self.depth - 1}."
            )
        images = self._images({"s1": s1, "s2": s2}, units or {}, offset)
        patches, shown = self._patches(images)
        *before, (tokens, summary) = self.encode(patches, shown, blocks)
        found = self._features(tokens, summary, shown)
        if blocks:
            found["blocks"] = [self._dense(_known(x, shown)) for x, _ in before]
        return found

    def _images(self, given: Mapping, units: Mapping[str, str], offset: int):
        """Images {sensor: [B, C, H, W]} in the model's units, see `forward`.

        All of a sensor that is not given is NaN.
        """
        images = {}
        for s, x in given.items():
            unit = units.get(s, next(iter(UNITS[s])))
            if unit not in UNITS[s]:
                raise ValueError(
                    f"{s} in {unit!r} is unknown; use {' or '.join(UNITS[s])}."
                )
            read = lambda x, s=s, unit=unit: _without(
                UNITS[s][unit](x), offset if s == "s2" else 0
            )
            if isinstance(x, Mapping):
                bands = {name: read(band) for name, band in x.items()}
                images[s] = self.pixels[s].stack(bands, self.size)
            else:
                images[s] = None if x is None else read(x)
        first = next((x for x in images.values() if x is not None), None)
        if first is None:
            raise ValueError("Neither s1 nor s2 is given; pass one of them or both.")
        for s, x in images.items():
            shape = (len(self.bands[s]), self.size, self.size)
            if x is None:
                x = first.new_full((1, *shape), torch.nan, dtype=torch.float32)
                images[s] = x.expand(first.shape[0], *shape)
            elif tuple(x.shape[1:]) != shape:
                raise ValueError(
                    f"{s} is {list(x.shape)}; pass [B, {', '.join(map(str, shape))}], "
                    f"with the bands {', '.join(self.bands[s])}."
                )
        return images

    def _patches(self, images: Mapping[str, torch.Tensor]):
        """Patches of images, and which show anything of what is read, see `encode`."""
        patches, shown = {}, {}
        for s, x in images.items():
            patches[s], shown[s] = self.pixels[s](x)
            if s not in self.reads:
                shown[s] = torch.zeros_like(shown[s])
        return patches, shown

    def _features(self, tokens: dict, summary: torch.Tensor, shown: dict) -> dict:
        """What `forward` returns, of what `encode` does."""
        both = _known(tokens, shown)
        seen = torch.stack([shown[s] for s in SENSORS], dim=1)
        anything = seen.flatten(1).any(dim=1, keepdim=True)
        return {
            "pooled": both.nanmean(dim=(1, 2)),
            "summary": torch.where(anything, summary, torch.nan),
            "dense": self._dense(both),
            "sensors": {s: self._grid(both[:, i]) for i, s in enumerate(SENSORS)},
        }

    def _dense(self, both: torch.Tensor) -> torch.Tensor:
        """The mean over the sensors that show a patch, [B, h, w, D] of `_known`."""
        return self._grid(both.nanmean(dim=1))

    def _grid(self, x: torch.Tensor) -> torch.Tensor:
        """Patches [B, N, D] where they are in the image, [B, h, w, D]."""
        return x.unflatten(1, (self.side, self.side))


def _known(tokens: dict, shown: dict) -> torch.Tensor:
    """Tokens of both sensors, [B, 2, N, D], NaN where their patch shows nothing."""
    known = torch.stack([shown[s] for s in SENSORS], dim=1)[..., None]
    x = torch.stack([tokens[s] for s in SENSORS], dim=1)
    return torch.where(known, x, torch.nan)


def _without(dn: torch.Tensor, offset: int) -> torch.Tensor:
    """DN without the offset of their baseline, at least 1 where they were measured."""
    return torch.where(dn > 0, (dn - offset).clamp(min=1), dn) if offset else dn


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
        self.depth = model["depth"] - early
        blocks = [Block(dim, heads) for _ in range(self.depth)]
        self.blocks, self.norm = nn.ModuleList(blocks), layer_norm(dim)

    def encode(self, patches, shown, blocks=()):
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
        return [self._read(y) for y in behind(self.blocks, x, mask, blocks)]

    def _read(self, x):
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
        self.depth = model["depth"]
        blocks = [Block(dim, model["num_heads"]) for _ in range(self.depth)]
        self.blocks, self.norm = nn.ModuleList(blocks), layer_norm(dim)

    def encode(self, patches, shown, blocks=()):
        """See `Encoder`."""
        x = sum(self.embed[s](patches[s]) for s in self.reads) + self.code
        known = torch.stack([shown[s] for s in self.reads]).any(dim=0)
        # Where nothing is to be seen at all nothing is said of it either.
        mask = known | ~known.any(dim=1, keepdim=True)
        found = behind(self.blocks, x, mask, blocks)
        return [self._read(x, known) for x in found]

    def _read(self, x, known):
        x = self.norm(x)
        count = known.sum(dim=1, keepdim=True).clamp(min=1)
        summary = torch.where(known[..., None], x, 0.0).sum(dim=1) / count
        tokens = {s: x if s in self.reads else torch.zeros_like(x) for s in SENSORS}
        return tokens, summary


# For libraries that hand over all bands as one image.


class FeatureMaps(nn.Module):
    """An encoder of images [B, C, H, W], from which a decoder draws maps.

    Attributes:
        encoder: what it asks.
        bands: names of the channels, of one sensor or of both, in any order.
        blocks: of the encoder, whose features are wanted.
        out_channels: how many channels each of the maps has.
    """

    def __init__(
        self,
        encoder: Encoder,
        bands: Sequence[str],
        blocks: Sequence[int] = (),
        *,
        units: Mapping[str, str] | None = None,
        offset: int = 0,
    ):
        """Wraps an encoder.

        Args:
            encoder: of `load`.
            bands: names of the channels, such as VV and B04.
            blocks: numbers of blocks, from 0; none for what is behind all of them.
            units, offset: of the pixels, see `Encoder.forward`.

        Raises:
            ValueError: the encoder does not know a band.
        """
        super().__init__()
        self.encoder, self.bands = encoder, tuple(bands)
        self.sensors = {name: s for s in SENSORS for name in encoder.bands[s]}
        if others := [name for name in self.bands if name not in self.sensors]:
            raise ValueError(
                f"The model knows no band {', '.join(others)}; pass some of "
                f"{', '.join(self.sensors)}."
            )
        self.blocks = tuple(blocks)
        self.out_channels = [encoder.width] * max(1, len(self.blocks))
        self.units, self.offset = units, offset

    def features(self, image: torch.Tensor, blocks: Sequence[int] = ()) -> dict:
        """What the encoder says of images [B, C, H, W], see `Encoder.forward`.

        Raises:
            ValueError: see there; or the number of channels is not that of `bands`.
        """
        if image.ndim != 4 or image.shape[1] != len(self.bands):
            raise ValueError(
                f"The image is {list(image.shape)}; pass [B, {len(self.bands)}, H, W], "
                f"with the bands {', '.join(self.bands)}."
            )
        given = {}
        for channel, name in enumerate(self.bands):
            given.setdefault(self.sensors[name], {})[name] = image[:, channel]
        how = dict(units=self.units, offset=self.offset, blocks=blocks)
        return self.encoder(**given, **how)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Maps [B, D, h, w] of images [B, C, H, W], 0 where nothing was measured."""
        found = self.features(image, self.blocks)
        maps = found["blocks"] if self.blocks else [found["dense"]]
        return [x.nan_to_num().permute(0, 3, 1, 2) for x in maps]


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
