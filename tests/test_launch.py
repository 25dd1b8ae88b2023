"""The command line: it runs end to end, and says in a sentence what is wrong."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests import processes

ROOT = pathlib.Path(__file__).parents[1]


def launch(*arguments, cwd=ROOT, platforms="cpu"):
    environment = os.environ | processes.ENVIRONMENT | {"JAX_PLATFORMS": platforms}
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
    )


def config(name):
    return f"--config={ROOT}/configs/{name}.py"


def one_sentence(result):
    """What a failed launch said, if it said it without a traceback."""
    assert result.returncode == 1
    assert "Traceback" not in result.stderr, result.stderr
    return result.stderr.strip()


@pytest.mark.journey
def test_quickstart_runs_from_anywhere_and_writes_under_runs(tmp_path):
    result = launch(
        config("quickstart"),
        "--config.epochs=4",
        "--config.model.depth=2",
        "--config.eval_every=2",
        "--config.log_every=1",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "mean of visible pixels" in result.stdout
    assert "step 4/4" in result.stderr and "img/s" in result.stderr
    run = tmp_path / "runs" / "quickstart"
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert (run / "figures" / "reconstruction.png").exists()


def test_the_real_run_without_data_says_in_two_lines_how_to_get_it(tmp_path):
    said = one_sentence(launch(config("pretrain_base"), cwd=tmp_path)).splitlines()
    assert len(said) == 2
    assert "prepare_bigearthnet.py" in said[0] and "--config.data.dir" in said[1]
    assert not any(tmp_path.iterdir())


@pytest.mark.journey
@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--config="),
        (["--config=configs/nothing.py"], "cannot be loaded; .*nothing.py"),
        (["--config=configs/nothing.py", "--config.epochs=3"], "cannot .*nothing.py"),
        (["--config=configs", "--config.epochs=3"], "cannot .*configs"),
        (["--unknown=1"], "unknown"),
        ([config("quickstart"), "--config.stepz=1"], "stepz"),
        ([config("quickstart"), "--config.epochs=many"], "epochs"),
        ([config("quickstart"), "extra"], "extra"),
        ([config("compare_floods") + ":ablation"], "no arms 'ablation'; choose one"),
        ([config("pretrain_small"), "--config.data.dir=/nowhere"], "/nowhere"),
        (
            [config("prepare_bigearthnet"), "--config.source=x"],
            "Pass --config.source=DIR, where the archive is, and --config.out=DIR,",
        ),
        ([config("reconstruct"), "--config.checkpoint=/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(tmp_path, arguments, message):
    said = one_sentence(launch(*arguments, cwd=tmp_path))
    assert re.search(message, said), said
    assert not any(tmp_path.iterdir())


@pytest.mark.journey
@pytest.mark.parametrize(
    "arguments, message",
    [
        ([config("quickstart"), "--config.model.patch_size=9"], "64 .* 9"),
        ([config("reconstruct")], "--config.checkpoint=runs"),
        ([config("probe_sample"), "--config.checkpoint=x", "--config.step=-1"], "-1"),
    ],
)
def test_a_config_is_checked_before_jax_looks_for_devices(tmp_path, arguments, message):
    # Others are in test_bad_configs, without a process each.
    said = one_sentence(launch(*arguments, cwd=tmp_path, platforms="nowhere"))
    assert re.search(message, said), said
    assert not any(tmp_path.iterdir())


HEAVY = {"jax", "grain", "orbax", "matplotlib", "tensorboardX", "torch", "scipy"}
NEVER = {"tensorflow", "sklearn", "pandas", "apache_beam"}
LATER = {"matplotlib", "tensorboardX", "torch", "scipy.spatial"} | NEVER


@pytest.mark.journey
@pytest.mark.parametrize(
    "module, unused",
    [
        ("launch", {"numpy", "tensorflow_datasets"} | HEAVY | NEVER),
        ("data_pipeline.building.prepare", HEAVY | NEVER),
        ("fusmae_jax.training.pretrain", LATER),
        ("fusmae_jax.reconstruct", LATER),
        ("fusmae_jax.evaluation.evaluate", LATER),
        ("fusmae_jax.export.export", LATER | {"onnx", "onnxruntime", "safetensors"}),
    ],
)
def test_a_task_starts_without_what_it_does_not_need(module, unused):
    # Asked for counts, found or not: what is missing here is installed elsewhere.
    script = f"""
import importlib, sys

class Recorder:
    asked = set()

    def find_spec(name, path=None, target=None):
        Recorder.asked.add(name)

sys.meta_path.insert(0, Recorder)
importlib.import_module({module!r})
print(*Recorder.asked)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    asked = set(result.stdout.split())
    assert module in asked and not asked & unused


def test_plain_pytest_finds_what_it_tests():
    # The script's own start: without the current folder among those of modules.
    arguments = ("pytest", "-q", "--collect-only", "tests/test_run_directory.py")
    result = subprocess.run(
        [sys.executable, "-P", "-m", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert result.returncode == 0, result.stdout


def test_windows_is_told_in_a_sentence_that_this_is_not_for_it():
    script = "import sys; sys.platform = 'win32'; import data_pipeline.locks"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    last = result.stderr.splitlines()[-1]
    assert re.fullmatch(r"ImportError: .*Linux.*macOS.*Windows.*WSL.*\.", last), last


def test_a_terminal_that_knows_ascii_alone_gets_tables_too():
    script = (
        "import launch\nfrom absl import app\n"
        "from fusmae_jax.training import pretrain\n"
        "pretrain.run = lambda config, workdir: print('57.5 \\xb1 4.4')\n"
        "app.run(launch.main, flags_parser=launch.parse)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, config("quickstart")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "57.5 ? 4.4\n"


@pytest.mark.journey
def test_the_example_of_the_docs_runs_from_anywhere(tmp_path):
    usage = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", usage, re.S)
    example = example.replace("FusMAE(", "FusMAE(depth=1, dim=48, num_heads=2, ")
    example += "\nprint(encoded.tokens['s1'].shape, encoded.summary.shape)\n"
    result = subprocess.run(
        [sys.executable, "-c", example],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "(1, 196, 48) (1, 48)\n"


def test_a_mistake_in_a_config_file_shows_where_it_is(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import math\n\n\ndef get_config():\n    return math.nothing\n")
    result = launch(f"--config={path}")
    assert result.returncode == 1 and "return math.nothing" in result.stderr


@pytest.mark.journey
def test_a_damaged_record_is_said_in_a_sentence(tmp_path):
    shutil.copytree(ROOT / "data_pipeline" / "sample", tmp_path / "data")
    shard = next((tmp_path / "data").glob("*-train.array_record-00001*"))
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    shard.write_bytes(content)
    said = one_sentence(
        launch(
            config("quickstart"),
            "--config.data.source=records",
            f"--config.data.dir={tmp_path / 'data'}",
            f"--workdir={tmp_path / 'run'}",
        )
    )
    assert re.search(r"Record \d+ of split train .* does not decode", said), said
    assert shard.name in said


def test_a_workdir_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    said = one_sentence(launch(config("quickstart"), f"--workdir={tmp_path}"))
    assert "not empty" in said and "--workdir" in said
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
