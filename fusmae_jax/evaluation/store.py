"""What an evaluation has found so far, in memory and on disk."""

import io
import json
import logging
import pathlib
import shutil
from typing import NamedTuple

import jax
import numpy as np

from data_pipeline import atomic
from data_pipeline.errors import InputError
from data_pipeline.safe_io import read_array
from fusmae_jax.evaluation import results, scores
from fusmae_jax.evaluation.labelled_data import Split, Subset
from fusmae_jax.training import sharding

HEADS, FACTS = "heads", "facts"  # the folder of heads, and what is said of one
ENCODER = "encoder/"  # before the names of its parameters, in a head that has them

log = logging.getLogger("fusmae_jax")


class Setting(NamedTuple):
    """What is judged: how, by which encoder, shown what, with which labels.

    Attributes:
        task: of `results.TASKS`.
        encoder: its name, of `results.RIVALS` or a pretrained one's.
        sensors: what is shown, a sensor set or a direction of retrieval.
        subset: of the training pairs, whose labels are learnt from.
        features: how an image becomes a vector.
    """

    task: str
    encoder: str
    sensors: str
    subset: Subset
    features: str

    def folder(self, which) -> str:
        """A folder's name for a training; `which` tells those of a setting apart."""
        parts = (self.task, self.encoder, self.sensors, f"{self.subset.fraction:g}")
        return "-".join(map(str, (*parts, self.subset.seed, which))).replace(" ", "_")


class Found(NamedTuple):
    """What a task returns.

    Attributes:
        scores: on the test pairs.
        width: of the features.
        chosen: what validation chose.
        predicted: what was said of each test pair, [N, C], if that is to be kept.
        trainings: names of those whose checkpoints nobody needs once this is kept.
    """

    scores: scores.Scores
    width: int
    chosen: dict = {}
    predicted: np.ndarray | None = None
    trainings: tuple[str, ...] = ()


class Store:
    """Rows by setting; those of an earlier call are read back and not found again.

    Attributes:
        workdir: of the evaluation.
        rows: found so far, in the order in which they were.
        classes: their names.
    """

    def __init__(self, workdir, classes: tuple[str, ...], test: Split, meta: dict):
        """Reads what `workdir` holds already.

        Args:
            workdir: an existing directory of this evaluation.
            classes: names of the classes that are told apart.
            test: the pairs that are tested on.
            meta: what all rows share, see `results.write`.

        Raises:
            InputError: it holds scores of other classes.
        """
        self.workdir, self.classes, self.rows = pathlib.Path(workdir), classes, []
        self._test, self._meta = test, meta
        self._pieces = self.workdir / "predictions"
        if (self.workdir / "scores.json").exists():
            self.rows = results.read(workdir)
            if results.read_shared(workdir)[0] != classes:
                raise InputError(
                    f"{workdir} holds scores of other classes; choose another "
                    "--workdir."
                )
        if self.rows:
            log.info("%d settings were judged before.", len(self.rows))

    def done(self, setting: Setting) -> bool:
        """Whether a setting was judged before.

        Of what is said of pixels several differ in their features alone; all other
        settings have one way to take them, which the run directory holds to.
        """
        task, encoder, sensors, subset, features = setting
        wanted = (task, encoder, sensors, subset.fraction, subset.seed)
        return any(
            (r.task, r.encoder, r.sensors, r.fraction, r.subset_seed) == wanted
            and (task not in ("dense", "change") or r.features == features)
            for r in self.rows
        )

    def add(self, setting: Setting, found: Found) -> None:
        """Keeps what one setting scored, on disk too."""
        task, encoder, sensors, subset, features = setting
        row = results.Row(
            task=task,
            encoder=encoder,
            sensors=sensors,
            fraction=subset.fraction,
            subset_seed=subset.seed,
            train_pairs=len(subset.pairs),
            test_pairs=len(self._test),
            features=features,
            feature_dim=found.width,
            chosen=found.chosen,
            scores=found.scores,
        )
        self.rows.append(row)
        if jax.process_index() == 0:
            if found.predicted is not None:
                self._pieces.mkdir(exist_ok=True)
                name = results.prediction_key(row).replace("/", ",")
                content = io.BytesIO()
                np.save(content, found.predicted.astype(np.float32))
                atomic.write_whole(self._pieces / f"{name}.npy", content.getvalue())
            self.write()
            for training in found.trainings:
                self.forget(training)
        name, score = next(iter(found.scores.overall.items()))
        log.info(
            "%s, %s, %s, %s of the labels (draw %d): %s %.1f %%",
            *(results.TASKS[task], encoder, results.SENSORS.get(sensors, sensors)),
            *(results.percent(subset.fraction), subset.seed),
            *(results.METRICS.get(name, name), 100 * score.value),
        )

    def write(self) -> None:
        """Writes the tables of everything found so far."""
        results.write(self.workdir, self.rows, classes=self.classes, meta=self._meta)

    def pack_predictions(self) -> None:
        """Gathers the pieces written so far into `predictions.npz`."""
        pieces = sorted(self._pieces.glob("*.npy"))
        found = results.read_predictions(self.workdir)
        found |= {p.stem.replace(",", "/"): read_array(p) for p in pieces}
        if found:
            test = self._test
            results.write_predictions(
                self.workdir, test.ids, self.classes, test.labels, found
            )
        shutil.rmtree(self._pieces, ignore_errors=True)

    def training(self, name: str) -> pathlib.Path:
        """Where a training on top of an encoder keeps its checkpoints."""
        return self.workdir / "training" / name

    def keep_head(self, name: str, head, facts: dict, encoder=None) -> None:
        """Keeps what was learnt on top of an encoder, for `predict`.

        Args:
            name: of the training.
            head: its parameters, a tree of arrays.
            facts: what else it takes to use it, as JSON has it.
            encoder: parameters of the encoder, if they were trained with it.
        """
        arrays = by_path(head)
        if encoder is not None:
            arrays |= {ENCODER + k: np.float32(x) for k, x in by_path(encoder).items()}
        if jax.process_index() != 0:
            return
        path = self.workdir / HEADS / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        part = atomic.aside(path)
        with atomic.whole(path, part), part.open("wb") as file:
            np.savez(file, **arrays, **{FACTS: np.array(json.dumps(facts))})

    def forget(self, name: str) -> None:
        """Deletes the checkpoints of a training that has been scored."""
        if jax.process_index() == 0:
            shutil.rmtree(self.training(name), ignore_errors=True)


def by_path(tree) -> dict[str, np.ndarray]:
    """The arrays of a tree by their names, on the host."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {sharding.leaf_path(path): np.asarray(leaf) for path, leaf in leaves}
