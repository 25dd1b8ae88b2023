"""The built wheel: what is in it, and that its command works from any directory."""

import configparser
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("configs", "data_pipeline", "fusmae_jax")
FILES = ("launch.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def files_of(folder):
    """Paths below a checkout or an installation that belong to the packages."""
    found = [p for name in PACKAGES for p in (folder / name).rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)) for p in found if "__pycache__" not in p.parts}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which the project's wheel is unpacked, built from a copy."""
    source, site = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    for name in PACKAGES:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    script = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, cwd=source
    )
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    return site


@pytest.fixture
def fusmae(site, tmp_path):
    """Runs the installed command in an empty directory."""
    points = configparser.ConfigParser()
    points.read(next(site.glob("*.dist-info")) / "entry_points.txt")
    module, _, function = points["console_scripts"]["fusmae"].partition(":")
    script = tmp_path.parent / f"{tmp_path.name}-fusmae"
    script.write_text(f"from {module} import {function}\n{function}()\n")

    def call(*arguments):
        return subprocess.run(
            [sys.executable, script, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"},
        )

    return call


def test_the_wheel_holds_all_files_of_the_packages_and_nothing_else(site):
    assert files_of(site) == files_of(ROOT)
    top = {p.name for p in site.iterdir() if p.suffix != ".dist-info"}
    assert top == {*PACKAGES, "launch.py"}
    for package in ("data_pipeline", "fusmae_jax"):
        assert (site / package / "py.typed").exists()


@pytest.mark.parametrize(
    "name, field",
    [
        ("quickstart", "batch_size"),
        ("prepare_pairs", "pairs_per_shard"),
        ("configs/prepare_pairs.py", "pairs_per_shard"),
    ],
)
def test_the_command_finds_shipped_configs_from_anywhere(fusmae, tmp_path, name, field):
    result = fusmae("--config", name, f"--config.{field}=0")
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert result.stderr.startswith(f"{field} is 0")
    assert not any(tmp_path.iterdir())


def test_a_file_of_ones_own_comes_before_a_shipped_config(fusmae, tmp_path):
    (tmp_path / "quickstart").write_text(
        "from configs import prepare_pairs\n\n\ndef get_config():\n"
        "    c = prepare_pairs.get_config()\n    c.workers = -3\n    return c\n"
    )
    assert fusmae("--config=quickstart").stderr.startswith("workers is -3")


def test_the_commands_help_names_its_flags_and_the_shipped_configs(fusmae):
    told = " ".join(fusmae("--help").stdout.split())
    for word in ("--config", "--workdir", "multihost"):
        assert word in told
    for path in (ROOT / "configs").glob("*.py"):
        assert path.stem in told


def test_a_config_that_is_not_there_is_refused_by_its_name(fusmae):
    said = fusmae("--config=nothing").stderr
    assert said.count("\n") == 1 and "quickstart" in said and "'nothing'" in said
