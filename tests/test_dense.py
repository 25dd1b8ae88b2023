"""Dense probing: pixel labels stay under their pixels, and every pixel is judged."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from data_pipeline import synthetic
from data_pipeline.classes import NO_CLASS
from data_pipeline.errors import InputError
from fusmae_jax.evaluation import dense, dense_task, heads, loop, scores
from fusmae_jax.evaluation.encoder import Statistics, present
from fusmae_jax.inputs import Windows
from fusmae_jax.training import checkpoint, optim, sharding
from tests import tiny

FIELD = "land_cover"
CLASSES = len(synthetic.LAND_COVERS)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Small heads compile and run faster."""
    monkeypatch.setattr(heads, "WIDTH", 32)
    monkeypatch.setattr(heads, "LEAST_WIDTH", 16)


class Pairs:
    """Records in memory."""

    def __init__(self, records, description):
        self.records, self.description = records, description
        self.fields = tuple(records[0])

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def change(self, **functions):
        """The same pairs, with some fields replaced by functions of them."""
        records = [r | {k: f(r[k]) for k, f in functions.items()} for r in self.records]
        return Pairs(records, self.description)


def pairs(count=8, size=24, seed=0, unlabelled=0.1):
    """Synthetic scenes, of which some pixels have no label."""
    scenes = synthetic.Scenes(count, size=size, seed=seed)
    rng, names = np.random.default_rng(seed), scenes.description.layout.shapes
    records = [{k: scenes[i][k] for k in (*names, FIELD)} for i in range(count)]
    source = Pairs(records, scenes.description)
    hide = lambda x: np.where(rng.random(x.shape) < unlabelled, NO_CLASS, x)
    return source.change(**{FIELD: lambda x: hide(x).astype(np.uint8)})


def untrained(scene_size=24, params="random"):
    """A tiny encoder that nothing has trained, or bare pixels, and its parameters."""
    encoder, random = tiny.encoder(scene_size=scene_size)
    if params == "random":
        return encoder, random
    return Statistics(encoder.inputs, encoder.patch_size), nnx.State({})


def one_device():
    device = np.array(jax.devices()[:1]).reshape(1, 1)
    return Mesh(device, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def recipe(**changes):
    options = dict(epochs=3, batch_size=4, learning_rates=(1e-3, 1e-2))
    return dense.Recipe(**options | changes)


def fit(directory, source=None, *, size=24, params="random", mesh=None, **changes):
    return dense.fit(
        *untrained(size, params),
        source or pairs(size=size),
        changes.pop("validation", None) or pairs(4, size, seed=1),
        changes.pop("field", FIELD),
        sensor_set=changes.pop("sensor_set", "both"),
        recipe=recipe(**changes),
        mesh=mesh or sharding.make_mesh(),
        seed=0,
        directory=directory,
        title="dense",
    )


def judge(fitted, source, *, size=24, params="random", mesh=None, sensor_set="both"):
    return dense.confusions(
        *untrained(size, params),
        fitted,
        source,
        FIELD,
        sensor_set=sensor_set,
        batch_size=4,
        mesh=mesh or sharding.make_mesh(),
    )


def task(source, size=24, head="linear", mesh=None):
    net, params = untrained(size)
    mesh = mesh or sharding.make_mesh()
    return dense_task.Task(net, params, source, FIELD, mesh, head=head, blocks=1)


def train(rates, head, steps=4, mesh=None):
    """Heads after a few steps, their parameters [R, ...]."""
    mesh, source = mesh or sharding.make_mesh(), pairs()
    t = task(source, head=head, mesh=mesh)
    tx = optim.adamw(optim.schedule(1.0, 0, steps), weight_decay=0.01)
    init, plan = t.start(tx, len(rates), jax.random.key(0))
    state = init()
    step = t.train_step(tx, rates, plan, 1)
    stream = loop.load(source, batch_size=4, seed=0, first=0, mesh=mesh)
    for fields, _ in zip(stream, range(steps)):
        state, _ = step(state, t.params, fields, t.here("both", 4))
    return jax.device_get(state.params)


def assert_same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **{"rtol": 1e-4, "atol": 1e-5} | tolerance)


@pytest.mark.journey
@pytest.mark.parametrize("head", heads.HEADS)
def test_confusion_is_that_of_averaged_logits_of_all_tiles(head):
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with it")
    size = 42
    source = pairs(5, size)
    t = task(source, size, head)
    state = t.start(optax.sgd(1.0), 2, jax.random.key(0))[0]()
    noise = np.random.default_rng(0)
    heads = jax.tree.map(
        lambda x: x + jnp.asarray(noise.normal(size=x.shape), x.dtype), state.params
    )
    found = np.concatenate([*t.judge(heads, source, "both", 4, "")], axis=1)
    assert found.shape == (2, 5, CLASSES, CLASSES)

    fields = {k: jnp.stack([r[k] for r in source.records]) for k in source.fields}
    logits = np.zeros((2, 5, size, size, CLASSES))
    times = np.zeros((size, size, 1))
    here = {s: jnp.ones(5, bool) for s in ("s1", "s2")}
    see, classify = jax.jit(t.see), jax.jit(jax.vmap(t.logits, (0, None)))
    for y, x in t.inputs.corners():
        windows = Windows.at(jnp.array([y, x]), 5)
        seen = see(t.params, fields, here, windows)
        place = (slice(y, y + 24), slice(x, x + 24))
        logits[:, :, *place] += classify(heads, seen)
        times[place] += 1
    predicted = (logits / times).argmax(axis=-1)
    for r, n in itertools.product(range(2), range(5)):
        true = source[n][FIELD]
        kept = true != NO_CLASS
        want = metrics.confusion_matrix(
            true[kept], predicted[r, n][kept], labels=range(CLASSES)
        )
        np.testing.assert_array_equal(found[r, n], want)
    assert len({x.tobytes() for x in found}) == 2


@pytest.mark.journey
@pytest.mark.parametrize("size", [12, 36])
def test_every_labelled_pixel_is_judged_once(tmp_path, size):
    source = pairs(6, size)
    fitted = fit(tmp_path, pairs(size=size), size=size, epochs=1)
    found = judge(fitted, source, size=size)
    assert found.shape == (6, CLASSES, CLASSES)
    for counts, record in zip(found, source.records):
        kept = record[FIELD][record[FIELD] != NO_CLASS]
        np.testing.assert_array_equal(
            counts.sum(axis=1), np.bincount(kept, minlength=CLASSES)
        )


@pytest.mark.journey
@pytest.mark.parametrize(
    "head, params", [("linear", "random"), ("upsample", "random"), ("upsample", None)]
)
def test_a_head_overfits_a_few_scenes(tmp_path, head, params):
    source = pairs(4)
    fitted = fit(
        *(tmp_path, source),
        params=params,
        validation=source,
        head=head,
        epochs=100,
        learning_rates=(3e-3, 1e-2),
    )
    found = judge(fitted, source, params=params)
    true = found.sum(axis=(0, 2))
    accuracy = np.trace(found.sum(axis=0)) / true.sum()
    guess = true.max() / true.sum()
    assert accuracy > 0.5 + guess / 2
    miou = scores.segmentation(found, resamples=0).overall["miou"].value
    assert fitted.score == pytest.approx(miou) == fitted.scores.max()


def blocks_of_radar(seed):
    """Scenes of 6 px blocks at random: bright ones are class 1, dark ones class 0."""
    rng = np.random.default_rng(seed)
    source = pairs(8, 36)
    for record in source.records:
        labels = rng.integers(0, 2, (6, 6)).repeat(6, axis=0).repeat(6, axis=1)
        record[FIELD] = labels.astype(np.uint8)
        for name in record:
            if name.startswith("s1_"):
                pixels = np.where(labels[..., None], -5.0, -25.0)
                record[name] = np.broadcast_to(pixels, record[name].shape)
    return source


@pytest.mark.journey
def test_a_head_is_taught_the_labels_of_the_pixels_that_it_sees(tmp_path):
    """Were images turned or moved and labels not, it would only guess."""
    kw = dict(size=36, params=None, sensor_set="s1")
    fitted = fit(
        *(tmp_path, blocks_of_radar(0)),
        validation=blocks_of_radar(1),
        epochs=30,
        learning_rates=(1e-2,),
        head="upsample",
        **kw,
    )
    found = judge(fitted, blocks_of_radar(2), **kw).sum(axis=0)
    assert np.trace(found) > 0.9 * found.sum()


def test_windows_depend_on_the_step_and_on_nothing_before_it():
    t = task(pairs(4, 36), 36)
    tx = optax.sgd(1e-30)  # heads stay as they are
    fields = {k: np.stack([r[k] for r in pairs(4, 36).records]) for k in t.fields}
    fields = sharding.to_devices(fields, t.mesh)
    init, plan = t.start(tx, 1, jax.random.key(0))
    state = init()
    step, losses = t.train_step(tx, (1.0,), plan, 1), []
    for number in (0, 1, 2, 0):
        state = dataclasses.replace(state, step=jnp.int32(number))
        state, loss = step(state, t.params, fields, t.here("both", 4))
        losses.append(float(loss))
    assert losses[0] == losses[3]
    assert len({*losses}) == 3


@pytest.mark.journey
@pytest.mark.parametrize("head", heads.HEADS)
def test_rates_trained_at_once_are_what_each_is_alone(head):
    rates = (1e-3, 3e-2)
    together = train(rates, head)
    for r, rate in enumerate(rates):
        one = jax.tree.map(lambda x: x[r : r + 1], together)
        assert_same(one, train((rate,), head), atol=1e-4)  # Adam, of tiny gradients
    kernel = np.asarray(jax.tree.leaves(together["classify"])[-1])
    assert np.abs(kernel[0] - kernel[1]).max() > 1e-2


def test_the_loss_is_the_mean_over_labelled_pixels():
    torch = pytest.importorskip("torch", reason="compares with it")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 6, 6, 4)).astype(np.float32)
    labels = rng.integers(0, 4, (3, 6, 6)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = NO_CLASS
    want = torch.nn.functional.cross_entropy(
        torch.tensor(logits).movedim(-1, 1),
        torch.tensor(labels).long(),
        ignore_index=NO_CLASS,
    )
    found = dense_task.cross_entropy(jnp.array(logits), jnp.array(labels))
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_a_batch_without_labelled_pixels_costs_nothing():
    labels = jnp.full((2, 6, 6), NO_CLASS, jnp.uint8)
    loss, grad = jax.value_and_grad(dense_task.cross_entropy)(
        jnp.ones((2, 6, 6, 4)), labels
    )
    assert loss == 0.0
    assert not grad.any()
    assert not dense_task.confusion(labels[0], jnp.zeros((6, 6), int), 4).any()


def test_a_convolution_is_a_linear_layer_on_neighbourhoods(key):
    x = jax.random.normal(key, (2, 5, 7, 3))
    kernel = jax.random.normal(key, (3, 3, 3, 4))
    found = heads.neighbourhoods(x) @ kernel.reshape(-1, 4)
    want = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch_size, side", [(1, 4), (2, 8), (6, 16), (8, 32)])
def test_the_upsampling_head_never_passes_the_pixel_grid(patch_size, side):
    def run(x):
        return heads.make("upsample", 20, 5, patch_size, rngs=nnx.Rngs(0))(x)

    found = jax.eval_shape(run, jnp.zeros((1, 4, 4, 20)))
    assert found.shape == (1, side, side, 5)


def test_tokens_of_one_sensor_or_two_have_one_scale_and_an_absent_one_is_not_read():
    rng = np.random.default_rng(0)
    images = {
        s: jnp.asarray(rng.normal(size=(2, 24, 24, c)), jnp.float32)
        for s, c in tiny.BANDS.items()
    }
    rubbish = images | {"s2": jnp.full_like(images["s2"], jnp.nan)}
    for taken in ("random", None):
        net, p = untrained(params=taken)
        see = jax.jit(lambda p, x, who: dense_task.tokens(net, p, x, who, 1))
        alone = present("s1", 2, one_device())
        clean, dirty = (see(p, x, alone) for x in (images, rubbish))
        np.testing.assert_array_equal(clean, dirty)
        both = see(p, images, present("both", 2, one_device()))
        assert both.shape == clean.shape == (2, 4, 4, 32 if taken else 14 * 36)
        assert np.abs(both - clean).max() > 0.1
        if taken:
            for x in (clean, both):
                np.testing.assert_allclose(x.std(axis=-1), 1.0, rtol=1e-3)
        else:
            np.testing.assert_array_equal(both[:, 0, 0, :2], images["s1"][:, 0, 0])


@pytest.mark.journey
@pytest.mark.parametrize("params", ["random", None])
def test_training_on_radar_never_reads_optics(tmp_path, params):
    clean, found = pairs(), []
    optics = [f for f in clean.fields if f.startswith("s2_")]
    rubbish = lambda x: np.full(x.shape, np.nan, np.float32)
    for i, source in enumerate((clean, clean.change(**dict.fromkeys(optics, rubbish)))):
        kw = dict(params=params, sensor_set="s1")
        fitted = fit(tmp_path / str(i), source, validation=source, **kw)
        found.append((fitted.params, judge(fitted, source, **kw)))
    assert_same(*(params for params, _ in found), rtol=0, atol=0)
    np.testing.assert_array_equal(*(counts for _, counts in found))


@pytest.mark.journey
def test_an_interrupted_training_goes_on_to_the_same_heads(tmp_path, monkeypatch):
    whole = fit(tmp_path / "whole", size=36)
    load, starts = loop.load, []

    def interrupted(source, *, first, **options):
        starts.append(first)
        for i, batch in enumerate(load(source, first=first, **options)):
            if first == 0 and i == 4:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(loop, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", size=36)
    again = fit(tmp_path / "cut", size=36)
    assert starts[0] == 0 < starts[1]
    assert_same(whole.params, again.params, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(whole.scores, again.scores)


@pytest.mark.journey
@pytest.mark.parametrize("head", heads.HEADS)
def test_devices_do_not_change_what_is_learnt_or_found(tmp_path, head):
    source, found = pairs(6, 36, seed=2), []
    for i, mesh in enumerate((one_device(), sharding.make_mesh())):
        fitted = fit(tmp_path / str(i), size=36, mesh=mesh, head=head)
        found.append((fitted, judge(fitted, source, size=36, mesh=mesh)))
    (one, few), (four, many) = found
    assert one.learning_rate == four.learning_rate
    assert_same(one.params, four.params, rtol=1e-3, atol=1e-4)
    assert np.abs(few - many).sum() <= 0.01 * few.sum()


def test_a_rate_that_diverges_is_not_chosen(tmp_path):
    found = fit(tmp_path, learning_rates=(1e-3, 1e38))
    assert found.learning_rate == 1e-3
    assert found.scores[1] == -np.inf
    assert found.at_edge == ("lowest learning rate",)


@pytest.mark.journey
def test_heads_are_trained_for_so_many_steps_at_least(tmp_path):
    fit(tmp_path, epochs=1, batch_size=16, least_steps=3)  # of 8 pairs
    assert checkpoint.saved_steps(tmp_path) == [3]


def test_bad_input_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"no pixel labels 'corine'.*'land_cover'"):
        fit(tmp_path, field="corine")
    with pytest.raises(InputError, match="batch_size=6 does not divide over 4 devices"):
        fit(tmp_path, batch_size=6)
    nothing = pairs(unlabelled=1.0)
    with pytest.raises(InputError, match="None of the 8 training pairs has a labelled"):
        fit(tmp_path, nothing)
    with pytest.raises(InputError, match="None of 1 scenes has a labelled pixel"):
        fit(tmp_path, validation=nothing)
    with pytest.raises(InputError, match="1 epochs of 8 pairs are less than one batch"):
        fit(tmp_path, epochs=1, batch_size=16)
    with pytest.raises(InputError, match="blocks is 5; this encoder has 1 blocks"):
        fit(tmp_path, blocks=5)
    with pytest.raises(InputError, match=r"size \(24 and 36\)"):
        fit(tmp_path, validation=pairs(4, 36))
    other = pairs(4)
    maps = {FIELD: ("land", "sea")}
    other.description = dataclasses.replace(other.description, maps=maps)
    with pytest.raises(InputError, match=r"land_cover .*and \('land', 'sea'\)"):
        fit(tmp_path, validation=other)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"head": "unet"}, r"^head is 'unet'; choose one of \['linear'"),
        ({"epochs": 0}, "^epochs is 0"),
        ({"batch_size": -4}, "^batch_size is -4"),
        ({"blocks": 0}, "^blocks is 0"),
        ({"learning_rates": ()}, r"^learning_rates is \(\)"),
        ({"learning_rates": (0.1, 0.0)}, r"^learning_rates is \(0.1, 0.0\)"),
        ({"weight_decay": -1.0}, "^weight_decay is -1.0"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        recipe(**changes)
