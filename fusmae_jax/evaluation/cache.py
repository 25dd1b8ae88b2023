"""Features that are taken once and kept on disk.

The cache holds parts of a few thousand pairs, written whole, so that an interrupted
extraction goes on where it stopped. Its name is a checksum of everything that decides
a feature: parameters, data, bands and their statistics, view, pooling.
"""

import hashlib
import io
import json
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipeline import atomic, safe_io
from data_pipeline.errors import InputError
from fusmae_jax.evaluation import progress
from fusmae_jax.evaluation.features import Extractor, take

PART = 4096  # pairs in a file


def extract(
    extractor: Extractor, source, *, folder, batch_size: int, title: str
) -> dict[str, np.ndarray]:
    """Features of all pairs of a source, {sensor set: [N, D]} float32.

    Args:
        extractor: what takes them.
        source: random-access pairs.
        folder: where they are kept, under their key.
        batch_size: pairs of a global batch.
        title: what the progress bar says.

    Raises:
        InputError: the cache cannot be written.
    """
    key = json.dumps(extractor.key(source), sort_keys=True, default=list)
    name = hashlib.sha256(key.encode()).hexdigest()[:20]
    folder = pathlib.Path(folder) / name
    starts = range(0, len(source), PART)
    known = np.array([_part(folder, start).exists() for start in starts])
    if jax.process_count() > 1:  # hosts that differ would wait for each other for ever
        known = multihost_utils.broadcast_one_to_all(known)
    missing = [start for start, there in zip(starts, known) if not there]
    if missing:
        if jax.process_index() == 0:  # a folder that cannot be written shows itself now
            _write(folder / "key.json", key.encode())
        _fill(extractor, source, folder, missing, batch_size, title)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"features {name}")
    parts = [_read(folder, start) for start in starts]
    return {s: np.concatenate([p[s] for p in parts]) for s in extractor.sensor_sets}


def _part(folder: pathlib.Path, start: int) -> pathlib.Path:
    return folder / f"pairs-{start:08d}.npz"


def _read(folder: pathlib.Path, start: int) -> dict[str, np.ndarray]:
    path = _part(folder, start)
    try:
        return safe_io.read_arrays(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The cached features {path} cannot be read ({error}); delete that file, "
            "and they are taken again."
        ) from error


def _fill(extractor, source, folder, missing, batch_size: int, title: str) -> None:
    """Takes and writes the parts that begin at `missing`."""
    total = sum(min(PART, len(source) - start) for start in missing)
    with progress.Progress(f"Features: {title}", total, "pair") as bar:
        for start in missing:
            part = take(
                extractor,
                source,
                batch_size=batch_size,
                start=start,
                stop=min(start + PART, len(source)),
                bar=bar,
            )
            if jax.process_index() == 0:
                content = io.BytesIO()
                np.savez(content, **part)
                _write(_part(folder, start), content.getvalue())


def _write(path: pathlib.Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_whole(path, content)
    except OSError as error:
        raise InputError(
            f"Features cannot be kept in {path.parent} ({error.strerror}); name "
            "another folder as their cache."
        ) from error
