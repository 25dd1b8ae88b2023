"""Counts what a training step sends between devices, and what it keeps on each.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --config=pretrain_base --devices=8,64 --fsdp=1,all

Compiles the real step for fake CPU devices without allocating an array, and prints

1. the bytes of each kind of collective in XLA's partitioned program, which every
   backend starts from, beside those that no step of this kind can do without, and the
   sum in what the CPU makes of it: float32 only, and no reduce-scatter; below, what
   is sent without need, with the line of the model that asked for it;
2. the memory of one device. Compiled for the CPU: a GPU or TPU fuses more, keeps
   bfloat16 where the CPU converts to float32, and so needs less for temporaries;
3. images/s of machines nobody ran this on, from a share of the peak, bytes sent and
   the makers' bandwidths: a prediction. Communication hides behind arithmetic
   completely in one bound and not at all in the other.
"""

import argparse
import collections
import importlib
import pathlib
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax  # noqa: E402

from benchmarks import collectives  # noqa: E402
from fusmae_jax import flops, sharding  # noqa: E402

# Compiling the deeper ones takes long.
DEVICES = {"pretrain_base": "1,2,4,8,16,32,64"}
DEEPER = "1,8,64"
# A prime number of pairs a device tells the batch from everything else in a program.
ROWS = 31


class Machine(NamedTuple):
    """A machine by its makers' data sheets.

    Attributes:
        name: as printed.
        kind: what JAX calls its devices.
        devices: how many.
        link: bytes/s that one device can send while it receives as many.
        memory: bytes of one device.
    """

    name: str
    kind: str
    devices: int
    link: float
    memory: float


# H100 SXM: 900 GB/s of NVLink in both directions together (NVIDIA H100 data sheet).
# v5e: 400 GB/s of ICI in both directions together on 4 ports (Google Cloud, TPU v5e);
# in a slice of 8 x 8 the corners have neighbours on 2 of them, so half is counted.
MACHINES = (
    Machine("8 x H100", "H100", 8, 450e9, 80e9),
    Machine("v5e-64 slice", "TPU v5e", 64, 100e9, 16e9),
)


class Row(NamedTuple):
    """What was found for one config on some devices.

    Attributes:
        config: its name.
        devices: how many.
        fsdp: of them share one copy of the parameters.
        rows: pairs on each.
        found: the partitioned program's collectives.
        needed: bytes by kind, see `collectives.needed`.
        on_cpu: bytes of all collectives in the CPU's program.
        whole: arrays of the whole batch; None where they cannot be told.
        memory: `memory_analysis` of the compiled step.
    """

    config: str
    devices: int
    fsdp: int
    rows: int
    found: list[collectives.Collective]
    needed: dict[str, int]
    on_cpu: int
    whole: set[str] | None
    memory: object


def load(name: str):
    """The config of that name, as it is on the machines that are spoken of."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.model.dtype = "bfloat16"
    return config


def mesh_of(devices: int, fsdp: int) -> jax.sharding.Mesh:
    """A mesh like `sharding.make_mesh`'s, over the first `devices` alone."""
    mesh = sharding.make_mesh()
    some = mesh.devices.ravel()[:devices].reshape(-1, fsdp)
    return jax.sharding.Mesh(some, mesh.axis_names, axis_types=mesh.axis_types)


def measure(name: str, devices: int, fsdp: int, rows: int) -> Row:
    """Compiles the step of one config for some devices."""
    config, mesh = load(name), mesh_of(devices, fsdp)
    lowered, state = collectives.lower(config, mesh, devices * rows)
    compiled, text = collectives.compile_both(lowered)
    tokens = (config.model.image_size // config.model.patch_size) ** 2
    told = devices > 1 and tokens % devices
    return Row(
        name,
        devices,
        fsdp,
        rows,
        collectives.read(text),
        collectives.needed(state, mesh, config.model.dtype),
        sum(c.total for c in collectives.read(compiled.as_text())),
        collectives.whole_batches(text, devices * rows) if told else None,
        compiled.memory_analysis(),
    )


def of_kind(found: list[collectives.Collective], kind: str) -> int:
    return sum(c.total for c in found if c.kind == kind)


def unneeded(row: Row) -> list[collectives.Collective]:
    """Collectives of a kind that the step should not have, or of the batch's size."""
    return [
        c
        for c in row.found
        if c.kind not in row.needed or collectives.holds_rows(c.shape, row.rows)
    ]


def table(title: str, head: list[str], rows: list[list]) -> None:
    """Prints a table in markdown."""
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def show_bytes(rows: list[Row]) -> None:
    kinds = ("all-gather", "reduce-scatter", "all-reduce")
    head = ["config", "devices", "fsdp"] + [f"{kind}, MB (needed)" for kind in kinds]
    cells = []
    for row in rows:
        pairs = [(of_kind(row.found, kind), row.needed.get(kind, 0)) for kind in kinds]
        moved = [f"{got / 1e6:.1f} ({want / 1e6:.1f})" for got, want in pairs]
        whole = "" if row.whole is None else len(row.whole)
        waste = sum(c.total for c in unneeded(row))
        rest = [f"{waste / 1e6:.1f}", f"{row.on_cpu / 1e6:.1f}", whole]
        cells.append([row.config, row.devices, row.fsdp, *moved, *rest])
    head += ["unneeded, MB", "all, by the CPU, MB", "arrays of the whole batch"]
    table("Bytes of the collectives of a step", head, cells)
    for row in rows:
        where = f"{row.config}, {row.devices} devices, fsdp={row.fsdp}"
        wasted = collections.Counter((c.kind, c.shape, c.line) for c in unneeded(row))
        for (kind, shape, line), count in wasted.items():
            print(f"{where}: {count} x {kind} {shape} at {line}")


def show_memory(rows: list[Row], pairs: int) -> None:
    cells = []
    for row in rows:
        m = row.memory
        new = m.output_size_in_bytes - m.alias_size_in_bytes
        sizes = m.argument_size_in_bytes, m.temp_size_in_bytes, new
        names = [row.config, row.devices, row.fsdp]
        cells.append(names + [f"{x:,}" for x in (*sizes, sum(sizes))])
    head = ["config", "devices", "fsdp", "arguments", "temporaries", "output", "all"]
    title = f"Bytes on one device, {pairs} pairs each, by the CPU's compiler"
    table(title, head, cells)


def predict(row: Row, machine: Machine, mfu: float) -> tuple[float, float, float]:
    """Predicts a machine's images/s at the config's batch size.

    Args:
        row: for as many devices as the machine has.
        machine: the machine.
        mfu: share of the peak that one device alone reaches, the optimiser and the
            data path counted in.

    Returns:
        Images/s if nothing hides communication, images/s if arithmetic hides as much as
        it can, and the seconds a step communicates.
    """
    config = load(row.config)
    work = config.batch_size / machine.devices * flops.per_image(config)
    computes = work / (mfu * flops.peak(machine.kind, config.model.dtype))
    # Rings, each device sending at full rate all the time.
    sends = sum(c.sent for c in row.found) / machine.link
    slow, fast = computes + sends, max(computes, sends)
    return config.batch_size / slow, config.batch_size / fast, sends


def show_predictions(rows: list[Row], mfu: float) -> None:
    cells = []
    for machine in MACHINES:
        for row in rows:
            if row.devices != machine.devices:
                continue
            slow, fast, sends = predict(row, machine, mfu)
            batch, m = load(row.config).batch_size, row.memory
            # Temporaries are activations nearly all, and grow with the batch.
            pairs = batch / machine.devices / row.rows
            takes = m.argument_size_in_bytes + pairs * m.temp_size_in_bytes
            cells.append(
                [machine.name, row.config, row.fsdp, batch, f"{1e3 * sends:.1f}"]
                + [f"{slow:,.0f}", f"{fast:,.0f}", f"{slow / fast:.0%}"]
                + [f"{takes / 1e9:.0f} of {machine.memory / 1e9:.0f}"]
            )
    head = ["machine", "config", "fsdp", "batch", "ms sending"]
    head += ["images/s, nothing hidden", "images/s, all hidden", "ratio", "GB"]
    table(f"PREDICTION at {mfu:.0%} of each device's peak", head, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = "pretrain_base,pretrain_large,pretrain_huge"
    parser.add_argument("--config", default=names, help="of configs/, A,B")
    parser.add_argument("--devices", help="how many, 1,8,64")
    parser.add_argument("--fsdp", default="1,all", help="devices to one copy, 1,8,all")
    parser.add_argument("--batch", type=int, default=ROWS, help="a prime")
    parser.add_argument("--mfu", type=float, default=0.5, help="share of the peak")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 64)  # before the first use of a device

    rows = []
    for name in args.config.split(","):
        counts = args.devices or DEVICES.get(name, DEEPER)
        for devices in map(int, counts.split(",")):
            given = args.fsdp.split(",")
            splits = {devices if x == "all" else int(x) for x in given}
            for fsdp in sorted(x for x in splits if devices % x == 0):
                rows.append(measure(name, devices, fsdp, args.batch))
                print(f"{name}: {devices} devices, fsdp={fsdp}", file=sys.stderr)
    show_bytes([row for row in rows if row.devices > 1])
    show_memory(rows, args.batch)
    show_predictions(rows, args.mfu)


if __name__ == "__main__":
    main()
