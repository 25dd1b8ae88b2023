"""Change between two dates: found where there is some, in regions never seen."""

import dataclasses

import numpy as np
import pytest

from configs import change_pairs, prepare_pairs
from data_pipeline import ground, sources
from data_pipeline.building import prepare
from data_pipeline.errors import InputError
from fusmae_jax.evaluation import change, change_heads, heads, results, scores
from fusmae_jax.training import sharding
from tests import judging, teacher
from tests.geotiffs import GRID, S1_BANDS, S2_BANDS, SIDE, s1_image, s2_image, write_csv
from tests.geotiffs import write as write_tiff


@dataclasses.dataclass
class Pairs:
    """Pairs of which only place and id are asked for."""

    places: np.ndarray
    index: dict

    def __len__(self):
        return len(self.places)


def at(x, y, time="", system="EPSG:32633"):
    return f"{system} 10 0 {x} 0 -10 {y}" + (f" {time}" if time else "")


def pairs(*places, ids=None):
    ids = [f"p{i}" for i in range(len(places))] if ids is None else ids
    return Pairs(np.array(places), {"id": np.array(ids)})


def test_regions_are_chains_of_neighbours_in_one_projection():
    source = pairs(
        *(at(0, 0), at(900, 0), at(1800, 0), at(5000, 0), at(0, 0, "2020")),
        *(at(0, 0, system="EPSG:32634"), "alone", ""),
    )
    found = ground.regions(source, 1000.0)
    assert found[0] == found[1] == found[2] == found[4]
    others = [found[i] for i in (0, 3, 5, 6, 7)]
    assert len(set(others)) == 5


def test_dates_of_a_place_follow_each_other_in_time_and_else_by_id():
    times = ("2020-01-01T00:00:00", "2018-01-01T00:00:00", "2019-01-01T00:00:00")
    source = pairs(*(at(0, 0, time) for time in times), at(90_000, 0), at(90_000, 0))
    source.index["id"] = np.array(["a", "b", "c", "z2", "z1"])
    other = pairs(*(at(50_000 * i, 9e6) for i in (1, 1, 2, 2)))
    source.places = np.concatenate([source.places, other.places])
    source.index["id"] = np.concatenate([source.index["id"], other.index["id"]])
    found = change.find_places(source, np.ones(9, bool), 3, 1000.0)
    dates = set(zip(found.before.tolist(), found.after.tolist()))
    assert dates == {(1, 2), (2, 0), (4, 3), (5, 6), (7, 8)}
    of_first = [found.regions[i] for i, j in enumerate(found.after) if j in (0, 2)]
    assert len(set(of_first)) == 1
    for region in set(found.regions):  # whole, in one fold
        assert len(set(found.folds[found.regions == region])) == 1
    assert sorted(np.bincount(found.folds)) == [1, 2, 2]
    # A place whose later date nobody has labelled teaches nothing.
    labelled = np.ones(9, bool)
    labelled[6] = False
    fewer = change.find_places(source, labelled, 3, 1000.0)
    assert set(fewer.after.tolist()) == {0, 2, 3, 8}


def test_ground_shown_once_and_too_few_regions_are_refused():
    with pytest.raises(InputError, match="No place of these 2 pairs is shown at two"):
        change.find_places(pairs(at(0, 0), at(9, 9)), np.ones(2, bool), 3, 0.0)
    twice = pairs(at(0, 0), at(0, 0), at(500, 0), at(500, 0))
    with pytest.raises(InputError, match="2 places are of 1 regions.*lower folds, or"):
        change.find_places(twice, np.ones(4, bool), 3, 1000.0)


def test_scores_of_change_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with it")
    labels = rng.integers(0, 3, (5, 8, 8)).astype(np.uint8)  # 2 is no label
    said = rng.random((5, 8, 8)) < 0.3
    counts = change_heads.confusions(labels, said)
    known = labels < 2
    np.testing.assert_array_equal(
        counts.sum(axis=0), metrics.confusion_matrix(labels[known], said[known])
    )
    found = scores.detection(counts, resamples=20).overall
    expected = {
        "f1": metrics.f1_score,
        "precision": metrics.precision_score,
        "recall": metrics.recall_score,
        "iou": metrics.jaccard_score,
    }
    assert found.keys() == expected.keys()
    for name, score in expected.items():
        assert found[name].value == pytest.approx(score(labels[known], said[known]))
    none = scores.detection(change_heads.confusions(labels, np.zeros_like(said)))
    assert none.overall["recall"].value == 0
    assert np.isnan(none.overall["precision"].value)


class Noted:
    """Heads of two settings that note what they are shown, and the second is right."""

    recipe = change_heads.Recipe(learning_rates=(1e-3, 1e-2), class_weights=(1.0,))

    def __init__(self):
        self.learnt, self.judged, self.tested = [], [], []

    def fit(self, dates, places, count):
        self.learnt.append(set(np.asarray(places)[: int(count)].tolist()))
        return {"x": np.zeros((2, 1))}

    def count(self, params, dates, places):
        self.judged.append(set(np.asarray(places).tolist()))
        wrong, right = [[1, 9], [9, 1]], [[5, 1], [1, 5]]
        return np.array([[wrong, right]] * len(places))

    def say(self, params, dates, places):
        self.tested.append(set(np.asarray(places).tolist()))
        return np.asarray(dates.labels)[np.asarray(places)] == 1


def test_every_fold_is_tested_once_by_what_neither_learnt_nor_chose_on_it():
    folds = np.array([0, 1, 2, 3, 0, 1, 2, 0])
    labels = np.random.default_rng(0).integers(0, 2, (8, 4, 4)).astype(np.uint8)
    tokens = np.zeros((8, 1, 2, 2, 3), np.float32)
    made, mesh = Noted(), sharding.make_mesh()
    dates = change_heads.Dates(tokens, tokens, labels)
    said, chosen = change_heads.cross_validate(made, dates, folds, mesh, "noted")
    np.testing.assert_array_equal(said, labels == 1)  # each at its place
    assert chosen == [(1e-2, 1.0, 10 / 12)] * 4
    whole = {fold: set(np.flatnonzero(folds == fold).tolist()) for fold in range(4)}
    assert made.tested == [whole[fold] for fold in range(4)]
    assert made.judged == [whole[fold] for fold in (1, 2, 3, 0)]
    for learnt, judged, tested in zip(made.learnt, made.judged, made.tested):
        assert learnt | judged | tested == set(range(8))
        assert not learnt & (judged | tested) and not judged & tested


SHIFT = 100_000  # metres between the regions


@pytest.fixture(scope="module")
def cities(tmp_path_factory):
    """Eight regions at two dates; a square of each has brightened."""
    root, rng = tmp_path_factory.mktemp("cities"), np.random.default_rng(0)
    rows = []
    for i in range(8):
        place = dict(transform=GRID @ GRID.translation(i * SHIFT / 10, 0))
        mask = np.zeros((1, SIDE, SIDE), np.uint8)
        row, column = 8 * rng.integers(0, 2, 2)
        mask[0, row : row + 8, column : column + 8] = 1
        for date in (1, 2):
            name = f"city{i}_t{date}.tif"
            optics = s2_image(i)
            if date == 2:
                optics = optics + 9_000 * mask.astype(np.uint16)
            write_tiff(root / "s1" / name, s1_image(2 * i + date), S1_BANDS, **place)
            write_tiff(root / "s2" / name, optics, S2_BANDS, **place)
            write_tiff(root / "mask" / name, mask, **place)
            row = {k: f"{k}/{name}" for k in ("s1", "s2", "mask")}
            rows.append(row | {"split": "train"})
    config = prepare_pairs.get_config()
    config.source, config.out = write_csv(root / "pairs.csv", rows), str(root / "out")
    config.workers, config.check_values = 0, False
    config.read.update(s2_offset="0", mask_classes=("same", "changed"))
    prepare.prepare(config)
    return root / "out"


@pytest.fixture(scope="module", autouse=True)
def method():
    with teacher.known():
        yield


def config(factory, dataset):
    c = change_pairs.get_config()
    c.checkpoint, c.data.dir = str(judging.trained(factory, "teacher")), str(dataset)
    c.sensors, c.baselines = ("s1", "s2"), ("statistics",)
    c.ways, c.heads, c.bootstrap, c.batch_size = ("difference",), ("linear",), 20, 4
    c.fit.update(steps=60, learning_rates=(1e-2, 0.1), class_weights=(1.0, 4.0))
    return c


def test_change_is_found_in_regions_never_seen_and_where_it_can_be_seen(
    cities, tmp_path, tmp_path_factory, capsys, monkeypatch
):
    c = config(tmp_path_factory, cities)
    rows = change.run(c, tmp_path / "w")
    found = {(row.encoder, row.sensors): row for row in rows}
    pixels = found[results.PIXELS, "s2"]
    assert pixels.scores.overall["f1"].value > 0.9
    assert pixels.scores.confusion.sum() == 8 * SIDE**2  # every pixel, once
    assert found[results.PIXELS, "s1"].scores.overall["f1"].value < 0.6  # by chance
    assert pixels.chosen["validation"] > 0.9
    assert len(pixels.chosen["class_weight"]) == c.folds
    assert pixels.features == "difference, linear head"
    assert (pixels.train_pairs, pixels.test_pairs) == (8, 8)
    assert {"student", results.PIXELS} == {row.encoder for row in rows}
    for name in ("change_f1", "changed"):
        assert (tmp_path / "w" / "figures" / f"{name}.png").stat().st_size > 5_000
    assert "F1" in capsys.readouterr().out
    kept = next((tmp_path / "w" / "changed").glob("pixels*s2*"))
    said = np.load(kept)["changed"]
    source = sources.open_split(c.data, "train", ("mask",))
    labels = np.stack([source[i]["mask"] for i in range(1, 16, 2)])
    np.testing.assert_array_equal(
        change_heads.confusions(labels, said).sum(axis=0), pixels.scores.confusion
    )
    # Going on does nothing again.
    monkeypatch.setattr(change_heads, "take_tokens", lambda *args: pytest.fail("again"))
    again = change.run(c, tmp_path / "w")
    assert [row.scores.overall for row in again] == [row.scores.overall for row in rows]


def test_both_ways_and_heads_are_judged_and_a_date_alone_tells_nothing(
    cities, tmp_path, tmp_path_factory, monkeypatch
):
    c = config(tmp_path_factory, cities)
    monkeypatch.setattr(heads, "WIDTH", 8)  # compiles and runs faster
    monkeypatch.setattr(heads, "LEAST_WIDTH", 8)
    c.fit.update(steps=4, learning_rates=(1e-2,), class_weights=(1.0,))
    c.sensors, c.ways, c.heads = ("both",), ("concatenation",), ("upsample",)
    rows = change.run(c, tmp_path / "w")
    pixels = rows[-1]
    assert pixels.features == "concatenation, upsample head"
    # Tokens of 6 x 6 px of both sensors, of two dates.
    assert pixels.feature_dim == 2 * 36 * (len(S1_BANDS) + len(S2_BANDS))
    same = lambda before, after: after - after
    monkeypatch.setitem(change_heads.WAYS, "difference", same)
    c.ways, c.heads, c.fit.steps = ("difference",), ("linear",), 20
    blind = change.run(c, tmp_path / "blind")[-1]
    assert blind.scores.overall["f1"].value < 0.5


def test_masks_of_other_classes_and_trained_ground_are_refused(
    cities, tmp_path, tmp_path_factory, monkeypatch
):
    c = config(tmp_path_factory, cities)
    c.field = "land_cover"
    with pytest.raises(
        InputError, match=r"labels 'land_cover'; choose with field= one of \['mask'\]"
    ):
        change.run(c, tmp_path / "w")
    c = config(tmp_path_factory, cities)
    trained_on = change.labelled_data.run_directory
    monkeypatch.setattr(trained_on, "trained_on", lambda directory, codes: 3)
    with pytest.raises(InputError, match="3 of the 16 pairs to be tested on show grou"):
        change.run(c, tmp_path / "w")
    c.data.statistics = "computed"
    with pytest.raises(InputError, match="set normalize=data too"):
        change.check(c)
    assert not (tmp_path / "w").exists()


def test_an_end_of_a_grid_that_most_folds_chose_is_told(lines):
    change.warn_at_edge("x", "class_weights", (16.0, 16.0, 16.0, 4.0), (1.0, 4.0, 16.0))
    assert lines == ["Most heads of x have 16 of fit.class_weights; widen it there."]
    change.warn_at_edge("x", "class_weights", (16.0, 16.0, 4.0, 4.0), (1.0, 4.0, 16.0))
    change.warn_at_edge("x", "class_weights", (4.0, 4.0), (4.0,))
    assert len(lines) == 1
