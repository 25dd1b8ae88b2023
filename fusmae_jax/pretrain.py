"""The pretraining loop."""

import collections
import contextlib
import logging
import pathlib
import time

import jax

from data_pipeline import batches, sources
from fusmae_jax import (
    build,
    checkpoint,
    checks,
    figures,
    heldout,
    metrics,
    optim,
    reconstruct,
    run,
    sharding,
    train,
)
from fusmae_jax.evaluation import backbone, inloop

log = logging.getLogger("fusmae_jax")

# Steps dispatched ahead of the device: enough to hide the host, few enough that
# batches do not pile up in device memory.
AHEAD = 2


def load_batches(config, source, mesh, first: int):
    """Yields batches on their way to the devices, and the seconds each kept us."""
    stream = batches.train_batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=first,
        host=jax.process_index(),
        hosts=jax.process_count(),
        threads=config.data.threads,
        workers=config.data.workers,
    )
    ready = collections.deque()
    try:
        while True:
            start = time.monotonic()
            while len(ready) < AHEAD:
                ready.append(sharding.to_devices(next(stream), mesh))
            yield ready.popleft(), time.monotonic() - start
    finally:
        stream.close()  # worker processes would leave shared memory behind


def describe(config, state, pairs: int, held_out: int, steps: int) -> str:
    """What is about to happen, in a few words."""
    count = sum(x.size for x in jax.tree.leaves(state.params))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return (
        f"{count / 1e6:.1f} M parameters on {devices}; {pairs} pairs, {held_out} held "
        f"out; {steps} steps of {config.batch_size} pairs ({config.epochs} epochs)"
    )


def run_steps(
    config, state, train_step, stream, writer, scoring, judge, saves, steps
):
    """Advances `state` to step `steps`, writing what a run leaves behind."""
    first = int(state.step)
    progress = metrics.Progress(first, steps)
    clock, running = metrics.Clock(config), collections.deque()
    for step in range(first + 1, steps + 1):
        fields, waited = next(stream)
        state, step_metrics = train_step(state, fields)
        if step == first + 1:
            clock.restart()  # the first call filled the pipeline and compiled
        else:
            clock.step(waited)
        running.append(step_metrics["loss"])
        if len(running) > AHEAD:
            running.popleft().block_until_ready()
        if step % config.log_every == 0 or step == steps:
            progress.show(writer.write(step, step_metrics | clock.rates()))
        if step % config.eval_every == 0 or step == steps:
            scoring.start(step, state.params)
        scoring.collect()
        if saves.due(step) or step == steps:
            # Saving waits for the step anyway; a run must never resume from NaN.
            metrics.check_finite(step, step_metrics["loss"])
            saves.save(step, state)
        if judge.due(step, steps):
            judge.run(step, state.params, writer)
            clock.restart()
        progress.step()
    progress.show(writer.flush())
    scoring.collect(wait=True)
    progress.close()
    return state


def compile_step(config, objective, mesh, rate):
    """Makes the state and the step that the config describes.

    Args:
        config: see `configs/pretrain_base.py`.
        objective: what the model learns.
        mesh: the devices.
        rate: learning rate by step.

    Returns:
        The fresh state, its layout, and the compiled step.
    """
    tx = build.optimizer(config, rate)
    graphdef, state, layout = train.create_state(
        build.model(config), tx, mesh, config.seed, config.fsdp_min_size
    )
    train_step = train.make_train_step(
        graphdef,
        objective,
        tx,
        rate,
        layout,
        mesh,
        seed=config.seed,
        accumulate=config.accumulate,
    )
    return state, layout, train_step


def open_data(config):
    """Opens the training pairs and the held-out ones, which must be others."""
    description = sources.describe(config.data)
    fields = build.check_data(build.contract(config, description.sensors), description)
    source = sources.open_split(config.data, config.data.split, fields)
    held = sources.open_split(config.data, config.data.eval_split, (*fields, "id"))
    for other in (held, *sources.held_out(config.data)):
        sources.check_overlap(source, other, allow=config.data.allow_overlap)
    source[0], source[len(source) - 1]  # a damaged dataset shows itself here
    return source, held


def open_run(config, mesh):
    """Opens the data, and makes what does not depend on the run directory.

    Returns:
        The training pairs, the objective, and what scores and judges the model.
    """
    graphdef, _ = build.abstract_model(config)  # refuses sizes that do not divide
    source, held = open_data(config)
    description = source.description
    objective = build.objective(config, description.sensors, description.layout)
    held_out = heldout.HeldOut(
        graphdef, objective, mesh, held, seed=config.seed, count=config.eval_pairs
    )
    seen = backbone.Backbone(
        graphdef, objective, description.layout.size, backbone.blocks(config)
    )
    judge = inloop.Judge(config, seen, mesh, source, held)
    return source, objective, held_out, judge


def pretrain(config, workdir) -> train.TrainState:
    """Trains `config.epochs` epochs, from the last checkpoint in `workdir` if any.

    Args:
        config: see `configs/pretrain_base.py`.
        workdir: the run directory.

    Returns:
        The final state.

    Raises:
        InputError: the config, the data or the directory cannot work, before anything
            is written; later, a record is damaged or the loss not finite.
    """
    checks.check_config(config)
    mesh = sharding.make_mesh(config.fsdp)
    source, objective, held_out, judge = open_run(config, mesh)
    steps, warmup = checks.count_steps(config, len(source))
    rate = optim.schedule(config.optim.peak_lr, warmup, steps)
    run.open_workdir(workdir, config, objective.contract, source.fingerprint())
    run.remember_places(workdir, sources.place_codes(source))
    workdir = pathlib.Path(workdir)

    state, layout, train_step = compile_step(config, objective, mesh, rate)
    log.info(describe(config, state, len(source), held_out.count, steps))
    with checkpoint.Checkpoints(
        workdir / "checkpoints",
        every=config.checkpoint_every,
        keep=config.keep_checkpoints,
        keep_every=config.keep_every,
    ) as saves:
        if saves.latest is not None:
            log.info("Resuming from step %d.", saves.latest)
            state = saves.restore(state, layout)
        first = int(state.step)
        with (
            contextlib.closing(load_batches(config, source, mesh, first)) as stream,
            metrics.MetricWriter(workdir, first_step=first) as writer,
        ):
            scoring = heldout.Evaluation(held_out, writer, workdir, config.figure_pairs)
            state = run_steps(
                config, state, train_step, stream, writer, scoring, judge, saves, steps
            )
    if jax.process_index() == 0:
        fig = figures.loss_figure(metrics.read_metrics(workdir))
        figures.save(fig, workdir / "figures" / "loss.png")
    draws, shown = config.eval_draws, config.figure_pairs
    reconstruct.report(
        held_out, state.params, workdir, step=steps, draws=draws, shown=shown
    )
    return state
