"""Before the first step: memory, threads, the compile cache, and how long it took.

Importing this file does not import jax.
"""

import contextlib
import ctypes
import glob
import logging
import os
import pathlib
import re
import sys
import time

log = logging.getLogger("fusmae_jax")

CACHE_BYTES = 4 * 2**30
_IMPORTED = time.monotonic()
# Of malloc.h and sys/mman.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
MADV_HUGEPAGE = 14
HUGE_PAGE = 2**21
ACCELERATORS = (
    *("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd"),  # GPUs, under WSL, of AMD
    *("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"),  # TPUs
)


def keep_host_memory() -> bool:
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


def have_threads_enough() -> None:
    """Lets XLA have threads enough for the devices that a CPU is asked to play.

    Each may wait in two collectives at once, a thread each. With as many threads as
    devices, as on hosts of few cores, the last one has none to arrive with, and XLA
    aborts. A PJRT_NPROC that is set stays. Call it before the first use of a device.
    """
    flag = r"--xla_force_host_platform_device_count=(\d+)"
    asked = re.findall(flag, os.environ.get("XLA_FLAGS", ""))
    asked += re.findall(r"^\d+$", os.environ.get("JAX_NUM_CPU_DEVICES", ""))
    devices = max(map(int, asked), default=1)
    if devices > 1:
        threads = max(4 * devices, os.cpu_count() or 1)
        os.environ.setdefault("PJRT_NPROC", str(threads))


def seconds_since_launch() -> float:
    """Seconds since this process started: interpreter and imports included.

    Where the system does not tell when that was, since this file was imported.
    """
    try:
        stat = pathlib.Path("/proc/self/stat").read_text()
        # The 22nd field, in clock ticks since the machine started; counted from the
        # end of the second, the program's name, which may hold spaces.
        ticks = int(stat.rpartition(")")[2].split()[19])
        started = ticks / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, LookupError, AttributeError):
        return time.monotonic() - _IMPORTED


def enable_compile_cache() -> None:
    """Keeps what XLA compiles, so that the next run need not compile it again.

    To be called before anything is compiled. A cache that JAX has been told of, by
    JAX_COMPILATION_CACHE_DIR or otherwise, stays as it is, and
    JAX_ENABLE_COMPILATION_CACHE=false turns this off. JAX's keys name the compiler, its
    options and the devices, of a CPU its instruction set: different machines may share
    a home. Several hosts have no cache unless told of one that all of them see.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is not None:
        return
    if not jax.config.jax_enable_compilation_cache:
        return
    # Of several hosts only the first writes. Where the others do not see what it wrote
    # they would compile alone, and on GPUs wait for its share of the tuning.
    if jax.process_count() > 1:
        return
    try:
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = pathlib.Path(root).expanduser() / "fusmae_jax" / "jax"
        # For this user alone: who can write here can run code in the next run.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} is not writable")
        prune(folder, CACHE_BYTES)
    except (OSError, RuntimeError) as error:
        log.warning(
            "The next run will compile everything again (%s); name another folder with "
            "JAX_COMPILATION_CACHE_DIR.",
            error,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def prune(folder: pathlib.Path, limit: int) -> None:
    """Deletes the files below `folder` that nobody used for longest.

    Args:
        folder: where to look.
        limit: bytes that may stay.
    """
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another run prunes, too
            if path.is_file():
                stat = path.stat()
                found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    for _, size, path in sorted(found, reverse=True):
        limit -= size
        if limit < 0:
            path.unlink(missing_ok=True)
