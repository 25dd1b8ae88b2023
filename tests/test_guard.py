"""Numbers that go wrong: steps left out and counted, and a run that stops in time."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipeline import batches, sources, synthetic
from data_pipeline.errors import InputError
from fusmae_jax import build
from fusmae_jax.training import guard, metrics, optim, pretrain, sharding
from tests import teacher, tiny

BAD = 21  # a pair that is in the batches of steps 3 and 4, and of no other


class Overflowing(synthetic.Scenes):
    """Scenes of which one makes the loss infinite."""

    def __getitem__(self, i):
        scene = super().__getitem__(i)
        for name in scene.keys() & {"s1_10m"}:
            bad = self.count == 24 and i == BAD  # held-out scenes are fewer
            scene[name] = scene[name].astype(np.float32) + 1e30 * bad
        return scene


@pytest.fixture(autouse=True, scope="module")
def spoiled():
    with teacher.known(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sources.PROCEDURAL, "synthetic", Overflowing)
        yield


def config(**fields):
    c = tiny.config()
    c.method = "teacher"
    c.update(fields)
    return c


def rows(workdir):
    return [row for row in metrics.read_metrics(workdir) if "loss" in row]


def checkpoints(workdir):
    return {path.name for path in (workdir / "checkpoints").iterdir()}


@pytest.fixture(scope="module")
def whole(spoiled, tmp_path_factory):
    """A run that is through in spite of two bad steps, and its state."""
    workdir = tmp_path_factory.mktemp("guard") / "run"
    return workdir, pretrain.run(config(), workdir)


def test_steps_that_are_not_finite_are_counted_and_the_run_goes_on(whole):
    workdir, state = whole
    found = rows(workdir)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] is None for row in found] == [0, 0, 1, 1, 0, 0]
    assert [row["skipped_steps"] for row in found] == [0, 0, 1, 2, 2, 2]
    assert [row["skipped_in_a_row"] for row in found] == [0, 0, 1, 2, 0, 0]
    assert int(state.step) == 6 and int(state.skipped) == 2
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_nothing_is_saved_while_steps_are_left_out_but_as_soon_as_they_are_not(whole):
    assert checkpoints(whole[0]) == {"5", "6"}  # in place of 3 and 6


def test_the_learning_rate_goes_by_steps_and_the_moments_by_updates(whole):
    is_count = lambda x: isinstance(
        x, optax.ScaleByScheduleState | optax.ScaleByAdamState
    )
    counts = {
        type(x): int(x.count)
        for x in jax.tree.leaves(whole[1].opt_state, is_leaf=is_count)
        if is_count(x)
    }
    assert counts == {optax.ScaleByScheduleState: 6, optax.ScaleByAdamState: 4}


@pytest.mark.journey
def test_a_step_left_out_changes_no_parameter_and_too_many_leave_out_all_others():
    c, mesh = config(bad_steps=2), sharding.make_mesh()
    objective = build.objective(c, **build.target(mesh))
    rate = optim.schedule(1e-3, 0, 10)
    init, _, step = pretrain.compile_step(c, objective, mesh, rate)
    state = init()
    fields = sources.describe(c.data).layout.fields(objective.inputs.contract)
    source = sources.open_split(c.data, "train", fields)
    good, bad = (
        sharding.to_devices(batches.stack(source, range(first, first + 8)), mesh)
        for first in (0, BAD - 5)
    )
    applied = []
    for batch in (good, bad, good, bad, bad, good):
        before = jax.device_get((state.params, state.opt_state))
        state, found = step(state, batch)
        after = jax.device_get((state.params, state.opt_state))
        pairs = zip(*map(jax.tree.leaves, (before, after)), strict=True)
        new = sum(not np.array_equal(a, b) for a, b in pairs)
        # The learning rate's own count goes on in any case.
        assert new >= 1
        applied.append(new > 1)
        assert np.isfinite(found["loss"]) == (batch is good)
    assert applied == [True, False, True, False, False, False]
    assert int(state.step) == 6 and step._cache_size() == 1
    assert (int(state.skipped), int(state.skipped_in_a_row)) == (4, 3)


@pytest.mark.journey
def test_too_many_in_a_row_end_the_run_and_more_patience_lets_it_go_on(whole, tmp_path):
    workdir = tmp_path / "run"
    said = r"Steps 3 to 4 were not applied.*bad_batches\.json.*from step 2.*bad_steps=4"
    with pytest.raises(metrics.Diverged, match=said):
        pretrain.run(config(bad_steps=2, checkpoint_every=2), workdir)
    assert checkpoints(workdir) == {"2"}
    assert [row["step"] for row in rows(workdir)] == [1, 2, 3, 4]
    ids = json.loads((workdir / guard.BAD_BATCHES).read_text())
    assert ids.keys() == {"3", "4"}
    assert all(len(set(of)) == 8 for of in ids.values())
    assert set(ids["3"]) & set(ids["4"]) >= {f"synthetic-{BAD:06d}"}
    order = batches.Order(Overflowing(24, size=24), 0)
    assert ids["4"] == [f"synthetic-{i:06d}" for i in order.pairs(24, 32)]
    state = pretrain.run(config(checkpoint_every=2), workdir)
    names = ("step", "loss", "skipped_steps", "lr")
    for mine, theirs in zip(rows(workdir), rows(whole[0]), strict=True):
        assert [mine[name] for name in names] == [theirs[name] for name in names]
    jax.tree.map(np.testing.assert_array_equal, state.params, whole[1].params)


@pytest.mark.journey
def test_a_run_that_diverges_stops_and_saves_nothing_of_it(tmp_path):
    c = config(bad_steps=3, log_every=6, checkpoint_every=2)
    c.optim.base_lr = 1e30
    with pytest.raises(InputError, match="Steps 2 to 4 .* from the start.*base_lr"):
        pretrain.run(c, tmp_path / "run")
    assert not checkpoints(tmp_path / "run")


def watch(**fields):
    state = types.SimpleNamespace(step=10, skipped=1)
    return guard.Guard(config(**fields), None, "nowhere", state, 10)


def row(step, loss=1.0, skipped=1, in_a_row=0):
    found = {"step": step, "loss": loss, "skipped_steps": skipped}
    return found | {"skipped_in_a_row": in_a_row}


def test_steps_left_out_between_two_rows_are_warned_of_once(lines):
    watching = watch()
    for found in (row(20), row(30, skipped=4), row(40, skipped=4)):
        watching.look(found)
    (line,) = lines
    assert line.startswith("Step 30: 3 of the 10 steps since step 20 were not applied")
    assert "(4 in all)" in line


def test_a_loss_far_above_what_it_was_is_warned_of(lines):
    watching = watch()
    for step, loss in enumerate((9.0, 1.1, 1.0, 0.9, 1.0, 2.9, np.nan, 1.0)):
        watching.look(row(step, loss))
    assert not lines
    watching.look(row(20, 3.1))
    (line,) = lines
    assert line.startswith("Step 20: the loss of 3.1 is 3.1 times what it was before")


def test_pixels_that_cannot_be_are_warned_of_once(lines):
    watching = watch()
    for step, invalid in ((5, 0.0), (10, 12.0), (15, 7.0)):
        watching.look(row(step) | {"invalid_pixels": invalid})
    (line,) = lines
    assert line.startswith("Step 10: 12 pixels ")


def test_other_hosts_say_nothing(lines, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    watch().look(row(20, skipped=4))
    assert not lines


def test_pairs_without_ids_are_named_by_their_numbers():
    class Nameless(list):
        index = {}

    found = guard.pair_ids(Nameless(range(24)), 0, 8, [3])
    assert found == {3: [15, 8, BAD, 6, 23, 2, 14, 20]}


def extremes():
    """Pairs as no scene should be: constant, saturated, all cloud, empty, missing."""
    scene = synthetic.Scenes(1, size=24)[0]
    pairs = []
    for radar, optics in (
        (-12.0, 1200),  # calm water
        (30.0, 65535),  # saturated
        (-15.0, None),  # cloud: bright, and nearly the same in all bands
        (0.0, 0),  # zeros, as where nothing was measured
        (np.nan, 0),
        (-np.inf, 1),
        (np.float16(65504), 0),
        (np.float16(-65504), 65535),
    ):
        pair = {}
        for name in scene:
            if name.startswith("s1_"):
                pair[name] = np.full_like(scene[name], radar)
            elif name.startswith("s2_"):
                cloud = 18000 + scene[name] % 3
                flat = np.full_like(scene[name], optics or 0)
                pair[name] = cloud if optics is None else flat
        pairs.append(pair)
    return {name: jnp.array(np.stack([p[name] for p in pairs])) for name in pairs[0]}


@pytest.mark.journey
@pytest.mark.parametrize(
    "normalize, dtype",
    [("none", "float32"), ("patch", "bfloat16"), ("group", "bfloat16")],
)
def test_strange_patches_have_finite_losses_and_gradients(normalize, dtype, key):
    c = tiny.config()
    c.model.update(dtype=dtype, depth=1)
    c.loss.normalize = normalize
    c.mask.drop_sensor = 0.6  # some pairs lack one of the sensors, too
    objective = build.objective(c)
    model = objective.init(tiny.nnx.Rngs(0))
    graphdef, params = tiny.nnx.split(model)

    @jax.jit
    def gradients(params, fields, draw):
        def loss(params):
            return objective.loss(tiny.nnx.merge(graphdef, params), (), fields, draw)[0]

        return jax.value_and_grad(loss)(params)

    draw = objective.draw(key, 8)
    assert {*np.asarray(draw.present["s1"]), *np.asarray(draw.present["s2"])} == {0, 1}
    everything = {s: jnp.ones(8, bool) for s in draw.present}
    for present in (draw.present, everything):
        loss, grads = gradients(params, extremes(), draw._replace(present=present))
        assert np.isfinite(loss)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
