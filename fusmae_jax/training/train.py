"""The training state and the compiled step that advances it."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from fusmae_jax import inputs, streams
from fusmae_jax.objectives.protocol import Objective
from fusmae_jax.training import sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes, and everything a checkpoint holds."""

    step: jax.Array
    params: nnx.State
    opt_state: optax.OptState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PretrainState(TrainState):
    """The same, and what pretraining needs besides.

    Attributes:
        extra: what gradients do not train, see `Objective.init_extra`.
        skipped: how many, since the run began.
        skipped_in_a_row: how many of them up to now with no other in between.
    """

    extra: Any
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def fresh_state(
    objective: Objective, params: nnx.State, tx: optax.GradientTransformation
) -> PretrainState:
    """The state before the first step."""
    step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    extra = objective.init_extra(params)
    return PretrainState(step, params, tx.init(params), extra, skipped, in_a_row)


def kept(state: PretrainState, objective: Objective) -> nnx.State:
    """The parameters of a state that are judged and used, see `Objective.kept`."""
    first, *rest = objective.kept.split("/")
    return functools.reduce(operator.getitem, rest, getattr(state, first))


def plan_state(
    objective: Objective,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    min_size: int = 2**18,
    known: Mapping[str, jax.Array] | None = None,
) -> tuple[Callable[[], PretrainState], PretrainState]:
    """Plans a state without making it, as most runs have one saved.

    Args:
        objective: whose model it is.
        tx: the optimiser.
        mesh: where the state will live.
        seed: of the initial parameters.
        min_size: kernels with fewer elements are not split.
        known: initial parameters by path, laid out, NaN where a random one is wanted;
            making a state takes them for its own.

    Returns:
        What makes a fresh state, every parameter straight into its shards, and the
        state's shardings.
    """

    def init(key, known):
        params = nnx.split(objective.init(streams.Keys(key)))[1]
        return fresh_state(objective, take_known(params, known), tx)

    key, known = streams.key(seed, "params"), dict(known or {})
    shapes = jax.eval_shape(init, key, known)  # traced once, here
    layout = sharding.layout(shapes, mesh, min_size)
    make = jax.jit(init, out_shardings=layout, donate_argnums=1)
    return lambda: make(key, known), layout


def take_known(params: nnx.State, known: Mapping[str, jax.Array]) -> nnx.State:
    """Parameters, but what is `known` of them by path and not NaN in their place."""

    def one(path, param):
        value = known.get(sharding.leaf_path(path))
        return param if value is None else jnp.where(jnp.isnan(value), param, value)

    return jax.tree_util.tree_map_with_path(one, params)


def make_train_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    layout: PretrainState,
    mesh: Mesh,
    *,
    seed: int,
    accumulate: int = 1,
    bad_steps: int = 10,
):
    """Returns the compiled `step(state, fields) -> (state, metrics)`.

    All randomness derives from (seed, step) and is drawn for the whole batch at
    once, so neither a restart, nor the devices, nor `accumulate` change it. The
    gradient of `accumulate` parts of the batch is averaged before one update.

    A step whose loss or gradient is not finite is counted and changes nothing else.
    After `bad_steps` of them in a row no step is applied any more: the state stays the
    last good one until the host, which does not wait for steps, takes notice.
    """

    graphdef, _ = objective.abstract

    @jax.jit(donate_argnames="state", out_shardings=(layout, sharding.whole(mesh)))
    def train_step(state, fields):
        key = jax.random.fold_in(streams.key(seed, "steps"), state.step)
        draw = objective.draw(key, len(next(iter(fields.values()))))

        def loss_fn(params, fields, draw):
            model = nnx.merge(graphdef, params)
            loss, metrics, aux = objective.loss(model, state.extra, fields, draw)
            return loss, ({"loss": loss, **metrics}, aux)

        grads, (metrics, aux) = gradients(
            loss_fn, state.params, (fields, draw), accumulate, layout.params
        )
        # Every device updates a part, as it holds the moments of that part alone.
        split = functools.partial(
            jax.lax.with_sharding_constraint,
            shardings=optax.tree.get(layout.opt_state, "mu"),
        )
        grads, params = split(grads), split(state.params)
        state = dataclasses.replace(state, params=params)
        missing = objective.inputs.missing
        metrics["invalid_pixels"] = inputs.invalid_pixels(fields, missing)
        metrics["lr"] = rate(state.step)
        metrics["grad_norm"] = optax.tree.norm(grads)
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        good &= state.skipped_in_a_row < bad_steps
        after = functools.partial(objective.after, aux=aux, step=state.step)
        state = advance(state, grads, tx, good, after)
        metrics["skipped_steps"] = state.skipped
        metrics["skipped_in_a_row"] = state.skipped_in_a_row
        return state, metrics

    return train_step


def gradients(loss_fn: Callable, params, batch: tuple, parts: int, layout):
    """Gradients of a mean over samples, in `parts` of the batch one after the other.

    Args:
        loss_fn: `loss_fn(params, *batch) -> (loss, metrics)`, means over the batch.
        params: what to differentiate by.
        batch: trees of arrays [B, ...].
        parts: that B divides into; the least memory is that of one.
        layout: of the parameters on the devices.

    Returns:
        Gradients and metrics, means over the whole batch.
    """

    def part_gradients(part):
        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, *part)
        return grads, metrics

    if parts == 1:
        return part_gradients(batch)
    split = jax.tree.map(lambda x: split_rows(x, parts), batch)

    def add(total, part):
        return jax.tree.map(jnp.add, total, part_gradients(part)), None

    zeros = jax.eval_shape(part_gradients, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros)
    (total, metrics), _ = jax.lax.scan(add, zeros, split)
    # As parameters lie, so that devices sum what they have once and not every part.
    total = jax.lax.with_sharding_constraint(total, layout)
    return jax.tree.map(lambda x: x / parts, (total, metrics))


def split_rows(x: jax.Array, parts: int) -> jax.Array:
    """Cuts rows [B, ...] into [parts, B / parts, ...].

    Strided, so that every device finds rows of its own in every part.
    """
    return x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def advance(
    state: PretrainState,
    grads,
    tx: optax.GradientTransformation,
    good: jax.Array,
    after: Callable,
) -> PretrainState:
    """The state after a step, which is applied if `good` and else only counted.

    Args:
        state: before.
        grads: of the parameters.
        tx: the optimiser.
        good: whether to apply the step.
        after: `after(extra, params)`, see `Objective.after`.
    """
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return PretrainState(
        step=state.step + 1,
        params=choose(good, params, state.params),
        opt_state=choose(good, opt_state, state.opt_state),
        extra=choose(good, after(state.extra, params), state.extra),
        skipped=state.skipped + ~good,
        skipped_in_a_row=jnp.where(good, 0, state.skipped_in_a_row + 1),
    )


def choose(good: jax.Array, new, old):
    """The tree `new` if `good`, else `old`; but the learning rate's step goes on."""

    def one(new, old):
        if isinstance(new, optax.ScaleByScheduleState):
            return new
        return jnp.where(good, new, old)

    rate = lambda x: isinstance(x, optax.ScaleByScheduleState)
    return jax.tree.map(one, new, old, is_leaf=rate)


def make_eval_step(
    objective: Objective, mesh: Mesh, *, seed: int, redraw: bool = False
):
    """Returns the compiled `step(params, extra, fields, weight, first, draw)`.

    It scores the plain middle of each scene: metrics, or with `redraw` what the model
    predicts of every patch. What is random depends on (seed, `draw`) and on the number
    of the pair, `first` for the first of the batch: numbers are comparable between
    steps, runs and devices. Results are whole on every device, for any host to read.
    """
    graphdef, _ = objective.abstract

    @functools.partial(jax.jit, out_shardings=sharding.whole(mesh))
    def eval_step(params, extra, fields, weight, first, draw):
        key = jax.random.fold_in(streams.key(seed, "held_out"), draw)
        pairs = first + jnp.arange(len(weight))
        fixed, model = objective.draw_fixed(key, pairs), nnx.merge(graphdef, params)
        if redraw:
            return objective.redraw(model, fields, fixed)
        loss, metrics, _ = objective.loss(model, extra, fields, fixed, weight)
        return {"loss": loss, **metrics, "pairs": weight.sum()}

    return eval_step
