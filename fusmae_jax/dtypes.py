"""In which type products are computed, and what "auto" stands for.

Importing this file does not import jax.
"""

import pathlib
from collections.abc import Container

from data_pipeline.errors import InputError

AUTO = "auto"
DTYPES = ("float32", "bfloat16")  # the rougher after the finer

CPUINFO = pathlib.Path("/proc/cpuinfo")
MATRIX = "amx_bf16"  # multiplies tiles of bfloat16
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", MATRIX)


def cpu() -> tuple[str, tuple[str, ...]]:
    """The name of this machine's processor, and which of INSTRUCTIONS it has.

    None that are known where the system does not tell, as outside Linux.
    """
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return "unknown CPU", ()
    rows = (line.partition(":") for line in lines)
    said = {key.strip(): value.strip() for key, _, value in rows}  # all cores alike
    flags = said.get("flags", "").split()
    name = said.get("model name", "unknown CPU")
    return name, tuple(x for x in INSTRUCTIONS if x in flags)


def resolve_dtype(
    dtype: str, platform: str, instructions: Container[str] | None = None
) -> str:
    """The type that a config's `model.dtype` means on a device.

    Args:
        dtype: "auto", or one of DTYPES, which means itself.
        platform: of the device, as JAX names it.
        instructions: that the CPU has; those of this machine by default.

    Returns:
        Of "auto", "bfloat16" on TPUs, GPUs, and CPUs with instructions that multiply
        matrices of it; "float32" elsewhere, as rounding ought to buy something.
    """
    if dtype != AUTO:
        return dtype
    if platform == "cpu":
        known = cpu()[1] if instructions is None else instructions
        return "bfloat16" if MATRIX in known else "float32"
    return "bfloat16" if platform in ("tpu", "gpu") else "float32"


def settled(dtype):
    """The same type; an InputError says that nobody has resolved it yet."""
    if str(dtype) == AUTO:
        raise InputError(
            "No model computes in dtype 'auto'; give it what that stands for on your "
            "devices, see fusmae_jax.dtypes.resolve_dtype."
        )
    return dtype
