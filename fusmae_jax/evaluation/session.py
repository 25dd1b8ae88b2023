"""One evaluation: what is judged, on what, and what is known already."""

import functools
import io
import logging
import pathlib
import shutil

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data_pipeline import atomic, ground
from data_pipeline.errors import InputError
from data_pipeline.safe_io import read_array
from fusmae_jax.evaluation import features, results, retrieval, scores
from fusmae_jax.evaluation.encoder import Pretrained, Statistics, check_blocks, digest
from fusmae_jax.evaluation.labelled_data import SPLITS, Labelled, Subset
from fusmae_jax.evaluation.results import Row
from fusmae_jax.objectives.protocol import Encoder
from fusmae_jax.training import run_directory

log = logging.getLogger("fusmae_jax")

# These say what is done, or how; all others say what a score means.
FREE = (
    "checkpoint",
    "step",
    "cache",
    "batch_size",
    "methods",
    "baselines",
    "sensors",
    "fractions",
    "repeats",
    "finetune.remat",
    "finetune.accumulate",
    "scratch.remat",
    "scratch.accumulate",
    "data.dir",
    "data.eval_dir",
    "data.allow_overlap",
)
STATISTICS = "mean, deviation and 5 percentiles of every band"


class Session:
    """Hands out encoders, features and subsets, and keeps what was found."""

    def __init__(
        self, config, workdir, mesh: Mesh, pretrained: Pretrained, data: Labelled
    ):
        """Opens `workdir`, which may hold a part of the same evaluation.

        Raises:
            InputError: it holds something else, or an option cannot work.
        """
        self.config, self.workdir = config, pathlib.Path(workdir)
        self._pieces = self.workdir / "predictions"
        self.mesh, self.pretrained, self.data = mesh, pretrained, data
        self.encoder = pretrained.look_at(data.description, config.normalize)
        self.statistics = Statistics(self.encoder.inputs, self.encoder.patch_size)
        self.recipe = features.Recipe(**config.features)
        check_blocks("features.blocks", self.recipe.blocks, self.encoder.depth)
        if self.recipe.pool == "global" and not self.encoder.summarizes:
            log.warning(
                "Nothing has taught this encoder's global token what to say, as its "
                "pretraining asked it for nothing; pool the mean instead."
            )
        self.groups = ground.groups(data.test.source)
        if "retrieval" in config.methods:
            retrieval.check_enough(self.groups, config.retrieval.ks)
        splits = {name: getattr(data, name).source.fingerprint() for name in SPLITS}
        run_directory.open_workdir(
            workdir,
            config,
            self.encoder.inputs.contract,
            {"parameters": digest(pretrained.params), **splits},
            free=FREE,
            dtype=pretrained.config.model.dtype,
        )
        self.classes = data.classes
        if set(config.methods) == {"dense"}:
            self.classes = data.description.maps[config.dense.field]
        self.rows = []
        if (self.workdir / "scores.json").exists():
            self.rows = results.read(workdir)
            if results.read_shared(workdir)[0] != self.classes:
                raise InputError(
                    f"{workdir} holds scores of other classes; choose another "
                    "--workdir."
                )
        if self.rows:
            log.info("%d settings were judged before.", len(self.rows))

    def encoders(self) -> dict:
        """What features are taken with, by name: encoders and their parameters."""
        found = {self.encoder.name: (self.encoder, self.pretrained.encoder_params)}
        for name in self.config.baselines:
            if name == "random":
                fresh = self.pretrained.fresh(self.config.seed)
                found[results.RANDOM] = self.encoder, fresh
            elif name == "statistics":
                found[results.STATISTICS] = self.statistics, nnx.State({})
        return found

    @property
    def note(self) -> str:
        """What is to be known of numbers of one sensor; "" for nothing."""
        return "" if self.encoder.knows_one_sensor else results.NEVER_ALONE

    @functools.cached_property
    def subsets(self) -> list[Subset]:
        """The parts of the training labels that are learnt from, drawn once."""
        return [
            self.data.subset(fraction, seed)
            for fraction, repeats in zip(self.config.fractions, self.config.repeats)
            for seed in range(repeats)
        ]

    def features(
        self, name: str, encoder: Encoder, params
    ) -> dict[str, dict[str, np.ndarray]]:
        """Features of all splits by one encoder, {split: {sensor set: [N, D]}}."""
        extractor = features.Extractor(
            encoder, params, self.recipe, self.mesh, self.config.sensors
        )
        cached = atomic.absolute(self.config.cache)
        folder = cached or self.pretrained.directory / "features"
        return {
            split: features.extract(
                extractor,
                getattr(self.data, split).source,
                folder=folder,
                batch_size=self.config.batch_size,
                title=f"{name}, {split}",
            )
            for split in SPLITS
        }

    def score(self, predicted: np.ndarray) -> scores.Scores:
        """Scores of predictions for the test pairs, [N, C]."""
        options = dict(
            resamples=self.config.bootstrap,
            seed=self.config.seed,
            groups=self.groups,
        )
        if self.data.single:
            return scores.single_label(predicted, self.data.test.labels, **options)
        return scores.multi_label(
            predicted,
            self.data.test.labels,
            per_batch=self.config.score_per_batch,
            **options,
        )

    def validated(self, score: float) -> dict[str, float]:
        """A score on the validation pairs; nothing where these are training pairs."""
        apart = self.data.validation.name != self.data.train.name
        return {"validation": score} if apart else {}

    def done(
        self, task: str, encoder: str, sensors: str, subset: Subset, features: str = ""
    ) -> bool:
        """Whether a setting was judged before; `features` where there are several."""
        wanted = (task, encoder, sensors, subset.fraction, subset.seed)
        return any(
            (r.task, r.encoder, r.sensors, r.fraction, r.subset_seed) == wanted
            and r.features == (features or r.features)
            for r in self.rows
        )

    def add(
        self,
        task: str,
        encoder: str,
        sensors: str,
        subset: Subset,
        found: scores.Scores,
        *,
        width: int,
        features: str = "",
        chosen: dict | None = None,
        predicted: np.ndarray | None = None,
    ) -> None:
        """Keeps what one setting scored, on disk too.

        Args:
            task: of `rows.TASKS`.
            encoder: its name, of `rows.RIVALS` or a pretrained one's.
            sensors: what was shown.
            subset: what was learnt from.
            found: the scores.
            width: of the features.
            features: how they were taken; by default the session's recipe.
            chosen: what validation chose.
            predicted: what was said of each test pair, [N, C].
        """
        statistics = encoder == results.STATISTICS
        row = Row(
            task=task,
            encoder=encoder,
            sensors=sensors,
            fraction=subset.fraction,
            subset_seed=subset.seed,
            train_pairs=len(subset.pairs),
            test_pairs=len(self.data.test),
            features=features or (STATISTICS if statistics else str(self.recipe)),
            feature_dim=width,
            chosen=chosen or {},
            scores=found,
        )
        self.rows.append(row)
        if jax.process_index() == 0:
            if predicted is not None:
                self._pieces.mkdir(exist_ok=True)
                name = results.prediction_key(row).replace("/", ",")
                content = io.BytesIO()
                np.save(content, predicted.astype(np.float32))
                atomic.write_whole(self._pieces / f"{name}.npy", content.getvalue())
            self.write()
        name, score = next(iter(found.overall.items()))
        log.info(
            "%s, %s, %s, %s of the labels (draw %d): %s %.1f %%",
            *(results.TASKS[task], encoder, results.SENSORS.get(sensors, sensors)),
            *(
                results.percent(subset.fraction),
                subset.seed,
                results.METRICS.get(name, name),
            ),
            100 * score.value,
        )

    def write(self) -> None:
        """Writes the tables of everything found so far."""
        meta = {
            "task": "evaluate",
            "dataset": self.data.description.name,
            "split": self.data.test.name,
            "checkpoint": str(self.pretrained.directory),
            "step": self.pretrained.step,
            "dtype": self.pretrained.config.model.dtype,
            "note": self.note,
            "config": self.config.to_dict(),
        }
        results.write(self.workdir, self.rows, classes=self.classes, meta=meta)

    def predictions(self) -> dict[str, np.ndarray]:
        """What was said of each test pair, [N, C] by `report.prediction_key`."""
        packed = results.read_predictions(self.workdir)
        pieces = sorted(self._pieces.glob("*.npy"))
        return packed | {p.stem.replace(",", "/"): read_array(p) for p in pieces}

    def pack_predictions(self) -> None:
        """Gathers the pieces written so far into `predictions.npz`."""
        found, test = self.predictions(), self.data.test
        if found:
            classes = self.data.classes
            results.write_predictions(
                self.workdir, test.ids, classes, test.labels, found
            )
        shutil.rmtree(self._pieces, ignore_errors=True)

    def training(self, name: str) -> pathlib.Path:
        """Where a training on top of the encoder keeps its checkpoints."""
        return self.workdir / "training" / name

    def forget(self, name: str) -> None:
        """Deletes the checkpoints of a training that has been scored."""
        if jax.process_index() == 0:
            shutil.rmtree(self.training(name), ignore_errors=True)
