"""Races our pretraining step against the same step in PyTorch, in turn, in one run.

    python benchmarks/race.py --config=configs/pretrain_base.py --batch=8 --compile

Every setting is a process of its own, as one starts it, that lives through the race
and computes only in its turn, on synthetic pairs already on its device. A round lets
each take a turn, so that whatever else the machine does meets all alike. Prints a line
a round, then images/s, and how many times a setting's images/s ours are: the median
over rounds, and the range. Runs on the GPU that JAX finds, or else on the CPU, where
the CPU time of a step, all threads together, tells more while other work goes on; with
OMP_WAIT_POLICY=passive PyTorch's threads do not spend it on waiting.

PyTorch is as good as we know: `benchmarks/torch_peer.py`, eager, with --compile
through torch.compile too, with --pages also on malloc with huge pages (Linux). float32
products of a GPU are TF32 on both sides. With --out_of_the_box our side computes as the
config says, whatever PyTorch is given.
"""

import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

ROOT = str(pathlib.Path(__file__).parents[1])
sys.path.insert(0, ROOT)

from absl import app, flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from benchmarks import pairs  # noqa: E402
from data_pipeline.errors import InputError  # noqa: E402
from fusmae_jax import dtypes  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "A pretraining config.")
_BATCH = flags.DEFINE_integer("batch", 8, "Pairs in a batch.")
_STEPS = flags.DEFINE_integer("steps", None, "Steps of a turn; else 3 seconds' worth.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds.")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "Of matrix products; float32 on a CPU and bfloat16 elsewhere unless said.",
)
_OUT_OF_THE_BOX = flags.DEFINE_bool(
    "out_of_the_box", False, "Our products as the config says, whatever PyTorch's are."
)
_COMPILE = flags.DEFINE_bool("compile", False, "Race torch.compile too.")
_PAGES = flags.DEFINE_bool("pages", False, "Race PyTorch on huge pages too.")
_RUNNER = flags.DEFINE_string("runner", None, "For the processes of the race.")
_GPU = flags.DEFINE_bool("gpu", False, "Likewise.")

OURS, EAGER, COMPILED = "JAX", "PyTorch, eager", "PyTorch, compiled"
PAGES = ", huge pages"
HUGE = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold="
# What the peer can do, and everything else would be another step.
COVERED = {
    "accumulate": 1,
    "view.turn": True,
    "view.resampling": "linear",
    "mask.mode": "independent",
    "mask.drop_sensor": 0.0,
    "model.fuse_early": True,
    "model.fuse_features": True,
    "loss.normalize": "patch",
    "loss.weight_s1": 1.0,
    "loss.weight_s2": 1.0,
    "optim.clip_norm": 0.0,
}


def check_config(config) -> None:
    """Raises InputError where the peer cannot follow."""
    for name, value in COVERED.items():
        asked = functools.reduce(getattr, name.split("."), config)
        if asked != value:
            raise InputError(
                f"The PyTorch peer only knows {name}={value!r}, got {asked!r}."
            )


class Turn(NamedTuple):
    """What a turn of some steps was: the last loss, seconds, and those of CPU time."""

    loss: float
    seconds: float
    cpu_seconds: float


class Runner:
    """A process of its own that takes steps when told to."""

    def __init__(self, name: str, *options: str):
        # Processes share a GPU: none may take all of its memory at the start.
        env = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        env.setdefault("CUDA_VISIBLE_DEVICES", "0")
        if name.endswith(PAGES):
            env["GLIBC_TUNABLES"] = f"{HUGE}{2**35}"
        self.name, start = name, time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, *sys.argv, *options, f"--runner={name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.about = self._answer()
        loss = self.turn(1).loss
        seconds = time.perf_counter() - start
        print(f"{name}: {self.about['about']}", flush=True)
        print(f"    first step after {seconds:.1f} s, loss {loss:.3f}", flush=True)

    def turn(self, steps: int) -> Turn:
        """Takes so many steps."""
        print(steps, file=self.process.stdin, flush=True)
        return Turn(**self._answer())

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} gave up; what it said is above.")
        return json.loads(line)

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def start_jax(config):
    """Our side: what there is to know of it, and the function that takes steps."""
    from fusmae_jax.training import runtime

    runtime.keep_host_memory()  # first of all, as launch.py does
    import jax

    from fusmae_jax import build
    from fusmae_jax.training import optim, pretrain, sharding

    device = jax.devices()[0]
    gpu = device.platform == "gpu"
    asked = _DTYPE.value or ("bfloat16" if gpu else "float32")
    if not _OUT_OF_THE_BOX.value:
        config.model.dtype = asked
    config.model.dtype = dtypes.resolve_dtype(config.model.dtype, device.platform)
    mesh = sharding.make_mesh(config.fsdp)
    objective = build.objective(config, **build.target(mesh))
    # As in benchmarks/pretrain_step.py: what is the same program is compiled once.
    rate = optim.schedule(config.optim.peak_lr, 10, 1_000)
    init, _, train_step = pretrain.compile_step(config, objective, mesh, rate)
    state = init()
    fields = sharding.to_devices(pairs.host_batch(config, _BATCH.value), mesh)

    def advance(steps):
        nonlocal state
        for _ in range(steps):
            state, metrics = train_step(state, fields)
        jax.block_until_ready((state, metrics))
        return float(metrics["loss"])

    about = f"jax {jax.__version__}, {config.model.dtype}, {device.device_kind}"
    return {"about": about, "gpu": gpu, "dtype": asked}, advance


def start_torch(config):
    """The peer's side, likewise."""
    import torch

    from benchmarks import torch_peer, torch_views

    if _GPU.value and not torch.cuda.is_available():
        raise InputError(
            f"JAX runs on a GPU, and PyTorch {torch.__version__} finds none; install "
            "it with CUDA, or set JAX_PLATFORMS=cpu."
        )
    torch.manual_seed(config.seed)
    if _GPU.value:
        torch.set_float32_matmul_precision("high")  # TF32; some CPUs know it too
    device = torch.device("cuda" if _GPU.value else "cpu")
    model = config.model.to_dict() | {"dtype": _DTYPE.value}
    objective = torch_peer.Objective(config.bands, model, config.mask.ratio).to(device)
    step = torch_peer.make_step(
        objective,
        b1=config.optim.b1,
        b2=config.optim.b2,
        weight_decay=config.optim.weight_decay,
        compiled=_RUNNER.value.startswith(COMPILED),
    )
    batch = pairs.host_batch(config, _BATCH.value)
    fields = {k: torch.from_numpy(x).to(device) for k, x in batch.items()}
    taken = 0

    def advance(steps):
        nonlocal taken
        for taken in range(taken + 1, taken + steps + 1):
            draw = torch_views.draw(
                _BATCH.value,
                objective.num_patches,
                device,
                scale=config.view.crop_scale,
                ratio=config.view.crop_ratio,
            )
            rate = config.optim.peak_lr * min(taken / 10, 1.0)
            metrics = step(fields, draw, rate)
        if _GPU.value:
            torch.cuda.synchronize()
        return float(metrics["loss"])

    where = (
        torch.cuda.get_device_name()
        if _GPU.value
        else f"{torch.get_num_threads()} threads of the CPU"
    )
    return {"about": f"torch {torch.__version__}, {_DTYPE.value}, {where}"}, advance


def run(config) -> None:
    """What a process of the race does: answers each line with a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    about, advance = (start_jax if _RUNNER.value == OURS else start_torch)(config)
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        start, used = time.perf_counter(), time.process_time()
        loss = advance(int(line))
        seconds, used = time.perf_counter() - start, time.process_time() - used
        print(json.dumps(Turn(loss, seconds, used)._asdict()), file=answers, flush=True)


def race(runners: list[Runner]) -> list[list[tuple[float, float]]]:
    """Lets them take turns; images/s and CPU seconds a step, [rounds][runners]."""
    for runner in runners:
        seconds = runner.turn(2).seconds  # buffers and caches settle
        if runner is runners[0]:
            steps = _STEPS.value or max(1, round(3 / (seconds / 2)))
    print(f"{_ROUNDS.value} rounds of {steps} steps; images/s:", flush=True)
    rounds = []
    for i in range(_ROUNDS.value):
        turns = [runner.turn(steps) for runner in runners]
        images = steps * _BATCH.value
        rounds.append([(images / t.seconds, t.cpu_seconds / steps) for t in turns])
        cells = (
            f"{runner.name.removeprefix('PyTorch, ')} {speed:.2f}"
            for runner, (speed, _) in zip(runners, rounds[-1])
        )
        print(f"{i + 1:>3}  {'   '.join(cells)}", flush=True)
    return rounds


def table(names: list[str], rounds: list[list[tuple[float, float]]]) -> str:
    """Medians, and ours as a multiple of each."""
    head = f"{'':<32}{'images/s':>10}{'JAX is':>10}{'from - to':>16}{'CPU s/step':>12}"
    lines = [head]
    for i, name in enumerate(names):
        ratios = [row[0][0] / row[i][0] for row in rounds]
        speed = statistics.median(row[i][0] for row in rounds)
        used = statistics.median(row[i][1] for row in rounds)
        span = f"{min(ratios):.2f} - {max(ratios):.2f}"
        times = f"{statistics.median(ratios):.2f} x"
        lines.append(f"{name:<32}{speed:>10.2f}{times:>10}{span:>16}{used:>12.2f}")
    return "\n".join(lines)


def main(argv):
    del argv
    config = _CONFIG.value
    if _RUNNER.value:
        run(config)
        return
    check_config(config)
    name, instructions = dtypes.cpu()
    print(f"{os.cpu_count()} x {name}: {', '.join(instructions) or 'nothing known'}")
    names = [EAGER] + [COMPILED] * _COMPILE.value
    names += [name + PAGES for name in names] * _PAGES.value
    runners = [Runner(OURS)]
    try:
        ours = runners[0].about
        options = [f"--dtype={ours['dtype']}"] + ["--gpu"] * ours["gpu"]
        runners += [Runner(name, *options) for name in names]
        print(table([OURS, *names], race(runners)))
    finally:
        for runner in runners:
            runner.stop()


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    try:
        app.run(main)
    except InputError as error:
        sys.exit(str(error))
