"""Targets of `fuzz.py`: what a run directory or an export of a stranger holds."""

import io
import json
import pathlib

import numpy as np

from data_pipeline import dataset_card, sources
from fusmae_jax.evaluation import results
from fusmae_jax.export import weights
from fusmae_jax.training import metrics, run_directory
from tests.faults import mutations
from tests.faults.fuzz_target import Target, by_path


def config(folder: pathlib.Path) -> Target:
    """What a run says of itself."""
    described = dataset_card.read_description(sources.SAMPLE)
    content = {
        "config": {"seed": 0, "model": {"dim": 32}, "bands": {"s1": ["VV"]}},
        "contract": {name: s.describe() for name, s in described.sensors.items()},
        "data": {"name": "x"},
    }
    read = by_path(folder / "config.json", lambda path: run_directory.load(folder))
    ways = (mutations.plain_json, mutations.blind)
    return Target([json.dumps(content).encode()], read, ways, weight=0.5)


def exported_config(folder: pathlib.Path) -> Target:
    """What an export says of itself."""
    described = dataset_card.read_description(sources.SAMPLE)
    content = {
        "format": weights.FORMAT,
        "method": "fusmae",
        "model": {"dim": 32, "fuse_early": True},
        "contract": {name: s.describe() for name, s in described.sensors.items()},
        "training": {"seed": 0, "bands": {"s1": ["VV"]}},
    }
    read = by_path(
        folder / weights.CONFIG, lambda path: weights.read(pathlib.Path(path))
    )
    ways = (mutations.plain_json, mutations.blind)
    return Target([json.dumps(content).encode()], read, ways, weight=0.5)


def exported_weights(folder: pathlib.Path) -> Target:
    """What an export has for parameters."""
    path = folder / weights.WEIGHTS
    params = {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4, np.float32)}
    weights.save(path, params)
    read = lambda path: weights.load(pathlib.Path(path), params)
    ways = (mutations.safetensors, mutations.blind)
    return Target([path.read_bytes()], by_path(path, read), ways)


def places(folder: pathlib.Path) -> Target:
    """Where a run was trained."""
    codes = np.arange(10, dtype=np.uint64).reshape(5, 2)
    written = io.BytesIO()
    np.save(written, codes)
    read = by_path(
        folder / run_directory.PLACES,
        lambda path: run_directory.trained_on(folder, codes),
    )
    return Target([written.getvalue()], read, (mutations.npy, mutations.blind))


def logged(folder: pathlib.Path) -> Target:
    """What a run logged."""
    row = {"step": 3, "loss": 0.5, "lr": None}
    seed = "".join(json.dumps(row | {"step": i}) + "\n" for i in range(5)).encode()

    def read(path: str) -> None:
        [row["step"] + 1 for row in metrics.read_metrics(folder)]

    read = by_path(folder / "metrics.jsonl", read)
    return Target([seed], read, (mutations.lines_of_json, mutations.blind))


def scores(folder: pathlib.Path) -> Target:
    """What an evaluation found."""
    row = dict(task="probe", encoder="x", sensors="s1", fraction=1.0, subset_seed=0)
    row |= dict(train_pairs=4, test_pairs=2, features="mean", feature_dim=8, chosen={})
    score = {"value": 0.5, "low": None, "high": 0.75}
    row |= {"overall": {"oa": score}, "per_class": {"ap": [score]}, "confusion": [[1]]}
    content = {"meta": {}, "classes": ["a"], "rows": [row]}

    def read(path: str) -> None:
        results.read(folder), results.read_shared(folder)

    ways = (mutations.plain_json, mutations.blind)
    read = by_path(folder / "scores.json", read)
    return Target([json.dumps(content).encode()], read, ways)


def predictions(folder: pathlib.Path) -> Target:
    """What an evaluation said of each pair."""
    written = io.BytesIO()
    np.savez_compressed(written, **{"ids": ["a"], "probe/both/0.1/0": np.ones((1, 3))})
    path = folder / "predictions.npz"
    read = by_path(path, lambda path: results.read_predictions(folder))
    return Target([written.getvalue()], read, (mutations.npz, mutations.blind))
