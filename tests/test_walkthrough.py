"""The walk-through of the documentation does what it says, command by command."""

import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import rasterio

from tests.test_predict import write_scene

ROOT = pathlib.Path(__file__).parent.parent
SIDE = 128


def commands() -> list[list[str]]:
    """The commands of the walk-through, as a shell would split them."""
    text = (ROOT / "docs" / "walkthrough.md").read_text()
    found = re.findall(r"^    (python launch\.py(?:.*\\\n)*.*)$", text, re.MULTILINE)
    return [shlex.split(command.replace("\\\n", " ")) for command in found]


@pytest.mark.journey
def test_every_command_runs_as_it_is_written(tmp_path):
    names = ("north", "east", "south", "west")
    dark = {
        n: write_scene(tmp_path / "scenes", n, i, SIDE) for i, n in enumerate(names)
    }
    for config in ("configs", "launch.py"):
        (tmp_path / config).symlink_to(ROOT / config)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)  # one device, as most users have
    given = commands()
    assert len(given) == 7
    torch = importlib.util.find_spec("torch")  # comes with an extra
    for _, script, *options in given:
        if not torch:
            options = [option.replace(",'torch')", ",)") for option in options]
        done = subprocess.run(
            [sys.executable, script, *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (options, done.stderr[-2000:])
    with rasterio.open(tmp_path / "maps" / "floods" / "classes.tif") as file:
        assert (file.read(1) == dark["north"]).mean() > 0.9
    with rasterio.open(tmp_path / "maps" / "north" / "embeddings.tif") as file:
        assert file.shape == (SIDE // 8, SIDE // 8)
    for made in (
        "data/mine/contact_sheet.png",
        "runs/mine/figures/reconstruction.png",
        "runs/mine.html",
        "runs/floods/scores.csv",
        "exports/mine/" + ("fusmae_torch.py" if torch else "model.safetensors"),
    ):
        assert (tmp_path / made).stat().st_size > 0
