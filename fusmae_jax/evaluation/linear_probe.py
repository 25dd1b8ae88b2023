"""The linear probe: logistic regression on cached features, chosen on validation.

Every learning rate is trained with every weight decay, all at once; the setting that
does best on validation pairs is the one to be tested, once.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipeline.config_fields import attribute, check_attributes, number, several
from data_pipeline.errors import InputError
from fusmae_jax import streams
from fusmae_jax.evaluation import scores
from fusmae_jax.training import progress, sharding

NORMS = ("batch", "layer", "none")
EPS = 1e-6
MOMENTUM = 0.9
INIT_STD = 0.01
SETTINGS = -2  # their axis in parameters: kernel [D, G, C], bias [G, C]
PAIRS_AT_ONCE = 4096  # in a prediction


@dataclasses.dataclass(frozen=True)
class Probe:
    """Linear classifiers, one for each of G settings, and what goes before them."""

    kernel: np.ndarray  # [G, D, C]
    bias: np.ndarray  # [G, C]
    mean: np.ndarray  # [D]
    scale: np.ndarray  # [D]
    norm: str
    single: bool

    def pick(self, g: int) -> "Probe":
        """The probe of one setting."""
        one = slice(g, g + 1)
        return dataclasses.replace(self, kernel=self.kernel[one], bias=self.bias[one])

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What was learnt, by name."""
        return {x: getattr(self, x) for x in ("kernel", "bias", "mean", "scale")}

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Probabilities [G, M, C] of features [M, D]: softmax or sigmoid."""
        params = jax.device_put(tuple(self.arrays.values()))
        parts = []
        for i in range(0, len(features), PAIRS_AT_ONCE):
            x = np.asarray(features[i : i + PAIRS_AT_ONCE], np.float32)
            z = probabilities(*params, x, norm=self.norm, single=self.single)
            parts.append(np.asarray(z))
        return np.concatenate(parts, axis=1)


def train(
    features: np.ndarray,
    labels: np.ndarray,
    settings: Sequence[tuple[float, float]],
    mesh: Mesh,
    *,
    single: bool,
    norm: str = "batch",
    epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    name: str = "probe",
) -> Probe:
    """Trains one linear classifier for each setting, all at once.

    SGD with momentum 0.9 and coupled decay of the kernel; the rate falls to 0 as a
    cosine, step by step. Where it converges, this is logistic regression with a
    penalty of weight_decay / 2 times the squared kernel. An epoch has as few equal
    batches as `batch_size` allows; not to leave one short, some pairs come twice.

    Args:
        features: [N, D].
        labels: 0 or 1, [N, C].
        settings: G pairs of learning rate and weight decay.
        mesh: the devices; they share the settings, and each holds all features.
        single: a pair has one class: softmax and cross-entropy. Otherwise a sigmoid
            for each class, and the binary cross-entropy averaged over classes.
        norm: "batch" gives every feature mean 0 and variance 1 over the training
            pairs: batch norm without parameters, and with exact statistics. "layer"
            does so for every pair over its features: layer norm, whose scale and
            shift the linear layer absorbs. "none" takes features as they are.
        epochs, batch_size: of the pairs; rates are scaled by batch_size / 256.
        seed: of the first kernel and the order of pairs.
        name: what to call it while it runs.

    Raises:
        InputError: the data or an option cannot be used.
    """
    check_pairs("training", features, labels, single)
    check_options(norm, epochs, batch_size)
    mean, scale = statistics(features, norm)
    rates, decays, state = _start(settings, labels.shape[1], len(mean), seed, mesh)
    rates = rates * (batch_size / 256)
    x, y = (_put(array, P(), mesh) for array in (features, labels))
    x = normalize_all(x, mean, scale, norm)
    key, steps = streams.key(seed, "probe"), -(-len(labels) // batch_size)
    with progress.Progress(name, epochs, "epoch") as bar:
        for epoch in range(epochs):
            order_key = jax.random.fold_in(key, epoch)
            done, total = np.int32([epoch * steps, epochs * steps])
            state = run_epoch(
                state, x, y, rates, decays, order_key, done, total, steps, single
            )
            jax.block_until_ready(state)
            bar.update()
    # Whole on every device, for any host to read; what filled up the devices goes.
    params = jax.jit(lambda x: x, out_shardings=sharding.whole(mesh))(state[0])
    kernel, bias = (np.asarray(params[name]) for name in ("kernel", "bias"))
    kernel, count = np.moveaxis(kernel, SETTINGS, 0), len(settings)
    return Probe(kernel[:count], bias[:count], mean, scale, norm, single)


def check_options(norm: str, epochs: int, batch_size: int) -> None:
    """Refuses options that cannot be."""
    if norm not in NORMS:
        raise InputError(f"The probe's norm {norm!r} is not one of {list(NORMS)}.")
    if epochs < 1 or batch_size < 1:
        raise InputError(
            f"The probe's epochs={epochs} and batch_size={batch_size} must be at "
            "least 1."
        )


def _start(settings, classes: int, features: int, seed: int, mesh: Mesh):
    """Rates [G], decays [G], and the first state, split over the devices."""
    # Devices take equal numbers of settings: the last is repeated to fill them up.
    fill = -len(settings) % mesh.size
    settings = np.pad(np.array(settings), ((0, fill), (0, 0)), mode="edge")
    rows, columns = sharding.BATCH, P(None, *sharding.BATCH)
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0.0, INIT_STD, (features, 1, classes))
    kernel = np.broadcast_to(kernel, (features, len(settings), classes))
    params = {
        "kernel": _put(kernel, columns, mesh),
        "bias": _put(np.zeros((len(settings), classes)), rows, mesh),
    }
    rates, decays = (_put(x, rows, mesh) for x in settings.T)
    return rates, decays, (params, jax.tree.map(jnp.zeros_like, params))


@functools.partial(
    jax.jit, static_argnames=("steps", "single"), donate_argnames="state"
)
def run_epoch(state, x, y, rates, decays, key, done, total, steps, single):
    """Takes all settings over the pairs once.

    Args:
        state: parameters and velocities of all settings.
        x: normalised features, [N, D].
        y: labels, [N, C].
        rates: learning rates, [G].
        decays: weight decays, [G].
        key: of the order of pairs.
        done: steps taken before this epoch.
        total: steps of all epochs.
        steps: of this epoch.
        single: as in `train`.

    Returns:
        The state after it.
    """
    n = len(x)
    size = -(-n // steps)
    order = jax.random.permutation(key, n)[jnp.arange(steps * size) % n]
    cosine = 0.5 + 0.5 * jnp.cos(jnp.pi * (done + jnp.arange(steps)) / total)
    update = jax.vmap(
        functools.partial(_update, single=single),
        in_axes=(SETTINGS, 0, 0, None, None),
        out_axes=SETTINGS,
    )

    def step(state, now):
        pairs, share = now
        return update(state, share * rates, decays, x[pairs], y[pairs]), None

    return jax.lax.scan(step, state, (order.reshape(steps, size), cosine))[0]


def _update(state, rate, decay, x, y, *, single: bool):
    """One step of SGD with momentum for one setting."""
    params, velocity = state
    grads = jax.grad(objective)(params, decay, x, y, single)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
    return jax.tree.map(lambda p, v: p - rate * v, params, velocity), velocity


def objective(params, decay, x, y, single: bool) -> jax.Array:
    """The penalised loss of one setting on a batch; the bias goes free."""
    # TF32 on GPUs, three bfloat16 products on TPUs: finer than SGD's own noise.
    z = jnp.matmul(x, params["kernel"], precision="high") + params["bias"][None]
    if single:
        loss = -(y * jax.nn.log_softmax(z)).sum(axis=1).mean()
    else:
        loss = (jax.nn.softplus(z) - y * z).mean()
    return loss + decay / 2 * jnp.square(params["kernel"]).sum()


@functools.partial(jax.jit, static_argnames=("norm", "single"))
def probabilities(kernel, bias, mean, scale, x, *, norm, single):
    """What the classifiers of all settings say of features [M, D], [G, M, C]."""
    x = normalize(x, mean, scale, norm)
    # They will be ranked; accelerators round float32 products unless asked not to.
    z = jnp.einsum("md,gdc->gmc", x, kernel, precision="highest") + bias[:, None]
    return jax.nn.softmax(z) if single else jax.nn.sigmoid(z)


def statistics(features: np.ndarray, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """What `normalize` takes off and multiplies by for features [N, D], [D] each.

    A feature that is constant is multiplied by 0.
    """
    d = features.shape[1]
    if norm != "batch":
        return np.zeros(d, np.float32), np.ones(d, np.float32)
    mean, scale = np.empty(d, np.float32), np.empty(d, np.float32)
    for i in range(0, d, 64):  # in float64 all columns at once would be large
        columns = features[:, i : i + 64].astype(np.float64)
        variance = columns.var(axis=0)
        mean[i : i + 64] = columns.mean(axis=0)
        scale[i : i + 64] = (variance > 0.0) / np.sqrt(variance + EPS)
    return mean, scale


def normalize(x: jax.Array, mean: jax.Array, scale: jax.Array, norm: str) -> jax.Array:
    """What the linear layer sees of features [N, D]."""
    if norm == "layer":
        x = x - x.mean(axis=1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=1, keepdims=True) + EPS)
    return (x - mean[None]) * scale[None]


normalize_all = jax.jit(normalize, static_argnames="norm", donate_argnames="x")


def _put(x: np.ndarray, spec: P, mesh: Mesh) -> jax.Array:
    """Puts an array that every host has in full on the devices, as float32."""
    return jax.make_array_from_callback(
        x.shape, NamedSharding(mesh, spec), lambda i: np.asarray(x[i], np.float32)
    )


def check_pairs(which: str, features, labels, single: bool) -> None:
    """Refuses features and labels from which nothing can be learned.

    Raises:
        InputError: says how many are wrong.
    """
    if len(features) != len(labels) or not len(features):
        raise InputError(
            f"The {which} split has {len(features)} features and {len(labels)} labels; "
            "a probe needs as many of one as of the other, and at least one."
        )
    bad = int((~np.isfinite(features).all(axis=1)).sum())
    if bad:
        raise InputError(
            f"Features of {bad} of {len(features)} {which} pairs are not finite; the "
            "encoder has diverged, use an earlier checkpoint."
        )
    if not labels.any():
        raise InputError(
            f"None of {len(labels)} {which} pairs has a class; use another table."
        )
    odd = int((labels.sum(axis=1) != 1).sum())
    if single and odd:
        raise InputError(
            f"{odd} of {len(labels)} {which} pairs do not have exactly one class; "
            "leave them out, or probe for several classes a pair."
        )


@dataclasses.dataclass(frozen=True)
class Grid:
    """Learning rates x weight decays; a setting is one of each, rates outermost.

    Rates are those of a batch of 256. The defaults suit features of unit variance.
    """

    learning_rates: tuple[float, ...] = attribute(
        several(
            number(above=0.0),
            least=1,
            meaning="Learning rates of SGD for batches of 256 pairs, of which "
            "validation chooses.",
        ),
        (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0),
    )
    weight_decays: tuple[float, ...] = attribute(
        several(
            number(least=0.0),
            least=1,
            meaning="Weight decays, each tried with every learning rate.",
        ),
        (0.0, 1e-4, 1e-3, 1e-2, 0.1),
    )

    def __post_init__(self):
        check_attributes(self)

    def settings(self) -> list[tuple[float, float]]:
        """The G pairs of learning rate and weight decay."""
        return list(itertools.product(self.learning_rates, self.weight_decays))

    def at_edge(self, g: int) -> tuple[str, ...]:
        """On which sides setting `g` has no neighbour that might do better still.

        Returns:
            Some of "highest learning rate", "lowest weight decay" and so on. An axis
            of one value has no sides, and there is nothing below a decay of 0.
        """
        names = ("learning rate", "weight decay")
        axes = (self.learning_rates, self.weight_decays)
        edges = []
        for name, value, axis in zip(names, self.settings()[g], axes):
            if value == max(axis) > min(axis):
                edges.append(f"highest {name}")
            if max(axis) > min(axis) == value > 0.0:
                edges.append(f"lowest {name}")
        return tuple(edges)


class Fit(NamedTuple):
    """What validation chose, and how every setting did."""

    probe: Probe  # of the best setting alone
    learning_rate: float
    weight_decay: float
    score: float
    scores: np.ndarray  # [G], as `select` gives them
    at_edge: tuple[str, ...]  # as `Grid.at_edge` says


def fit(
    training: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    grid: Grid,
    mesh: Mesh,
    *,
    single: bool,
    **options,
) -> Fit:
    """Trains every setting of a grid and chooses one on validation pairs.

    Args:
        training: features [N, D] and labels [N, C].
        validation: features [M, D] and labels [M, C].
        grid: the settings.
        mesh: the devices.
        single: one class a pair, as in `train`.
        **options: of `train`.

    Raises:
        InputError: the data cannot be used, or no setting stayed finite.
    """
    check_pairs("validation", *validation, single)
    if [x.shape[1] for x in training] != [x.shape[1] for x in validation]:
        raise InputError(
            f"Training pairs have {training[0].shape[1]} features and "
            f"{training[1].shape[1]} classes but validation pairs "
            f"{validation[0].shape[1]} and {validation[1].shape[1]}; extract both "
            "with one encoder and one class table."
        )
    trained = train(*training, grid.settings(), mesh, single=single, **options)
    found = select(trained, *validation)
    best = int(found.argmax())  # the first of equals
    if found[best] == -math.inf:
        raise InputError(
            f"All {len(found)} settings of the probe diverged; lower its learning "
            f"rates {list(grid.learning_rates)}."
        )
    return Fit(
        trained.pick(best),
        *grid.settings()[best],
        float(found[best]),
        found,
        grid.at_edge(best),
    )


def select(probe: Probe, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scores every setting of a probe on features [M, D] and labels [M, C].

    Returns:
        Accuracy where a pair has one class, else micro-averaged precision, [G]; -inf
        where a setting diverged.
    """
    found = np.full(len(probe.kernel), -math.inf)
    for g, probabilities in enumerate(probe.predict(features)):
        if not all(np.isfinite(x).all() for x in (probe.kernel[g], probabilities)):
            continue
        found[g] = scores.headline(probabilities, labels, probe.single)
    return found
