"""The walk-throughs of the documentation do what they say, as they are written."""

import csv
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import rasterio

from tests import processes
from tests.geotiffs import GRID, S1_BANDS, S2_BANDS, write, write_csv
from tests.test_predict import write_scene

ROOT = pathlib.Path(__file__).parent.parent
SIDE = 128
TORCH = importlib.util.find_spec("torch")  # comes with an extra

# In the order of a page: Python, which is to be a file if it has a title, and shell.
BLOCKS = re.compile(
    r'^```python(?: title="(?P<file>.*)")?\n(?P<python>(?:.*\n)*?)^```$'
    r"|(?:^    .*\n)+",
    re.MULTILINE,
)


def check_out(folder: pathlib.Path) -> None:
    """A checkout of one's own, to be written into."""
    for name in ("configs", "data_pipeline", "fusmae_jax"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "launch.py", folder)


def surroundings(checkout: pathlib.Path) -> dict[str, str]:
    """The environment in which this Python and that checkout come first."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    return processes.ENVIRONMENT | {"PATH": path, "PYTHONPATH": str(checkout)}


def follow(page: str, checkout: pathlib.Path) -> list[str]:
    """Does what a page says in a checkout; returns what each of its steps says."""
    check_out(checkout)
    environment = os.environ | surroundings(checkout)
    said = []
    for block in BLOCKS.finditer((ROOT / "docs" / page).read_text()):
        code = block["python"] or textwrap.dedent(block[0])
        if block["file"]:
            (checkout / block["file"]).write_text(code)
            continue
        if not block["python"] and "launch.py" not in code:
            continue  # what files there are, or what a command prints
        if not TORCH:
            code = code.replace(",'torch')", ",)")
        how = [sys.executable, "-c"] if block["python"] else ["bash", "-euc"]
        done = subprocess.run(
            [*how, code],
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, (code, done.stdout[-2000:])
        said.append(done.stdout)
    return said


def scores(path: pathlib.Path, metric: str) -> dict[tuple[str, str, str], float]:
    """Values of all classes together, by task, encoder and sensors."""
    with path.open() as file:
        return {
            (row["task"], row["encoder"], row["sensors"]): float(row["value"])
            for row in csv.DictReader(file)
            if row["metric"] == metric and not row["class"]
        }


def not_empty(checkout: pathlib.Path, *paths: str) -> bool:
    return all((checkout / path).stat().st_size for path in paths)


def nothing(checkout: pathlib.Path) -> None:
    """What a page needs that brings its own."""


def check_quickstart(checkout: pathlib.Path, said: list[str]) -> None:
    assert said[-1].count("looks most like") == 17
    assert not_empty(
        checkout,
        "runs/first/figures/reconstruction.png",
        "runs/first_radar/figures/reconstruction.png",
        "runs/first.html",
    )


def write_scenes(checkout: pathlib.Path) -> None:
    for i, name in enumerate(("north", "east", "south", "west")):
        write_scene(checkout / "scenes", name, i, SIDE)


def check_maps(checkout: pathlib.Path, said: list[str]) -> None:
    with rasterio.open(checkout / "scenes" / "mask" / "north.tif") as file:
        dark = file.read(1)
    with rasterio.open(checkout / "maps" / "floods" / "classes.tif") as file:
        assert (file.read(1) == dark).mean() > 0.9
    with rasterio.open(checkout / "maps" / "north" / "embeddings.tif") as file:
        assert file.shape == (SIDE // 8, SIDE // 8)
    assert said[-1] == f"({SIDE // 8}, {SIDE // 8}, 96)\n"
    assert not_empty(
        checkout,
        "data/mine/contact_sheet.png",
        "runs/mine/figures/reconstruction.png",
        "runs/mine.html",
        "runs/floods/scores.csv",
        "exports/mine/" + ("fusmae_torch.py" if TORCH else "model.safetensors"),
    )


CLASSES = ("field", -12.0, 2500), ("runway", -20.0, 2500), ("water", -20.0, 600)


def write_labelled(checkout: pathlib.Path) -> None:
    """Images of three classes, of which each sensor sees two alike, and a table."""
    rng, rows, root = np.random.default_rng(0), [], checkout / "images"
    for split, count in (("train", 8), ("validation", 4), ("test", 8)):
        for label, s1, s2 in CLASSES:
            for _ in range(count):
                row = {"split": split, "labels": label}
                row |= {s: f"{s}/{split}/{label}/{len(rows)}.tif" for s in ("s1", "s2")}
                where = GRID @ rasterio.Affine.translation(0, 1000 * len(rows))
                means = np.array([s1, s1 - 7.0])[:, None, None]
                image = rng.normal(means, 1.5, (2, 64, 64)).astype(np.float32)
                write(root / row["s1"], image, S1_BANDS, transform=where)
                image = rng.normal(s2, 80, (12, 64, 64)).astype(np.uint16)
                write(root / row["s2"], image, S2_BANDS, transform=where)
                rows.append(row)
    write_csv(root / "pairs.csv", rows)


def check_probes(checkout: pathlib.Path, said: list[str]) -> None:
    found = scores(checkout / "runs" / "scores" / "scores.csv", "oa")
    assert {task for task, _, _ in found} == {"knn", "probe"}
    for task in ("knn", "probe"):
        alone = [found[task, "Fus-MAE", sensor] for sensor in ("s1", "s2")]
        assert max(alone) < 0.9 < found[task, "Fus-MAE", "both"]
    by_folders, in_table = (
        json.loads((checkout / "data" / name / "card.json").read_text())["splits"]
        for name in ("labelled", "from_table")
    )
    for split, facts in by_folders.items():
        assert facts["classes"] == in_table[split]["classes"]


def check_method(checkout: pathlib.Path, said: list[str]) -> None:
    whole, resumed = (
        dict(re.findall(r"step (\d+)/21, loss ([\d.]+)", part))
        for part in said[0].split("Resuming from step 14.")
    )
    assert list(whole) == ["7", "14", "21"]
    assert float(whole["21"]) < 0.8 * float(whole["7"])
    assert resumed == {"21": whole["21"]}
    found = scores(checkout / "runs" / "probe_sample" / "scores.csv", "map_micro")
    assert ("probe", "Barlow Twins", "s1") in found


@pytest.mark.journey
@pytest.mark.parametrize(
    "page, prepare, check",
    [
        ("quickstart.md", nothing, check_quickstart),
        ("walkthrough.md", write_scenes, check_maps),
        ("probing.md", write_labelled, check_probes),
        ("new_method.md", nothing, check_method),
    ],
)
def test_a_page_does_what_it_says(page, prepare, check, tmp_path):
    prepare(tmp_path)
    check(tmp_path, follow(page, tmp_path))


NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def test_the_notebook_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.journey
@pytest.mark.filterwarnings("default")  # those of Jupyter's packages
def test_the_notebook_runs_as_it_is(tmp_path, monkeypatch):
    for package in ("ipykernel", "nbclient", "nbformat"):
        pytest.importorskip(package, reason=f"{package} comes with the extra test")
    import nbclient
    import nbformat

    check_out(tmp_path)  # so that the first cell need not
    for name, value in surroundings(tmp_path).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    said = "".join(output.get("text", "") for output in outputs)
    pictures = [x for x in outputs if "image/png" in x.get("data", {})]
    assert "git clone" not in said and "fatal" not in said
    assert "Error on hidden patches of 5 held-out pairs" in said
    assert "(17, 96) (17, 15, 15, 96)" in said
    assert len(pictures) == 2
