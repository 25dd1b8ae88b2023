"""Kills runs at random moments, resumes them on other devices, compares every number.

    python tests/faults/kills.py --kills=50
    python tests/faults/kills.py --kills=20 --layouts=one

A tiny run is launched again and again on layouts taken at random, and each launch is
killed with SIGKILL, as the machine that is taken away would do it: while it starts,
some steps after it has resumed, or while a checkpoint is being written. When a run has
come to its end all the same, the next one begins. Whatever was ever written is compared
with a run of the same config that nothing happened to, on the first of the layouts: the
losses of every step, held-out losses, final parameters, and the final scores. Prints a
table of the kills and a line that sums up; exits with an error if losses differ by more
than 1e-5 or parameters by more than 1e-3, or anything at all where the devices are the
same, or if a row of the metrics is missing or there twice.

The run is that of `killed_run.py`.
"""

import argparse
import json
import pathlib
import random
import sys
import tempfile
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from tests.faults.killed_run import EVAL_EVERY, STEPS  # noqa: E402
from tests.faults.launches import (  # noqa: E402
    LAYOUTS,
    Launch,
    Layout,
    draw_moment,
    finish,
    last_step,
    read_rows,
    wait_for,
)

NUMBERS = ("loss", "loss_s1", "loss_s2", "lr", "grad_norm")
NUMBERS += ("eval_loss", "eval_loss_s1", "eval_loss_s2")
LIMIT, ENDS = 1e-5, 1e-3  # of losses and of final parameters, between layouts


def same_devices(layouts: list[Layout]) -> bool:
    """Whether all layouts compute alike, whoever reads."""
    return len({(x.processes, x.devices, x.fsdp) for x in layouts}) == 1


def compare(rows: list[dict], wanted: list[dict]) -> float:
    """The largest relative difference of any number from that of the same step."""
    want = {(row["step"], name): row[name] for row in wanted for name in row}
    pairs = [
        (row[name], want[row["step"], name])
        for row in rows
        for name in NUMBERS
        if name in row
    ]
    return max((abs(a - b) / (abs(b) or 1.0) for a, b in pairs), default=0.0)


def check_whole(rows: list[dict]) -> None:
    """Refuses metrics with gaps, duplicates, or out of order."""
    steps = [row["step"] for row in rows if "loss" in row]
    judged = [row["step"] for row in rows if "eval_loss" in row]
    if steps != list(range(1, STEPS + 1)):
        raise RuntimeError(f"The metrics hold the steps {steps}.")
    if judged != list(range(EVAL_EVERY, STEPS + 1, EVAL_EVERY)):
        raise RuntimeError(f"Held-out losses are there of the steps {judged}.")


def read_end(workdir: pathlib.Path) -> tuple[dict, dict]:
    """The final parameters by name, and the final scores."""
    import jax

    from fusmae_jax import build
    from fusmae_jax.training import checkpoint, run_directory, sharding

    config, _ = run_directory.load(workdir)
    objective = build.objective(config)
    wanted = build.abstract_params(objective, sharding.make_mesh())
    step, params = checkpoint.restore_params(workdir / "checkpoints", wanted)
    if step != STEPS:
        raise RuntimeError(f"The last checkpoint is of step {step}.")
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    scores = json.loads((workdir / "scores.json").read_text())
    return {jax.tree_util.keystr(k): x for k, x in leaves}, scores


def compare_ends(workdir: pathlib.Path, whole: pathlib.Path, exact: bool) -> float:
    """The largest difference of final parameters and scores.

    Of a parameter relative to the largest of its array. Unless `exact`, the biases of
    keys are left out: softmax is blind to them, so their gradient is nothing but
    rounding, which Adam makes as large as any other.
    """
    import numpy as np

    (got, scores), (want, wanted) = read_end(workdir), read_end(whole)
    apart = [
        np.abs(got[name] - want[name]).max() / max(np.abs(want[name]).max(), 1e-30)
        for name in want
        if exact or "['key']['bias']" not in name
    ]
    for name, errors in wanted["mean_squared_error"].items():
        for s, error in errors.items():
            apart.append(abs(scores["mean_squared_error"][name][s] / error - 1.0))
    return float(max(apart))


class Campaign(NamedTuple):
    """What came of it: one row a kill, the ends of the runs, largest differences."""

    kills: list[tuple]
    runs: int
    rows: float
    ends: float


def run_campaign(
    folder: pathlib.Path, kills: int, layouts: list[Layout], seed: int, show=print
) -> Campaign:
    """Kills runs in `folder` until there were so many kills and the last has ended.

    Args:
        folder: where the run directories go; an uninterrupted one may be there as
            `whole`.
        kills: how many.
        layouts: to choose from; the first is that of the uninterrupted run.
        seed: of moments and layouts.
        show: is called with lines of the table.

    Raises:
        RuntimeError: a launch fails, or the metrics have gaps or duplicates.
    """
    chance, whole = random.Random(seed), folder / "whole"
    if not (whole / "scores.json").exists():
        finish(Launch(whole, layouts[0]))
    wanted = read_rows(whole)
    check_whole(wanted)
    done, runs, most, ends, exact = [], 0, 0.0, 0.0, same_devices(layouts)
    show("| kill | when | steps logged | launched on | largest difference |")
    show("|---|---|---|---|---|")
    while len(done) < kills:
        workdir = folder / f"killed-{seed}-{runs}"
        while True:
            layout, moment = chance.choice(layouts), draw_moment(chance)
            launch = Launch(workdir, layout)
            try:
                killed = len(done) < kills and wait_for(moment, launch, workdir)
                if not killed:
                    finish(launch)
            finally:
                launch.kill()
            rows = read_rows(workdir)
            apart = compare(rows, wanted)
            most = max(most, apart)
            if not killed:
                break
            done.append((str(moment), last_step(workdir), layout, apart))
            on = ", ".join(f"{k} {v}" for k, v in layout._asdict().items())
            show(f"| {len(done)} | {moment} | {done[-1][1]} | {on} | {apart:.1e} |")
        check_whole(rows)
        ends, runs = max(ends, compare_ends(workdir, whole, exact)), runs + 1
        show(f"| - | the end of run {runs} | {STEPS} | | {apart:.1e} |")
    return Campaign(done, runs, most, ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="how many")
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="of them, A,B")
    parser.add_argument("--seed", type=int, default=0, help="of moments and layouts")
    parser.add_argument("--folder", help="to keep the runs in; deleted otherwise")
    args = parser.parse_args()
    layouts = [LAYOUTS[name] for name in args.layouts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(args.folder or folder)
        found = run_campaign(folder, args.kills, layouts, args.seed)
    print(
        f"{len(found.kills)} kills in {found.runs} runs of {STEPS} steps, seed "
        f"{args.seed}: losses differ by {found.rows:.1e} at most, final parameters and "
        f"scores by {found.ends:.1e}; no row is missing or there twice."
    )
    exact = same_devices(layouts)
    if found.rows > (0.0 if exact else LIMIT) or found.ends > (0.0 if exact else ENDS):
        sys.exit("That is too much.")


if __name__ == "__main__":
    main()
