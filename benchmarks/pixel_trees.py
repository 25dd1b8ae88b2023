"""Masks by boosted trees on local means and deviations, without any network.

    python -m benchmarks.pixel_trees --data=data/floods --results=runs/floods/results

What a comparison of encoders has to beat: scikit-learn's trees see, of every pixel,
each band, and its mean and deviation in windows of 3, 9 and 33 pixels. They are trained
on pixels of the training pairs, of the same subsets of the labels as a dense evaluation
draws, and tested on all pixels of the test pairs. Writes one result as `compare` keeps
them, so that it stands in that table. Needs scikit-learn.
"""

import argparse
import json
import pathlib
import platform
import time

import ml_collections
import numpy as np
import sklearn
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier

from configs import dense_pairs
from data_pipeline import atomic, sources, subsets
from data_pipeline.sensors import is_missing
from fusmae_jax.evaluation import results, scores
from fusmae_jax.evaluation.encoder import SENSOR_SETS

NAME = "boosted trees on pixels"
WINDOWS = (3, 9, 33)
PIXELS = 46_800  # that are trained on, at most


def features(record, description, sensors) -> np.ndarray:
    """What is known of every pixel, [H, W, F]; NaN where it was not measured."""
    side, parts = description.layout.size, []
    for grid in description.layout.grids:
        if grid.sensor not in sensors:
            continue
        pixels = np.asarray(record[grid.field])
        missing = is_missing(pixels)
        times = side // pixels.shape[0]
        bands = pixels.astype(np.float32)
        # Windows overlook what was not measured.
        known = (~missing).astype(np.float32)
        bands = np.where(missing, 0.0, bands).repeat(times, 0).repeat(times, 1)
        known = known.repeat(times, 0).repeat(times, 1)
        found = [np.where(known > 0, bands, np.nan)]
        for size in WINDOWS:
            local = lambda x, size=size: ndimage.uniform_filter(x, (size, size, 0))
            count = np.maximum(local(known), 1e-6)
            mean = local(bands) / count
            found += [mean, np.sqrt(np.maximum(local(bands**2) / count - mean**2, 0))]
        parts += [np.concatenate(found, axis=-1)]
    return np.concatenate(parts, axis=-1)


def training_pixels(source, pairs, field, classes, sensors, rng):
    """Features [M, F] and classes [M] of pixels that are drawn from some pairs."""
    x, y, each = [], [], max(PIXELS // len(pairs), 1)
    for i in pairs:
        record = source[int(i)]
        labels = np.asarray(record[field])
        known = np.flatnonzero(labels < classes)
        chosen = rng.choice(known, min(each, len(known)), replace=False)
        seen = features(record, source.description, sensors)
        x.append(seen.reshape(-1, seen.shape[-1])[chosen])
        y.append(labels.ravel()[chosen])
    return np.concatenate(x), np.concatenate(y)


def confusions(model, source, field, classes: int, sensors) -> np.ndarray:
    """Pixel counts of each pair, rows true and columns predicted, [N, C, C]."""
    found = np.zeros((len(source), classes, classes), int)
    for i in range(len(source)):
        record = source[i]
        labels = np.asarray(record[field]).ravel()
        seen = features(record, source.description, sensors)
        predicted = model.predict(seen.reshape(-1, seen.shape[-1]))
        known = labels < classes
        np.add.at(found[i], (labels[known], predicted[known].astype(int)), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval_dir", default="")
    parser.add_argument("--test_split", default="test")
    parser.add_argument("--field", default="mask")
    parser.add_argument("--fractions", default="0.01,0.1,1.0")
    parser.add_argument("--evaluation", default="floods")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=pathlib.Path, required=True)
    options = parser.parse_args()
    config = ml_collections.ConfigDict(dense_pairs.get_config().data)
    config.dir, config.eval_dir = options.data, options.eval_dir
    description = sources.describe(config)
    names = description.maps[options.field]
    fields = (*(grid.field for grid in description.layout.grids), options.field)
    train, test = (
        sources.open_split(config, split, fields)
        for split in ("train", options.test_split)
    )
    rows, started = [], time.monotonic()
    for fraction in map(float, options.fractions.split(",")):
        labels = np.zeros((len(train), 0), np.uint8)
        pairs = np.arange(len(train))
        if fraction < 1.0:
            pairs = subsets.choose(labels, fraction, options.seed)
        for shown, there in SENSOR_SETS.items():
            sensors = [s for s, here in zip(("s1", "s2"), there) if here]
            rng = np.random.default_rng(options.seed)
            common = options.field, len(names), sensors
            x, y = training_pixels(train, pairs, *common, rng)
            model = HistGradientBoostingClassifier(random_state=options.seed)
            found = confusions(model.fit(x, y), test, *common)
            row = results.Row(
                task="dense",
                encoder=NAME,
                sensors=shown,
                fraction=fraction,
                subset_seed=options.seed,
                train_pairs=len(pairs),
                test_pairs=len(test),
                features=f"{x.shape[1]} numbers a pixel, {len(x)} pixels",
                feature_dim=x.shape[1],
                chosen={},
                scores=scores.segmentation(found, seed=options.seed),
            )
            rows += [
                {"evaluation": options.evaluation} | one
                for one in results.long_form(row, names)
            ]
            iou = [f"{100 * score.value:.1f}" for score in row.scores.per_class["iou"]]
            print(f"{fraction:g} {shown}: IoU {dict(zip(names, iou))}", flush=True)
    result = {
        "arm": NAME,
        "seed": options.seed,
        "rate": 1.0,
        "trial": False,
        "rows": rows,
        "cost": {
            "flops_per_image": None,
            "evaluation_seconds": time.monotonic() - started,
            "devices": f"CPU, {platform.machine()}",
            "scikit-learn": sklearn.__version__,
        },
    }
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"trees-{options.evaluation}-seed-{options.seed}.json"
    atomic.write_whole(path, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
