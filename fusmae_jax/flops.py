"""Arithmetic of a training step, and what devices can do."""

from fusmae_jax import masking, patches

# Dense bfloat16 peak of one device in FLOP/s, from the makers' data sheets, by a part
# of the name that JAX gives the device.
PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("A100", 312e12),
    ("TPU v6", 918e12),
    ("TPU v5p", 459e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
)


def peak(device_kind: str) -> float | None:
    """The device's peak in FLOP/s, None where it is not known."""
    return next((flops for name, flops in PEAKS if name in device_kind), None)


def _linear(tokens: int, inputs: int, outputs: int) -> int:
    return 2 * tokens * inputs * outputs


def _attention(queries: int, keys: int, dim: int) -> int:
    """Projections of both sides, scores, weighted sum, and the output projection."""
    projections = 2 * _linear(queries, dim, dim) + 2 * _linear(keys, dim, dim)
    return projections + 2 * _linear(queries, keys, dim)


def _mlp(tokens: int, dim: int) -> int:
    return 2 * _linear(tokens, dim, 4 * dim)


def train_step_flops(model: dict, bands: dict[str, int], mask_ratio: float) -> int:
    """Matrix-product FLOPs of one pair's forward and backward pass.

    Only what the model needs: the backward pass counts twice the forward, and nothing
    is added for recomputation, resampling, or the optimiser.

    Args:
        model: the config's `model` fields.
        bands: number of bands by sensor.
        mask_ratio: share of patches hidden.
    """
    side = patches.grid_side(model["image_size"], model["patch_size"])
    n = side * side
    k = masking.num_visible(n, mask_ratio)
    d, dd = model["dim"], model["decoder_dim"]
    pixels = [model["patch_size"] ** 2 * c for c in bands.values()]

    total = sum(_linear(k, e, d) for e in pixels)
    blocks = model["depth"]
    if model["fuse_early"]:
        total += 2 * _attention(k, k, d) + _mlp(2 * k, d)
        blocks -= 1
    total += blocks * (_attention(2 * k + 1, 2 * k + 1, d) + _mlp(2 * k + 1, d))
    if model["fuse_features"]:
        total += 2 * (_attention(k, k, d) + _mlp(k, d))
    decoder_block = _attention(n, n, dd) + _mlp(n, dd)
    for e in pixels:
        total += _linear(k, d, dd) + model["decoder_depth"] * decoder_block
        total += _linear(n, dd, e)
    return 3 * total
