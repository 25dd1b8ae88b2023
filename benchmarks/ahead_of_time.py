"""Lowers and compiles the library's steps for machines that are not there.

    python benchmarks/ahead_of_time.py --lower

lowers every pretraining and evaluation step for TPUs and NVIDIA GPUs, with nothing
installed but the library. It prints a line a program: its matrix products by the types
of their factors, its sums by type, calls of cuDNN's attention; and what should not be
in it, such as sums in 16 bits or calls of the host.

    pip install -e '.[tpu]'    # and/or '.[cuda13]'; no device is needed
    python benchmarks/ahead_of_time.py --target=v5e:2x4,H100 --config=pretrain_base

compiles a training step by the compilers of TPUs and GPUs and prints one table:

- GB that a device needs, as the compiler has laid them out, and whether they fit
  (JAX takes three quarters of a GPU's memory unless told otherwise);
- ms of computing: on a TPU the sum of XLA's own estimates of cycles, at the clock that
  its peak follows from; on a GPU a bound, see `roofline.py`, of a program whose kernels
  nobody has tuned, as that takes the device;
- ms of sending what the program sends, in rings at the makers' bandwidths: arithmetic;
- pairs/s if sending hides behind computing where XLA has made it asynchronous, and
  nowhere else; and the model's own FLOPs over that time, as a share of the peak.

None of it is a measurement. A whole step takes the compiler half a minute for a GPU and
several for a TPU.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from typing import NamedTuple
from unittest import mock

# The TPU's compiler looks for the machine that it is on, and there is none.
os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "CUDA_VISIBLE_DEVICES": "-1",
}
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax  # noqa: E402
from jax._src.cudnn import fused_attention_stablehlo  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from benchmarks import collectives, hlo, lowered, programs, roofline  # noqa: E402
from fusmae_jax import flops  # noqa: E402
from fusmae_jax.training import pretrain, sharding  # noqa: E402

PLATFORMS = ("tpu", "gpu")
PREDICTED = pathlib.Path(__file__).with_name("predicted.json")


class Gpu(NamedTuple):
    """What XLA has to know of a GPU, from NVIDIA's data sheets and white papers.

    Attributes:
        kind: as JAX names it.
        capability: of CUDA.
        cores: multiprocessors.
        ghz: their highest clock.
        fpus: float32 units of each.
        threads: of each at a time.
        shared: bytes of shared memory of each.
        cache: bytes of the L2 cache.
    """

    kind: str
    capability: tuple[int, int]
    cores: int
    ghz: float
    fpus: int
    threads: int
    shared: int
    cache: int

    def describe(self, memory: float, bandwidth: float) -> str:
        """The target as XLA reads it."""
        major, minor = self.capability
        extension = "feature_extension: ACCELERATED_FEATURES" * (major >= 9)
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024
              threads_per_warp: 32
              shared_memory_per_block: 49152
              shared_memory_per_core: {self.shared}
              shared_memory_per_block_optin: {self.shared - 1024}
              threads_per_core_limit: {self.threads}
              core_count: {self.cores}
              fpus_per_core: {self.fpus}
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              memory_bandwidth: {bandwidth:.0f}
              l2_cache_size: {self.cache}
              clock_rate_ghz: {self.ghz}
              device_memory_size: {memory:.0f}
              cuda_compute_capability {{ major: {major} minor: {minor} {extension} }}
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            runtime_version {{ major: 13 minor: 0 patch: 0 }}
            device_description_str: "{self.kind}"
        """


class Target(NamedTuple):
    """A machine by its makers' data sheets.

    Attributes:
        topology: of its devices, as XLA has it.
        memory: bytes of one device.
        bandwidth: bytes/s of that memory.
        link: bytes/s that one device sends while it receives as many.
        gpu: what it is, if it is a GPU.
    """

    topology: str
    memory: float
    bandwidth: float
    link: float
    gpu: Gpu | None = None

    @property
    def usable(self) -> float:
        """Bytes of a device that JAX takes."""
        return self.memory * (0.75 if self.gpu else 1.0)

    def devices(self):
        """The devices that are not there."""
        if self.gpu is None:
            return topologies.get_topology_desc(
                platform="tpu", topology_name=self.topology
            ).devices
        text = self.gpu.describe(self.memory, self.bandwidth)
        return topologies.get_topology_desc(
            platform="cuda", topology=self.topology, target_config=text
        ).devices


KIB, MIB, GIB = 2**10, 2**20, 2**30
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 128, 2048, 228 * KIB, 50 * MIB)
H200 = H100._replace(kind="NVIDIA H200")
A100 = Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 108, 1.41, 64, 2048, 164 * KIB, 40 * MIB)
ADA = Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 128, 1536, 100 * KIB, 72 * MIB)

# TPUs by Google Cloud's page of each; what a chip sends is half of what it states for
# both directions, and in a slice with edges half of that, as corners have half of the
# neighbours. NVLink likewise: 600 and 900 GB/s are of both directions.
TARGETS = {
    "v5e:2x4": Target("v5e:2x4", 16 * GIB, 819e9, 100e9),
    "v5e:8x8": Target("v5e:8x8", 16 * GIB, 819e9, 100e9),
    "v5p:2x2x1": Target("v5p:2x2x1", 95 * GIB, 2765e9, 300e9),
    "v6e:2x4": Target("v6e:2x4", 32 * GIB, 1640e9, 200e9),
    "RTX 4090": Target("1x1x1", 24 * GIB, 1008e9, 1, ADA),
    "A100 40GB": Target("1x1x1", 40 * GIB, 1555e9, 300e9, A100),
    "H100": Target("1x1x1", 80 * GIB, 3352e9, 450e9, H100),
    "H200": Target("1x1x1", 141e9, 4800e9, 450e9, H200),
    "8xH100": Target("1x1x8", 80 * GIB, 3352e9, 450e9, H100),
}
# Matrix units of a TensorCore, and their side: peak = 2 x units x side^2 x clock.
UNITS = {"TPU v5 lite": (4, 128), "TPU v5": (8, 128), "TPU v6 lite": (4, 256)}
# Without the device nothing can be tuned, and Triton finds no tiles untuned.
UNTUNED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


class Row(NamedTuple):
    """What a compiler made of a training step.

    Attributes:
        target: name of the machine.
        config: name of the config, with what was changed in it.
        batch: pairs of a step, on all devices.
        bytes: that a device needs.
        fits: whether it has them.
        work: the model's FLOPs of a step on a device.
        computing: seconds, by XLA's estimate or a bound.
        sending: seconds, of all that is sent.
        exposed: of those, the ones of collectives that are not asynchronous.
        sent: bytes that a device sends.
        collectives: how many send them.
        asynchronous: how many of these wait for nothing.
        share: of the peak.
        compiling: seconds.
    """

    target: str
    config: str
    batch: int
    bytes: int
    fits: bool
    work: float
    computing: float
    sending: float
    exposed: float
    sent: float
    collectives: int
    asynchronous: int
    share: float
    compiling: float

    @property
    def rate(self) -> float:
        """Pairs/s of all devices."""
        hidden = self.sending - self.exposed
        return self.batch / (max(self.computing, hidden) + self.exposed)


def trust_cudnn():
    """JAX asks for cuDNN's version while it traces; here there is none to ask."""
    return mock.patch.object(
        fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000
    )


def lower_all(only: str) -> int:
    """Prints a line a program; returns how many have faults."""
    count = failed = 0
    print(f"{'program':<32}{'for':<6}{'s':>5}  products; sums; fused attention")
    for platform in PLATFORMS:
        for name, make in programs.every(sharding.make_mesh, platform):
            if only not in name:
                continue
            count += 1
            start, wrong, what = time.perf_counter(), [], ""
            try:
                program = make()
                found = lowered.read(program.lower(platform).as_text())
                wrong, what = lowered.faults(found, program, platform), str(found)
            except Exception as error:  # the others are worth knowing
                wrong = [f"{type(error).__name__}: {error}".splitlines()[0]]
            print(
                f"{name:<32}{programs.LOWERING.get(platform, platform):<6}"
                f"{time.perf_counter() - start:>5.1f}  {what}",
                flush=True,
            )
            for sentence in wrong:
                print(f"    {sentence}", flush=True)
            failed += bool(wrong)
    print(f"{count} programs lowered for tpu and cuda, {failed} failed")
    return failed


def cycles(program: hlo.Program) -> int:
    """XLA's estimates of all that a step runs on a TPU, without what others do beside.

    Of sorts, gathers, collectives and copies in the background there is none.
    """
    inside = {
        op.called().get("calls") for op in program.ops.values() if op.kind == "fusion"
    }
    total = 0
    for home, body in program.bodies.items():
        if home in inside:
            continue
        for op in body:
            found = hlo.CYCLES.search(op.rest)
            total += int(found[1]) * program.times(home) if found else 0
    return total


def computing_seconds(text: str, kind: str, target: Target) -> float:
    """Seconds of a compiled step on one device, see the head of this file."""
    peak = flops.peak(kind)
    if target.gpu:
        kernels = roofline.kernels(text, target.bandwidth, peak)
        return sum(kernel.seconds for kernel in kernels)
    units, side = UNITS[kind]
    return cycles(hlo.Program(text)) / (peak / (2 * units * side**2))


def compile_step(name: str, config_name: str, changes: dict, dump=None) -> Row:
    """Compiles a training step for one of TARGETS."""
    target, config = TARGETS[name], programs.load(config_name, **changes)
    devices = target.devices()
    mesh = sharding.make_mesh(config.fsdp, devices)
    maker = programs.Maker(config, mesh)
    program, _ = maker.pretrain(config.batch_size)
    options, start = UNTUNED if target.gpu else None, time.perf_counter()
    compiled = program.lower(sharding.platform(mesh)).compile(options)
    seconds, text = time.perf_counter() - start, compiled.as_text()
    if dump:
        pathlib.Path(dump).write_text(text)
    kind, found = devices[0].device_kind, collectives.read(text)
    computing = computing_seconds(text, kind, target)
    sending = [(c.sent / target.link, c.asynchronous) for c in found]
    exposed = sum(s for s, beside in sending if not beside)
    total = sum(s for s, _ in sending)
    work = maker.objective.flops() * config.batch_size / len(devices)
    needed = pretrain.step_memory(compiled)
    elapsed = max(computing, total - exposed) + exposed
    changed = [f"{field.split('__')[-1]}={x}" for field, x in changes.items()]
    return Row(
        name,
        " ".join([config_name, *changed]),
        config.batch_size,
        needed,
        needed < target.usable,
        work,
        computing,
        total,
        exposed,
        sum(c.sent for c in found),
        sum(c.times for c in found),
        sum(c.times for c in found if c.asynchronous),
        work / elapsed / flops.peak(kind),
        seconds,
    )


HEAD = (
    "machine | config | pairs a step | GB a device (XLA) | TFLOP a device (arithmetic) "
    "| ms computing (TPU: XLA's estimate, GPU: bound) | ms sending (arithmetic) "
    "| pairs/s | of peak | MB sent (collectives, asynchronous) | compiled in s"
)


def show(row: Row) -> None:
    """Prints a row of the table."""
    usable = TARGETS[row.target].usable
    fits = "" if row.fits else ", does not fit"
    cells = [
        row.target,
        row.config,
        f"{row.batch:,}",
        f"{row.bytes / 1e9:.1f} of {usable / 1e9:.1f}{fits}",
        f"{row.work / 1e12:.2f}",
        f"{1e3 * row.computing:.1f}",
        f"{1e3 * row.sending:.1f}",
        f"{row.rate:,.0f}",
        f"{row.share:.1%}",
        f"{row.sent / 1e6:,.0f} ({row.collectives}, {row.asynchronous})",
        f"{row.compiling:.0f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def remember(row: Row) -> None:
    """Keeps what `benchmarks/gpu.sh` prints beside what it measures."""
    known = json.loads(PREDICTED.read_text()) if PREDICTED.exists() else {}
    ms, gb = round(1e3 * row.computing, 1), round(row.bytes / 1e9, 1)
    name = f"{row.target} {row.config.split()[0]} {row.batch}"
    known[name] = {"ms": ms, "gb": gb}
    PREDICTED.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def value(text: str):
    """A field's value as a command line has it."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lower", action="store_true", help="lower everything")
    parser.add_argument("--only", default="", help="programs whose name has this")
    parser.add_argument("--target", default="", help=f"some of {', '.join(TARGETS)}")
    parser.add_argument("--config", default="pretrain_base", help="of configs/, A,B")
    parser.add_argument(
        "--set", nargs="*", default=[], help="model.remat=dots batch_size=512 ..."
    )
    parser.add_argument(
        "--remember", action="store_true", help=f"in {PREDICTED.name}, for gpu.sh"
    )
    parser.add_argument("--dump", help="a file for the last program's text")
    args = parser.parse_args()
    if args.lower == bool(args.target):
        parser.error("pass --lower, or --target=NAME")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)  # before the first use of a device
    with trust_cudnn():
        if args.lower:
            sys.exit(lower_all(args.only) > 0)
        changes = dict(x.split("=", 1) for x in args.set)
        changes = {k.replace(".", "__"): value(v) for k, v in changes.items()}
        print(f"| {HEAD} |\n|{'---|' * (HEAD.count('|') + 1)}")
        for target in args.target.split(","):
            for config in args.config.split(","):
                row = compile_step(target, config, changes, args.dump)
                show(row)
                if args.remember:
                    remember(row)


if __name__ == "__main__":
    main()
