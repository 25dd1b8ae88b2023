"""Pretraining's own parts: the data it opens, and the stream it closes."""

import contextlib
import dataclasses
import shutil
import types

import jax
import numpy as np
import pytest
from jax._src import array  # whose reads nothing else tells

from configs import quickstart
from data_pipeline import dataset_card, layout, sensors, sources, synthetic
from data_pipeline.errors import InputError
from fusmae_jax import build
from fusmae_jax import config as checks
from fusmae_jax.training import metrics, optim, pretrain, run_directory, sharding
from tests import datasets, tiny


@pytest.fixture
def config(tmp_path):
    """Training on a copy of the sample, one pair of which is held out too."""
    folder = shutil.copytree(sources.SAMPLE, tmp_path / "data")
    train, held = (dataset_card.read_index(folder, s) for s in ("train", "validation"))
    held["place"][3] = train["place"][5]
    np.savez(folder / dataset_card.index_name("validation"), **held)
    config = quickstart.get_config()
    config.data.source, config.data.dir = "records", str(folder)
    return config


def test_training_on_a_held_out_pair_is_refused_unless_told(config):
    with pytest.raises(InputError, match="1 of 5 in the held-out pairs show"):
        pretrain.open_data(config)
    config.data.allow_overlap = True
    source, held = pretrain.open_data(config)
    assert len(source) == 17 and len(held) == 5


def test_pairs_of_any_split_that_is_not_for_training_count_as_held_out(config):
    folder = config.data.dir
    config.data.eval_split = "train"  # looks at training pairs, knowingly
    config.data.split = "validation"
    with pytest.raises(InputError, match="1 of 17 in"):
        pretrain.open_data(config)
    config.data.split = "train"
    other = next(iter(sources.held_out(config.data)))
    assert other.title == f"split validation of {folder}"
    with pytest.raises(InputError, match=r"1 of 5 in split validation of .* ground"):
        sources.check_overlap(sources.open_split(config.data, "train"), other)


def test_a_run_remembers_what_it_was_trained_on(config, tmp_path):
    train, held = (sources.open_split(config.data, s) for s in ("train", "validation"))
    run_directory.remember_places(tmp_path, sources.place_codes(train))
    assert run_directory.trained_on(tmp_path, sources.place_codes(train)) == 17
    assert run_directory.trained_on(tmp_path, sources.place_codes(held)) == 1
    assert (
        run_directory.trained_on(tmp_path / "elsewhere", sources.place_codes(held)) == 0
    )


S2_STORED = sensors.S2.select(("B02", "B03", "B04"))


def stored(bands=("B02", "B04"), known=S2_STORED, gsd=10, **changes):
    """A dataset that stores these bands of Sentinel-2 on one grid."""
    grids = (*sensors.S1.grids, sensors.Grid("s2", gsd, bands))
    return datasets.description(
        layout=layout.Layout(datasets.SIZE, grids),
        sensors={"s1": sensors.S1, "s2": known.select(bands)},
        **changes,
    )


@pytest.mark.parametrize(
    "other, reason",
    [
        (stored(("B02", "B03", "B04")), "bands of s2_10m"),
        (stored(("B04", "B02")), "bands of s2_10m"),
        (stored(known=dataclasses.replace(S2_STORED, level="L1C")), "L2A and L1C"),
        (stored(known=dataclasses.replace(S2_STORED, unit="x")), "unit of Sentinel-2"),
        (stored(classes={"labels": ("water", "forest, mixed")}), "classes of labels"),
        (datasets.description(), "bands of s2_10m"),
        (
            datasets.description(layout=layout.resampled(12, sensors.SENSORS)),
            "bands of s2_10m",
        ),
        (stored(gsd=20), r"\['s1_10m', 's2_10m', 'id'\] must be some of .* 's2_20m'"),
    ],
)
def test_held_out_pairs_that_are_stored_otherwise_are_refused(tmp_path, other, reason):
    config = tiny.config()
    config.bands.s2, config.judge.every = ("B02", "B04"), 1
    config.data.update(
        source="records",
        dir=str(datasets.write(tmp_path / "a", described=stored())),
        eval_dir=str(
            datasets.write(
                tmp_path / "b", described=other, split="validation", prefix="other "
            )
        ),
    )
    with pytest.raises(InputError, match=f"{reason}.*; name .* prepared alike"):
        pretrain.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_stream_is_closed_when_training_ends(monkeypatch):
    closed = []

    class Stream:
        def __iter__(self):
            while True:
                yield {"x": np.zeros((8, 1))}

        def close(self):
            closed.append(1)

    monkeypatch.setattr(pretrain.batches, "train_batches", lambda *a, **k: Stream())
    mesh = sharding.make_mesh(1)
    stream = pretrain.load_batches(tiny.config(), synthetic.Scenes(8), mesh, 0)
    next(stream)
    assert not closed
    stream.close()
    assert closed


@pytest.mark.journey
def test_devices_are_read_only_where_a_step_is_logged(tmp_path, monkeypatch):
    config, at, reads = tiny.config(), [0], set()
    config.log_every = config.eval_every = config.checkpoint_every = 3
    load, value = pretrain.load_batches, array.ArrayImpl._value

    def counting(*args):
        with contextlib.closing(load(*args)) as stream:
            for at[0], batch in enumerate(stream, start=1):
                yield batch

    def read(x):
        reads.add(at[0])
        return value.fget(x)

    monkeypatch.setattr(pretrain, "load_batches", counting)
    monkeypatch.setattr(array.ArrayImpl, "_value", property(read))
    pretrain.run(config, tmp_path / "run")
    # What is asked for beside a step may come with the next one, but not later.
    assert {3, 6} <= reads <= {0, 3, 4, 6}


def test_what_is_sent_unasked_stops_training(tmp_path, monkeypatch):
    load = pretrain.load_batches

    def late(config, source, mesh, *args):
        for batch in load(config, source, mesh, *args):
            yield jax.device_get(batch)

    monkeypatch.setattr(pretrain, "load_batches", late)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
        pretrain.run(tiny.config(), tmp_path / "run")


@pytest.fixture(scope="module")
def ahead():
    """The compiled step of a tiny run, what it takes, its state, and the source."""
    config, mesh = tiny.config(), sharding.make_mesh(1)
    objective = build.objective(config, **build.target(mesh))
    description = sources.describe(config.data)
    fields = description.layout.fields(objective.inputs.contract)
    source = sources.open_split(config.data, "train", fields)
    steps, warmup = checks.count_steps(config, len(source))
    # The rates of a run, as of those above, which have compiled the same step.
    rate = optim.schedule(config.optim.peak_lr, warmup, steps)
    init, _, step = pretrain.compile_step(config, objective, mesh, rate)
    state = init()
    step, takes = pretrain.compile_ahead(config, step, state, source, mesh)
    return step, takes, state, source


def test_the_step_is_compiled_before_it_is_called_and_never_again(ahead):
    step, takes, state, source = ahead
    assert takes["compile_seconds"] > 0.0
    mesh = sharding.make_mesh(1)
    stream = pretrain.load_batches(tiny.config(), source, mesh, 0)
    first = next(stream)
    half = sharding.to_devices(jax.tree.map(lambda x: np.asarray(x)[:4], first), mesh)
    with pytest.raises(TypeError, match=r"\[8,24,24,2\].*\[4,24,24,2\]"):
        step(state, half)
    state = jax.tree.map(lambda x: x.copy(), state)  # the step takes it for its own
    losses = []
    for fields in (first, next(stream)):
        state, step_metrics = step(state, fields)
        losses.append(float(step_metrics["loss"]))
    assert np.isfinite(losses).all() and int(state.step) == 2
    stream.close()


def test_the_memory_of_a_step_holds_the_state_once(ahead):
    step, takes, _, _ = ahead
    sizes, total = step.memory_analysis(), takes["step_memory_bytes"]
    assert total == pretrain.step_memory(step)
    # The new state takes the place of the old one, which was donated.
    assert sizes.alias_size_in_bytes > 0
    given = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    assert given < total < given + sizes.alias_size_in_bytes / 10


class Device:
    """A device with little memory and a known peak."""

    device_kind = "NVIDIA H100 80GB HBM3"

    def memory_stats(self):
        return {"bytes_limit": 2**14}


def test_a_step_larger_than_the_memory_is_warned_of(ahead, monkeypatch, lines):
    step, _, state, source = ahead
    known = types.SimpleNamespace(lower=lambda *_: known, compile=lambda: step)
    mesh = sharding.make_mesh(1)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    pretrain.compile_ahead(tiny.config(), known, state, source, mesh)
    (line,) = lines
    assert "0.0 GiB and will hardly fit" in line and "model.remat" in line


def test_the_number_of_parts_that_would_fit_is_proposed(ahead):
    step, _, state, _ = ahead
    config, mesh = tiny.config(), sharding.make_mesh(1)
    config.batch_size = 4 * 12  # 12 rows on each of 4 devices
    sizes = step.memory_analysis()
    # Whole on every device, as parameters are, however moments are split.
    gradients = 4 * sum(x.size for x in jax.tree.leaves(state.params))
    least = sizes.argument_size_in_bytes + gradients
    between = sizes.temp_size_in_bytes
    for share, parts in ((1.1, 2), (0.4, 3), (0.3, 4), (0.2, 6), (0.01, None)):
        limit = least + share * between
        # Twelve rows do not go in five parts.
        assert pretrain.fitting_parts(config, step, state.params, limit, mesh) == parts
    assert "accumulate=3, which" in pretrain.memory_advice(config, 3)
    assert "accumulate=2, pass" in pretrain.memory_advice(config)


def test_memory_that_runs_out_is_said_in_a_sentence():
    config, said = tiny.config(), "batch_size=8 and accumulate=1 .*model.remat"
    with pytest.raises(InputError, match=said):
        with pretrain.explain_memory(config):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with pretrain.explain_memory(config):
            raise jax.errors.JaxRuntimeError("INTERNAL: another fault")


def test_the_description_says_what_the_devices_could_do_at_most(ahead, monkeypatch):
    config = tiny.config()
    text = pretrain.describe(config, ahead[2], 1.234e9, 24, 3, 6)
    assert "1.23 GFLOP an image" in text
    assert "images/s" not in text  # a CPU's peak is not known
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    config.model.dtype = "bfloat16"
    most = jax.device_count() * 989e12 / 1.234e9
    text = pretrain.describe(config, ahead[2], 1.234e9, 24, 3, 6)
    assert f"at most {most:,.0f} images/s" in text


@pytest.mark.journey
def test_the_first_row_says_what_the_start_took(tmp_path, lines):
    config = tiny.config()
    config.log_every = 2
    pretrain.run(config, tmp_path / "run")
    rows = [r for r in metrics.read_metrics(tmp_path / "run") if "loss" in r]
    assert [row["step"] for row in rows] == [2, 4, 6]
    names = {"compile_seconds", "start_seconds", "step_memory_bytes"}
    assert [names <= row.keys() for row in rows] == [True, False, False]
    assert rows[0]["start_seconds"] > rows[0]["compile_seconds"] > 0.0
    wanted = {"images_per_sec", "data_wait", "tflops_per_device"}
    assert wanted <= rows[2].keys() and 0.0 <= rows[2]["data_wait"] <= 1.0
    (first,) = [line for line in lines if line.startswith("First step after")]
    assert f"(compiled in {rows[0]['compile_seconds']:.1f} s)" in first
