"""Damaged files of strangers: refused or read, whatever stands in them."""

import functools
import io
import pathlib
import random
import re
import signal
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import tifffile
from hypothesis import strategies as st

from data_pipeline import record_format
from data_pipeline.archives import tiff
from data_pipeline.errors import InputError
from tests import datasets
from tests.faults import fuzz, fuzz_targets, mutations
from tests.faults.fuzz_target import Target

ROOT = pathlib.Path(__file__).parents[1]
# No folder of examples is kept, and slow machines are no fault.
tried = functools.partial(
    hypothesis.settings,
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.mark.journey
def test_every_reader_refuses_or_reads_whatever_it_is_given():
    command = [sys.executable, "tests/faults/fuzz.py", "--inputs=2000", "--seed=6"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:-1]]
    assert [row[0] for row in rows] == list(fuzz_targets.TARGETS)
    for name, inputs, read, refused, other, *_ in rows:
        assert int(read) + int(refused) == int(inputs) > 0 == int(other), name
        assert int(refused) > 0, name
    assert re.search(r"\d+ inputs, \d+ read, \d+ refused, 0 bugs", done.stdout)


@pytest.fixture
def alarm():
    before = signal.getsignal(signal.SIGPROF)
    yield
    signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("name", ["tiff", "raster"])
def test_a_damaged_geotiff_is_refused_or_read(name, tmp_path, alarm):
    (tmp_path / "seeds").mkdir()
    target = fuzz_targets.TARGETS[name](tmp_path / "seeds")
    row = fuzz.fuzz(name, target, 150, 0, tmp_path)
    assert not row["bugs"] and row["read"] > 5 and row["refused"] > 5


def test_errors_that_are_not_ours_and_hangs_are_bugs(tmp_path, monkeypatch, alarm):
    def read(data):
        if data[:1] == b"e":
            raise KeyError("what was not foreseen")
        if data[:1] == b"i":
            raise InputError("no such thing")
        while data[:1] == b"h":
            pass

    take = lambda rng, data, others: data
    target = Target([b"e", b"i", b"h", b"r"], read, (take,))
    monkeypatch.setattr(fuzz, "_SECONDS", type("Flag", (), {"value": 0.05}))
    row = fuzz.fuzz("x", target, 40, 0, tmp_path)
    drawn = [random.Random(f"0 x {i}") for i in range(40)]
    kinds = [(r.choice([take]), r.choice(target.seeds))[1] for r in drawn]
    assert row["other"] == kinds.count(b"e") + kinds.count(b"h") > 10
    assert (row["refused"], row["read"]) == (kinds.count(b"i"), kinds.count(b"r"))
    errors = sorted(bug.split(" at ")[0] for bug in row["bugs"])
    assert errors == ["KeyError", "Slow"] and row["slowest ms"] > 40


def test_one_seed_makes_the_same_inputs():
    example = record_format.serialize(
        datasets.example(datasets.description(), 1),
        record_format.features(datasets.description()),
    )
    draw = lambda seed: mutations.example(random.Random(seed), example, [example])
    assert draw("a") == draw("a") != draw("b")


TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
LABELS = {
    field: st.lists(st.integers(0, len(names) - 1), unique=True)
    for field, names in datasets.CLASSES.items()
}


@functools.cache
def opened(folder) -> record_format.Records:
    return record_format.Records(datasets.write(folder), "train")


@tried(max_examples=100)
@hypothesis.given(
    st.integers(0, 2**32),
    st.fixed_dictionaries(dict.fromkeys(record_format.TEXTS, TEXT)),
    st.fixed_dictionaries(LABELS),
)
def test_whatever_is_serialised_is_what_is_read(tmp_path_factory, seed, texts, labels):
    source = opened(tmp_path_factory.getbasetemp() / "round-trip")
    rng = np.random.default_rng(seed)
    described = source.description
    pixels = {
        field: rng.bytes(2 * int(np.prod(shape)))
        for field, shape in described.layout.shapes.items()
    }
    example = {
        field: np.frombuffer(pixels[field], described.layout.dtypes[field]).reshape(s)
        for field, s in described.layout.shapes.items()
    } | texts | labels  # fmt: skip
    source._source = [
        record_format.serialize(example, record_format.features(described))
    ]
    datasets.assert_equal(source[0], example)


@tried(max_examples=300)
@hypothesis.given(st.binary(max_size=80))
def test_bytes_that_are_no_record_are_refused(tmp_path_factory, data):
    source = opened(tmp_path_factory.getbasetemp() / "no-record")
    source._source = [data]
    with pytest.raises(InputError, match="Record 0 of split train"):
        source[0]


@tried(max_examples=100)
@hypothesis.given(
    st.integers(1, 30), st.integers(1, 30), st.integers(1, 31), st.sampled_from("<>"),
    st.sampled_from(["u2", "f4"]), st.binary(min_size=8, max_size=8),
)  # fmt: skip
def test_images_of_any_shape_come_back_and_no_part_of_them(
    height, width, rows, order, dtype, noise
):
    image = np.resize(np.frombuffer(noise, dtype), (height, width))
    written = io.BytesIO()
    tifffile.imwrite(written, image, byteorder=order, rowsperstrip=rows)
    data = written.getvalue()
    np.testing.assert_array_equal(tiff.read(data, "x.tif"), image)
    with pytest.raises(InputError, match="x.tif is cut short or damaged"):
        tiff.read(data[:-1], "x.tif")


@tried(max_examples=500)
@hypothesis.given(st.sampled_from([b"II*\0", b"MM\0*"]), st.binary(max_size=300))
def test_bytes_that_are_no_tiff_are_refused(start, data):
    with pytest.raises(InputError, match="^x.tif "):
        tiff.read(start + data, "x.tif")
