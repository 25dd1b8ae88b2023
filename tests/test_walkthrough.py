"""The walk-through of the documentation does what it says, command by command."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from tests.geotiffs import GRID, S1_BANDS, S2_BANDS, write

ROOT = pathlib.Path(__file__).parent.parent
SIDE = 128


def write_scene(root: pathlib.Path, name: str, place: int) -> np.ndarray:
    """Bright ground and dark water, whose mask is returned."""
    rng = np.random.default_rng(place)
    dark = np.kron(rng.random((SIDE // 16,) * 2) < 0.4, np.ones((16, 16), bool))
    s2 = rng.normal(np.where(dark, 600, 2500), 80, (12, SIDE, SIDE)).astype(np.uint16)
    means = np.array([-12.0, -19.0])[:, None, None] - 8 * dark
    s1 = rng.normal(means, 1.0, (2, SIDE, SIDE)).astype(np.float32)
    where = dict(transform=GRID @ rasterio.Affine.translation(0, 1000 * place))
    write(root / "s1" / f"{name}.tif", s1, S1_BANDS, **where)
    write(root / "s2" / f"{name}.tif", s2, S2_BANDS, **where)
    write(root / "mask" / f"{name}.tif", dark[None].astype(np.uint8), **where)
    return dark


def commands() -> list[list[str]]:
    """The commands of the walk-through, as a shell would split them."""
    text = (ROOT / "docs" / "walkthrough.md").read_text()
    found = re.findall(r"^    (python launch\.py(?:.*\\\n)*.*)$", text, re.MULTILINE)
    return [shlex.split(command.replace("\\\n", " ")) for command in found]


@pytest.mark.journey
def test_every_command_runs_as_it_is_written(tmp_path):
    names = ("north", "east", "south", "west")
    dark = {n: write_scene(tmp_path / "scenes", n, i) for i, n in enumerate(names)}
    for config in ("configs", "launch.py"):
        (tmp_path / config).symlink_to(ROOT / config)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)  # one device, as most users have
    given = commands()
    assert len(given) == 7
    for _, script, *options in given:
        if "--config=configs/export.py" in options:
            pytest.importorskip("safetensors", reason="exports need safetensors")
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
        "exports/mine/fusmae_torch.py",
    ):
        assert (tmp_path / made).stat().st_size > 0
