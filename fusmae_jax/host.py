"""The host's memory, for runs in which it is the device's memory too."""

import ctypes
import glob
import os
import sys

# Of malloc.h and sys/mman.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
MADV_HUGEPAGE = 14
HUGE_PAGE = 2**21
ACCELERATORS = (
    *("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd"),  # GPUs, under WSL, of AMD
    *("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"),  # TPUs
)


def prepare() -> bool:
    """Lets glibc keep the memory of a run on the CPU, in huge pages.

    XLA's CPU backend asks malloc for the buffers of every step anew. As it comes,
    malloc gives large ones back to the kernel each time, which clears them again page
    by page: hundreds of thousands of page faults a step, up to a fifth of its time.
    After this, one heap serves all threads, is never given back, and lies in huge
    pages; it still takes no more memory than is touched. Threads keep the heap they
    began with, so call it before JAX starts its own.

    Returns:
        Whether it was done. Not with an accelerator at hand, as hosts then allocate
        little; nor with another C library; nor where FUSMAE_HOST_MEMORY=plain.
    """
    if not sys.platform.startswith("linux") or not _for_cpu():
        return False
    libc = ctypes.CDLL(None)
    if os.environ.get("FUSMAE_HOST_MEMORY") == "plain" or not hasattr(libc, "mallopt"):
        return False
    for option, value in ((M_TRIM_THRESHOLD, -1), (M_MMAP_MAX, 0), (M_ARENA_MAX, 1)):
        libc.mallopt(option, value)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # The heap grows to half of the machine at once. Nothing of it is touched, so it is
    # addresses, not memory; where the machine refuses, the heap grows as needed.
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    start = libc.malloc(size)
    if start:
        first = -(-start // HUGE_PAGE) * HUGE_PAGE
        whole = (start + size - first) // HUGE_PAGE * HUGE_PAGE
        libc.madvise(first, whole, MADV_HUGEPAGE)
        libc.free(start)
    return True


def _for_cpu() -> bool:
    """Whether JAX will run on the CPU, told without starting it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not any(glob.glob(pattern) for pattern in ACCELERATORS)
