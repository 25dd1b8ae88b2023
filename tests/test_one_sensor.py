"""Optics alone, from a CSV of images to tables of scores."""

import csv

import numpy as np
import pytest
from rasterio import Affine

from configs import prepare_pairs, probe_bigearthnet
from data_pipeline.building import prepare
from fusmae_jax.evaluation import evaluate
from fusmae_jax.training import pretrain
from tests import tiny
from tests.geotiffs import GRID, S2_BANDS, s2_image, write, write_csv

SIDE, CLASSES = 24, ("dry", "flooded")
SPLITS = {"train": 8, "validation": 4, "test": 4}


def write_scenes(root):
    """Images of fields, and of those that are flooded below; one has a DN below 0."""
    rows = []
    names = [f"{split}{i}" for split, count in SPLITS.items() for i in range(count)]
    for i, name in enumerate(names):
        image, mask = s2_image(i, SIDE).astype(np.int16), np.zeros((SIDE, SIDE), "u1")
        if i % 2:
            image[:, SIDE // 2 :] //= 8
            mask[SIDE // 2 :] = 1
        image[2, 0, 0] = -3 if not i else image[2, 0, 0]
        elsewhere = dict(transform=GRID @ Affine.translation(100 * i, 0))
        write(root / f"{name}.tif", image, S2_BANDS, **elsewhere)
        write(root / f"{name}_mask.tif", mask[None], **elsewhere)
        row = dict(s2=f"{name}.tif", mask=f"{name}_mask.tif", labels=CLASSES[i % 2])
        rows.append(row | {"split": name.rstrip("0123456789")})
    return write_csv(root / "scenes.csv", rows)


@pytest.mark.journey
def test_a_csv_of_optics_is_prepared_trained_on_and_probed(tmp_path, capsys):
    config = prepare_pairs.get_config()
    config.source, config.out = write_scenes(tmp_path), str(tmp_path / "optics")
    config.workers, config.check_values = 0, False
    config.read.update(s2_offset="0", classes=CLASSES, mask_classes=CLASSES)
    prepare.prepare(config)
    remark = "Pairs that have DN slightly below 0, which became 1: 1."
    assert remark in capsys.readouterr().out.splitlines()
    assert remark in (tmp_path / "optics" / "card.md").read_text()

    config = tiny.config()
    config.epochs, config.batch_size, config.eval_pairs = 2, 8, 4
    config.data.update(source="records", dir=str(tmp_path / "optics"))
    assert int(pretrain.run(config, tmp_path / "run").step) == 2

    config = probe_bigearthnet.get_config()
    config.checkpoint, config.data.dir = str(tmp_path / "run"), str(tmp_path / "optics")
    config.methods, config.sensors = ("probe", "dense"), ("s2",)
    config.fractions, config.repeats, config.bootstrap = (1.0,), (1,), 20
    config.baselines, config.single_label, config.batch_size = (), True, 4
    config.probe.update(epochs=2, learning_rates=(0.1,), weight_decays=(0.0,))
    config.dense.update(field="mask", heads=("linear",), epochs=2, batch_size=4)
    config.dense.learning_rates = (1e-2,)
    capsys.readouterr()
    rows = evaluate.run(config, tmp_path / "probe")
    assert {(row.task, row.sensors) for row in rows} == {
        (task, "s2") for task in config.methods
    }
    assert np.isfinite([x.value for r in rows for x in r.scores.overall.values()]).all()
    printed = capsys.readouterr().out
    assert "Overall accuracy on 4" in printed and "Mean IoU" in printed
    assert "This encoder was pretrained without Sentinel-1" in printed
    with (tmp_path / "probe" / "scores.csv").open(newline="") as file:
        assert {line["sensors"] for line in csv.DictReader(file)} == {"s2"}
