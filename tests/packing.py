"""Tars of patches, and BigEarthNet v1 in them."""

import io
import pathlib
import tarfile

from configs import prepare_bigearthnet
from data_pipeline.archives import bigearthnet_v1


def pack(folder: pathlib.Path, path: pathlib.Path, **options) -> pathlib.Path:
    """Packs a folder as the archives are, without entries for the folders."""
    with tarfile.open(path, "w", **options) as tar:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            tar.add(file, f"{folder.name}/{file.relative_to(folder)}")
    return path


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
