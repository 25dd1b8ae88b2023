"""The map of a scene, beside what one would write with the exported PyTorch module.

    python -m benchmarks.embed --folder=DIR [--side=2048] [--rounds=2] [--stride=2]

Writes, once, a procedural scene of 14 bands on one grid as two GeoTIFFs, and a run of
the quickstart's size with random parameters. Then `configs/embed.py` maps it, and in
turn a plain loop does: rasterio reads the same windows, `fusmae_torch.py` encodes as
many at a time, NumPy blends with the same weights, rasterio writes a COG as well. Each
is a process of its own, on all cores. Where our time goes comes next, and whether it
grows as the scene's area does, over sides from a quarter of --side on.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import pathlib
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import rasterio

from benchmarks import scenes as procedural
from configs import quickstart
from data_pipeline import sensors
from fusmae_jax.windows import Cover

PARTS = ("starting", "reading", "network", "writing", "rest")
RUN, EXPORT = "run", "export"
BATCH = 32  # windows at a time


class Took(NamedTuple):
    """What a map took.

    Attributes:
        seconds: on the clock.
        cpu: seconds of all cores together, which others' work changes less.
        parts: seconds on the clock, by part.
        memory: of the process, at most, in bytes.
    """

    seconds: float
    cpu: float
    parts: dict[str, float]
    memory: int


class Stopwatch:
    """Seconds by part; those of a part inside another do not count for that one."""

    def __init__(self):
        self.parts = collections.Counter()
        self.start, self.cpu = time.perf_counter(), time.process_time()
        self._inside, self._since = [], self.start

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        self._count()
        self._inside.append(part)
        try:
            yield
        finally:
            self._count()
            self._inside.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._inside:
            self.parts[self._inside[-1]] += now - self._since
        self._since = now

    def watch(self, owner, name: str, part: str) -> None:
        """Counts the calls of a function of a module or class from now on."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args, **kwargs):
            with self.of(part):
                return function(*args, **kwargs)

        setattr(owner, name, timed)

    def watch_items(self, owner, name: str, part: str) -> None:
        """Likewise of a generator: counts what it takes from item to item."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args, **kwargs):
            items = function(*args, **kwargs)
            while True:
                with self.of(part):
                    item = next(items, None)
                if item is None:
                    return
                yield item

        setattr(owner, name, timed)


def elsewhere(function: Callable, *args):
    """What a function returns in a new process, whose memory is its own."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *args).result()


def took(watch: Stopwatch) -> Took:
    """What a map took in this process, when it is done."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds, cpu = time.perf_counter() - watch.start, time.process_time() - watch.cpu
    return Took(seconds, cpu, dict(watch.parts), memory)


def write_scene(folder: pathlib.Path, side: int) -> None:
    """Writes `s1.tif` and `s2.tif`, each with all its bands at 10 m."""
    level = {"s1": -17, "s2": 100}
    scale = {"s1": 10, "s2": 6000}
    for s, dtype in (("s1", np.float32), ("s2", np.uint16)):
        bands = range(len(sensors.SENSORS[s].bands))
        image = [
            (procedural.fields(side, b) * scale[s] + level[s]).astype(dtype)
            for b in bands
        ]
        procedural.write(folder / f"{s}.tif", np.stack(image), 10.0)


def write_run(folder: pathlib.Path) -> None:
    """Writes a run of the quickstart's size, with random parameters, and exports it."""
    import jax

    from configs import export as export_config
    from fusmae_jax import build
    from fusmae_jax.export import export
    from fusmae_jax.training import (
        checkpoint,
        optim,
        pretrain,
        run_directory,
        sharding,
    )

    config = quickstart.get_config()
    run_directory.open_workdir(folder / RUN, config, build.contract(config), {})
    run_directory.remember_places(folder / RUN, np.empty((0, 2), np.uint64))
    mesh, rate = sharding.make_mesh(), optim.schedule(1e-3, 0, 10)
    objective = build.objective(config, **build.target(mesh))
    init, _, _ = pretrain.compile_step(config, objective, mesh, rate)
    directory = folder / RUN / "checkpoints"
    with checkpoint.Checkpoints(directory, every=1, keep=1) as saves:
        saves.save(1, jax.block_until_ready(init()))
    c = export_config.get_config()
    c.checkpoint, c.out = str(folder / RUN), str(folder / EXPORT)
    c.formats = ("safetensors", "torch")
    export.run(c, None)


def ours(folder: pathlib.Path, scene: pathlib.Path, stride: int, out) -> Took:
    """Maps a scene with `configs/embed.py`."""
    from configs import embed as embed_config
    from fusmae_jax import embed, maps, pretrained, scenes

    c = embed_config.get_config()
    c.checkpoint, c.out = str(folder / RUN), str(out)
    c.stride, c.batch_size, c.s2_offset = stride, BATCH, "0"
    for s, sensor in sensors.SENSORS.items():
        c[s], c[f"{s}_bands"] = str(scene / f"{s}.tif"), sensor.band_names
    watch = Stopwatch()
    watch.watch(pretrained, "load", "starting")
    watch.watch(scenes.Scene, "read", "reading")
    watch.watch_items(pretrained.Model, "windows", "network")
    watch.watch(maps.Rows, "add", "writing")
    watch.watch(embed, "_write_map", "writing")
    with watch.of("rest"):
        embed.run(c, None)
    return took(watch)


def plain(folder: pathlib.Path, scene: pathlib.Path, stride: int, out) -> Took:
    """Maps a scene with the exported module, as whoever has only that would."""
    import torch

    from fusmae_jax.export import torch_module

    torch.set_num_threads(os.cpu_count())
    watch = Stopwatch()
    with watch.of("starting"):
        model = torch_module.load(folder / EXPORT)
    p, side, size = model.patch_size, model.side, model.size
    hat = np.minimum(np.arange(side) + 1, side - np.arange(side)).astype(np.float32)
    hat = np.outer(hat, hat)[..., None]
    with rasterio.open(scene / "s1.tif") as s1, rasterio.open(scene / "s2.tif") as s2:
        height, width = s2.height // p, s2.width // p
        total = np.zeros((height, width, model.width), np.float32)
        weight = np.zeros((height, width, 1), np.float32)
        starts = [[*range(0, n - side, stride), n - side] for n in (height, width)]
        corners = [(row, column) for row in starts[0] for column in starts[1]]
        for first in range(0, len(corners), BATCH):
            batch = corners[first : first + BATCH]
            with watch.of("reading"):
                areas = [
                    rasterio.windows.Window(column * p, row * p, size, size)
                    for row, column in batch
                ]
                images = {
                    s: torch.from_numpy(
                        np.stack([f.read(window=area) for area in areas]).astype("f4")
                    )
                    for s, f in (("s1", s1), ("s2", s2))
                }
            with watch.of("network"), torch.inference_mode():
                dense = model(**images)["dense"].numpy()
            with watch.of("rest"):
                for (row, column), features in zip(batch, dense):
                    there = np.s_[row : row + side, column : column + side]
                    total[there] += hat * features
                    weight[there] += hat
        profile = {"crs": s2.crs, "transform": s2.transform @ rasterio.Affine.scale(p)}
    with watch.of("writing"):
        found = np.moveaxis(total / weight, -1, 0)
        shape = dict(zip(("count", "height", "width"), found.shape))
        profile |= {
            **shape,
            "dtype": "float32",
            "nodata": np.nan,
            "compress": "deflate",
        }
        with rasterio.open(out, "w", driver="COG", predictor="yes", **profile) as file:
            file.write(found)
    return took(watch)


def difference(one: pathlib.Path, other: pathlib.Path) -> float:
    """The greatest between two maps, as a part of the features' deviation."""
    with rasterio.open(one) as a, rasterio.open(other) as b:
        a, b = a.read(), b.read()
    return float(np.abs(a - b).max() / b.std(axis=(1, 2)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stride", type=int, default=2)
    options = parser.parse_args()
    folder, stride = options.folder, options.stride
    model = quickstart.get_config().model
    p, window = model.patch_size, model.image_size // model.patch_size
    sides = [options.side // n for n in (4, 2, 1)]
    counts = {n: len(Cover((n // p, n // p), window, stride).corners) for n in sides}
    area = {n: (n / 100) ** 2 for n in sides}  # km2
    for side in sides:
        if not (folder / str(side)).exists():
            elsewhere(write_scene, folder / str(side), side)
    if not (folder / EXPORT).exists():
        elsewhere(write_run, folder)
    out = folder / "maps"

    def take(function: Callable, side: int) -> Took:
        shutil.rmtree(out / function.__name__, ignore_errors=True)
        out.mkdir(exist_ok=True)
        scene = folder / str(side)
        return elsewhere(function, folder, scene, stride, out / function.__name__)

    side = options.side
    turns = []
    for number in range(options.rounds):
        turns.append((take(ours, side), take(plain, side)))
        mine, loop = turns[-1]
        print(
            f"Turn {number + 1}: {mine.seconds:.1f} s; the loop {loop.seconds:.1f} s, "
            f"{loop.seconds / mine.seconds:.2f} times as long, and "
            f"{loop.cpu / mine.cpu:.2f} times the CPU time.",
            flush=True,
        )
    print(
        f"\n{side} x {side} px of 14 bands, {area[side]:,.0f} km2, {counts[side]:,} "
        f"windows {stride} patches apart; the best of {len(turns)} turns each:\n\n"
        "| | s | CPU s | km2/s | windows/s | starting | reading | network | writing "
        "| rest | memory, GiB |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for name, runs in zip(("`configs/embed.py`", "a plain loop"), zip(*turns)):
        best = min(runs)
        shares = [f"{best.parts.get(part, 0) / best.seconds:.0%}" for part in PARTS]
        print(
            f"| {name} | {best.seconds:.1f} | {best.cpu:.1f} | "
            f"{area[side] / best.seconds:.2f} | {counts[side] / best.seconds:,.0f} | "
            f"{' | '.join(shares)} | {best.memory / 2**30:.2f} |"
        )
    far = elsewhere(difference, out / "ours" / "embeddings.tif", out / "plain")
    print(f"\nThe maps differ by at most {far:.1e} of the features' deviation.\n")
    print("| side, px | windows | s | CPU s | s/100 km2 | memory, GiB |")
    print("|---|---|---|---|---|---|")
    for side in sides:
        found = min(a for a, _ in turns) if side == options.side else take(ours, side)
        print(
            f"| {side:,} | {counts[side]:,} | {found.seconds:.1f} | "
            f"{found.cpu:.1f} | {100 * found.seconds / area[side]:.1f} | "
            f"{found.memory / 2**30:.2f} |"
        )


if __name__ == "__main__":
    main()
