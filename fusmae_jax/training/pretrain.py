"""The pretraining loop."""

import contextlib
import logging
import math
import pathlib
import time

import jax

from data_pipeline import atomic, batches, config_fields, sources
from data_pipeline.errors import InputError
from fusmae_jax import build, figures, reconstruct
from fusmae_jax import config as checks
from fusmae_jax.evaluation import monitor
from fusmae_jax.training import (
    checkpoint,
    cluster,
    guard,
    heldout,
    loop,
    metrics,
    optim,
    preemption,
    run_directory,
    sharding,
    train,
    warm_start,
)

log = logging.getLogger("fusmae_jax")

fields, check = checks.fields, checks.check_config


def load_batches(config, source, mesh, first: int, stop=lambda: False):
    """Yields batches on their way to the devices; ends where it waits after `stop`."""
    stream = batches.train_batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=first,
        host=jax.process_index(),
        hosts=jax.process_count(),
        threads=config.data.threads,
        workers=config.data.workers,
        stall_seconds=config.data.stall_seconds,
        stop=stop,
    )
    try:
        for batch in stream:
            yield sharding.to_devices(batch, mesh)
    finally:
        stream.close()  # worker processes would leave shared memory behind


def describe(config, state, work: float, pairs: int, held_out: int, steps: int) -> str:
    """What is about to happen, in a few words; `work` is in FLOPs an image."""
    count = sum(x.size for x in jax.tree.leaves(state.params))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    peak = loop.device_peak(config)
    most = f", at most {jax.device_count() * peak / work:,.0f} images/s" if peak else ""
    return (
        f"{count / 1e6:.1f} M parameters on {devices}; {pairs} pairs, {held_out} held "
        f"out; {steps} steps of {config.batch_size} pairs ({config.epochs} epochs); "
        f"{work / 1e9:.3g} GFLOP an image forward and backward{most}"
    )


def compile_step(config, objective, mesh, rate, known=None):
    """Plans the state and makes the step that the config describes.

    Args:
        config: see `configs/pretrain_base.py`.
        objective: what the model learns.
        mesh: the devices.
        rate: learning rate by step.
        known: initial parameters, see `train.plan_state`.

    Returns:
        What makes a fresh state, its layout, and the step, which compiles when it is
        called; `compile_ahead` does so before.
    """
    tx = build.optimizer(config, rate)
    init, layout = train.plan_state(
        objective, tx, mesh, config.seed, config.fsdp_min_size, known
    )
    train_step = build.train_step(config, objective, tx, rate, layout, mesh)
    return init, layout, train_step


def compile_ahead(config, train_step, state, source, mesh):
    """Compiles the step for batches of a source, and says what it takes.

    Args:
        config: see `configs/pretrain_base.py`.
        train_step: from `compile_step`.
        state: which it will advance.
        source: random-access pairs.
        mesh: the devices.

    Returns:
        The compiled step, to which another shape is an error, and its compile_seconds
        and step_memory_bytes.
    """
    fields = sharding.abstract_rows(source[0], config.batch_size, mesh)
    begun = time.monotonic()
    step = train_step.lower(state, fields).compile()
    seconds, needed = time.monotonic() - begun, step_memory(step)
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")  # the CPU has none
    if limit and needed > limit:
        parts = fitting_parts(config, step, state.params, limit, mesh)
        log.warning(
            "The step takes %.1f GiB of each device's %.1f GiB and will hardly fit; %s",
            *(needed / 2**30, limit / 2**30, memory_advice(config, parts)),
        )
    else:
        of = f" of {limit / 2**30:.1f}" if limit else ""
        log.info("The step takes %.2f%s GiB of each device.", needed / 2**30, of)
    return step, {"compile_seconds": seconds, "step_memory_bytes": needed}


def fitting_parts(config, step, params, limit: float, mesh) -> int | None:
    """The least `accumulate` with which a step that is too large should fit.

    What is in between shrinks with the rows of a part; sums of gradients come on top.

    Args:
        config: that the step was compiled for.
        step: compiled.
        params: of the model, laid out; gradients are as large.
        limit: bytes of a device.
        mesh: the devices.

    Returns:
        None where no number of parts would do.
    """
    sizes, rows = step.memory_analysis(), config.batch_size // mesh.size
    held = (x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(params))
    fixed = sizes.argument_size_in_bytes + 4 * sum(map(math.prod, held))
    for parts in range(config.accumulate + 1, rows + 1):
        between = sizes.temp_size_in_bytes * config.accumulate / parts
        if rows % parts == 0 and fixed + between < limit:
            return parts
    return None


def memory_advice(config, parts: int | None = None) -> str:
    """What to pass if a step does not fit; `parts` is an `accumulate` that would do."""
    if parts:
        return f"pass accumulate={parts}, which trains the same in parts."
    return (
        f"raise accumulate, as in accumulate={2 * config.accumulate}, pass "
        "model.remat=full, or split the parameters over devices with fsdp."
    )


def step_memory(step) -> int:
    """Bytes that a compiled step takes of each device, donated buffers counted once.

    State, one batch, and whatever is in between; not the batches that wait, nor the
    held-out pairs.
    """
    sizes = step.memory_analysis()
    if sizes is None:  # not every backend tells
        return 0
    kept = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + kept


@contextlib.contextmanager
def explain_memory(config):
    """Says in a sentence that the devices' memory did not suffice."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"This run with batch_size={config.batch_size} and accumulate="
            f"{config.accumulate} does not fit into the devices' memory; "
            f"{memory_advice(config)}"
        ) from error


def open_data(config):
    """Opens the training pairs and the held-out ones: alike, but others."""
    description = sources.describe(config.data)
    fields = build.check_data(build.contract(config, description.sensors), description)
    source = sources.open_split(config.data, config.data.split, fields)
    held = sources.open_split(config.data, config.data.eval_split, (*fields, "id"))
    sources.check_alike(source, held)
    for other in (held, *sources.held_out(config.data)):
        sources.check_overlap(source, other, allow=config.data.allow_overlap)
    source[0], source[len(source) - 1]  # a damaged dataset shows itself here
    return source, held


def open_run(config, mesh):
    """Opens the data, and makes what does not depend on the run directory.

    Returns:
        The training pairs, the objective, and what scores and judges the model.
    """
    target = build.target(mesh)
    # Refuses sizes that do not divide, before any data are read.
    build.objective(config, **target).abstract
    with cluster.together("open its data"):
        source, held = open_data(config)
    description, missing = source.description, sources.has_missing(config.data)
    seen = build.inputs(config, description.sensors, description.layout, missing)
    for sensor in (seen.contract[name] for name in description.sensors):
        log.info("Statistics that normalise %s: %s.", sensor.title, sensor.source)
    steps, _ = checks.count_steps(config, len(source))
    objective = build.objective(config, seen, **target).lasting(steps)
    held_out = heldout.HeldOut(
        objective, mesh, held, seed=config.seed, count=config.eval_pairs
    )
    judge = monitor.Monitor(config, objective, mesh, source, held)
    return source, objective, held_out, judge


def open_checkpoints(config, workdir: pathlib.Path) -> checkpoint.Checkpoints:
    """The checkpoints of a run."""
    return checkpoint.Checkpoints(
        workdir / "checkpoints",
        every=config.checkpoint_every,
        keep=config.keep_checkpoints,
        keep_every=config.keep_every,
    )


def take_steps(
    config,
    workdir: pathlib.Path,
    mesh,
    opened,
    rate,
    steps: int,
    notice,
    known=None,
):
    """Takes the steps that are left, from the last checkpoint if there is one.

    Args:
        config: see `configs/pretrain_base.py`.
        workdir: the run directory.
        mesh: the devices.
        opened: from `open_run`.
        rate: learning rate by step.
        steps: of the whole run.
        notice: whether to stop before.
        known: initial parameters, see `train.plan_state`.

    Returns:
        The state, when it is on disk.
    """
    source, objective, held_out, judge = opened
    init, layout, train_step = compile_step(config, objective, mesh, rate, known)
    shapes = jax.eval_shape(init)
    pairs = len(source), held_out.count
    log.info(describe(config, shapes, objective.flops(), *pairs, steps))
    if advice := objective.advice():
        log.warning(advice)
    with open_checkpoints(config, workdir) as saves:
        state = saves.restore(init, layout)
        first, start = int(state.step), {}
        if first:
            log.info("Resuming from step %d.", first)
        watch = guard.Guard(config, source, workdir, state, first or None)
        with (
            contextlib.closing(
                load_batches(config, source, mesh, first, notice.asked)
            ) as stream,
            metrics.MetricWriter(workdir, first_step=first) as writer,
        ):
            if first < steps:
                train_step, start = compile_ahead(
                    config, train_step, state, source, mesh
                )
            scoring = heldout.Evaluation(held_out, writer, workdir, config.figure_pairs)
            tools = loop.Tools(objective, writer, scoring, judge, saves, watch, notice)
            notice.hold()
            # What is sent or read unasked would hold up every step.
            with jax.transfer_guard("disallow"):
                return loop.run_steps(
                    config, state, train_step, stream, tools, steps, start
                )


def run(config, workdir) -> train.PretrainState:
    """Trains `config.epochs` epochs, from the last checkpoint in `workdir` if any.

    Args:
        config: see `configs/pretrain_base.py`.
        workdir: the run directory.

    Returns:
        The final state.

    Raises:
        InputError: the config, the data or the directory cannot work, before anything
            is written; later, a record is damaged, or too many steps in a row have a
            loss or gradient that is not finite.
        Stopped: the machine asked the run to stop, and it did, saved.
    """
    checks.check_config(config)
    checks.check_data(config)
    config = config_fields.resolve(config, checks.fields(config))
    workdir = atomic.absolute(workdir)
    mesh = sharding.make_mesh(config.fsdp)
    config = run_directory.settle_dtype(config, workdir, sharding.platform(mesh))
    checks.check_config(config)  # once more: a run that began in float32 has no cuDNN
    checks.check_devices(config, mesh)
    source, objective, held_out, _ = opened = open_run(config, mesh)
    steps, warmup = checks.count_steps(config, len(source))
    rate = optim.schedule(config.optim.peak_lr, warmup, steps)
    fixed = () if objective.separable else ("accumulate",)
    start = warm_start.NONE
    if config.init_from and not warm_start.begun(workdir):
        start = warm_start.load(config, objective, mesh, held_out.source)
    run_directory.open_workdir(
        workdir,
        config,
        objective.inputs.contract,
        source.fingerprint(),
        free=[field for field in run_directory.FREE if field not in fixed],
        origin=start.origin,
    )
    run_directory.remember_places(workdir, sources.place_codes(source), start.places)
    workdir = pathlib.Path(workdir)

    with explain_memory(config), preemption.Notice() as notice:
        state = take_steps(
            config, workdir, mesh, opened, rate, steps, notice, start.params
        )
        if int(state.step) < steps:
            raise preemption.Stopped(
                f"Stopped after step {int(state.step)} of {steps}, which is saved, as "
                f"this machine is wanted; {preemption.GOES_ON}"
            )
    if jax.process_index() == 0:
        fig = figures.loss_figure(metrics.read_metrics(workdir))
        figures.save(fig, workdir / "figures" / "loss.png")
    if objective.redraws:
        draws, shown = config.eval_draws, config.figure_pairs
        reconstruct.report(
            held_out, state.params, workdir, step=steps, draws=draws, shown=shown
        )
    return state
