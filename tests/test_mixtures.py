"""Several datasets as one: only such as fit in one batch."""

import dataclasses
import json

import ml_collections
import numpy as np
import pytest

from data_pipeline import layout, mixtures, record_format, sensors, sources, subsets
from data_pipeline.errors import InputError
from tests import datasets


def opened(directory, counts=(3,), fields=None, **changes):
    described = datasets.description(**changes)
    datasets.write(directory, counts, described=described, prefix=f"{directory.name} ")
    return record_format.Records(directory, "train", fields)


def test_pairs_follow_one_another(tmp_path):
    mixture = mixtures.Mixture(
        [opened(tmp_path / "a", (2, 1)), opened(tmp_path / "b", (4,))]
    )
    want = [f"a place {i}" for i in range(3)] + [f"b place {i}" for i in range(4)]
    assert [pair["place"] for pair in mixture] == want == mixture.places.tolist()
    assert mixture.index["place"].tolist() == want and len(mixture) == 7
    labels = [pair["labels"] for pair in mixture]
    np.testing.assert_array_equal(mixture.index["labels"], labels)
    with pytest.raises(IndexError):
        mixture[-1]


def test_statistics_are_those_of_the_mixture(tmp_path):
    bands = sensors.S1.band_names
    parts = []
    for name, mean, std in (("a", 1.0, 2.0), ("b", 5.0, 1.0)):
        sensor = sensors.S1.with_statistics(
            dict.fromkeys(bands, mean), dict.fromkeys(bands, std), name
        )
        known = {"s1": sensor, "s2": sensors.S2}
        parts.append(opened(tmp_path / name, sensors=known))
    mixed = mixtures.Mixture(parts, (3, 1)).description.sensors
    draws = np.concatenate(
        [
            np.random.default_rng(i).normal(m, s, 30_000 * n)
            for i, (m, s, n) in enumerate([(1.0, 2.0, 3), (5.0, 1.0, 1)])
        ]
    )
    for band in mixed["s1"].bands:
        np.testing.assert_allclose((band.mean, band.std), (2.0, draws.std()), rtol=0.01)
    assert mixed["s2"] == sensors.S2


def test_label_fields_that_nobody_reads_may_differ(tmp_path):
    fields = ("s1_10m", "s2_10m")
    parts = [
        opened(tmp_path / "a", fields=fields),
        opened(tmp_path / "b", fields=fields, classes={"labels": ("x", "y")}),
    ]
    description = mixtures.Mixture(parts).description
    assert description.classes == {}
    assert [grid.field for grid in description.layout.grids] == list(fields)
    assert description.sensors["s2"].band_names == ("B02", "B03", "B04", "B08")


@pytest.mark.parametrize("first, last", [(False, True), (True, False)])
def test_pairs_that_nobody_labelled_stay_so_wherever_their_dataset_stands(
    tmp_path, first, last
):
    parts = [
        opened(tmp_path / "a", unlabelled=first),
        opened(tmp_path / "b", unlabelled=last),
    ]
    mixture = mixtures.Mixture(parts)
    assert mixture.description.unlabelled
    chosen = subsets.labelled(mixture, "labels")
    assert 0 < len(chosen) < len(mixture)
    assert chosen.index["labels"].any(axis=1).all()


L1C = dataclasses.replace(sensors.S2, level="L1C")


@pytest.mark.parametrize(
    "changes, fields, message",
    [
        (
            dict(layout=layout.native(24, sensors.SENSORS)),
            ("s1_10m",),
            r"size \(12 and 24\)",
        ),
        (
            dict(layout=layout.resampled(12, sensors.SENSORS)),
            ("s2_10m",),
            "bands of s2_10m",
        ),
        (dict(sensors={"s1": sensors.S1, "s2": L1C}), ("s2_10m",), "L2A and L1C"),
        (dict(classes={"labels": ("x",)}), ("labels",), "classes of labels"),
        (dict(classes={"labels": ("x",)}), None, "classes of labels_43 .*and None"),
    ],
)
def test_datasets_that_do_not_fit_are_refused_with_what_differs(
    tmp_path, changes, fields, message
):
    opened(tmp_path / "a")
    opened(tmp_path / "b", name="other", **changes)
    folders = f"{tmp_path}/a,{tmp_path}/b"
    data = ml_collections.ConfigDict(dict(source="records", dir=folders, split="train"))
    want = f"tiny in .*/a and of other in .*/b do not go together.*{message}"
    with pytest.raises(InputError, match=want):
        sources.open_split(data, "train", fields)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1, np.nan)])
def test_weights_that_are_none_are_refused(tmp_path, weights):
    parts = [opened(tmp_path / name) for name in "ab"]
    with pytest.raises(InputError, match="must be 2 positive numbers"):
        mixtures.Mixture(parts, weights)


def test_fingerprint_names_parts_and_shares(tmp_path):
    parts = [opened(tmp_path / name) for name in "ab"]
    prints = [
        mixtures.Mixture(chosen, weights).fingerprint()
        for chosen, weights in ((parts, ()), (parts, (1, 2)), ([parts[0]] * 3, ()))
    ]
    assert len({json.dumps(known) for known in prints}) == 3
