"""What "auto" stands for: of a platform and what its CPU can do, and nothing else."""

import json

import numpy as np
import pytest

from data_pipeline.errors import InputError
from fusmae_jax import dtypes
from fusmae_jax.training import cluster, run_directory
from tests import tiny

AVX = ("avx2", "avx512f", "avx512_bf16")
AMX = (*AVX, "amx_bf16")

CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2.00GHz: it
flags\t\t: fpu avx2 avx512f avx512_bf16x {}

processor\t: 1
model name\t: Some CPU @ 2.00GHz: it
flags\t\t: fpu avx2 avx512f avx512_bf16x {}
"""


@pytest.fixture
def has(monkeypatch):
    """Makes this machine's CPU another one."""
    return lambda *known: monkeypatch.setattr(dtypes, "cpu", lambda: ("CPU", known))


def auto():
    config = tiny.config()
    config.model.dtype = "auto"
    return config


@pytest.mark.parametrize(
    "platform, instructions, want",
    [
        ("tpu", (), "bfloat16"),
        ("gpu", (), "bfloat16"),
        ("cpu", AMX, "bfloat16"),
        ("cpu", AVX, "float32"),
        ("cpu", (), "float32"),
        ("METAL", AMX, "float32"),
    ],
)
def test_auto_is_what_the_platform_and_its_cpu_are_made_for(
    platform, instructions, want
):
    assert dtypes.resolve_dtype("auto", platform, instructions) == want
    for dtype in dtypes.DTYPES:
        assert dtypes.resolve_dtype(dtype, platform, instructions) == dtype


def test_a_cpu_is_asked_only_where_it_computes(has):
    has(*AMX)
    assert dtypes.resolve_dtype("auto", "cpu") == "bfloat16"
    has(*AVX)
    assert dtypes.resolve_dtype("auto", "cpu") == "float32"
    assert dtypes.resolve_dtype("auto", "tpu") == "bfloat16"


@pytest.mark.parametrize("more, has", [("", ()), ("amx_tile amx_bf16", AMX[-1:])])
def test_linux_tells_a_cpus_name_and_instructions(tmp_path, monkeypatch, more, has):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(dtypes, "CPUINFO", path)
    path.write_text(CPUINFO.format(more, more))
    assert dtypes.cpu() == ("Some CPU @ 2.00GHz: it", ("avx2", "avx512f", *has))
    path.write_text("Processor: 0\nFeatures: fp asimd bf16\n")  # of an ARM
    assert dtypes.cpu() == ("unknown CPU", ())


def test_other_systems_tell_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(dtypes, "CPUINFO", tmp_path / "nothing")
    assert dtypes.cpu() == ("unknown CPU", ())
    assert dtypes.resolve_dtype("auto", "cpu") == "float32"


def test_a_model_is_not_made_in_a_type_that_nobody_has_settled():
    with pytest.raises(InputError, match="No model computes in dtype 'auto'; give"):
        tiny.model(dtype="auto")


@pytest.mark.parametrize(
    "platform, known, dtype, why",
    [
        ("cpu", AVX, "float32", "as this CPU has no matrix instructions for bfloat16"),
        ("cpu", AMX, "bfloat16", "which this CPU has matrix instructions for"),
        ("gpu", AVX, "bfloat16", "which this GPU has matrix instructions for"),
    ],
)
def test_a_new_run_says_what_it_computes_in_and_why(
    tmp_path, has, lines, platform, known, dtype, why
):
    has(*known)
    config = auto()
    settled = run_directory.settle_dtype(config, tmp_path / "run", platform)
    assert settled.model.dtype == dtype and settled.is_locked
    assert run_directory.differences(config.to_dict(), settled.to_dict()) == [
        f"model.dtype ('auto' there, '{dtype}' now)"
    ]
    assert lines == [f"Computing in {dtype}, {why}; model.dtype overrules."]


def test_what_was_asked_for_is_left_alone(tmp_path, has, lines):
    has(*AMX)
    config = tiny.config()
    assert run_directory.settle_dtype(config, tmp_path, "cpu") is config
    assert config.model.dtype == "float32" and not lines


@pytest.mark.parametrize(
    "heard, dtype, why",
    [
        # Each host says what is recorded, if it is the first, and what suits it.
        ([[0, 2], [0, 1]], "float32", "as another host has no matrix instructions"),
        ([[0, 2], [0, 2]], "bfloat16", "which this CPU has"),
        ([[1, 2], [0, 2]], "float32", "as this run began"),
        ([[2, 2], [0, 1]], "bfloat16", "as this run began"),
    ],
)
def test_hosts_of_several_kinds_compute_in_one_type(
    tmp_path, monkeypatch, has, lines, heard, dtype, why
):
    has(*AMX)
    monkeypatch.setattr(cluster, "gather", lambda value: np.array(heard))
    monkeypatch.setattr(cluster, "failures", lambda failed: np.array([failed] * 2))
    assert run_directory.settle_dtype(auto(), tmp_path, "cpu").model.dtype == dtype
    assert lines[0].startswith(f"Computing in {dtype}, {why}")


@pytest.mark.parametrize("text", ["{}", '{"config": {"se'])
def test_a_damaged_description_settles_nothing(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="config.json .*copy it again"):
        run_directory.settle_dtype(auto(), tmp_path, "cpu")


@pytest.mark.parametrize("model", [None, 3, {}, {"dtype": "auto"}, {"dtype": ["x"]}])
def test_a_directory_of_something_else_records_no_type(tmp_path, model):
    other = '{"config": {"model": %s}, "contract": {}, "data": {}}'
    (tmp_path / "config.json").write_text(other % json.dumps(model))
    assert run_directory.recorded_dtype(tmp_path) is None
