"""What an evaluation leaves behind: it is whole, and says what was measured."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from data_pipeline.errors import InputError
from fusmae_jax.evaluation import results
from fusmae_jax.evaluation.results import Row
from fusmae_jax.evaluation.scores import Score, Scores

NAN = float("nan")
UNKNOWN = Score(NAN, NAN, NAN)
CLASSES = ("Arable land", 'Beaches, dunes, "sands"', "Water")
META = {
    "dataset": "pairs",
    "split": "test",
    "checkpoint": "runs/base",
    "step": 7,
    "config": {"knn": {"k": 20, "ks": (1, 5)}, "smoothing": NAN},
}


def row(value=0.712, low=0.698, high=0.725, *, confusion=None, overall=None, **fields):
    overall = overall or {"map_micro": Score(value, low, high), "f1_macro": UNKNOWN}
    per_class = {"ap": [Score(0.1 + 0.2, 0.1, 1 / 3), Score(0.5, NAN, NAN), UNKNOWN]}
    given = dict(
        task="probe",
        encoder="Fus-MAE",
        sensors="both",
        fraction=1.0,
        subset_seed=0,
        train_pairs=1000,
        test_pairs=12345,
        features="mean of tokens",
        feature_dim=768,
        chosen={"learning_rate": 0.1, "weight_decay": 1e-4},
        scores=Scores(overall, per_class, confusion),
    )
    return Row(**given | fields)


def assert_same(got: Row, want: Row):
    """Equal to the last bit, where nan equals nan."""
    for field in dataclasses.fields(Row):
        if field.name != "scores":
            assert getattr(got, field.name) == getattr(want, field.name)
    for got_scores, want_scores in zip(got.scores[:2], want.scores[:2]):
        assert list(got_scores) == list(want_scores)  # the order too
        for name in want_scores:
            np.testing.assert_array_equal(got_scores[name], want_scores[name])
    assert all(isinstance(s, Score) for s in got.scores.overall.values())
    assert all(isinstance(s, Score) for s in got.scores.per_class["ap"])
    np.testing.assert_array_equal(got.scores.confusion, want.scores.confusion)


def lines_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_rows_come_back_exactly(tmp_path):
    counts = np.array([[3, 0, 1], [2, 5, 0], [0, 0, 10**12]])
    want = [row(), row(NAN, NAN, NAN, sensors="s1->s2"), row(confusion=counts)]
    results.write(tmp_path, want, classes=CLASSES, meta=META)
    got = results.read(tmp_path)
    assert len(got) == len(want)
    for pair in zip(got, want):
        assert_same(*pair)
    assert got[0].scores.confusion is None
    assert got[2].scores.confusion.dtype == counts.dtype
    classes, meta = results.read_shared(tmp_path)
    assert classes == CLASSES
    assert meta["config"] == {"knn": {"k": 20, "ks": [1, 5]}, "smoothing": None}
    results.write(tmp_path, got, classes=classes, meta=meta)
    assert_same(results.read(tmp_path)[2], want[2])


def test_numpy_numbers_are_written_as_numbers(tmp_path):
    chosen = {"learning_rate": np.float64(0.25), "epochs": np.int64(3)}
    score = {"map_micro": Score(np.float32(0.5), np.float64(0.25), np.float64(NAN))}
    one = row(chosen=chosen, overall=score, train_pairs=np.int32(9))
    results.write(tmp_path, [one], classes=CLASSES, meta=META)
    (got,) = results.read(tmp_path)
    assert got.chosen == {"learning_rate": 0.25, "epochs": 3} and got.train_pairs == 9
    assert got.scores.overall["map_micro"][:2] == (0.5, 0.25)
    assert lines_of(tmp_path / "scores.csv")[0]["train_pairs"] == "9"


def test_nan_is_null_in_json_and_nothing_in_csv(tmp_path):
    results.write(tmp_path, [row()], classes=CLASSES, meta=META)
    text = (tmp_path / "scores.json").read_text()
    assert "NaN" not in text
    (only,) = json.loads(text)["rows"]
    assert only["overall"]["f1_macro"] == {"value": None, "low": None, "high": None}
    last = lines_of(tmp_path / "scores.csv")[-1]
    assert last["class"] == "Water"
    assert [last[k] for k in ("value", "ci_low", "ci_high")] == ["", "", ""]


def test_the_csv_has_a_line_for_each_setting_and_value(tmp_path):
    given = [row(), row(0.5, encoder="image statistics", fraction=0.01, subset_seed=4)]
    results.write(tmp_path, given, classes=CLASSES, meta=META)
    lines = lines_of(tmp_path / "scores.csv")
    assert len(lines) == 2 * (2 + len(CLASSES))
    assert all(list(line) == list(results.SCHEMA) for line in lines)
    assert lines[0] == {
        "dataset": "pairs",
        "split": "test",
        "task": "probe",
        "encoder": "Fus-MAE",
        "sensors": "both",
        "fraction": "1.0",
        "subset_seed": "0",
        "train_pairs": "1000",
        "test_pairs": "12345",
        "features": "mean of tokens",
        "feature_dim": "768",
        "chosen": '{"learning_rate": 0.1, "weight_decay": 0.0001}',
        "class": "",
        "metric": "map_micro",
        "value": "0.712",
        "ci_low": "0.698",
        "ci_high": "0.725",
        "checkpoint": "runs/base",
        "step": "7",
        "note": "",
    }
    assert [(line["class"], line["metric"]) for line in lines[1:5]] == [
        ("", "f1_macro"),
        *((name, "ap") for name in CLASSES),
    ]
    assert float(lines[2]["value"]) == 0.1 + 0.2
    assert (lines[5]["encoder"], lines[5]["fraction"]) == ("image statistics", "0.01")


def test_scores_of_other_classes_are_refused(tmp_path):
    with pytest.raises(ValueError):
        results.write(tmp_path, [row()], classes=CLASSES[:2], meta=META)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", (float("inf"), object()))
def test_what_cannot_be_written_leaves_the_files_as_they_were(tmp_path, bad):
    results.write(tmp_path, [row()], classes=CLASSES, meta=META)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == {"scores.json", "scores.csv"}
    with pytest.raises((ValueError, TypeError)):
        results.write(tmp_path, [row(chosen={"rate": bad})], classes=CLASSES, meta=META)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_crash_while_writing_scores_leaves_the_earlier_ones(tmp_path, monkeypatch):
    results.write(tmp_path, [row()], classes=CLASSES, meta=META)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def crash(source, target):
        raise OSError(f"killed before {target} was complete")

    monkeypatch.setattr("os.replace", crash)
    for name in ("scores.csv", "scores.json"):
        with pytest.raises(OSError, match=name):
            results.write(tmp_path, [row(0.1)], classes=CLASSES, meta=META)
        after = {name: (tmp_path / name).read_bytes() for name in before}
        assert after == before
        # The second round gets past the first file.
        monkeypatch.setattr(
            "os.replace",
            lambda a, b: crash(a, b) if str(b).endswith("json") else None,
        )


def test_a_crash_while_writing_predictions_leaves_the_earlier_ones(
    tmp_path, monkeypatch
):
    labels = np.eye(2)
    results.write_predictions(tmp_path, ("a", "b"), ("x", "y"), labels, {"k": labels})
    before = (tmp_path / "predictions.npz").read_bytes()

    def crash(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", crash)
    with pytest.raises(OSError, match="disk full"):
        results.write_predictions(tmp_path, ("c",), ("x",), [[1]], {})
    assert (tmp_path / "predictions.npz").read_bytes() == before


def test_reading_what_is_not_there_says_so(tmp_path):
    with pytest.raises(InputError, match="evaluate a run there first"):
        results.read(tmp_path)
    (tmp_path / "scores.json").write_text('{"rows": [')
    with pytest.raises(InputError, match="is not JSON .*; delete it"):
        results.read(tmp_path)
    (tmp_path / "scores.json").write_text('{"task": "reconstruct"}')
    with pytest.raises(InputError, match="lacks meta, classes or rows"):
        results.read(tmp_path)


def test_predictions_are_plain_arrays_under_readable_keys(tmp_path):
    model = row(fraction=0.1, subset_seed=3)
    rival = row(fraction=0.1, subset_seed=3, encoder="image statistics")
    keys = [results.prediction_key(r) for r in (model, rival)]
    assert keys == ["probe/both/0.1/3", "probe/both/0.1/3/image statistics"]
    labels = np.array([[1, 0, 1], [0, 0, 0]], bool)
    scores = dict(zip(keys, np.random.default_rng(0).random((2, 2, 3))))
    results.write_predictions(tmp_path, ["p1", "p22"], CLASSES, labels, scores)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as got:
        assert set(got) == {"ids", "classes", "labels", *keys}
        assert got["ids"].tolist() == ["p1", "p22"]
        assert tuple(got["classes"]) == CLASSES
        assert got["labels"].dtype == np.uint8
        np.testing.assert_array_equal(got["labels"], labels)
        for key in keys:
            assert got[key].dtype == np.float32
            np.testing.assert_array_equal(got[key], scores[key].astype(np.float32))


def test_predictions_are_read_back_all_or_one(tmp_path):
    assert results.read_predictions(tmp_path) == {}
    scores = {"knn/s1/1/0": np.eye(2), "knn/s2/1/0": np.ones((2, 2))}
    results.write_predictions(tmp_path, ("a", "b"), ("x", "y"), np.eye(2), scores)
    assert results.read_predictions(tmp_path).keys() == scores.keys()
    (only,) = results.read_predictions(tmp_path, "knn/s2/1/0").values()
    np.testing.assert_array_equal(only, 1.0)
    (tmp_path / "predictions.npz").write_bytes(b"PK, or what was left of it")
    with pytest.raises(InputError, match="predictions.npz cannot be read .*delete it"):
        results.read_predictions(tmp_path)


def test_a_row_that_lacks_something_is_said_in_a_sentence(tmp_path):
    results.write(tmp_path, [row()], classes=CLASSES, meta=META)
    content = json.loads((tmp_path / "scores.json").read_text())
    del content["rows"][0]["fraction"]
    (tmp_path / "scores.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="damaged .*'fraction'.*; delete it"):
        results.read(tmp_path)


def test_the_table_of_a_known_case():
    values = (0.60, 0.62, 0.64)  # mean 62, sample deviation 2
    given = [
        row(0.5, NAN, NAN, encoder="random initialisation"),
        row(sensors="both"),
        row(0.61, 0.6, 0.62, sensors="s1"),
        *(row(v, fraction=0.01, subset_seed=i) for i, v in enumerate(values)),
        row(NAN, NAN, NAN, task="knn", sensors="s1"),
        row(task="retrieval", sensors="s1->s2", overall={"recall@1": UNKNOWN}),
    ]
    assert results.table(given, "map_micro", where="pairs, test split").split("\n") == [
        "mAP (micro) on 12,345 pairs of pairs, test split",
        "(percent [95 % interval], or ± standard deviation over n subsets of the "
        "labels)",
        "task          labels  encoder                S1                 both",
        "kNN           100 %   Fus-MAE                undefined          -",
        "linear probe  1 %     Fus-MAE                -                  "
        "62.0 ± 2.0 (n = 3)",
        "linear probe  100 %   Fus-MAE                61.0 [60.0, 62.0]  "
        "71.2 [69.8, 72.5]",
        "linear probe  100 %   random initialisation  -                  50.0",
    ]


def test_features_taken_in_several_ways_have_lines_of_their_own():
    given = [row(), row(0.8, features="global token"), row(task="knn")]
    lines = results.table(given, "map_micro", where="pairs").split("\n")[3:]
    cells = [[cell.strip() for cell in line.split("  ") if cell] for line in lines]
    assert cells == [
        ["kNN", "100 %", "Fus-MAE", "71.2 [69.8, 72.5]"],
        ["linear probe", "100 %", "Fus-MAE, global token", "80.0 [69.8, 72.5]"],
        ["linear probe", "100 %", "Fus-MAE, mean of tokens", "71.2 [69.8, 72.5]"],
    ]


def test_a_metric_that_nothing_was_judged_by_is_refused():
    with pytest.raises(InputError, match="by oa; choose from f1_macro, map_micro"):
        results.table([row()], "oa", where="pairs")


def test_retrieval_has_a_line_for_each_direction():
    across = {"recall@1": Score(0.25, 0.2, 0.3), "f1@5": Score(0.5, 0.4, 0.6)}
    within = {"f1@5": Score(0.75, 0.7, 0.8)}
    given = [
        row(),
        row(task="retrieval", sensors="s1->s2", overall=across),
        row(task="retrieval", sensors="s2", overall=within),
    ]
    assert results.retrieval_table(given, where="pairs").split("\n") == [
        "Retrieval on 12,345 pairs of pairs",
        "(percent [95 % interval])",
        "encoder  query -> gallery  recall@1           f1@5",
        "Fus-MAE  S1 -> S2          25.0 [20.0, 30.0]  50.0 [40.0, 60.0]",
        "Fus-MAE  S2                -                  75.0 [70.0, 80.0]",
    ]


def test_the_spread_over_subsets_is_the_sample_deviation():
    values = [0.3, 0.5, 0.1, 0.7]
    given = [row(v, subset_seed=i) for i, v in enumerate(values)]
    mean, low, high = results.over_seeds(given, "map_micro")
    std = np.std(values, ddof=1)
    np.testing.assert_allclose((mean, low, high), (0.4, 0.4 - std, 0.4 + std))
    assert results.over_seeds(given[:1], "map_micro") == (0.3, 0.698, 0.725)
