"""The same ground is not learnt from and tested on, whenever it was acquired."""

import types

import ml_collections
import numpy as np
import pytest

from data_pipeline import ground, sensors, sources
from data_pipeline.errors import InputError
from fusmae_jax.evaluation import labelled_data
from fusmae_jax.training import run_directory
from tests import datasets, judging

V1 = "S2A_MSIL2A_20170613T101031_{column}_7"
LATER = "S2B_MSIL2A_20180421T100029_{column}_7"
V2 = "S2B_MSIL2A_20180421T100029_N9999_R022_T33UUP_{column:02d}_07"


def names(form: str, *, older: bool = False, count: int = 4) -> list[tuple[str, str]]:
    """Ids and places as this version writes them for BigEarthNet, or as versions did
    that left the tile out."""
    ids = [form.format(column=i) for i in range(count)]
    partners = [f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{i}_7" for i in range(count)]
    if older:
        # Of v2 the name in v1 stood for the place.
        return [
            (i, LATER.format(column=n) if form == V2 else i) for n, i in enumerate(ids)
        ]
    # Metadata of v2 has the name of each patch in v1.
    in_v1 = [LATER.format(column=i) for i in range(count)] if form == V2 else ids
    told_by = ids if form == V2 else partners
    return [*zip(ids, map(ground.place, in_v1, told_by))]


def opened(folder, named, split="train"):
    written = datasets.write(folder, (len(named),), split=split, names=named)
    config = ml_collections.ConfigDict({"source": "records", "dir": str(written)})
    return sources.open_split(config, split, ("id",))


@pytest.mark.parametrize(
    "train, other",
    [
        (names(V1), names(LATER)),
        (names(V1), names(V2)),
        (names(V2), names(V1)),
        # Of older datasets of v2 the ids have the tile.
        (names(V1), names(V2, older=True)),
        (names(V2, older=True), names(V2)),
        # What the older versions found is still found.
        (names(V1, older=True), names(V1)),
        (names(LATER, older=True), names(V2, older=True)),
        (names(LATER, older=True), names(V2)),
        ([("a", "ROIs1158_spring_12_p30")] * 4, [("b", "ROIs1158_spring_12_p31")] * 4),
        (
            [("a", "EPSG:32633 10 0 500000 0 -10 5000000 2022-03-01T10:10:31")] * 4,
            [("b", "EPSG:32633 10 0 500000 0 -10 5000000 2022-06-01T10:10:31")] * 4,
        ),
    ],
)
def test_ground_that_is_trained_on_is_found_at_another_date(tmp_path, train, other):
    train, other = opened(tmp_path / "a", train), opened(tmp_path / "b", other)
    with pytest.raises(InputError, match="4 of 4 in the held-out pairs show"):
        sources.check_overlap(train, other)
    codes = sources.place_codes(train)
    run_directory.remember_places(tmp_path, codes)
    assert run_directory.trained_on(tmp_path, sources.place_codes(other)) == 4


@pytest.mark.parametrize(
    "other",
    [
        [(V1.format(column=9), "S2A_MSIL2A_20170613T101031_33UUP_9_7")],
        # Another tile that was acquired at the same time has a patch of that name too.
        [(V1.format(column=1), "S2A_MSIL2A_20170613T101031_34VER_1_8")],
        [("a", "ROIs1158_spring_12_p30")],
        [("a", "EPSG:32633 10 0 500000 0 -10 5000000 2022-03-01T10:10:31")],
        [("a", "")],
    ],
)
def test_other_ground_is_none_that_was_trained_on(tmp_path, other):
    train, other = opened(tmp_path / "a", names(V1)), opened(tmp_path / "b", other)
    assert sources.check_overlap(train, other) == 0
    run_directory.remember_places(tmp_path, sources.place_codes(train))
    assert run_directory.trained_on(tmp_path, sources.place_codes(other)) == 0


def test_names_without_tile_are_said_to_tell_no_ground(tmp_path, lines):
    train = opened(tmp_path / "a", names(V1, older=True))
    other = opened(tmp_path / "b", names(LATER))
    assert sources.check_overlap(train, other) == 0
    (line,) = [line for line in lines if "not known" in line]
    assert "4 pairs, whose names lack the tile; build their datasets again" in line


@pytest.fixture
def pretrained(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    return types.SimpleNamespace(contract=sensors.SENSORS, directory=directory)


@pytest.fixture
def config(tmp_path):
    """An evaluation on three splits, which show other columns of one tile."""
    columns = {"train": 0, "validation": 10, "test": 20}
    folders = [
        datasets.write(
            tmp_path / split,
            (4,),
            split=split,
            names=[
                (LATER.format(column=i), f"S2B_MSIL2A_20180421T100029_33UUP_{i}_7")
                for i in range(first, first + 4)
            ],
        )
        for split, first in columns.items()
    ]
    c = judging.config("run")
    c.data.update(source="records", dir=str(folders[0]))
    c.data.eval_dir = ",".join(map(str, folders[1:]))
    return c


def test_ground_that_was_pretrained_on_is_not_tested_on(config, pretrained, tmp_path):
    seen = [
        (V1.format(column=i), f"S2A_MSIL2A_20170613T101031_33UUP_{i}_7")
        for i in (21, 22)
    ]
    codes = sources.place_codes(opened(tmp_path / "seen", seen))
    run_directory.remember_places(pretrained.directory, codes)
    with pytest.raises(InputError, match="2 of the 4 pairs .* show ground"):
        labelled_data.open_labelled(config, pretrained)


def test_a_run_of_before_tells_acquisitions_and_that_it_tells_no_more(
    config, pretrained, lines
):
    test = labelled_data.open_labelled(config, pretrained).test.source
    acquired = sources.place_codes(test)[:, 1]
    told = lambda: sum("is not known" in line for line in lines)
    before = told()
    np.save(pretrained.directory / run_directory.PLACES, np.sort(acquired[:3]))
    with pytest.raises(InputError, match="3 of the 4 pairs .* show ground"):
        labelled_data.open_labelled(config, pretrained)
    assert told() == before + 1
    # What this version keeps says it all.
    run_of_now = sources.place_codes(test)[:0] + np.uint64(1)
    (pretrained.directory / run_directory.PLACES).unlink()
    run_directory.remember_places(pretrained.directory, run_of_now)
    labelled_data.open_labelled(config, pretrained)
    assert told() == before + 1
