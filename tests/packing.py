"""Tars of patches, compressed or not, and BigEarthNet v1 in them."""

import bz2
import gzip
import io
import pathlib
import tarfile

import pytest

from configs import prepare_bigearthnet
from data_pipeline.archives import bigearthnet_v1


def pack(folder: pathlib.Path, path: pathlib.Path, **options) -> pathlib.Path:
    """Packs a folder as the archives are, without entries for the folders."""
    with tarfile.open(path, "w", **options) as tar:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            tar.add(file, f"{folder.name}/{file.relative_to(folder)}")
    return path


def compress(path: pathlib.Path, suffix: str) -> pathlib.Path:
    data, packed = path.read_bytes(), path.with_name(path.name + suffix)
    if suffix == ".zst":
        zstandard = pytest.importorskip("zstandard", reason="pip install zstandard")
        packed.write_bytes(zstandard.ZstdCompressor(level=1).compress(data))
    else:
        module = {".gz": gzip, ".bz2": bz2}[suffix]
        packed.write_bytes(module.compress(data, 1))
    path.unlink()
    return packed


def write_tar(path: pathlib.Path, files: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def open_archive(source, tmp_path):
    config = prepare_bigearthnet.get_config()
    config.source, config.out = str(source), str(tmp_path / "out")
    return bigearthnet_v1.open_archive(config)


def records(archive) -> list[dict]:
    pairs, skipped = archive.find_pairs()
    assert pairs and not skipped
    return [archive.read_pair(pair) for pair in pairs]
