"""Arithmetic of a training step, and what devices can do."""

import re

from fusmae_jax import masking, patches

# Dense peak of one device in bfloat16 products with float32 sums, in FLOP/s, by a
# pattern of the name that JAX gives the device; the first that is found counts. Where
# a maker states the rate of sparse matrices alone, this is half of it. Sources:
# NVIDIA's data sheets of the A100, H100, H200, L40S, HGX B200 and GB200 NVL72, its
# white papers of Hopper (H100 PCIe), GA102 (RTX A6000, table 3) and Ada (RTX 4090,
# appendix A); Google's page "System architecture" of each TPU, by chip, of which only
# TPU7x shows JAX two devices.
PEAKS = (
    (r"\bGB200$", 2500e12),
    (r"\bB200$", 2250e12),
    (r"\bH[12]00 NVL$", 835e12),
    (r"\bH100 PCIe$", 756e12),
    (r"\bH[12]00\b", 989e12),
    (r"\bA100\b", 312e12),
    (r"\bL40S$", 362e12),
    (r"\bRTX 4090$", 165e12),
    (r"\bRTX A6000$", 155e12),
    (r"\bTPU7x$", 2307e12 / 2),
    (r"\bTPU v6", 918e12),
    (r"\bTPU v5 lite$|\bTPU v5e$", 197e12),
    (r"\bTPU v5p?$", 459e12),
    (r"\bTPU v4$", 275e12),
)


def peak(device_kind: str, dtype: str = "bfloat16") -> float | None:
    """The device's peak in FLOP/s, None where it is not known.

    Known for bfloat16 alone: float32 products run at another rate, which depends on how
    far the backend rounds them, and a share of the bfloat16 peak would mislead. Nor is
    that of a slice of a device (MIG) known.
    """
    if dtype != "bfloat16" or " MIG " in device_kind:
        return None
    rates = (rate for name, rate in PEAKS if re.search(name, device_kind))
    return next(rates, None)


def _linear(tokens: int, inputs: int, outputs: int) -> int:
    return 2 * tokens * inputs * outputs


def _block(queries: int, keys: int, dim: int) -> int:
    """Attention of `queries` tokens to `keys` tokens, and an MLP on the former."""
    # Queries and output, keys and values, scores and the sum they weight.
    attention = 2 * _linear(queries, dim, dim) + 2 * _linear(keys, dim, dim)
    attention += 2 * _linear(queries, keys, dim)
    return attention + 2 * _linear(queries, dim, 4 * dim)


def train_step_flops(
    model: dict, bands: dict[str, int], mask_ratio: float, drop_sensor: float = 0.0
) -> int:
    """Matrix-product FLOPs of one pair's forward and backward pass.

    With N patches a sensor, K of them visible and T predicted, P values of both sensors
    in a patch, widths D and W and depths L and R of encoder and decoders, and

        block(q, k, d) = 4 q d^2 + 4 k d^2 + 4 q k d + 16 q d^2

    of queries, keys and values, attention, and MLP, the forward pass is the sum of

        patch embedding     2 K P D
        early fusion        2 block(K, K, D)                    for one of the L
        encoder             L block(2 K + 1, 2 K + 1, D)
        feature fusion      2 block(K, K, D)
        two decoders        2 (2 K D W + (R - 1) block(N, N, W) + block(T, N, W))
                            where K and N count the global token if decoders see it
        prediction          2 T W P

    T is N - K, or N where a sensor may be absent and is then predicted whole. The
    backward pass costs twice as much, except that pixels need no gradient. Nothing is
    counted for recomputation, norms, softmax, resampling, or the optimiser.

    Args:
        model: the config's `model` fields.
        bands: number of bands by sensor.
        mask_ratio: share of patches hidden.
        drop_sensor: chance that a pair lacks a sensor.
    """
    n = patches.grid_side(model["image_size"], model["patch_size"]) ** 2
    k = masking.num_visible(n, mask_ratio)
    d = model["dim"]
    values = model["patch_size"] ** 2 * sum(bands.values())

    embedding = _linear(k, values, d)
    blocks = model["depth"] - model["fuse_early"]
    fusions = 2 * (model["fuse_early"] + model["fuse_features"])
    encoder = blocks * _block(2 * k + 1, 2 * k + 1, d) + fusions * _block(k, k, d)
    predicted = n if drop_sensor else n - k
    forward = embedding + encoder + _decoders(model, values, n, k, predicted)
    return 3 * forward - embedding


def _decoders(model: dict, values: int, n: int, k: int, predicted: int) -> int:
    """The forward pass of both decoders, see `train_step_flops`."""
    d, w, depth = model["dim"], model["decoder_dim"], model["decoder_depth"]
    more = model.get("global_token") == "decoders"
    tokens = n + more
    queries = [tokens] * (depth - 1) + [predicted] * (depth > 0)  # of each block
    each = _linear(k + more, d, w) + sum(_block(q, tokens, w) for q in queries)
    return 2 * each + _linear(predicted, w, values)


def per_image(config) -> int:
    """The same for a config, see `configs/pretrain_base.py`."""
    bands = {s: len(names) for s, names in config.bands.items()}
    model, mask = config.model.to_dict(), config.mask
    return train_step_flops(model, bands, mask.ratio, mask.drop_sensor)
