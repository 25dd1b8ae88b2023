"""What devices can do, and what layers ask of them."""

import re

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


def linear(tokens: int, inputs: int, outputs: int) -> int:
    """FLOPs of a linear layer on some tokens, from as many channels to others."""
    return 2 * tokens * inputs * outputs


def block(queries: int, keys: int, dim: int) -> int:
    """FLOPs of attention from some tokens to others, and an MLP on the former."""
    # Queries and output, keys and values, scores and the sum they weight.
    attention = 2 * linear(queries, dim, dim) + 2 * linear(keys, dim, dim)
    attention += 2 * linear(queries, keys, dim)
    return attention + 2 * linear(queries, dim, 4 * dim)
