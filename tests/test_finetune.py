"""Fine-tuning: what learns, how fast, from what, and that nothing else decides."""

import contextlib
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from data_pipeline import batches, synthetic
from data_pipeline.errors import InputError
from fusmae_jax.evaluation import classifier, features, finetune, loop, scores
from fusmae_jax.models import attention
from fusmae_jax.training import sharding
from tests import tiny

CLASSES = len(synthetic.LAND_COVERS)
BATCH = 8
# Nothing is random but the crops, the head, and the order of pairs.
BASE = dict(
    epochs=3,
    batch_size=BATCH,
    base_lr=0.05,
    warmup_epochs=0,
    layer_decay=1.0,
    drop_path=0.0,
    weight_decay=0.0,
    turn=False,
)


NOISY = dict(
    drop_path=0.5, mixup=0.8, smoothing=0.2, turn=True, weight_decay=0.05, clip_norm=1.0
)


class Pairs(synthetic.Scenes):
    """Scenes without texts and maps; with `single`, of their first class alone."""

    def __init__(self, count=BATCH, *, single=False, spoil="", seed=0):
        layout = synthetic.Scenes(1, size=24).description.layout
        fields = (*layout.shapes, "labels")
        super().__init__(count, size=24, seed=seed, fields=fields)
        self.single, self.spoil = single, spoil

    @functools.lru_cache
    def __getitem__(self, index):
        pair = super().__getitem__(index)
        if self.single:
            pair["labels"] = np.eye(CLASSES, dtype=np.uint8)[pair["labels"].argmax()]
        for field in pair:
            if self.spoil and field.startswith(self.spoil):
                worst = np.nan if self.spoil == "s1" else 65535
                pair[field] = np.full_like(pair[field], worst)
        return pair

    @property
    def labels(self):
        return np.stack([self[i]["labels"] for i in range(len(self))])


@functools.cache
def untrained(depth=2):
    """A tiny encoder that nothing has trained."""
    return tiny.encoder(model=dict(depth=depth))


def some_devices(count=1):
    devices = np.array(jax.devices()[:count]).reshape(count, 1)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


# Trainings of one recipe share a compiled step, as they do in earnest.
@functools.cache
def finetuner(mesh, single, **recipe):
    encoder, params = untrained()
    recipe = finetune.Recipe(**recipe)
    goal = classifier.Labels(encoder, recipe, "labels", CLASSES, single)
    return finetune.Finetuner(goal, params, mesh, min_size=0)


def tune(
    directory, source, *, sensor_set="both", mesh=None, single=False, seed=0, **recipe
):
    return finetuner(mesh or some_devices(), single, **BASE | recipe)(
        source,
        sensor_set=sensor_set,
        seed=seed,
        directory=directory / "checkpoints",
        title="fine-tuning",
    )


def predict(tuned, source, *, sensor_set="both", mesh=None, batch_size=BATCH):
    recipe = features.Recipe(pool=tuned.pool, view=tuned.view)
    extractor = features.Extractor(
        untrained()[0], tuned.params, recipe, mesh or some_devices(), ["both"]
    )
    return classifier.predict(
        extractor,
        tuned,
        source,
        sensor_set=sensor_set,
        batch_size=batch_size,
        title="test",
    )


def leaves(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {sharding.leaf_path(path): np.asarray(x) for path, x in found}


def assert_same(a, b, **tolerance):
    a, b = leaves((a.params, a.head)), leaves((b.params, b.head))
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], err_msg=path, **tolerance)


exactly = dict(rtol=0, atol=0)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """`plain`, and whether attention was masked where it was trained and asked."""
    attend, masked = attention.attend, []

    def spy(q, k, v, mask=None, *rest):
        masked.append(mask is not None)
        return attend(q, k, v, mask, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "attend", spy)
        tuned = tune(tmp_path_factory.mktemp("plain"), Pairs())
        trained = len(masked)
        predict(tuned, Pairs())
    assert 0 < trained < len(masked)
    return tuned, masked


@pytest.fixture(scope="module")
def plain(watched):
    """Three steps of a recipe without anything random."""
    return watched[0]


@pytest.mark.journey
@pytest.mark.parametrize("single", [False, True])
def test_it_learns_a_handful_of_pairs_by_heart(tmp_path, single):
    source = Pairs(single=single)
    tuned = tune(tmp_path, source, single=single, epochs=100, base_lr=0.1)
    found = predict(tuned, source)
    assert found.shape == (BATCH, CLASSES) and found.dtype == np.float32
    if single:
        np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-5)
        assert scores.single_label(found, source.labels).overall["oa"].value == 1.0
    else:
        micro, _ = scores.average_precision(found, source.labels)
        assert micro > 0.99
        assert ((found > 0.5) == source.labels).mean() > 0.97


def test_the_encoder_learns_too_and_what_nothing_asks_for_stays(plain):
    before, after = leaves(untrained()[1]), leaves(plain.params)
    assert before.keys() == after.keys()
    for path, x in before.items():
        # Sensors are never absent here, so nothing asks for the tokens instead.
        still = "absent/" in path
        # Attention does not depend on what is added to all keys alike.
        if not path.endswith("attn/key/bias") and "key/bias" not in path:
            assert np.array_equal(x, after[path]) == still, path


def test_only_the_encoder_and_the_head_are_saved_and_optimised(tmp_path, monkeypatch):
    seen = []

    def train(step, init, *args, **kwargs):
        state = init()
        seen.append(state)
        return state

    monkeypatch.setattr(loop, "train", train)
    tune(tmp_path, Pairs())
    paths = set(leaves(seen[0]))
    assert {p.split("/")[1] for p in paths if p.startswith("params/")} == {
        "encoder",
        "head",
    }
    assert not [p for p in paths if "decoders" in p]
    assert len([p for p in paths if "/mu/" in p]) == len(leaves(seen[0].params))


def test_the_given_parameters_survive(tmp_path):
    before = {k: v.copy() for k, v in leaves(untrained()[1]).items()}
    tune(tmp_path, Pairs())
    after = leaves(untrained()[1])  # would raise, had they been donated
    for path in before:
        np.testing.assert_array_equal(before[path], after[path])


LAYERS = {
    0: r"encoder/(embed/s[12]/(kernel|bias)|absent/s[12]|global_token|fuse/.*)",
    1: r"encoder/blocks/0/.*",
    2: r"encoder/blocks/1/.*",
    3: r"encoder/blocks/2/.*",
    4: r"(encoder/norm/(scale|bias)|head/(kernel|bias))",
}


def parts(depth=4):
    """Encoder and head of three blocks behind an XAttnEncoder."""
    _, encoder = untrained(depth)
    return {"encoder": encoder, "head": classifier.init_head(jax.random.key(0), 32, 5)}


def test_every_parameter_has_the_layer_of_where_it_stands():
    encoder, params = untrained(4)
    for path in leaves(params):
        (wanted,) = [i for i, p in LAYERS.items() if re.fullmatch(p, f"encoder/{path}")]
        assert encoder.layer_of(path) == wanted, path


def test_a_parameter_that_belongs_nowhere_is_an_error():
    for path in ("oops/kernel", "decoders/s1/norm/scale", "normal/x"):
        with pytest.raises(ValueError, match=f"No layer is known for {path}"):
            untrained()[0].layer_of(path)


def test_rates_fall_from_layer_to_layer_weight_decay_included():
    params = parts()
    grads = jax.tree.map(jnp.ones_like, params)

    def updates(decay):
        recipe = finetune.Recipe(10, 256, 1e-3, layer_decay=decay)
        tx = finetune.optimizer(recipe, untrained(4)[0])
        return leaves(tx.update(grads, tx.init(params), params)[0])

    decayed, alike = updates(0.5), updates(1.0)
    for path, update in decayed.items():
        (layer,) = [i for i, p in LAYERS.items() if re.fullmatch(p, path)]
        # 1/16, 1/8, 1/4, 1/2 and 1 for the head.
        np.testing.assert_allclose(update, alike[path] * 0.5 ** (4 - layer), rtol=1e-6)
    # The first step of Adam is one of the rate's length, and matrices decay.
    np.testing.assert_allclose(alike["head/bias"], -1.0, rtol=1e-5)
    kernel = leaves(params)["encoder/embed/s1/kernel"]
    want = -(1.0 + 0.05 * kernel) / 16
    np.testing.assert_allclose(decayed["encoder/embed/s1/kernel"], want, rtol=1e-5)


def test_rates_warm_up_fall_to_nothing_and_grow_with_the_batch():
    rates = finetune.learning_rates(finetune.Recipe(10, 64, 1e-3, warmup_epochs=2), 640)
    assert len(rates) == 100 and rates.argmax() == 20
    np.testing.assert_allclose(rates[[0, 10, 20]], [0.0, 1.25e-4, 2.5e-4], rtol=1e-5)
    np.testing.assert_allclose(rates[60], 1.25e-4, rtol=1e-5)
    assert 0.0 < rates[-1] < 1e-6


@pytest.mark.parametrize("pairs, steps", [(1, 1), (3, 2), (100, 87)])
def test_few_pairs_have_their_steps_and_their_warm_up(pairs, steps):
    recipe = finetune.Recipe(7, 8, 1e-3, warmup_epochs=6)
    assert len(finetune.learning_rates(recipe, pairs)) == steps
    longer = dataclasses.replace(recipe, least_steps=steps + 9)
    assert len(finetune.learning_rates(longer, pairs)) == steps + 9


def test_few_pairs_fill_a_batch(tmp_path):
    tuned = tune(tmp_path, Pairs(BATCH - 2))
    assert (tmp_path / "checkpoints" / "2").is_dir()
    assert np.isfinite(predict(tuned, Pairs(BATCH - 2))).all()


@pytest.mark.journey
def test_a_training_cut_in_two_equals_the_one_left_alone(tmp_path, monkeypatch):
    recipe = NOISY | dict(epochs=4)
    whole = tune(tmp_path / "whole", Pairs(), **recipe)
    load, taken = loop.load, []

    def break_down(*args, first, **kwargs):
        for batch in load(*args, first=first, **kwargs):
            taken.append(first)
            if len(taken) == 4:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(loop, "load", break_down)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "cut", Pairs(), **recipe)
    resumed = tune(tmp_path / "cut", Pairs(), **recipe)
    assert 0 < taken[-1] < 4
    assert_same(resumed, whole, **exactly)


def test_a_resume_holds_one_state_at_a_time(plain, tmp_path, while_loading):
    tune(tmp_path, Pairs())
    again = tune(tmp_path, Pairs())  # there is nothing left to do
    assert_same(again, plain, **exactly)
    # Parameters and two moments.
    trained = leaves((again.params, again.head))
    one = 3 * sum(x.nbytes for x in trained.values())
    (held,) = while_loading
    assert held < 1.5 * one, held / one


@pytest.mark.journey
@pytest.mark.parametrize("remat, accumulate", [("none", 4), ("dots", 1), ("full", 2)])
def test_what_saves_memory_learns_the_same(tmp_path, remat, accumulate):
    """Mixing samples, leaving out branches and clipping included."""
    recipe = NOISY | dict(turn=False, base_lr=0.01)
    plain = tune(tmp_path / "plain", Pairs(), **recipe)
    saving = dict(remat=remat, accumulate=accumulate)
    tuned = tune(tmp_path / "saving", Pairs(), **recipe, **saving)
    assert_same(tuned, plain, rtol=1e-4, atol=1e-5)


def step_memory(**recipe):
    """Bytes between what a step of 64 pairs takes and what it gives."""
    tuner = finetuner(some_devices(), False, **BASE | recipe | dict(batch_size=64))
    fields = batches.stack(Pairs(64), range(64))
    args = tuner.abstract_state(), jax.random.key(0), None, fields
    step = tuner.step.lower(*args, np.float32(0.1)).compile()
    return step.memory_analysis().temp_size_in_bytes


@pytest.mark.journey
def test_parts_of_a_batch_take_less_memory():
    """What remat saves shows only off the CPU, see tests/test_ahead_of_time.py."""
    assert step_memory(accumulate=8) < 0.4 * step_memory()


@pytest.mark.journey
def test_what_is_sent_unasked_stops_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "to_all", lambda tree, mesh: tree)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
        tune(tmp_path, Pairs(), smoothing=0.01)  # a compiled step of its own


def test_where_all_sensors_are_there_nothing_is_masked(watched):
    assert not any(watched[1])


@pytest.mark.journey
@pytest.mark.parametrize("fsdp", [1, 4])
def test_devices_and_layouts_do_not_matter_and_a_step_compiles_once(
    plain, tmp_path, fsdp
):
    mesh = sharding.make_mesh(fsdp)
    tuned = tune(tmp_path, Pairs(), mesh=mesh)
    got = predict(tuned, Pairs(5), mesh=mesh)
    np.testing.assert_allclose(got, predict(plain, Pairs(5)), rtol=0, atol=1e-5)
    assert finetuner(mesh, False, **BASE).step._cache_size() == 1


def test_seeds_decide_and_nothing_else(plain, tmp_path):
    assert_same(tune(tmp_path / "again", Pairs()), plain, **exactly)
    other = tune(tmp_path / "other", Pairs(), seed=1)
    assert not np.allclose(other.head["kernel"], plain.head["kernel"], atol=1e-4)


def test_trainings_share_their_compiled_step(plain, tmp_path):
    step = finetuner(some_devices(), False, **BASE).step
    tune(tmp_path / "more", Pairs(5), seed=2)
    assert step._cache_size() == 1
    for s in ("s1", "s2"):  # one more, for all trainings without a sensor
        tune(tmp_path / s, Pairs(5), seed=2, sensor_set=s)
        assert step._cache_size() == 2


@pytest.mark.journey
@pytest.mark.parametrize(
    "option, changed",
    [
        (dict(turn=True), "images"),
        (dict(crop_scale=(0.3, 0.4)), "images"),
        (dict(smoothing=0.2), "targets"),
        (dict(mixup=0.8), "images targets"),
        (dict(drop_path=0.5), "branches"),
        (dict(layer_decay=0.5), ""),
    ],
)
def test_an_option_changes_what_it_says_and_no_more(key, option, changed):
    source = Pairs()
    fields = batches.stack(source, range(BATCH))
    draws = [
        jax.jit(finetuner(some_devices(), False, **BASE | change).draw)(key, fields)
        for change in ({}, option)
    ]
    names = ("images", "targets", "branches")
    unlike = [n for n, a, b in zip(names, *draws) if not alike(a, b)]
    assert " ".join(unlike) == changed


def alike(a, b):
    a, b = leaves(a), leaves(b)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.journey
def test_drop_path_and_mixup_change_training_but_not_prediction(plain, tmp_path):
    tuned = tune(tmp_path, Pairs(), **NOISY)
    # Only parameters decide a prediction, not the recipe they are from.
    first, again = predict(tuned, Pairs()), predict(tuned, Pairs())
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - predict(plain, Pairs())).max() > 1e-4
    dropped = tune(tmp_path / "dropped", Pairs(), drop_path=0.5)
    kernel = "blocks/0/mlp/up/kernel"
    change = leaves(dropped.params)[kernel] - leaves(plain.params)[kernel]
    assert np.abs(change).max() > 1e-5


@pytest.mark.parametrize(
    "noise", [{}, pytest.param(NOISY, marks=pytest.mark.journey)], ids=["crops", "all"]
)
def test_every_step_draws_anew(tmp_path, monkeypatch, noise):
    losses = []

    def train(step, init, layout, open_batches, steps, **_):
        state = init()
        with contextlib.closing(open_batches(0)) as stream:
            fields, rate = next(stream)
        for _ in range(2):  # on the same pairs, and without learning anything
            state, loss = step(state, (fields, 0.0 * rate))
            losses.append(float(loss))
        return state

    monkeypatch.setattr(loop, "train", train)
    tune(tmp_path, Pairs(), **noise)
    assert losses[0] != losses[1]


def test_predictions_drop_what_fills_up_batches(plain):
    want = predict(plain, Pairs(7), batch_size=1)
    for batch_size in (3, 64):
        got = predict(plain, Pairs(7), batch_size=batch_size)
        assert got.shape == (7, CLASSES)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.journey
@pytest.mark.parametrize("shown, absent", [("s1", "s2"), ("s2", "s1")])
def test_pixels_of_an_absent_sensor_are_never_read(tmp_path, shown, absent):
    options = NOISY | dict(sensor_set=shown)
    clean = tune(tmp_path / "clean", Pairs(), **options)
    spoilt = tune(tmp_path / "spoilt", Pairs(spoil=absent), **options)
    assert_same(clean, spoilt, **exactly)
    np.testing.assert_array_equal(
        predict(clean, Pairs(), sensor_set=shown),
        predict(clean, Pairs(spoil=absent), sensor_set=shown),
    )
    assert np.isfinite(predict(clean, Pairs(), sensor_set=shown)).all()


@pytest.mark.journey
def test_the_head_sees_what_the_pool_says(tmp_path):
    tuned = tune(tmp_path, Pairs(), pool="sensors", epochs=1)
    assert tuned.head["kernel"].shape == (2 * 32, CLASSES)
    assert predict(tuned, Pairs()).shape == (BATCH, CLASSES)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_are_those_of_pytorch_on_smoothed_targets(single, smoothing):
    torch = pytest.importorskip("torch", reason="losses are compared with PyTorch's")
    rng = np.random.default_rng(0)
    said = rng.normal(0.0, 3.0, (16, 5)).astype(np.float32)
    chosen = rng.integers(0, 5, 16)
    labels = np.eye(5)[chosen] if single else rng.random((16, 5)) < 0.4
    targets = classifier.soften(jnp.asarray(labels, jnp.uint8), smoothing, single)
    got = classifier.loss(jnp.asarray(said), targets, single)
    functions = torch.nn.functional
    if single:
        want = functions.cross_entropy(
            torch.tensor(said), torch.tensor(chosen), label_smoothing=smoothing
        )
    else:
        soft = np.where(labels, 1.0 - smoothing / 2, smoothing / 2)
        want = functions.binary_cross_entropy_with_logits(
            torch.tensor(said), torch.tensor(soft, dtype=torch.float32)
        )
    np.testing.assert_allclose(got, want.item(), rtol=1e-5)


def test_the_head_is_a_linear_layer_behind_a_norm():
    torch = pytest.importorskip("torch", reason="the norm is compared with PyTorch's")
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 0.1, (6, 32)).astype(np.float32)
    kernel = rng.normal(size=(32, 5)).astype(np.float32)
    bias = rng.normal(size=5).astype(np.float32)
    got = classifier.logits({"kernel": kernel, "bias": bias}, jnp.asarray(x))
    normed = torch.nn.functional.layer_norm(torch.tensor(x), (32,), eps=1e-6).numpy()
    np.testing.assert_allclose(got, normed @ kernel + bias, rtol=1e-3, atol=1e-4)


def test_samples_are_mixed_with_their_targets_in_the_same_shares():
    images = {"s1": jnp.arange(4.0).reshape(4, 1, 1, 1)}
    targets = jnp.eye(4)
    share = jnp.array([1.0, 0.75, 0.5, 0.25])
    images, targets = classifier.mix((images, targets), share)
    np.testing.assert_allclose(images["s1"].ravel(), [0.0, 1.25, 1.5, 0.75])
    want = [[1, 0, 0, 0], [0, 0.75, 0.25, 0], [0, 0.5, 0.5, 0], [0.75, 0, 0, 0.25]]
    np.testing.assert_allclose(targets, want)


@pytest.mark.parametrize(
    "field, value",
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("base_lr", 0.0),
        ("base_lr", float("inf")),
        ("warmup_epochs", 10),
        ("warmup_epochs", -1),
        ("layer_decay", 0.0),
        ("layer_decay", 1.1),
        ("drop_path", 1.0),
        ("weight_decay", float("nan")),
        ("b1", 1.0),
        ("b2", 1.0),
        ("clip_norm", -1.0),
        ("smoothing", 1.0),
        ("mixup", -0.1),
        ("accumulate", 0),
    ],
)
def test_numbers_that_cannot_work_are_refused_by_name(field, value):
    recipe = dict(epochs=10, batch_size=8, base_lr=1e-3) | {field: value}
    with pytest.raises(InputError, match=rf"^{field} is {value}; it must be"):
        finetune.Recipe(**recipe)


def test_other_options_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"Crop scale \(0.0, 1.0\)"):
        finetune.Recipe(10, 8, 1e-3, crop_scale=(0.0, 1.0))
    with pytest.raises(InputError, match="pool is 'max'"):
        finetune.Recipe(10, 8, 1e-3, pool="max")
    with pytest.raises(InputError, match="view is 'corner'"):
        finetune.Recipe(10, 8, 1e-3, view="corner")
    with pytest.raises(InputError, match="batch_size=6 does not divide over 4 devices"):
        tune(tmp_path, Pairs(), batch_size=6, mesh=sharding.make_mesh())
    with pytest.raises(InputError, match="8 does not divide .* in accumulate=4 parts"):
        tune(tmp_path, Pairs(), accumulate=4, mesh=sharding.make_mesh())
    with pytest.raises(InputError, match="batch_size=8 does not divide into accumulat"):
        finetune.Recipe(10, 8, 1e-3, accumulate=3)
    with pytest.raises(InputError, match=r"remat is 'all'; choose one of \['none'"):
        finetune.Recipe(10, 8, 1e-3, remat="all")
    with pytest.raises(InputError, match=r"sensors is \['s3'\]"):
        tune(tmp_path, Pairs(), sensor_set="s3")
    assert not list(tmp_path.iterdir())


def test_a_training_that_diverges_stops_and_says_so(tmp_path):
    with pytest.raises(InputError, match="The loss is (nan|inf) at step"):
        tune(tmp_path, Pairs(), base_lr=1e30, epochs=6)
