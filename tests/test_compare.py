"""Methods compared on equal terms, from the trainings to table and figure."""

import csv
import json

import jax
import ml_collections
import numpy as np
import pytest

from configs import (
    change_pairs,
    compare_archives,
    compare_floods,
    compare_synthetic,
)
from data_pipeline.errors import InputError
from fusmae_jax import build, compare, compare_tables
from fusmae_jax.evaluation import results
from tests import judging, teacher, tiny


@pytest.fixture(autouse=True)
def known():
    """The arms are of a small method, which compiles in a fraction of the time."""
    with teacher.known():
        yield


def config(**changes):
    """Two arms on synthetic scenes, which differ in a width that is overlooked."""
    c = compare_synthetic.get_config()
    c.unlock()
    arms = {}
    for name, rate in (("slow", 1e-3), ("fast", 3e-2)):
        arms[name] = tiny.config()
        arms[name].update(method="teacher")
        arms[name].optim.base_lr = rate
        arms[name].log_every = 3
    c.arms, c.reference = ml_collections.ConfigDict(arms), "slow"
    judge = judging.config("", methods=("knn",), baselines=("random", "statistics"))
    judge.unlock()
    c.evaluations = ml_collections.ConfigDict({"scenes": judge})
    c.seeds, c.metric = (0, 1), "map_micro"
    c.update_from_flattened_dict(changes)
    return c.lock()


@pytest.fixture
def calls(monkeypatch):
    """Which runs were trained."""
    calls, run = [], compare.pretrain.run

    def counted(config, workdir):
        calls.append((workdir.name, config.seed, config.epochs, config.optim.peak_lr))
        return run(config, workdir)

    monkeypatch.setattr(compare.pretrain, "run", counted)
    return calls


@pytest.mark.journey
def test_arms_are_trained_judged_and_shown_and_what_is_finished_is_kept(
    tmp_path, calls, capsys
):
    compare.run(config(seeds=(0,)), tmp_path)
    assert [name for name, *_ in calls] == ["fast-seed-0", "slow-seed-0"]
    calls.clear()
    compare.run(config(), tmp_path)
    assert [(name, seed) for name, seed, *_ in calls] == [
        ("fast-seed-1", 1),
        ("slow-seed-1", 1),
    ]
    found = {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("results/*")}
    assert set(found) == {f"{a}-seed-{s}" for a in ("fast", "slow") for s in (0, 1)}
    # The scores are those that the evaluation itself has written.
    rows = results.read(tmp_path / "fast-seed-1" / "evaluations" / "scenes")
    expected = {r.sensors: r.scores.overall["map_micro"].value for r in rows}
    said = {
        r["sensors"]: r["value"]
        for r in found["fast-seed-1"]["rows"]
        if r["metric"] == "map_micro" and r["class"] == ""
    }
    assert said == expected
    # Rivals are judged once.
    encoders = {name: {r["encoder"] for r in x["rows"]} for name, x in found.items()}
    assert encoders["slow-seed-0"] == {"student", results.RANDOM, results.STATISTICS}
    others = ("fast-seed-0", "fast-seed-1", "slow-seed-1")
    assert all(encoders[name] == {"student"} for name in others)
    cost = found["slow-seed-0"]["cost"]
    assert cost["flops_per_image"] == 1e6 and cost["images_per_second"] > 0
    table = (tmp_path / compare.TABLE_FILE).read_text()
    both = [
        next(r["value"] for r in found[f"slow-seed-{s}"]["rows"] if _is_both(r))
        for s in (0, 1)
    ]
    line = next(x for x in table.splitlines() if x.startswith("| slow |"))
    assert f"{100 * np.mean(both):.1f} ± {100 * np.std(both, ddof=1):.1f} | 2 |" in line
    assert table in capsys.readouterr().out
    assert (tmp_path / compare.FIGURE).stat().st_size > 10_000
    scores = csv.DictReader((tmp_path / compare.SCORES).read_text().splitlines())
    assert {row["arm"] for row in scores} == {"fast", "slow"}
    calls.clear()
    # Elsewhere, from what is finished alone.
    compare.run(config(results=str(tmp_path / "results")), tmp_path / "elsewhere")
    assert not calls
    assert (tmp_path / "elsewhere" / compare.TABLE_FILE).read_text() == table
    with pytest.raises(InputError, match="fast-seed-0.json was found with other set"):
        changed = config(results=str(tmp_path / "results"))
        changed.evaluations.scenes.knn.k = 3
        compare.run(changed, tmp_path / "other")


def _is_both(row):
    wanted = ("student", "both", "map_micro", "")
    return tuple(row[k] for k in ("encoder", "sensors", "metric", "class")) == wanted


@pytest.mark.journey
def test_rates_are_tried_on_validation_pairs_and_the_best_is_taken(
    tmp_path, calls, monkeypatch
):
    judged, evaluate = [], compare.evaluate.run

    def noted(config, workdir):
        judged.append((config.data.test_split, config.baselines))
        return evaluate(config, workdir)

    monkeypatch.setattr(compare.evaluate, "run", noted)
    c = config(seeds=(3,))
    c.tune.rates, c.tune.share = (1.0, 2.0), 0.5
    compare.run(c, tmp_path)
    assert [(name, seed, epochs) for name, seed, epochs, _ in calls[:4]] == [
        (f"{arm}-trial-{rate}", 3, 1) for arm in ("fast", "slow") for rate in (1, 2)
    ]
    assert judged[:4] == [("validation", ())] * 4
    assert [split for split, _ in judged[4:]] == ["test", "test"]
    for name, _, epochs, rate in calls[4:]:
        arm = name.partition("-")[0]
        scores = {}
        for factor in (1, 2):
            text = (tmp_path / f"results/{arm}-trial-{factor}.json").read_text()
            rows = [r for r in json.loads(text)["rows"] if r["metric"] == "map_micro"]
            scores[factor] = np.mean([r["value"] for r in rows if r["class"] == ""])
        best = max(scores, key=scores.get)
        assert epochs == 2 and rate == best * c.arms[arm].optim.peak_lr
    table = (tmp_path / compare.TABLE_FILE).read_text()
    assert "trial" not in table


def test_equal_flops_make_epochs_of_what_an_image_costs(monkeypatch, tmp_path):
    c = config(budget="flops")
    made = compare.Comparison(c, tmp_path, tmp_path)
    made._flops["fast"] = 0.25e6
    assert made.pretraining(compare.Unit("slow", 0, 1.0)).epochs == 2
    fast = made.pretraining(compare.Unit("fast", 1, 3.0))
    assert fast.epochs == 8 and fast.seed == 1
    assert fast.optim.peak_lr == 3 * c.arms.fast.optim.peak_lr


def test_machines_share_the_arms(tmp_path, monkeypatch):
    c = config(only=("slow",), seeds=(0, 1))
    made, trained = compare.Comparison(c, tmp_path, tmp_path), []
    monkeypatch.setattr(made, "_train", lambda unit: trained.append(unit.name) or {})
    monkeypatch.setattr(made, "_save", lambda unit, found: None)
    made.finish()
    assert trained == ["slow-seed-0", "slow-seed-1"]


def test_change_chooses_no_rates_as_it_has_no_validation_pairs(tmp_path):
    c = config()
    with c.unlocked():
        c.evaluations.change = change_pairs.get_config()
        c.evaluations.change.data.dir = "DIR"
        c.shown = {"change": "f1"}
    compare.check(c)
    made = compare.Comparison(c, tmp_path, tmp_path)
    trial, real = compare.Unit("slow", 0, 1.0, True), compare.Unit("slow", 0, 1.0)
    assert made._judges(trial) == ["scenes"]
    assert set(made._judges(real)) == {"scenes", "change"}
    assert made._score("change") == ("f1", "")
    assert made._score("scenes") == ("map_micro", "")
    with c.unlocked():
        del c.evaluations.scenes
        c.tune.rates = (1.0, 2.0)
    with pytest.raises(InputError, match="no evaluation has any; set tune.rates"):
        compare.check(c)


def test_an_arm_of_one_sensor_is_judged_with_that_alone(tmp_path):
    c = config()
    with c.unlocked():
        c.arms.alone = tiny.config("mae")
        c.arms.alone.model.sensors = "s2"
    made = compare.Comparison(c, tmp_path, tmp_path)
    shown = lambda arm: (
        made.evaluation(compare.Unit(arm, 0, 1.0), "scenes", tmp_path).sensors
    )
    assert shown("alone") == ("s2",) and shown("fast") == ("s1", "s2", "both")


def test_what_no_evaluation_reads_decides_no_result(tmp_path):
    unit = compare.Unit("slow", 0, 1.0)
    key = lambda c: compare.Comparison(c, tmp_path, tmp_path)._key(unit)["settings"]
    c, plain = config(), key(config())
    with c.unlocked():
        c.evaluations.scenes.finetune.epochs = 7  # kNN alone is asked for
    assert key(c) == plain
    with c.unlocked():
        c.evaluations.scenes.knn.k = 3
    assert key(c) != plain


def test_arms_and_archives_that_there_are_not_are_refused():
    with pytest.raises(InputError, match=r"no arms 'ablation'; .*'ablations'"):
        compare_floods.get_config("ablation")
    with pytest.raises(InputError, match="'bigearth' is no archive; .*so2sat"):
        compare_archives.get_config("bigearth")


@pytest.mark.parametrize("archive", compare_archives.ARCHIVES)
def test_the_arms_on_an_archive_are_networks_that_can_be_built(archive):
    c = compare_archives.get_config(archive)
    compare.check(c)
    for name, arm in c.arms.items():
        arm.model.dtype = "bfloat16"  # as on the machines that they are for
        objective = build.objective(arm)
        assert jax.tree.leaves(objective.abstract[1]) and objective.flops() > 1e9, name
    judge = c.evaluations[archive].copy_and_resolve_references()
    assert judge.data.dir == c.data_dir == f"data/{archive}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms.slow.epochs": 3}, "arms.slow.epochs is not that of|arms.fast.epochs"),
        ({"arms.fast.data.count": 32}, "arms.fast.data is not that of arms.slow"),
        ({"reference": "none"}, "reference is 'none'; choose one of .*fast"),
        ({"tune.rates": (2.0,)}, "lacks 1.0, the arms' own rates"),
        ({"arms.fast.batch_size": 0}, "arms.fast.batch_size is 0"),
        ({"evaluations.scenes.repeats": (2,)}, "In evaluations.scenes: repeats is"),
        ({"metric": "beauty"}, "metric is 'beauty'; choose one of"),
        ({"only": ("quick",)}, r"only names \['quick'\], which are no arms; choose of"),
    ],
)
def test_what_is_no_fair_comparison_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        compare.check(config(**changes))


TITLES = {"floods": compare_tables.title("iou", "flood")}


def result(arm, seed, value, encoder="Fus-MAE", sensors="both"):
    row = dict.fromkeys(results.SCHEMA) | {
        **{"evaluation": "floods", "task": "dense", "fraction": 1.0},
        **{"encoder": encoder, "sensors": sensors, "metric": "iou", "class": "flood"},
        **{"value": value, "ci_low": 0.1, "ci_high": 0.9},
    }
    cost = {"flops_per_image": 1e9}
    return {"arm": arm, "seed": seed, "trial": False, "rows": [row], "cost": cost}


def test_a_table_has_means_and_deviations_over_seeds_best_first():
    found = [result("b", 0, 0.5), result("b", 1, 0.7), result("a", 0, 0.3)]
    found += [result("b", 0, 0.2, results.RANDOM), result("a", 0, 0.4, sensors="s1")]
    lines = compare_tables.as_table(found, TITLES).splitlines()
    assert lines[0].startswith("**floods: dense, 100 % of the labels, IoU of flo")
    assert lines[4:7] == [
        "| b | - | 60.0 ± 14.1 | 2 |",
        "| a | 40.0 [10.0, 90.0] | 30.0 [10.0, 90.0] | 1 |",
        f"| b, {results.RANDOM} | - | 20.0 [10.0, 90.0] | 1 |",
    ]
    figure = compare_tables.draw(found, TITLES)
    (axes,) = figure.axes
    assert [x.get_text() for x in axes.get_yticklabels()] == [
        *("b", "a", f"b, {results.RANDOM}")
    ]


def test_errors_on_hidden_patches_stand_beside_simple_predictors():
    drawn = lambda error, mean: {
        "mask_ratio": 0.75,
        "mean_squared_error": {
            "Fus-MAE": {"s1": error, "s2": 0.25},
            "mean of visible pixels": {"s1": mean, "s2": None},
        },
    }
    found = [result("b", 0, 0.5), result("b", 1, 0.5), result("a", 0, 0.5)]
    found[0]["reconstruction"], found[1]["reconstruction"] = drawn(1, 2), drawn(2, 3)
    lines = compare_tables.as_table(found, TITLES).splitlines()
    start = next(i for i, x in enumerate(lines) if "hidden patches of held-out" in x)
    assert lines[start + 4 : start + 7] == [
        "| b | 75 % | 1.5000 | 0.2500 |",
        "| mean of visible pixels |  | 2.0000 | - |",
        "",
    ]


def test_damaged_results_are_named(tmp_path):
    (tmp_path / "a-seed-0.json").write_text("{}")
    with pytest.raises(InputError, match="a-seed-0.json is no result of a comparison"):
        compare.read(tmp_path)
