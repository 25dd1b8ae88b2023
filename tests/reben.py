"""False archives of BigEarthNet v2, as folders and as LMDB."""

import pathlib

import numpy as np
import pyarrow
import pytest
import tifffile
from pyarrow import parquet

from configs import prepare_bigearthnet_v2
from data_pipeline import sensors
from data_pipeline.archives import bigearthnet_v2
from tests import shared_data

WHY = "reading BigEarthNet v2 takes the extra 'archives'"
lmdb = pytest.importorskip("lmdb", reason=WHY)
pytest.importorskip("rasterio", reason=WHY)
safetensors = pytest.importorskip("safetensors.numpy", reason=WHY)

S2_TILE = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
S1_SCENE = "S1A_IW_GRDH_1SDV_20170613T165043"
LABELS = ["Marine waters", "Agro-forestry areas", "Urban fabric"]


def write_patches(root: pathlib.Path, patch: int) -> dict:
    """Writes the bands of one false pair and returns its row of the metadata."""
    rng = np.random.default_rng(patch)
    s2_name, s1_name = f"{S2_TILE}_{patch:02d}_07", f"{S1_SCENE}_33UUP_{patch}_7"
    s2 = root / "BigEarthNet-S2" / S2_TILE / s2_name
    s1 = root / "BigEarthNet-S1" / S1_SCENE / s1_name
    for folder in (s2, s1):
        folder.mkdir(parents=True)
    for band in sensors.S2.bands:
        image = rng.integers(1, 9000, (1200 // band.gsd,) * 2, np.uint16)
        shared_data.write_band(s2, band.name, image)
    for band in sensors.S1.bands:
        image = rng.normal(-15, 4, (120, 120)).astype(np.float32)
        shared_data.write_band(s1, band.name, image)
    return {
        "patch_id": s2_name,
        "labels": LABELS,
        "split": "validation",
        "s1_name": s1_name,
        "s2v1_name": f"S2A_MSIL2A_20170613T101031_{patch}_7",
        "contains_seasonal_snow": False,
        "contains_cloud_or_shadow": False,
    }


def write_map(root: pathlib.Path, patch_id: str, codes: np.ndarray) -> None:
    folder = root / "Reference_Maps" / patch_id.rsplit("_", 2)[0] / patch_id
    folder.mkdir(parents=True)
    path = folder / f"{patch_id}_reference_map.tif"
    tifffile.imwrite(path, codes, compression="deflate")


def write_metadata(folder, rows: list[dict], name=bigearthnet_v2.METADATA) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), pathlib.Path(folder, name))


def one(tmp_path: pathlib.Path) -> tuple[pathlib.Path, dict]:
    """An archive of one false pair, and its row."""
    row = write_patches(tmp_path / "archive", 1)
    write_metadata(tmp_path / "archive", [row])
    return tmp_path / "archive", row


def to_lmdb(archive: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Writes the GeoTIFFs of an archive as rico-hdl does."""
    values = {}
    for path in sorted(archive.rglob("*.tif")):
        key, _, band = path.stem.rpartition("_")
        if path.stem.endswith("_reference_map"):
            key, band = path.stem, "Data"
        values.setdefault(key, {})[band] = tifffile.imread(path)
    put(out, {key: safetensors.save(images) for key, images in values.items()})
    return out


def put(folder: pathlib.Path, values: dict[str, bytes]) -> None:
    with lmdb.open(str(folder), map_size=1 << 26) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key.encode(), value)


def open_archive(source, **read):
    config = prepare_bigearthnet_v2.get_config()
    config.source = str(source)
    config.read.update(read)
    return bigearthnet_v2.open_archive(config)


def read_one(source, **read) -> dict:
    archive = open_archive(source, **read)
    ((pair,), _) = archive.find_pairs()
    return archive.read_pair(pair)


def reasons(source, **read) -> list[str]:
    """Why each pair of the archive is skipped, given that none is left."""
    pairs, skipped = open_archive(source, **read).find_pairs()
    assert not pairs
    return [skip.reason for skip in skipped]


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for field, value in a.items():
        np.testing.assert_array_equal(b[field], value)
        assert getattr(b[field], "dtype", None) == getattr(value, "dtype", None)
