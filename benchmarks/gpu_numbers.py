"""Finds the numbers worth a line in what a part of benchmarks/gpu.sh has printed.

    python3 benchmarks/gpu_numbers.py PART LOG

prints them, and fails where they are not there. Beside the step's stands what was
predicted ahead of time, if benchmarks/predicted.json knows the device and batch:
{"H200 pretrain_base 512": {"ms": 70.0, "gb": 40.0}}, of 10^9 bytes. Needs Python alone.
"""

import json
import pathlib
import re
import statistics
import sys

PREDICTED = pathlib.Path(__file__).with_name("predicted.json")


def find(pattern: str, text: str) -> list[str]:
    """All that the pattern's only group finds in a log, or ValueError."""
    found = re.findall(pattern, text, re.MULTILINE)
    if not found:
        raise ValueError(f"nothing in it looks like {pattern!r}")
    return found


def any_line(log: str) -> str:
    return find(r"^(.*\S)\s*$", log)[-1]


def smoke(log: str) -> str:
    device = find(r"^(\d+ x .*)$", log)[-1]
    return f"{device}; {find(r'^(loss .* at step .*)$', log)[-1]}"


def table_row(log: str) -> tuple[str, dict[str, str]]:
    """The device, and the last row of the table of benchmarks/pretrain_step.py."""
    device = find(r"^\d+ x (.*), jax ", log)[-1]
    lines = log.splitlines()
    header = next(i for i, line in enumerate(lines) if "images/s" in line)
    names = re.split(r"\s{2,}", lines[header].strip())
    cells = lines[header + 1].split()
    if len(names) != len(cells):
        raise ValueError(f"the row says: {lines[header + 1].strip()}")
    return device, dict(zip(names, cells))


def step(log: str) -> str:
    device, row = table_row(log)
    name = device.removeprefix("NVIDIA ").split()[0]
    key = f"{name} pretrain_base {row['batch']}"
    known = json.loads(PREDICTED.read_text()) if PREDICTED.exists() else {}
    ahead = known.get(key, {"ms": "-", "gb": "-"})
    memory = float(row["GiB"]) * 2**30 / 1e9
    used = "-" if row["in use"] == "-" else f"{float(row['in use']) * 2**30 / 1e9:.1f}"
    return (
        f"batch {row['batch']}: {row['images/s']} images/s, {row['TFLOP/s']} TFLOP/s, "
        f"MFU {row['of peak']}, {row['ms/step']} ms (predicted {ahead['ms']}), "
        f"{memory:.1f} GB (predicted {ahead['gb']}), most in use {used} GB, "
        f"compiled in {row['compile s']} s"
    )


def profile(log: str) -> str:
    _, row = table_row(log)
    return f"{row['ms/step']} ms a step while traced"


def race(log: str) -> str:
    rows = find(r"^(\S.*?\s+[\d.]+\s+[\d.]+ x\s+[\d.]+ - [\d.]+)(?:\s+[\d.]+)?$", log)
    parts = []
    for row in rows:
        name, speed, times, span = re.split(r"\s{2,}", row)
        ratio = "" if name == "JAX" else f" (JAX is {times}, {span})"
        parts.append(f"{name} {speed} images/s{ratio}")
    return "; ".join(parts)


def records(log: str) -> str:
    return find(r"^(\d+ pairs, .* MB)$", log)[-1]


def fed(log: str) -> str:
    rates = [float(x) for x in find(r"([\d.]+) img/s", log)]
    waits = [float(x) for x in find(r"([\d.]+)% waiting for data", log)]
    start = find(r"^(First step after [\d.]+ s)", log)[-1]
    mfu = re.findall(r"([\d.]+)% MFU", log)
    text = f"{statistics.median(rates):.1f} images/s, " + (
        f"MFU {statistics.median(map(float, mfu)):.1f}%, " if mfu else ""
    )
    waited = f"waited for data {statistics.median(waits):.1f}% (at most {max(waits)}%)"
    return f"{text}{waited}, {start[0].lower()}{start[1:]}"


def attention(log: str) -> str:
    rows = find(r"^([a-z, ]+\s\s+\d+\s+[\d-]+\s+[\d-]+)$", log)
    return "us by xla / cudnn: " + "; ".join(
        "{} {}: {} / {}".format(*re.split(r"\s{2,}", row)) for row in rows
    )


def agreement(log: str) -> str:
    return find(r"^(\d+ losses, at most \S+ apart)$", log)[-1]


def reading(log: str) -> str:
    return find(r"^\w[\w ]*: ((?:not )?input-bound: .*)$", log)[-1]


READERS = {
    "smoke": smoke,
    "step": step,
    "profile": profile,
    "race": race,
    "records": records,
    "fed": fed,
    "attention": attention,
    "agreement": agreement,
    "agreement_bfloat16": agreement,
    "reading": reading,
}


def main(part: str, path: str) -> None:
    log = pathlib.Path(path).read_text(errors="replace")
    try:
        print(READERS.get(part, any_line)(log))
    except (ValueError, KeyError, LookupError, StopIteration) as error:
        sys.exit(f"No numbers of {part} were found: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
