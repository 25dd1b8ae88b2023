"""The autoencoder in PyTorch; what the parts are for, `fusmae_jax` says.

Parts and parameters have our names, but queries, keys and values are one layer where
they are made of the same tokens, and nothing can be absent.
"""

import torch
import torch.nn.functional as F
from torch import nn

from fusmae_jax.export.torch_module import (
    OTHER,
    SENSORS,
    Mlp,
    layer_norm,
    per_sensor,
    sincos_2d,
)

PARTS = {"qkv": ("query", "key", "value"), "kv": ("key", "value")}  # of fused layers


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int):
    """Multi-head attention of queries [B, N, D] to keys and values [B, M, D]."""
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, first: int = 0) -> torch.Tensor:
        """What the tokens from `first` on learn from all of x [B, N, D]."""
        if not first:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            parts, d = (self.qkv.weight, self.qkv.bias), x.shape[-1]
            q = F.linear(x[:, first:], *(p[:d] for p in parts))
            k, v = F.linear(x, *(p[d:] for p in parts)).chunk(2, dim=-1)
        return self.out(attend(q, k, v, self.num_heads))


class CrossAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        k, v = self.kv(context).chunk(2, dim=-1)
        return self.out(attend(self.query(x), k, v, self.num_heads))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1, self.norm2 = layer_norm(dim), layer_norm(dim)
        self.attn = SelfAttention(dim, num_heads)
        self.mlp = Mlp(dim)

    def forward(self, x: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Maps tokens [B, N, D] to the tokens from `first` on."""
        x = x[:, first:] + self.attn(self.norm1(x), first)
        return x + self.mlp(self.norm2(x))


class XAttnEncoder(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1 = per_sensor(lambda: layer_norm(dim))
        self.attn = per_sensor(lambda: CrossAttention(dim, num_heads))
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim)

    def forward(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        y = {s: self.norm1[s](tokens[s]) for s in SENSORS}
        fused = [tokens[s] + self.attn[s](y[s], y[OTHER[s]]) for s in SENSORS]
        x = torch.cat(fused, dim=1)
        return x + self.mlp(self.norm2(x))


class XAttnDecoder(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1 = per_sensor(lambda: layer_norm(dim))
        self.attn = per_sensor(lambda: CrossAttention(dim, num_heads))
        self.norm2 = per_sensor(lambda: layer_norm(dim))
        self.mlp = per_sensor(lambda: Mlp(dim))

    def forward(self, tokens: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        y = {s: self.norm1[s](tokens[s]) for s in SENSORS}
        x = {s: tokens[s] + self.attn[s](y[s], y[OTHER[s]]) for s in SENSORS}
        return {s: x[s] + self.mlp[s](self.norm2[s](x[s])) for s in SENSORS}


class Encoder(nn.Module):
    def __init__(self, pixels: dict[str, int], side: int, dim, depth, num_heads):
        super().__init__()
        self.register_buffer("code", sincos_2d(side, dim), persistent=False)
        self.embed = nn.ModuleDict({s: nn.Linear(e, dim) for s, e in pixels.items()})
        self.global_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.fuse = XAttnEncoder(dim, num_heads)
        blocks = [Block(dim, num_heads) for _ in range(depth - 1)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = layer_norm(dim)

    def forward(self, pixels, ids) -> dict[str, torch.Tensor]:
        """From patches {sensor: [B, K, E]} at ids [B, K] to tokens [B, K, D]."""
        tokens = {s: self.embed[s](pixels[s]) + self.code[ids[s]] for s in SENSORS}
        x = self.fuse(tokens)
        x = torch.cat([x, self.global_token.expand(len(x), 1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        visible = self.norm(x)[:, :-1].chunk(2, dim=1)
        return dict(zip(SENSORS, visible))


class Decoder(nn.Module):
    def __init__(self, pixels, side: int, encoder_dim, dim, depth, num_heads):
        super().__init__()
        self.register_buffer("code", sincos_2d(side, dim), persistent=False)
        self.bridge = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.blocks = nn.ModuleList([Block(dim, num_heads) for _ in range(depth)])
        self.norm = layer_norm(dim)
        self.predict = nn.Linear(dim, pixels)

    def forward(self, visible: torch.Tensor, shuffle: torch.Tensor) -> torch.Tensor:
        """Predicts the hidden patches [B, N-K, E] from visible tokens [B, K, D]."""
        b, k = visible.shape[:2]
        x = self.bridge(visible)
        blanks = self.mask_token.expand(b, shuffle.shape[1] - k, -1)
        # Shuffled as they are: attention does not mind, and positions say the place.
        x = torch.cat([x.float(), blanks], dim=1) + self.code[shuffle]
        for block in self.blocks[:-1]:
            x = block(x)
        return self.predict(self.norm(self.blocks[-1](x, k))).float()


class FusMAE(nn.Module):
    """The autoencoder, with the arguments of `fusmae_jax.model.FusMAE`."""

    def __init__(
        self,
        *,
        bands: dict[str, int],
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        decoder_dim: int,
        decoder_depth: int,
        decoder_heads: int,
    ):
        super().__init__()
        side = image_size // patch_size
        pixels = {s: patch_size**2 * bands[s] for s in SENSORS}
        self.encoder = Encoder(pixels, side, dim, depth, num_heads)
        self.fuse = XAttnDecoder(dim, num_heads)
        sizes = (side, dim, decoder_dim, decoder_depth, decoder_heads)
        self.decoders = nn.ModuleDict({s: Decoder(pixels[s], *sizes) for s in SENSORS})
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                parts = len(PARTS.get(name.split(".")[-1], "1"))
                for part in layer.weight.chunk(parts):
                    nn.init.xavier_uniform_(part)
                nn.init.zeros_(layer.bias)

    def forward(self, visible, shuffle) -> dict[str, torch.Tensor]:
        """From visible patches {sensor: [B, K, E]} to the hidden ones [B, N-K, E]."""
        ids = {s: shuffle[s][:, : visible[s].shape[1]] for s in SENSORS}
        tokens = self.fuse(self.encoder(visible, ids))
        return {s: self.decoders[s](tokens[s], shuffle[s]) for s in SENSORS}
