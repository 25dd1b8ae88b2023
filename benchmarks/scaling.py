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
import pathlib
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax  # noqa: E402

from benchmarks import collectives, programs  # noqa: E402
from fusmae_jax.training import sharding  # noqa: E402

# Compiling the deeper ones takes long.
DEVICES = {"pretrain_base": "1,2,4,8,16,32,64"}
DEEPER = "1,8,64"
# A prime number of pairs a device tells the batch from everything else in a program.
ROWS = 31


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


def mesh_of(devices: int, fsdp: int) -> jax.sharding.Mesh:
    """A mesh like `sharding.make_mesh`'s, over the first `devices` alone."""
    mesh = sharding.make_mesh()
    some = mesh.devices.ravel()[:devices].reshape(-1, fsdp)
    return jax.sharding.Mesh(some, mesh.axis_names, axis_types=mesh.axis_types)


def measure(name: str, devices: int, fsdp: int, rows: int) -> Row:
    """Compiles the step of one config for some devices."""
    config, mesh = programs.load(name), mesh_of(devices, fsdp)
    program, state = programs.Maker(config, mesh).pretrain(devices * rows)
    compiled, text = collectives.compile_both(program.lower("cpu"))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = "pretrain_base,pretrain_large,pretrain_huge"
    parser.add_argument("--config", default=names, help="of configs/, A,B")
    parser.add_argument("--devices", help="how many, 1,8,64")
    parser.add_argument("--fsdp", default="1,all", help="devices to one copy, 1,8,all")
    parser.add_argument("--batch", type=int, default=ROWS, help="a prime")
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


if __name__ == "__main__":
    main()
