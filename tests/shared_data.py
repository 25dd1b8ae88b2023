"""Archives to test on: real ones where they are at hand, tiny false ones anywhere."""

import json
import os
import pathlib

import numpy as np
import pytest
import tifffile

from data_pipeline import sensors

LABELS = ["Mixed forest", "Water bodies"]
LABELS_19 = [10, 17]


def bigearthnet_v1() -> str:
    """The shared archive of 22 real pairs; skips the test where there is none."""
    return str(_shared("BigEarthNet-v1"))


def bigearthnet_v2() -> pathlib.Path:
    """The shared archive of 32 real pairs; skips the test where there is none."""
    return _shared("BigEarthNet-v2")


def _shared(name: str) -> pathlib.Path:
    default = pathlib.Path(__file__).parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("FUSMAE_SHARED_DATA", default)) / name
    if not folder.is_dir():
        pytest.skip(f"no real pairs in {folder}; set FUSMAE_SHARED_DATA")
    return folder


def write_pair(
    root: pathlib.Path,
    column: int,
    *,
    tile: str = "35VPK",
    labels=LABELS,
    s1_changes: dict | None = None,
    s2_changes: dict | None = None,
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes one false pair of correct form and returns its S2 and S1 folders."""
    rng = np.random.default_rng(column)
    s2 = root / "BigEarthNet-v1.0" / f"S2A_MSIL2A_20170701T93031_{column}_7"
    s1 = (
        root
        / "BigEarthNet-S1-v1.0"
        / (f"S1B_IW_GRDH_1SDV_20170629T153202_{tile}_{column}_7")
    )
    for folder in (s1, s2):
        folder.mkdir(parents=True)
    for band in sensors.S2.bands:
        side = 1200 // band.gsd
        write_band(s2, band.name, rng.integers(0, 9000, (side, side), np.uint16))
    for band in sensors.S1.bands:
        image = rng.normal(band.mean, 4, (120, 120)).astype(np.float32)
        write_band(s1, band.name, image)
    write_labels(s2, {"labels": labels} | (s2_changes or {}))
    content = {"labels": labels, "corresponding_s2_patch": s2.name}
    write_labels(s1, content | (s1_changes or {}))
    return s2, s1


def write_band(folder: pathlib.Path, band: str, image: np.ndarray, **options) -> None:
    """Writes a band as a TIFF in strips."""
    path = folder / f"{folder.name}_{band}.tif"
    tifffile.imwrite(path, image, **{"rowsperstrip": 16} | options)


def write_labels(folder: pathlib.Path, content: dict) -> None:
    """Writes the json of a patch."""
    path = folder / f"{folder.name}_labels_metadata.json"
    path.write_text(json.dumps(content))
