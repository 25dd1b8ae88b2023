r"""Damages files that strangers may send, and has every reader read them.

    python tests/faults/fuzz.py --inputs=200000 --seed=0

The same seed makes the same inputs. Each may be read, or refused with an InputError;
anything else is a bug: another exception, more than --seconds of CPU time, more than
--memory MB, or the death of the process. Bugs are listed with their input, which is
left in --keep=DIR.

--targets chooses some readers of `fuzz_targets`, by name.
"""

import collections
import faulthandler
import json
import logging
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator

from absl import app, flags
from absl import logging as absl_logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

_INPUTS = flags.DEFINE_integer("inputs", 20_000, "Inputs over all targets.")
_SEED = flags.DEFINE_integer("seed", 0, "What they are drawn from.")
_TARGETS = flags.DEFINE_list("targets", [], "Some of fuzz_targets.TARGETS, or all.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "CPU time that an input may take.")
_MEMORY = flags.DEFINE_integer("memory", 1024, "MB that reading may take.")
_KEEP = flags.DEFINE_string("keep", "", "Where inputs that show a bug are left.")
_CHILD = flags.DEFINE_boolean("child", False, "Internal: read in this process.")
_SKIP = flags.DEFINE_integer("skip", 0, "Internal: targets that are done with.")

SILENCE = 600  # seconds for a few hundred inputs, after which a process is ended
WIDTHS = {
    **{"inputs": 8, "read": 8, "refused": 8, "other": 6},
    **{"slowest ms": 11, "peak MB": 8},
}


class Slow(BaseException):
    """Raised in the midst of reading; no parser takes it for an error of its own."""


def fuzz(name: str, target, inputs: int, seed: int, folder: pathlib.Path) -> dict:
    """Has a target read so many inputs; returns a row of the table and the bugs."""
    from data_pipeline.errors import InputError

    counts, bugs, slowest, before = collections.Counter(), {}, 0.0, memory("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    signal.signal(signal.SIGPROF, _too_slow)
    for i in range(inputs):
        if i % 256 == 0:  # ends a process that waits for something
            faulthandler.dump_traceback_later(SILENCE, exit=True)
        rng = random.Random(f"{seed} {name} {i}")
        data = rng.choice(target.mutate)(rng, rng.choice(target.seeds), target.seeds)
        (folder / "input").write_bytes(data)  # what is left if the process dies
        start = time.process_time()  # other processes do not count
        signal.setitimer(signal.ITIMER_PROF, _SECONDS.value)
        try:
            target.read(data)
            counts["read"] += 1
        except InputError:
            counts["refused"] += 1
        except (Exception, Slow) as error:
            counts["other"] += 1
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{pathlib.Path(frame.filename).name}:{frame.lineno}"
            name_of_bug = f"{type(error).__name__} at {where}"
            bugs.setdefault(name_of_bug, (i, f"{error!s:.150}"))
            keep(name, i, data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - start)
    faulthandler.cancel_dump_traceback_later()
    return {
        "inputs": inputs,
        **{kind: counts[kind] for kind in ("read", "refused", "other")},
        "slowest ms": 1e3 * slowest,
        "peak MB": memory("VmHWM") - before,
        "bugs": bugs,
    }


def _too_slow(*_):
    raise Slow(f"not done in {_SECONDS.value} s")


def keep(name: str, number: int, data: bytes) -> None:
    """Leaves an input that shows a bug."""
    if _KEEP.value:
        path = pathlib.Path(_KEEP.value, f"{name}-{_SEED.value}-{number}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def memory(kind: str) -> float:
    """Memory of this process in MB, as /proc has it: VmRSS, or VmHWM for the peak."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith(kind + ":"))


def child(folder: pathlib.Path) -> None:
    """Reads in this process, and prints a line of JSON for each target."""
    from tests.faults import fuzz_targets

    # GDAL tells what it makes of each file, and root's handler would print all of it.
    logging.getLogger("rasterio").propagate = False
    logging.getLogger("rasterio").addHandler(logging.NullHandler())
    absl_logging.set_verbosity(absl_logging.WARNING)  # TFDS tells what it opens
    known = fuzz_targets.TARGETS
    made = {}
    for name in _TARGETS.value or known:
        inside = folder / name
        inside.mkdir(parents=True, exist_ok=True)
        made[name] = known[name](inside)
    weights = sum(target.weight for target in made.values())
    mapped = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = mapped * resource.getpagesize() + (_MEMORY.value << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name, target in list(made.items())[_SKIP.value :]:
        inputs = round(_INPUTS.value * target.weight / weights)
        print(json.dumps({"name": name, "inputs": inputs}), flush=True)
        row = fuzz(name, target, inputs, _SEED.value, folder)
        print(json.dumps(row), flush=True)


def rows() -> Iterator[tuple[str, dict]]:
    """Has child processes read all, and another one go on where one dies."""
    done, begun = 0, {"name": ""}
    while begun:
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"TMPDIR": folder, "TQDM_DISABLE": "1"}
            command = [sys.executable, *sys.argv, "--child", f"--skip={done}"]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=environment
            )
            begun = None
            for line in process.stdout:
                if begun is None:
                    begun = json.loads(line)
                else:
                    yield begun["name"], json.loads(line)
                    begun, done = None, done + 1
            if process.wait() and begun is None:
                raise SystemExit(f"The reading process failed ({process.returncode}).")
            if begun:
                data = pathlib.Path(folder, "input").read_bytes()
                keep(begun["name"], -1, data)
                code = process.returncode
                row = dict.fromkeys(WIDTHS, 0) | {"inputs": begun["inputs"], "other": 1}
                row["bugs"] = {"death": (-1, f"exit status {code}")}
                yield begun["name"], row
                done += 1


def main(_) -> None:
    if _CHILD.value:
        return child(pathlib.Path(os.environ["TMPDIR"]))
    print("target".ljust(13) + "".join(c.rjust(w) for c, w in WIDTHS.items()))
    total, found, start = collections.Counter(), [], time.monotonic()
    for name, row in rows():
        cells = (f"{row[column]:.0f}".rjust(w) for column, w in WIDTHS.items())
        print(name.ljust(13) + "".join(cells), flush=True)
        total.update({column: row[column] for column in ("inputs", "read", "refused")})
        for bug, (number, text) in row["bugs"].items():
            found.append(f"{name}, input {number}: {bug}: {text}")
    print(
        f"{total['inputs']} inputs, {total['read']} read, {total['refused']} refused, "
        f"{len(found)} bugs, {time.monotonic() - start:.0f} s"
    )
    if found:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    app.run(main)
