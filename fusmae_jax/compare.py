"""Methods compared on equal terms: trained on the same pairs, judged alike.

What is compared is called an arm: a pretraining, with a config of its own. Each is
trained once for every seed, and each run is judged by the same evaluations. What is
finished is one file in the folder of results, whoever finished it, so that a comparison
goes on from there on any machine.
"""

import hashlib
import json
import logging
import pathlib
import platform
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from data_pipeline import atomic, config_fields, safe_io, sources
from data_pipeline.config_fields import (
    Field,
    choice,
    group,
    location,
    number,
    seed,
    several,
    text,
    within,
)
from data_pipeline.errors import InputError
from fusmae_jax import build, compare_tables
from fusmae_jax import config as pretraining
from fusmae_jax.evaluation import change, evaluate, results
from fusmae_jax.evaluation import checks as evaluating
from fusmae_jax.evaluation.encoder import SENSOR_SETS
from fusmae_jax.inputs import SENSORS
from fusmae_jax.training import metrics, pretrain, run_directory

log = logging.getLogger("fusmae_jax")

BUDGETS = ("images", "flops")
# What may judge an arm, by the task of its config.
JUDGES = {"evaluate": evaluate, "change": change}
TABLE_FILE, SCORES, FIGURE = "comparison.md", "comparison.csv", "comparison.png"

# What the config may say of the comparison itself.
OWN = {
    "task": choice("compare", meaning="What launch.py does."),
    "arms": group(meaning="Pretrainings by name, each a config of its own."),
    "evaluations": group(meaning="Evaluations of each of them, by name."),
    "seeds": several(
        seed(), least=1, meaning="Seeds, for each of which every arm is trained."
    ),
    "budget": choice(
        *BUDGETS,
        meaning="What is equal: images seen, or FLOPs, those of the reference. The "
        "epochs of the others are then what comes to the same.",
    ),
    "reference": text(
        filled=True,
        meaning="The arm whose FLOPs are the budget, and beside which the evaluations' "
        "baselines are judged.",
    ),
    "tune.rates": several(
        number(above=0.0),
        least=1,
        meaning="Learning rates that every arm tries first, as multiples of its own; "
        "of one alone nothing is tried.",
    ),
    "tune.share": number(
        above=0.0, most=1.0, meaning="Share of the epochs that a trial takes."
    ),
    "metric": choice(
        *results.METRICS,
        meaning="Score in the table and the figure, but for evaluations in shown.",
    ),
    "of_class": text(
        meaning="Class whose score that is; empty for that of all together."
    ),
    **config_fields.optional(
        {
            "data_dir": location(
                meaning="Folder of the dataset, to which arms and evaluations refer."
            ),
            "eval_dir": location(
                filled=True,
                meaning="Folder of a second dataset, on which evaluations may test.",
            ),
            "shown": group(
                meaning="Other scores of all classes, by evaluation, as recall@1."
            ),
            "only": several(
                text(filled=True),
                meaning="Arms to train now, so that machines can share the work; none "
                "for all.",
            ),
        }
    ),
    "results": location(
        meaning="Folder of what is finished; empty for results in the workdir."
    ),
}


class Unit(NamedTuple):
    """One training, and what judges it.

    Attributes:
        arm: its name.
        seed: of the training.
        rate: its learning rate, as a multiple of the arm's own.
        trial: whether it is one of those that choose the rate.
    """

    arm: str
    seed: int
    rate: float
    trial: bool = False

    @property
    def name(self) -> str:
        """Of its folder, and of its file in the results."""
        return (
            f"{self.arm}-trial-{self.rate:g}"
            if self.trial
            else (f"{self.arm}-seed-{self.seed}")
        )


def fields(config) -> dict[str, Field]:
    """What each field may hold, and means; those of every arm and evaluation too."""
    table = dict(OWN)
    for kind, module_of in (("arms", lambda arm: pretraining), ("evaluations", _judge)):
        parts = config.get(kind)
        for name in parts if hasattr(parts, "keys") else ():
            rows = module_of(parts[name]).fields(parts[name])
            table |= within(f"{kind}.{name}", rows)
    shown = config.get("shown", {})
    score = text(filled=True, meaning="Score of this evaluation in the tables.")
    return table | {f"shown.{name}": score for name in shown}


def _judge(evaluation):
    """The module of an evaluation's task; any wrong task is found by its fields."""
    return JUDGES.get(evaluation.get("task"), evaluate)


def check(config) -> None:
    """Refuses what no data could make work, and what would be no fair comparison.

    Raises:
        InputError: names the fields and their values.
    """
    config_fields.check(config, fields(config), like="configs/compare_synthetic.py")
    if not config.arms or not config.evaluations:
        raise InputError("There is nothing to compare: name arms and evaluations.")
    for name, arm in config.arms.items():
        _within(f"arms.{name}", pretraining.check_config, arm)
    for name, judge in config.evaluations.items():
        with judge.copy_and_resolve_references().unlocked() as copy:
            copy.checkpoint = "a run of each arm"
            _within(f"evaluations.{name}", _judge(judge).check, copy)
    tuned = len(config.tune.rates) > 1
    if tuned and all(_judge(x) is change for x in config.evaluations.values()):
        raise InputError(
            f"tune.rates={config.tune.rates} are chosen on validation pairs, and no "
            "evaluation has any; set tune.rates=(1.0,), or add one with splits."
        )
    if unknown := sorted(set(config.get("shown", ())) - set(config.evaluations)):
        raise InputError(
            f"shown names {unknown}, which are no evaluations; choose of "
            f"{list(config.evaluations)}."
        )
    if unknown := sorted(set(config.get("only", ())) - set(config.arms)):
        raise InputError(
            f"only names {unknown}, which are no arms; choose of {list(config.arms)}."
        )
    if 1.0 not in config.tune.rates:
        raise InputError(
            f"tune.rates={config.tune.rates} lacks 1.0, the arms' own rates; add it."
        )
    if config.reference not in config.arms:
        raise InputError(
            f"reference is {config.reference!r}; choose one of {list(config.arms)}."
        )
    reference = config.arms[config.reference]
    for name, arm in config.arms.items():
        same = ["data", "bands"]
        same += ["batch_size", "epochs"] if config.budget == "images" else []
        differ = [field for field in same if arm[field] != reference[field]]
        if differ:
            raise InputError(
                f"arms.{name}.{differ[0]} is not that of arms.{config.reference}, so "
                "that they would not be compared on the same images; set them alike."
            )


def _within(name: str, judge, config) -> None:
    """Lets `judge` check a part of a config, of which errors then speak."""
    try:
        judge(config)
    except InputError as error:
        raise InputError(f"In {name}: {error}") from error


def run(config, workdir) -> None:
    """Trains and judges what is not finished; writes table, scores and figure.

    Args:
        config: see `configs/compare_synthetic.py`.
        workdir: where the runs lie. A stopped comparison goes on with the same command.

    Raises:
        InputError: the data and an arm do not fit, or the results are of others.
        Stopped: the machine asked the run to stop.
    """
    check(config)
    config = config_fields.resolve(config, fields(config))
    workdir = pathlib.Path(atomic.absolute(workdir))
    kept = pathlib.Path(config.results or workdir / "results")
    for arm in config.arms.values():
        pretraining.check_data(arm)
    comparison = Comparison(config, workdir, kept)
    comparison.finish()
    comparison.report()


class Comparison:
    """What is to be trained and judged, and what of it is finished."""

    def __init__(self, config, workdir: pathlib.Path, kept: pathlib.Path):
        """Looks at the data.

        Args:
            config: see `configs/compare_synthetic.py`.
            workdir: of the runs.
            kept: folder of results.
        """
        self.config, self.workdir, self.kept = config, workdir, kept
        data = config.arms[config.reference].data
        source = sources.open_split(data, data.split, ("id",))
        self._fingerprint = source.fingerprint()
        objectives = {name: build.objective(arm) for name, arm in config.arms.items()}
        self._flops = {name: float(x.flops()) for name, x in objectives.items()}
        self._reads = {name: x.encoder().sensors for name, x in objectives.items()}

    def finish(self) -> None:
        """Trains and judges all that is not finished."""
        config = self.config
        rates = config.tune.rates if len(config.tune.rates) > 1 else ()
        first = config.seeds[0]
        arms = config.get("only") or tuple(config.arms)
        trials = [Unit(arm, first, r, True) for arm in arms for r in rates]
        chosen = dict.fromkeys(arms, 1.0)
        units = [(seed, arm) for seed in config.seeds for arm in arms]
        total, started = len(trials) + len(units), time.monotonic()
        trained = 0
        for i, at in enumerate([*trials, *units]):
            if i == len(trials):  # seed by seed, so that all arms have as many
                chosen |= {arm: self._best(arm) for arm in arms if rates}
            unit = at if isinstance(at, Unit) else Unit(at[1], at[0], chosen[at[1]])
            if self._load(unit) is not None:
                continue
            left = ""
            if trained:
                seconds = (time.monotonic() - started) / trained * (total - i)
                left = f", about {seconds / 3600:.1f} h left at the pace so far"
            log.info("%s, %d of %d%s.", unit.name, i + 1, total, left)
            self._save(unit, self._train(unit))
            trained += 1

    def _best(self, arm: str) -> float:
        """The learning rate that did best in the trials of an arm."""
        found = {}
        for rate in self.config.tune.rates:
            rows = self._load(Unit(arm, self.config.seeds[0], rate, True))["rows"]
            shown = [row for row in rows if row["encoder"] not in results.RIVALS]
            scores = [row["value"] for row in self._chosen(shown)]
            found[rate] = float(np.mean([x for x in scores if x is not None]))
        best = max(found, key=found.get)
        words = ", ".join(f"{rate:g}: {100 * x:.1f}" for rate, x in found.items())
        log.info("Of %s the learning rate times %g is taken (%s).", arm, best, words)
        if best in (min(found), max(found)) and len(found) > 1:
            log.warning("That is the end of tune.rates for %s; widen it.", arm)
        return best

    def _score(self, evaluation: str) -> tuple[str, str]:
        """The score of an evaluation that is shown, by metric and class."""
        own = self.config.get("shown", {}).get(evaluation)
        return (own, "") if own else (self.config.metric, self.config.of_class)

    def _chosen(self, rows: Sequence[Mapping]) -> list[Mapping]:
        """Those of rows that hold the scores that are shown."""
        found = []
        for evaluation in dict.fromkeys(row["evaluation"] for row in rows):
            wanted = self._score(evaluation)
            known = [row for row in rows if row["evaluation"] == evaluation]
            names = [(row["metric"], row["class"]) for row in known]
            if wanted not in names:
                there = ", ".join(f"{m} of {c!r}" for m, c in sorted({*names}))
                raise InputError(
                    f"No score of {evaluation} is called metric={wanted[0]} "
                    f"of_class={wanted[1]!r}; there are {there[:300]}."
                )
            found += [row for row, name in zip(known, names) if name == wanted]
        return found

    def pretraining(self, unit: Unit):
        """The config of a training."""
        config = self.config.arms[unit.arm].copy_and_resolve_references()
        with config.unlocked():
            # Whole numbers, and the warm-up's share of them stays.
            epochs = config.epochs * (self.config.tune.share if unit.trial else 1.0)
            if self.config.budget == "flops":
                epochs *= self._flops[self.config.reference] / self._flops[unit.arm]
            epochs = max(round(epochs), 1)
            warmup = round(config.optim.warmup_epochs * epochs / config.epochs)
            config.optim.warmup_epochs = min(warmup, epochs - 1)
            config.epochs, config.seed = epochs, unit.seed
            config.optim.base_lr *= unit.rate
            config.optim.peak_lr *= unit.rate
        return config

    def evaluation(self, unit: Unit, name: str, directory: pathlib.Path):
        """The config of an evaluation of a training.

        Trials are judged on validation pairs. Baselines are judged once, beside the
        reference with the first seed. An arm is shown no sensor that it does not read.
        """
        config = self.config.evaluations[name].copy_and_resolve_references()
        with config.unlocked():
            config.sensors = tuple(
                shown for shown in config.sensors if self._shows(unit.arm, shown)
            )
            config.checkpoint, config.seed = str(directory), unit.seed
            first = (self.config.reference, self.config.seeds[0])
            if unit.trial or (unit.arm, unit.seed) != first:
                config.baselines = ()
            if unit.trial:  # which is not judged by change, see `_judges`
                config.data.test_split = config.data.val_split
                config.data.allow_overlap = True  # of validation and test pairs
        return config

    def _judges(self, unit: Unit) -> list[str]:
        """Names of what judges a training: with splits, what chooses too."""
        evaluations = self.config.evaluations.items()
        return [k for k, x in evaluations if not (unit.trial and _judge(x) is change)]

    def _shows(self, arm: str, shown: str) -> bool:
        """Whether an arm reads all that a sensor set shows."""
        there = zip(SENSORS, SENSOR_SETS[shown])
        return all(s in self._reads[arm] for s, here in there if here)

    def _train(self, unit: Unit) -> dict:
        """Trains and judges; returns what is known then."""
        directory = self.workdir / unit.name
        pretrain.run(self.pretraining(unit), directory)
        rows = []
        for name in self._judges(unit):
            judge = self.evaluation(unit, name, directory)
            if not judge.sensors:
                continue  # it reads none that are shown
            folder = directory / "evaluations" / name
            for row in _judge(judge).run(judge, folder):
                classes, _ = results.read_shared(folder)
                found = results.long_form(row, classes)
                rows += [{"evaluation": name} | one for one in found]
        jax.clear_caches()  # the next one's programs are others
        logged = metrics.read_metrics(directory)
        speed = [x["images_per_sec"] for x in logged if x.get("images_per_sec")]
        memory = [x["step_memory_bytes"] for x in logged if x.get("step_memory_bytes")]
        cost = {
            "flops_per_image": self._flops[unit.arm],
            "images_per_second": float(np.median(speed)) if speed else None,
            "step_memory_bytes": memory[0] if memory else None,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "machine": platform.machine(),
            "jax": jax.__version__,
        }
        # What a method that draws hidden patches made of those of held-out pairs.
        drawn = directory / "scores.json"
        drawn = safe_io.read_json(drawn) if drawn.exists() else None
        return {"rows": rows, "cost": cost, "reconstruction": drawn}

    def _key(self, unit: Unit) -> dict:
        """All that decides what a unit's result is."""
        trained = _settings(self.pretraining(unit), run_directory.FREE)
        judged = {}
        for name in self._judges(unit):
            judge = self.evaluation(unit, name, pathlib.Path())
            unused = evaluating.unused(judge) if _judge(judge) is evaluate else ()
            judged[name] = _settings(judge, {*_NO_MATTER, *unused})
        said = json.dumps([trained, judged, self._fingerprint], sort_keys=True)
        return {
            "arm": unit.arm,
            "seed": unit.seed,
            "rate": unit.rate,
            "trial": unit.trial,
            "epochs": self.pretraining(unit).epochs,
            "settings": hashlib.sha256(said.encode()).hexdigest()[:16],
        }

    def _load(self, unit: Unit) -> dict | None:
        """A unit's result, if it is finished.

        Raises:
            InputError: it was found with other settings or data, or is damaged.
        """
        path = self.kept / f"{unit.name}.json"
        if not path.exists():
            return None
        try:
            found = safe_io.read_json(path)
            key = {name: found[name] for name in self._key(unit)}
            found["rows"], found["cost"]["flops_per_image"]  # are there
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is no result of a comparison ({error!r:.80}); delete it."
            ) from error
        if key != self._key(unit):
            raise InputError(
                f"{path} was found with other settings or data than those of now; name "
                "another folder with results=DIR and another --workdir."
            )
        return found

    def _save(self, unit: Unit, found: dict) -> None:
        if jax.process_index() == 0:
            self.kept.mkdir(parents=True, exist_ok=True)
            said = json.dumps(self._key(unit) | found, indent=1) + "\n"
            atomic.write_whole(self.kept / f"{unit.name}.json", said)

    def report(self) -> None:
        """Writes and prints what is finished, beside results that others put there."""
        if jax.process_index() != 0:
            return
        found = read(self.kept)
        kept = [x for x in found if not x["trial"]]
        self.workdir.mkdir(parents=True, exist_ok=True)
        atomic.write_whole(self.workdir / SCORES, compare_tables.as_csv(kept))
        shown = [x | {"rows": self._chosen(x["rows"])} for x in kept]
        names = {row["evaluation"] for x in shown for row in x["rows"]}
        titles = {name: compare_tables.title(*self._score(name)) for name in names}
        page = compare_tables.as_table(shown, titles)
        atomic.write_whole(self.workdir / TABLE_FILE, page)
        from fusmae_jax import figures  # Matplotlib, only now

        figures.save(compare_tables.draw(shown, titles), self.workdir / FIGURE)
        print(page, flush=True)


# Of an evaluation: where things lie, which is not what they are.
_NO_MATTER = ("checkpoint", "step", "cache", "batch_size", "data.dir", "data.eval_dir")


def _settings(config, free) -> dict:
    flat = run_directory.flatten(config.to_dict())
    return {k: v for k, v in flat.items() if k not in free}


def read(folder: pathlib.Path) -> list[dict]:
    """All results in a folder, in the order of their names.

    Raises:
        InputError: a file is none.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = safe_io.read_json(path)
            result["rows"], result["cost"], result["trial"], result["arm"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is no result of a comparison ({error!r:.80}); delete it."
            ) from error
        found.append(result)
    return found
