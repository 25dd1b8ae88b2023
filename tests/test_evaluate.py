"""An evaluation end to end: from a run directory to tables, files and figures."""

import csv
import json
import shutil

import numpy as np
import pytest

from configs import probe_sample
from data_pipeline import sources, subsets, synthetic
from fusmae_jax import figures
from fusmae_jax.evaluation import evaluate, gallery, results, scores, tasks
from tests import datasets, judging, teacher

BASELINES = ("random", "statistics")
ENCODERS = ("student", "random initialisation", "image statistics")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return judging.trained(tmp_path_factory)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A run of the small method, whose encoder is sooner compiled."""
    with teacher.known():
        yield judging.trained(tmp_path_factory, "teacher")


@pytest.fixture(scope="module")
def everything(student, tmp_path_factory):
    """All tasks on features, with what they are compared with; and how often scored."""
    workdir = tmp_path_factory.mktemp("evaluate") / "out"
    config = judging.config(
        student,
        methods=("knn", "probe", "retrieval"),
        baselines=BASELINES,
        fractions=(0.5, 1.0),
        repeats=(1, 1),
    )
    scored, score = [], scores.multi_label
    count = lambda *a, **k: scored.append(1) or score(*a, **k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "multi_label", count)
        rows = evaluate.run(config, workdir)
    return workdir, rows, len(scored)


def test_there_is_a_row_for_every_encoder_sensor_and_share_of_labels(everything):
    _, rows, _ = everything
    found = {(r.task, r.encoder, r.sensors, r.fraction) for r in rows}
    learnt = {
        (task, encoder, sensors, fraction)
        for task in ("knn", "probe")
        for encoder in ENCODERS
        for sensors in ("s1", "s2", "both")
        for fraction in (0.5, 1.0)
    }
    searched = {
        ("retrieval", encoder, direction, 1.0)
        for encoder in ENCODERS
        for direction in tasks.DIRECTIONS
        # Statistics of radar and of optics cannot be compared.
        if encoder != "image statistics"
        or direction[:2] == direction[-2:]
        or direction == "both->both"
    }
    assert found == learnt | searched and len(rows) == len(found)
    for row in rows:
        assert row.test_pairs == 16
        assert row.feature_dim == (
            98 if row.encoder == "image statistics" else teacher.WIDTH
        )
        if row.task != "retrieval":
            assert row.train_pairs == row.fraction * 160


def test_test_pairs_are_scored_once_a_setting(everything):
    _, rows, scored = everything
    assert scored == sum(row.task != "retrieval" for row in rows)


def test_the_probe_chooses_on_validation(everything):
    for row in everything[1]:
        if row.task == "probe":
            assert row.chosen["learning_rate"] in (0.1, 1.0)
            assert 0.0 < row.chosen["validation"] <= 1.0
            assert row.chosen["validation"] != row.scores.overall["map_micro"].value


def test_files_and_figures_are_left_behind(everything):
    workdir, rows, _ = everything
    assert {p.name for p in (workdir / "figures").iterdir()} == {
        *(
            f"{t}_{k}.png"
            for t in ("knn", "probe")
            for k in ("sensors", "fractions", "per_class", "confusion")
        ),
        *(f"projection_{s}.png" for s in ("s1", "s2", "both")),
    }
    assert [r.scores.overall for r in results.read(workdir)] == [
        r.scores.overall for r in rows
    ]
    with (workdir / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(results.SCHEMA)
    assert {line["task"] for line in lines} == {"knn", "probe", "retrieval"}
    assert len(np.load(workdir / "predictions.npz").files) == 3 + 2 * 3 * 3 * 2
    assert json.loads((workdir / "config.json").read_text())["config"]["task"]


def test_an_evaluation_prints_its_tables(student, everything, capsys, lines):
    config = judging.config(
        student,
        methods=("knn", "probe", "retrieval"),
        baselines=BASELINES,
        fractions=(0.5, 1.0),
        repeats=(1, 1),
    )
    workdir, rows, _ = everything
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "draw", lambda *a, **k: None)
        evaluate.run(config, workdir)  # once more
    out = capsys.readouterr().out
    for text in ("mAP (micro) on 16 pairs of synthetic, test split", *ENCODERS):
        assert text in out
    assert "Retrieval on 16 pairs" in out and "recall@3" in out
    said = "160 pairs to learn from, 16 to choose on, 16 to test on"
    assert any(said in line for line in lines)


def test_pairs_of_one_class_are_judged_by_accuracy(student, tmp_path):
    config = judging.config(
        student, methods=("knn", "probe"), single_label=True, sensors=("both",)
    )
    config.data.source = "patterns"
    rows = evaluate.run(config, tmp_path)
    labels = synthetic.Patterns(16, size=24, seed=2).index["labels"]
    with np.load(tmp_path / "predictions.npz") as found:
        np.testing.assert_array_equal(found["labels"], labels)
        for row in rows:
            predicted = found[results.prediction_key(row)].argmax(axis=1)
            right = (predicted == labels.argmax(axis=1)).mean()
            assert row.scores.overall["oa"].value == pytest.approx(right)
            assert row.scores.confusion.sum() == 16
    assert (tmp_path / "figures" / "probe_confusion.png").exists()


@pytest.mark.journey
def test_few_labels_are_all_that_the_few_label_rows_saw(trained, tmp_path, monkeypatch):
    """What stands behind other labels changes nothing."""
    config = judging.config(
        trained, methods=("knn", "probe"), fractions=(0.2,), sensors=("both",)
    )
    first = evaluate.run(config, tmp_path / "one")
    labels = synthetic.Scenes(160, size=24).index["labels"]
    chosen = subsets.choose(labels, 0.2, 0)

    class Spoiled(synthetic.Scenes):
        @property
        def index(self):
            index = dict(super().index)
            if self.count == 160:
                others = np.setdiff1d(np.arange(160), chosen)
                index["labels"] = index["labels"].copy()
                index["labels"][others] = 1 - index["labels"][others]
            return index

    monkeypatch.setitem(sources.PROCEDURAL, "synthetic", Spoiled)
    monkeypatch.setattr(subsets, "choose", lambda *a: chosen)
    second = evaluate.run(config, tmp_path / "two")
    for a, b in zip(first, second, strict=True):
        assert a.scores.overall == b.scores.overall


@pytest.mark.journey
def test_the_real_pairs_that_come_with_the_project_can_be_judged(trained, tmp_path):
    config = probe_sample.get_config()
    config.checkpoint = str(trained)
    config.cache = str(tmp_path / "cache")
    config.bootstrap, config.probe.epochs = 20, 2
    rows = evaluate.run(config, tmp_path / "out")
    assert {row.task for row in rows} == {"knn", "probe", "retrieval"}
    assert {(row.test_pairs, row.train_pairs) for row in rows} == {(5, 17), (5, 0)}
    assert (tmp_path / "out" / "figures" / "projection_both.png").exists()
    assert list((tmp_path / "cache").iterdir())


def by_ground(folder, cells):
    """Pairs of a tile in three splits; those to test on show so many of its cells."""
    described = datasets.description(maps={"land_cover": datasets.CLASSES["labels"]})
    folders = []
    wanted = (("train", 0, 8), ("validation", 10, 4), ("test", 20, 24))
    for split, first, count in wanted:
        column = lambda i: first + i % cells if split == "test" else first + i
        date = lambda i: f"S2A_MSIL2A_201706{i + 1:02d}T101031"
        folders.append(
            datasets.write(
                folder / split,
                (count,),
                split=split,
                described=described,
                names=[
                    (f"{date(i)}_{column(i)}_7", f"{date(i)}_33UUP_{column(i)}_7")
                    for i in range(count)
                ],
            )
        )
    return str(folders[0]), ",".join(map(str, folders[1:]))


@pytest.fixture(scope="module")
def on_ground(student, tmp_path_factory):
    """The same pairs judged as 24 pieces of ground, and as 6 of them."""
    found = {}
    for cells in (24, 6):
        folder = tmp_path_factory.mktemp(f"ground{cells}")
        config = judging.config(
            student,
            methods=("knn", "dense", "retrieval"),
            sensors=("both",),
            bootstrap=50,
            cache=str(folder / "cache"),
        )
        config.data.source = "records"
        config.data.dir, config.data.eval_dir = by_ground(folder, cells)
        config.dense.update(heads=("linear",), epochs=1, batch_size=8)
        config.dense.learning_rates = (1e-3,)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gallery, "draw", lambda *a, **k: None)
            found[cells] = folder / "out", evaluate.run(config, folder / "out")
    return found


def test_every_task_draws_ground_and_not_pairs_for_its_intervals(on_ground):
    _, alone = on_ground[24]
    workdir, together = on_ground[6]
    for a, b in zip(alone, together, strict=True):
        assert (a.task, a.sensors) == (b.task, b.sensors)
        name = "oa" if a.task == "dense" else next(iter(a.scores.overall))
        if a.task != "retrieval":  # which passes over the ground of the query
            assert a.scores.overall[name].value == b.scores.overall[name].value
        assert a.scores.overall[name][1:] != b.scores.overall[name][1:]
    with np.load(workdir / "predictions.npz") as found:
        labels, said = found["labels"], found["knn/both/1/0"]
    # Draws are of ground in the order of its names.
    members = [np.flatnonzero(np.arange(24) % 6 == g) for g in range(6)]
    values = []
    for i in range(50):
        drawn = np.random.default_rng((0, i)).integers(6, size=6)
        pairs = np.concatenate([members[g] for g in drawn])
        values.append(scores.average_precision(said[pairs], labels[pairs])[0])
    (knn,) = (row for row in together if row.task == "knn")
    ends = tuple(np.quantile(values, (0.025, 0.975)))
    assert knn.scores.overall["map_micro"][1:] == pytest.approx(ends)


def judged_alone(run_directory, workdir, monkeypatch):
    """What figures say below, of an evaluation with one sensor."""
    below, save = {}, figures.save

    def catch(fig, path):
        # A footnote, or where there is a legend its title, what lines mean left out.
        said = [x.get_title().get_text() for x in fig.legends] + [fig.get_supxlabel()]
        lines = [line for text in said for line in text.splitlines()]
        kept = [line for line in lines if not line.startswith("lines: ")]
        below[path.name] = " ".join(kept).strip()
        save(fig, path)

    monkeypatch.setattr(figures, "save", catch)
    config = judging.config(
        run_directory,
        methods=("knn", "retrieval"),
        baselines=("random",),
        sensors=("s1", "both"),
        cache=str(workdir / "cache"),
    )
    evaluate.run(config, workdir / "out")
    return below


@pytest.mark.journey
def test_one_sensor_alone_has_a_footnote_where_pretraining_always_showed_both(
    trained, tmp_path, monkeypatch, capsys
):
    below = judged_alone(trained, tmp_path, monkeypatch)
    note = results.NEVER_ALONE
    assert "never lacked a sensor in pretraining" in note
    assert capsys.readouterr().out.count(f"\n({note})\n") == 3
    noted = {"knn_sensors.png", "knn_per_class.png", "projection_s1.png"}
    assert {name for name, text in below.items() if text == note} == noted
    with (tmp_path / "out" / "scores.csv").open() as file:
        for line in csv.DictReader(file):
            alone = line["encoder"] == "Fus-MAE" and "s1" in line["sensors"]
            assert line["note"] == (note if alone else "")


@pytest.mark.journey
def test_there_is_no_footnote_where_pretraining_dropped_sensors(
    trained, tmp_path, monkeypatch, capsys
):
    copy = shutil.copytree(trained, tmp_path / "run")
    described = json.loads((copy / "config.json").read_text())
    described["config"]["mask"]["drop_sensor"] = 0.25
    (copy / "config.json").write_text(json.dumps(described))
    below = judged_alone(copy, tmp_path, monkeypatch)
    assert not any(below.values())
    assert "never lacked" not in capsys.readouterr().out
    assert "never lacked" not in (tmp_path / "out" / "scores.csv").read_text()
