"""Datasets of one sensor and of both are mixed; what one lacks counts as missing."""

import dataclasses
import itertools
import json
import pickle

import ml_collections
import numpy as np
import pytest
from flax import nnx

from data_pipeline import batches, dataset_card, layout, sensors, sources
from data_pipeline.errors import InputError
from fusmae_jax.evaluation import checks, monitor
from fusmae_jax.training import metrics, pretrain, sharding
from tests import datasets, judging, tiny

KINDS = {"optics": ("s2",), "radar": ("s1",), "pairs": ("s1", "s2")}
COUNTS = dict(zip(KINDS, (4, 6, 8)))
GRIDS = layout.native(24, sensors.SENSORS)
FIELDS = tuple(GRIDS.shapes)


def shifted(shift):
    """Both sensors with all means elsewhere, and deviations of 2."""
    found = {}
    for name, sensor in sensors.SENSORS.items():
        means = {band.name: band.mean + shift for band in sensor.bands}
        stds = dict.fromkeys(sensor.band_names, 2.0)
        found[name] = sensor.with_statistics(means, stds, f"shift {shift}")
    return found


def describe(names, known=sensors.SENSORS, size=24):
    known = {name: known[name] for name in names}
    return datasets.description(sensors=known, layout=layout.native(size, known))


def write(folder, kind, *, split="train", stored=None, known=sensors.SENSORS):
    """A dataset of a kind; with `stored` it has both sensors, some of them missing."""
    described = describe(stored or KINDS[kind], known)

    def fill(pair):
        """The same pixels, whatever is stored of them."""
        whole = datasets.example(describe(("s1", "s2")), int(pair["id"][1:]))
        for field, x in whole.items():
            if field in GRIDS.shapes and field[:2] not in KINDS[kind]:
                x[:] = sensors.MISSING[x.dtype.name]
        return {field: whole[field] for field in described.layout.shapes}

    datasets.write(
        folder,
        (COUNTS[kind],),
        split=split,
        described=described,
        prefix=f"{kind} {split} ",
        changed=fill,
    )
    card = dataset_card.read_card(folder)
    missing = {"s1": {"VV": {"missing": 1}}} if stored else {}
    card["splits"] = {split: {"sensors": missing}}
    (folder / dataset_card.CARD_FILE).write_text(json.dumps(card))
    return folder


def data(*folders, **changes):
    known = dict(source="records", dir=",".join(map(str, folders)), split="train")
    return ml_collections.ConfigDict(known | changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A dataset of each kind, and the same with the missing sensors stored."""
    root, both = tmp_path_factory.mktemp("mixed"), ("s1", "s2")
    lacking = [write(root / kind, kind) for kind in KINDS]
    return lacking, [write(root / f"{k} stored", k, stored=both) for k in KINDS]


@pytest.mark.parametrize("kinds", [*itertools.permutations(range(3))])
def test_batches_are_those_of_pairs_that_store_what_is_missing(folders, kinds):
    lacking, stored = (
        sources.open_split(data(*(some[i] for i in kinds)), "train", FIELDS)
        for some in folders
    )
    assert {*lacking.fields} == {*FIELDS} == {*stored.fields}
    assert lacking.shares == stored.shares
    assert lacking.description.layout.shapes == GRIDS.shapes
    assert lacking.description.sensors == stored.description.sensors
    streams = (
        batches.train_batches(source, batch_size=6, seed=0, stall_seconds=0)
        for source in (lacking, stored)
    )
    for got, want in itertools.islice(zip(*streams), 4):
        assert got.keys() == want.keys()
        for field in want:
            np.testing.assert_array_equal(got[field], want[field])
            assert got[field].dtype == want[field].dtype


@pytest.mark.parametrize("kinds", [("optics", "pairs"), ("optics", "radar")])
def test_only_whole_sensors_may_differ(tmp_path, kinds):
    described = describe(KINDS[kinds[0]])
    l1c = dataclasses.replace(described.sensors["s2"], level="L1C")
    other = dataclasses.replace(described, sensors={"s2": l1c}, name="other")
    datasets.write(tmp_path / "other", (3,), described=other)
    folders = [write(tmp_path / kind, kind) for kind in kinds]
    with pytest.raises(InputError, match="of other in .*level of Sentinel-2 .*L1C"):
        sources.open_split(data(*folders, tmp_path / "other"), "train", FIELDS)


def test_scenes_of_other_sizes_are_refused_before_anything_is_read(tmp_path):
    """The radar's size is not whole on the grids of the optics."""
    small = describe(("s1",))
    small = dataclasses.replace(small, layout=layout.Layout(10, small.layout.grids))
    datasets.write(tmp_path / "small", (3,), described=small)
    optics = write(tmp_path / "optics", "optics")
    with pytest.raises(InputError, match=r"differ in size \(10 and 24\)"):
        sources.describe(data(tmp_path / "small", optics))
    held = datasets.write(tmp_path / "held", (3,), split="validation", described=small)
    pairs = write(tmp_path / "pairs", "pairs")
    with pytest.raises(InputError, match=r"differ in size \(24 and 10\)"):
        sources.open_split(data(pairs, eval_dir=str(held)), "validation", FIELDS)


def test_statistics_of_a_sensor_are_pooled_over_those_that_have_it(tmp_path):
    shifts = dict(zip(KINDS, (10.0, 20.0, 40.0)))
    folders = [write(tmp_path / k, k, known=shifted(x)) for k, x in shifts.items()]
    config = data(*folders, weights=(1.0, 2.0, 3.0))
    found = sources.open_split(config, "train", FIELDS).description.sensors
    for name, shift, std in (
        ("s1", (2 * 20 + 3 * 40) / 5, np.sqrt(4 + 0.4 * 0.6 * 20**2)),
        ("s2", (1 * 10 + 3 * 40) / 4, np.sqrt(4 + 0.25 * 0.75 * 30**2)),
    ):
        for band, usual in zip(found[name].bands, sensors.SENSORS[name].bands):
            np.testing.assert_allclose(band.mean, usual.mean + shift, rtol=1e-6)
            np.testing.assert_allclose(band.std, std, rtol=1e-6)
    only = sources.open_split(data(*folders[:2]), "train", FIELDS).description.sensors
    assert only["s1"] == shifted(20.0)["s1"] and only["s2"] == shifted(10.0)["s2"]


def test_the_log_says_once_which_dataset_lacks_what(folders, lines):
    lacking, stored = folders
    sources.open_split(data(*stored), "train", FIELDS)
    assert not lines
    sources.open_split(data(*lacking), "train", FIELDS)
    (line,) = lines
    optics, radar, _ = lacking
    assert f"in {optics} has no Sentinel-1, tiny in {radar} has no Sentinel-2" in line
    assert sources.has_missing(data(*lacking))


def test_what_is_missing_is_made_once_and_travels_to_worker_processes(folders):
    mixture = sources.open_split(data(*folders[0]), "train", FIELDS)
    assert mixture[0]["s1_10m"] is mixture[1]["s1_10m"]
    again = pickle.loads(pickle.dumps(mixture))
    np.testing.assert_array_equal(again[0]["s1_10m"], mixture[0]["s1_10m"])


def test_held_out_pairs_have_the_sensors_that_are_trained_on(folders, tmp_path):
    optics = write(tmp_path / "optics", "optics", split="validation")
    config = data(*folders[0], eval_dir=str(optics))
    held = sources.open_split(config, "validation", (*FIELDS, "id"))
    assert len(held) == COUNTS["optics"] and {*held.fields} == {*FIELDS, "id"}
    assert all(np.isnan(pair["s1_10m"]).all() for pair in held)
    sources.check_alike(sources.open_split(config, "train", FIELDS), held)
    assert [*sources.describe(config, "validation").sensors] == ["s2"]


def test_held_out_pairs_with_nothing_that_is_trained_on_are_refused(folders, tmp_path):
    radar = write(tmp_path / "radar", "radar", split="validation")
    config = data(folders[0][0], eval_dir=str(radar))
    with pytest.raises(InputError, match="has nothing of Sentinel-2, .*validation"):
        sources.open_split(config, "validation", [f for f in FIELDS if "s2" in f])


def test_an_encoder_is_judged_by_sensors_that_every_split_shows(folders, tmp_path):
    optics = write(tmp_path / "optics", "optics", split="validation")
    config = judging.config("run", sensors=("s1",), data__test_split="validation")
    config.data.update(source="records", dir=",".join(map(str, folders[0])))
    config.data.update(eval_dir=str(optics), allow_overlap=True)
    want = r"split validation of tiny holds Sentinel-2 alone; set .*\('s2',\)"
    with pytest.raises(InputError, match=want):
        checks.check_data(config)
    config.sensors = ("s2",)
    checks.check_data(config)


def pretraining(trained_on, held):
    """Two steps, and all held-out pairs."""
    config = tiny.config()
    config.epochs, config.batch_size, config.eval_pairs = 1, 8, 18
    config.data.update(source="records", dir=",".join(map(str, trained_on)))
    config.data.eval_dir = ",".join(map(str, held))
    return config


@pytest.mark.journey
def test_a_run_equals_one_on_pairs_that_store_what_is_missing(folders, tmp_path):
    found = []
    for i, stored in enumerate((None, ("s1", "s2"))):
        options = dict(split="validation", stored=stored)
        held = [write(tmp_path / f"{i} {k}", k, **options) for k in KINDS]
        run = tmp_path / f"run {i}"
        state = pretrain.run(pretraining(folders[i], held), run)
        assert int(state.step) == 2 and int(state.skipped) == 0
        rows = metrics.read_metrics(run)
        found.append({(r["step"], k): r[k] for r in rows for k in r if "loss" in k})
    assert found[0] == found[1] and np.isfinite([*found[0].values()]).all()
    steps = itertools.product((1, 2), ("loss_s1", "loss_s2"))
    assert {*steps, (2, "eval_loss")} <= found[0].keys()


@pytest.mark.journey
def test_the_monitor_judges_by_what_held_out_pairs_show(folders, tmp_path):
    optics = write(tmp_path / "optics", "optics", split="validation")
    config = pretraining(folders[0], [optics])
    config.judge.every = 1
    train, held = (
        sources.open_split(config.data, split, (*FIELDS, "labels"))
        for split in ("train", "validation")
    )
    goal = tiny.objective()
    object.__setattr__(goal, "inputs", dataclasses.replace(goal.inputs, missing=True))
    judge = monitor.Monitor(config, goal, sharding.make_mesh(1), train, held)
    with metrics.MetricWriter(tmp_path, first_step=0) as writer:
        written = judge.run(1, nnx.split(tiny.model())[1], writer)
    assert {name for name in written if name.startswith("knn")} == {"knn_s2"}
