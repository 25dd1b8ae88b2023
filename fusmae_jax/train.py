"""The training state and the compiled step that advances it."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from fusmae_jax import sharding, streams, views
from fusmae_jax.objective import Objective


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
    """The same, and how many steps were taken without being applied.

    Attributes:
        skipped: how many, since the run began.
        skipped_in_a_row: how many of them up to now with no other in between.
    """

    skipped: jax.Array
    skipped_in_a_row: jax.Array


def fresh_state(params: nnx.State, tx: optax.GradientTransformation) -> PretrainState:
    """The state before the first step."""
    step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return PretrainState(step, params, tx.init(params), skipped, in_a_row)


class Keys:
    """The keys of `nnx.Rngs(key)`, many drawn at a time: traced and compiled sooner."""

    AHEAD = 256

    def __init__(self, key: jax.Array):
        self._key, self._count = key, 0

    def params(self) -> jax.Array:
        """The next key."""
        place = self._count % self.AHEAD
        if not place:
            counts = self._count + jnp.arange(self.AHEAD)
            self._drawn = jax.vmap(jax.random.fold_in, (None, 0))(self._key, counts)
        self._count += 1
        return self._drawn[place]


def plan_state(
    make_model: Callable[..., nnx.Module],
    tx: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    min_size: int = 2**18,
) -> tuple[nnx.GraphDef, Callable[[], PretrainState], PretrainState]:
    """Plans a state without making it, as most runs have one saved.

    Args:
        make_model: builds the module from the keyword `rngs`.
        tx: the optimiser.
        mesh: where the state will live.
        seed: of the initial parameters.
        min_size: kernels with fewer elements are not split.

    Returns:
        The model's graph definition, what makes a fresh state, every parameter
        straight into its shards, and the state's shardings.
    """

    def init(key):
        graphdef, params = nnx.split(make_model(rngs=Keys(key)))
        return graphdef, fresh_state(params, tx)

    key = streams.key(seed, "params")
    graphdef, shapes = jax.eval_shape(init, key)  # traced once, here
    layout = sharding.layout(shapes, mesh, min_size)
    make = jax.jit(init, out_shardings=(graphdef, layout))
    return graphdef, lambda: make(key)[1], layout


def make_train_step(
    graphdef: nnx.GraphDef,
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

    def loss_fn(params, fields, draw):
        loss, metrics, _ = objective(nnx.merge(graphdef, params), fields, draw)
        return loss, {"loss": loss, **metrics}

    @jax.jit(donate_argnames="state", out_shardings=(layout, sharding.whole(mesh)))
    def train_step(state, fields):
        key = jax.random.fold_in(streams.key(seed, "steps"), state.step)
        draw = objective.draw(key, len(next(iter(fields.values()))))
        grads, metrics = gradients(
            loss_fn, state.params, (fields, draw), accumulate, layout.params
        )
        # Every device updates a part, as it holds the moments of that part alone.
        split = functools.partial(
            jax.lax.with_sharding_constraint,
            shardings=optax.tree.get(layout.opt_state, "mu"),
        )
        grads, params = split(grads), split(state.params)
        state = dataclasses.replace(state, params=params)
        metrics["invalid_pixels"] = views.invalid_pixels(fields)
        metrics["lr"] = rate(state.step)
        metrics["grad_norm"] = optax.tree.norm(grads)
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        good &= state.skipped_in_a_row < bad_steps
        state = advance(state, grads, tx, good)
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
    state: PretrainState, grads, tx: optax.GradientTransformation, good: jax.Array
) -> PretrainState:
    """The state after a step, which is applied if `good` and else only counted."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return PretrainState(
        step=state.step + 1,
        params=choose(good, params, state.params),
        opt_state=choose(good, opt_state, state.opt_state),
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
    graphdef: nnx.GraphDef,
    objective: Objective,
    mesh: Mesh,
    *,
    seed: int,
    scene_size: int,
    whole: bool = False,
):
    """Returns the compiled `step(params, fields, weight, first, draw)`.

    It scores the plain middle of each scene: metrics, or with `whole` the outcome of
    all patches. Masks depend on (seed, `draw`) and on the number of the pair, `first`
    for the first of the batch: numbers are comparable between steps, runs and devices.
    Results are whole on every device, for any host to read.
    """

    @functools.partial(jax.jit, out_shardings=sharding.whole(mesh))
    def eval_step(params, fields, weight, first, draw):
        key = jax.random.fold_in(streams.key(seed, "held_out"), draw)
        pairs = first + jnp.arange(len(weight))
        fixed = objective.draw_fixed(key, pairs, scene_size)
        model = nnx.merge(graphdef, params)
        loss, metrics, outcome = objective(model, fields, fixed, weight, whole=whole)
        return outcome or {"loss": loss, **metrics, "pairs": weight.sum()}

    return eval_step
