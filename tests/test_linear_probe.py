"""The linear probe: a grid trained at once is what each setting is alone."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from data_pipeline.errors import InputError
from fusmae_jax.evaluation import linear_probe, scores
from fusmae_jax.training import sharding

N, D, C = 300, 12, 5
GRID = linear_probe.Grid((0.01, 0.3, 1.0), (0.0, 1e-3))


def pairs(n=N, d=D, c=C, *, single=False, seed=0, noise=1.0):
    """Features of unlike scales, and labels that depend on them linearly."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    z = x @ np.random.default_rng(99).normal(size=(d, c))
    z += noise * rng.logistic(size=(n, c))
    y = np.eye(c)[z.argmax(axis=1)] if single else z > 1.0
    shift, scale = np.linspace(-3.0, 3.0, d), np.geomspace(0.1, 10.0, d)
    return (x * scale + shift).astype(np.float32), y.astype(np.float32)


def one_device():
    device = np.array(jax.devices()[:1]).reshape(1, 1)
    return Mesh(device, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def train(data, settings, mesh=None, *, single=False, **options):
    options = {"epochs": 3, "batch_size": 64} | options
    mesh = mesh or sharding.make_mesh()
    return linear_probe.train(*data, settings, mesh, single=single, **options)


def standardised(x):
    x = x.astype(np.float64)
    return (x - x.mean(axis=0)) / x.std(axis=0)


def assert_same(a, b):
    for name in ("kernel", "bias"):
        want = getattr(b, name)
        np.testing.assert_allclose(getattr(a, name), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("norm", linear_probe.NORMS)
def test_a_grid_trained_at_once_equals_every_setting_trained_alone(single, norm):
    data = pairs(single=single)
    settings = [(rate / 10, decay) for rate, decay in GRID.settings()]
    together = train(data, settings, single=single, norm=norm)
    for g, setting in enumerate(settings):
        alone = train(data, [setting], one_device(), single=single, norm=norm)
        assert_same(together.pick(g), alone)
    assert len({x.tobytes() for x in together.kernel}) == len(settings)


def test_one_device_and_four_agree_where_settings_do_not_divide():
    data, settings = pairs(), GRID.settings()  # 6 settings
    assert jax.device_count() == 4
    four, one = train(data, settings), train(data, settings, one_device())
    assert four.kernel.shape == (6, D, C) and four.bias.shape == (6, C)
    assert_same(four, one)


def test_devices_train_their_settings_without_exchanging_anything():
    mesh = sharding.make_mesh()
    rates, decays, state = linear_probe._start(GRID.settings(), C, D, 0, mesh)
    assert {s.data.shape for s in state[0]["kernel"].addressable_shards} == {(D, 2, C)}
    x, y = (linear_probe._put(a, sharding.whole(mesh).spec, mesh) for a in pairs())
    counts = np.int32([0, 10])
    lowered = linear_probe.run_epoch.lower(
        state, x, y, rates, decays, jax.random.key(0), *counts, 5, False
    )
    text = lowered.compile().as_text()
    for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert word not in text
    assert "input_output_alias" in text  # the state is updated in place


@pytest.mark.parametrize("decay", [3e-4, 1e-2])
def test_the_optimum_for_several_classes_is_that_of_logistic_regression(decay):
    sk = pytest.importorskip("sklearn.linear_model", reason="test extra")
    x, y = pairs()
    options = {"epochs": 1000, "batch_size": N}
    got = train((x, y), [(5.0, decay)], one_device(), **options)
    for c in range(C):
        # Ours is a mean over pairs and classes, theirs a sum over the pairs.
        model = sk.LogisticRegression(C=1 / (decay * N * C), tol=1e-10, max_iter=10_000)
        model.fit(standardised(x), y[:, c])
        np.testing.assert_allclose(got.kernel[0, :, c], model.coef_[0], atol=1e-3)
        np.testing.assert_allclose(got.bias[0, c], model.intercept_[0], atol=1e-3)
        want = model.predict_proba(standardised(x))[:, 1]
        np.testing.assert_allclose(got.predict(x)[0, :, c], want, atol=3e-4)


@pytest.mark.parametrize("decay", [3e-4, 1e-2])
def test_the_optimum_for_one_class_is_that_of_multinomial_regression(decay):
    sk = pytest.importorskip("sklearn.linear_model", reason="test extra")
    x, y = pairs(single=True)
    options = {"epochs": 1000, "batch_size": N, "single": True}
    got = train((x, y), [(5.0, decay)], one_device(), **options)
    model = sk.LogisticRegression(C=1 / (decay * N), tol=1e-10, max_iter=10_000)
    model.fit(standardised(x), y.argmax(axis=1))
    np.testing.assert_allclose(got.kernel[0], model.coef_.T, atol=1e-3)
    want = model.predict_proba(standardised(x))
    np.testing.assert_allclose(got.predict(x)[0], want, atol=3e-4)


@pytest.mark.parametrize("single", [False, True])
def test_steps_are_those_of_torch(single):
    torch = pytest.importorskip("torch", reason="not a dependency")
    x, y = pairs(128, single=single)
    rate, decay, steps = 0.5, 1e-2, 20
    got = train((x, y), [(rate, decay)], single=single, epochs=steps, batch_size=128)
    start = np.random.default_rng(0).normal(0.0, 0.01, (D, C))
    w = torch.tensor(start, requires_grad=True)
    b = torch.zeros(C, dtype=torch.float64, requires_grad=True)
    groups = [{"params": [w], "weight_decay": decay}, {"params": [b]}]
    tx = torch.optim.SGD(groups, lr=rate / 2, momentum=0.9)  # of a batch of 128
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(tx, steps)
    several = torch.nn.MultiLabelSoftMarginLoss()
    loss = torch.nn.CrossEntropyLoss() if single else several
    z = torch.tensor((x - got.mean) * got.scale).double()
    for _ in range(steps):
        tx.zero_grad()
        loss(z @ w + b, torch.tensor(y).double()).backward()
        tx.step()
        falling.step()
    np.testing.assert_allclose(got.kernel[0], w.detach(), atol=1e-5)
    np.testing.assert_allclose(got.bias[0], b.detach(), atol=1e-5)


def test_an_epoch_is_compiled_once_for_all_epochs_seeds_and_settings(monkeypatch):
    traced, objective = [], linear_probe.objective

    def counted(*args):
        traced.append(args)
        return objective(*args)

    monkeypatch.setattr(linear_probe, "objective", counted)
    train(pairs(71), GRID.settings(), epochs=1)
    once = len(traced)
    assert once > 0
    train(pairs(71, seed=1), GRID.settings(), epochs=6, seed=1)
    train(pairs(71), [(0.5, 0.1)] * 6, epochs=2)
    assert len(traced) == once


def test_every_epoch_sees_every_pair_in_an_order_of_its_own(monkeypatch):
    seen = []

    def recorded(params, decay, x, y, single):
        jax.debug.callback(lambda rows: seen.append(np.asarray(rows[:, 0])), x)
        return (x.sum() * params["kernel"]).sum() * 0.0

    monkeypatch.setattr(linear_probe, "objective", recorded)
    n = 103  # 4 batches of at most 32 pairs: 26, 26, 26, 26, so one comes again
    x = np.arange(n, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    settings = {"mesh": one_device(), "norm": "none", "batch_size": 32}
    train((x, np.ones((n, 2))), [(1.0, 0.0)], epochs=2, **settings)
    jax.effects_barrier()
    assert [len(rows) for rows in seen] == [26] * 8
    epochs = [np.concatenate(seen[:4]), np.concatenate(seen[4:])]
    for rows in epochs:
        np.testing.assert_array_equal(np.unique(rows), np.arange(n))
    assert (epochs[0] != epochs[1]).any()


def test_the_seed_decides_everything():
    data, settings = pairs(), GRID.settings()
    first, again = train(data, settings), train(data, settings)
    np.testing.assert_array_equal(first.kernel, again.kernel)
    other = train(data, settings, seed=1)
    assert np.abs(first.kernel - other.kernel).max() > 1e-3


def test_fewer_pairs_than_a_batch_are_one_batch():
    small = train(pairs(10), [(0.1, 0.0)], batch_size=256)
    same = train(pairs(10), [(0.1 * 256 / 10, 0.0)], batch_size=10)
    assert_same(small, same)


def test_batch_norm_standardises_by_the_training_pairs_and_drops_constants():
    x, y = pairs()
    x[:, 3] = 0.1
    got = train((x, y), [(0.1, 0.0)])
    z = np.asarray(linear_probe.normalize(x, got.mean, got.scale, "batch"))
    np.testing.assert_allclose(z.std(axis=0), (np.arange(D) != 3), atol=1e-3)
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-4)
    moved = x.copy()
    moved[:, 3] += 5.0  # says nothing: the probe never saw it move
    np.testing.assert_array_equal(got.predict(moved), got.predict(x))


def test_layer_norm_is_that_of_torch():
    torch = pytest.importorskip("torch", reason="not a dependency")
    x, y = pairs()
    got = train((x, y), [(0.1, 0.0)], norm="layer")
    z = linear_probe.normalize(x, got.mean, got.scale, "layer")
    want = torch.nn.functional.layer_norm(torch.tensor(x), (D,), eps=1e-6)
    np.testing.assert_allclose(z, want, atol=1e-5)
    np.testing.assert_allclose(got.predict(3 * x + 1), got.predict(x), atol=1e-5)


@pytest.mark.parametrize("single", [False, True])
def test_predictions_are_probabilities_whatever_the_chunks(monkeypatch, single):
    x, y = pairs(single=single)
    got = train((x, y), GRID.settings(), single=single)
    whole = got.predict(x)
    assert whole.shape == (6, N, C) and whole.min() >= 0 and whole.max() <= 1
    assert np.allclose(whole.sum(axis=2), 1.0, atol=1e-5) == single
    monkeypatch.setattr(linear_probe, "PAIRS_AT_ONCE", 128)
    np.testing.assert_allclose(got.predict(x), whole, atol=1e-6)
    np.testing.assert_allclose(got.pick(2).predict(x), whole[2:3], atol=1e-6)


@pytest.mark.parametrize("single", [False, True])
def test_validation_chooses_the_setting(single):
    train_pairs, validation = pairs(single=single), pairs(single=single, seed=1)
    grid = linear_probe.Grid((1e-6, 0.3), (1e-3, 30.0))
    options = {"epochs": 5, "batch_size": 32}
    fit = linear_probe.fit(
        train_pairs, validation, grid, sharding.make_mesh(), single=single, **options
    )
    assert (fit.learning_rate, fit.weight_decay) == (0.3, 1e-3)
    assert fit.scores.shape == (4,) and fit.scores.argmax() == 2
    chosen = fit.probe.predict(validation[0])
    assert chosen.shape == (1, N, C)
    if single:
        want = (chosen[0].argmax(axis=1) == validation[1].argmax(axis=1)).mean()
    else:
        want, _ = scores.average_precision(chosen[0], validation[1])
    assert fit.score == fit.scores[2] > np.delete(fit.scores, 2).max() + 0.1
    assert fit.score == pytest.approx(want, abs=1e-6)
    assert fit.at_edge == ("highest learning rate", "lowest weight decay")


def test_a_setting_that_diverged_is_never_chosen():
    grid = linear_probe.Grid((0.1, 1e9), (0.0, 1.0))
    mesh, options = sharding.make_mesh(), {"epochs": 20, "batch_size": 32}
    fit = linear_probe.fit(pairs(), pairs(seed=1), grid, mesh, single=False, **options)
    assert np.isneginf(fit.scores[3]) and np.isfinite(fit.scores[:2]).all()
    assert math.isfinite(fit.score) and np.isfinite(fit.probe.kernel).all()
    with pytest.raises(InputError, match=r"All 1 settings .* lower .*1000000000"):
        grid = linear_probe.Grid((1e9,), (1.0,))
        linear_probe.fit(pairs(), pairs(seed=1), grid, mesh, single=False, **options)


def test_a_kernel_that_overflowed_is_never_chosen_though_its_sigmoid_is_finite():
    kernel = np.float32([[[np.inf]], [[1.0]]])
    one = np.ones(1, np.float32)
    both = linear_probe.Probe(kernel, np.zeros((2, 1)), 0 * one, one, "none", False)
    assert both.predict(np.ones((1, 1)))[0, 0, 0] == 1.0
    found = linear_probe.select(
        both, np.float32([[1.0], [2.0]]), np.float32([[0], [1]])
    )
    np.testing.assert_array_equal(found, [-np.inf, 1.0])


def test_an_edge_is_where_a_wider_grid_could_do_better():
    grid = linear_probe.Grid((0.1, 1.0, 10.0), (0.0, 1e-3, 1e-2))
    edges = {s: grid.at_edge(g) for g, s in enumerate(grid.settings())}
    assert edges[1.0, 1e-3] == edges[1.0, 0.0] == ()  # nothing below no decay
    assert edges[0.1, 0.0] == ("lowest learning rate",)
    assert edges[10.0, 1e-2] == ("highest learning rate", "highest weight decay")
    assert linear_probe.Grid((1.0,), (1e-3,)).at_edge(0) == ()


def test_the_default_grid_has_forty_settings():
    assert (
        len(linear_probe.Grid().settings())
        == len(set(linear_probe.Grid().settings()))
        == 40
    )


@pytest.mark.parametrize(
    "rates, decays, message",
    [
        ((), (0.0,), r"learning_rates is \(\); .* at least 1"),
        ((0.1,), (), r"weight_decays is \(\); .* at least 1"),
        ((0.1, 0.0), (0.0,), "learning_rates is .* above 0"),
        ((math.nan,), (0.0,), "nan"),
        ((0.1,), (-1e-3,), "weight_decays is .* at least 0"),
        ((0.1,), (math.inf,), "inf"),
    ],
)
def test_a_grid_that_cannot_be_trained_is_refused(rates, decays, message):
    with pytest.raises(InputError, match=message):
        linear_probe.Grid(rates, decays)


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({"labels": np.ones((N - 1, C))}, {}, "300 features and 299 labels"),
        ({"features": np.ones((0, D)), "labels": np.ones((0, C))}, {}, "at least one"),
        ({"labels": np.zeros((N, C))}, {}, "None of 300 training pairs"),
        ({}, {"norm": "group"}, "'group' is not one of"),
        ({}, {"epochs": 0}, "epochs=0"),
        ({}, {"batch_size": 0}, "batch_size=0"),
        ({}, {"single": True}, "training pairs do not have exactly one class"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(change, options, message):
    features, labels = pairs()
    data = {"features": features, "labels": labels} | change
    with pytest.raises(InputError, match=message):
        train(tuple(data.values()), [(0.1, 0.0)], **options)


def test_features_that_are_not_finite_are_counted():
    good, bad = pairs(), pairs()
    bad[0][[5, 7], 2] = np.nan, np.inf
    with pytest.raises(InputError, match="Features of 2 of 300 training pairs"):
        train(bad, [(0.1, 0.0)])
    with pytest.raises(InputError, match="Features of 2 of 300 validation pairs"):
        linear_probe.fit(good, bad, GRID, sharding.make_mesh(), single=False)


def test_validation_pairs_of_another_encoder_are_refused():
    message = "12 features and 5 classes but validation pairs 11 and 5"
    with pytest.raises(InputError, match=message):
        linear_probe.fit(pairs(), pairs(d=11), GRID, sharding.make_mesh(), single=False)
