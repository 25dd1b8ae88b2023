"""The peers that compare learn, and are resumed, judged and used as any method is."""

import functools
import shutil

import jax
import numpy as np
import pytest

from fusmae_jax import build
from fusmae_jax.evaluation import encoder, evaluate
from fusmae_jax.training import metrics, pretrain, sharding, train
from tests import judging, peers

# Of these XLA's CPU backend may wait for ever for the devices that it plays, as they
# come to collectives that do not need each other in different orders.
ON_ONE_DEVICE = ("croma",)
# What becomes of a loss in 60 steps. Among so few patches and pairs much of it
# is chance for Fus-MAE; test_latent_and_contrast.py asks for more, of one batch.
LEFT = {"fusmae": 0.95}


@pytest.fixture(scope="module", params=peers.METHODS)
def trained(request, tmp_path_factory):
    """A finished run: its directory, its state, and what makes its config."""
    workdir = tmp_path_factory.mktemp("runs") / request.param
    configure = functools.partial(peers.config, request.param)
    with pytest.MonkeyPatch.context() as patch:
        if request.param in ON_ONE_DEVICE:
            make_mesh, first = sharding.make_mesh, jax.devices()[:1]
            one = lambda fsdp=1, *, devices=None: make_mesh(devices=devices or first)
            patch.setattr(sharding, "make_mesh", one)
        yield workdir, pretrain.run(configure(), workdir), configure


def losses(workdir):
    return [row["loss"] for row in metrics.read_metrics(workdir) if "loss" in row]


@pytest.mark.journey
def test_it_learns_without_collapse(trained):
    method = trained[0].name
    rows = metrics.read_metrics(trained[0])
    lacks = [r["loss"] - r.get("teacher_entropy", 0.0) for r in rows if "loss" in r]
    assert len(lacks) == 60 and np.isfinite(lacks).all()
    assert np.mean(lacks[-15:]) < LEFT.get(method, 0.85) * np.mean(lacks[5:20])
    (judged,) = (r for r in rows if "feature_std" in r)
    assert judged["feature_std"] > 0.3 and judged["effective_rank"] > 2.0
    assert {r["step"] for r in rows if "eval_loss" in r} == {30, 60}


@pytest.mark.journey
def test_it_resumes_exactly_on_another_layout(trained, tmp_path):
    workdir, state, configure = trained
    shutil.copytree(workdir, tmp_path / "cut")
    last = tmp_path / "cut" / "checkpoints" / str(state.step)
    shutil.rmtree(last)  # as if killed a step before
    resumed = pretrain.run(configure(fsdp=4), tmp_path / "cut")
    np.testing.assert_allclose(losses(tmp_path / "cut"), losses(workdir), rtol=1e-5)
    for x, y in zip(*(jax.tree.leaves((x.params, x.extra)) for x in (resumed, state))):
        # Biases of keys change nothing: Adam makes of their rounding what it likes.
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.journey
def test_its_encoder_is_judged_by_what_judges_all(trained, tmp_path):
    workdir, state, _ = trained
    c = judging.config(workdir)
    c.methods = ("knn", "probe", "retrieval")
    rows = evaluate.run(c, tmp_path / "scores")
    assert {row.task for row in rows} == {"knn", "probe", "retrieval"}
    restored = encoder.restore(str(workdir), sharding.make_mesh(1))
    judged = restored.objective.encoder()
    (width,) = {r.feature_dim for r in rows if r.encoder == judged.name}
    assert width == judged.width
    kept = train.kept(state, restored.objective)
    assert encoder.digest(restored.params) == encoder.digest(kept)


@pytest.mark.journey
@pytest.mark.parametrize("method", peers.METHODS)
def test_a_loss_is_of_the_global_batch_on_any_devices(method):
    objective = build.objective(peers.config(method))
    graphdef, params = objective.abstract
    params = jax.jit(lambda: train.nnx.split(objective.init(train.nnx.Rngs(0)))[1])()
    extra, batch = objective.init_extra(params), peers.fields(8)
    draw = objective.draw(jax.random.key(0), 8)
    weight = np.float32([1, 1, 1, 0, 1, 1, 1, 1])

    @jax.jit
    def loss(fields, draw, weight):
        model = train.nnx.merge(graphdef, params)
        return objective.loss(model, extra, fields, draw, weight)

    found = []
    for count in (1, 2, 4):
        mesh = sharding.make_mesh(devices=jax.devices()[:count])
        given = sharding.to_devices((batch, draw, weight), mesh)
        found.append(jax.device_get(loss(*given)))
    for other in found[1:]:
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            *(other, found[0]),
        )
    # What stands in a row that does not count is not read.
    batch = {name: np.array(x) for name, x in batch.items()}
    for x in batch.values():
        x[3] = x[2]
    np.testing.assert_allclose(loss(batch, draw, weight)[0], found[0][0], rtol=1e-5)
