"""Fine-tuning for masks: an encoder and a dense head that learn together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.classes import NO_CLASS
from fusmae_jax.evaluation import dense, dense_task, finetune, loop
from fusmae_jax.inputs import Inputs
from fusmae_jax.training import sharding
from tests import teacher, tiny
from tests.test_dense import FIELD, assert_same, pairs

SIDE, BLOCK, EPOCHS = 24, 6, 25
HEAD = dense.Recipe("linear", EPOCHS, batch_size=16, learning_rates=(3e-3, 3e-2))
BASE = dict(
    epochs=EPOCHS,
    batch_size=16,
    base_lr=0.2,
    warmup_epochs=2,
    layer_decay=0.9,
    drop_path=0.0,
)


def faint(seed, count, unlabelled=0.0):
    """Scenes of blocks that are a little brighter in some bands, darker in others.

    Each pixel tells next to nothing, all of a patch together enough; but few random
    numbers that a frozen encoder makes of them know little of that sum.
    """
    rng, source = np.random.default_rng(seed), pairs(count, SIDE)
    for record in source.records:
        classes = rng.integers(0, 2, (SIDE // BLOCK,) * 2)
        record[FIELD] = classes.repeat(BLOCK, 0).repeat(BLOCK, 1).astype(np.uint8)
        for name in [x for x in record if x.startswith("s2_")]:
            height, _, bands = record[name].shape
            shown = record[FIELD][:: SIDE // height, :: SIDE // height, None]
            signs = np.where(np.arange(bands) % 2, 1, -1) * (2 * shown.astype(int) - 1)
            pixels = rng.normal(2000, 400, record[name].shape) + 200 * signs
            record[name] = pixels.astype(np.uint16)
        hidden = rng.random(record[FIELD].shape) < rng.random() * unlabelled
        record[FIELD] = np.where(hidden, NO_CLASS, record[FIELD]).astype(np.uint8)
    return source


def untrained():
    """A linear encoder, which is soon compiled, and its parameters."""
    seen = Inputs(tiny.objective().inputs.contract, SIDE, SIDE)
    encoder = teacher.Objective(seen, BLOCK).encoder()
    return encoder, encoder.init(nnx.Rngs(0))


def goal(source, **recipe):
    mesh = sharding.make_mesh()
    task = dense.make_task(*untrained(), source, FIELD, mesh, HEAD)
    return dense_task.Masks(task, finetune.Recipe(**BASE | recipe))


def tune(directory, source, **recipe):
    """A task whose encoder has learnt, and its head."""
    learnt = goal(source, **recipe)
    train = finetune.Finetuner(learnt, learnt.task.params, learnt.task.mesh, 0)
    kw = dict(sensor_set="s2", seed=0, directory=directory, title="tuning")
    tuned = train(source, **kw)
    return learnt.task.over(tuned.params), tuned.head


def judge(task, head, source):
    return dense.judge(task, head, source, "s2", 16, "")


def accuracy(found):
    total = found.sum(axis=0)
    return np.trace(total) / total.sum()


def test_it_learns_what_no_head_on_the_frozen_encoder_does(tmp_path):
    source, unseen = faint(0, 64), faint(1, 16)
    shown = dict(sensor_set="s2", mesh=sharding.make_mesh())
    fitted = dense.fit(
        *(*untrained(), source, unseen, FIELD),
        **dict(recipe=HEAD, seed=0, directory=tmp_path / "frozen", title=""),
        **shown,
    )
    frozen = dense.confusions(
        *(*untrained(), fitted, unseen, FIELD), batch_size=16, **shown
    )
    tuned = judge(*tune(tmp_path / "tuned", source), unseen)
    assert 0.5 < accuracy(frozen) < 0.9 < accuracy(tuned), (frozen, tuned)


def test_a_training_cut_in_two_has_the_scores_of_the_one_left_alone(
    tmp_path, monkeypatch
):
    source, recipe = faint(0, 32), dict(epochs=5, drop_path=0.5, smoothing=0.1)
    whole = tune(tmp_path / "whole", source, **recipe)
    load, starts = loop.load, []

    def break_down(*args, first, **kwargs):
        starts.append(first)
        for i, batch in enumerate(load(*args, first=first, **kwargs)):
            if len(starts) == 1 and i == 6:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(loop, "load", break_down)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "cut", source, **recipe)
    resumed = tune(tmp_path / "cut", source, **recipe)
    assert starts[0] == 0 < starts[1] < 10
    assert_same(
        *((task.params, head) for task, head in (whole, resumed)), rtol=0, atol=0
    )
    np.testing.assert_array_equal(judge(*whole, source), judge(*resumed, source))


def test_parts_of_a_batch_learn_the_same_however_labels_are_spread(tmp_path):
    source, recipe = faint(0, 16, unlabelled=1.0), dict(epochs=4, batch_size=8)
    whole = tune(tmp_path / "whole", source, **recipe)
    parts = tune(tmp_path / "parts", source, accumulate=2, **recipe)
    assert_same(*((task.params, head) for task, head in (whole, parts)))


def test_losses_are_those_of_pytorch_on_labelled_pixels(key):
    torch = pytest.importorskip("torch", reason="compares with it")
    source = faint(0, 4, unlabelled=0.5)
    learnt = goal(source, smoothing=0.2, turn=False)
    fields = {k: jnp.stack([r[k] for r in source.records]) for k in learnt.task.fields}
    images, targets = learnt.draw(jax.random.split(key), fields)
    np.testing.assert_array_equal(targets[0], fields[FIELD])  # whole, not turned
    encoded = learnt.encoder(learnt.task.params, images)
    head = jax.tree.map(lambda x: 30 * x, learnt.init(key))
    x = dense_task.tokens(learnt.encoder, learnt.task.params, images, None, 1)
    logits = learnt.task.logits(head, x)
    want = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits)).movedim(-1, 1),
        torch.tensor(np.asarray(targets[0])).long(),
        ignore_index=NO_CLASS,
        label_smoothing=0.2,
    )
    found = learnt.loss(head, encoded, None, targets)
    np.testing.assert_allclose(found, want, rtol=1e-5)
