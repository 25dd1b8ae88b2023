"""An archive without files, for tests of what happens around archives."""

import dataclasses

import numpy as np

from configs import prepare_bigearthnet
from data_pipeline import synthetic
from data_pipeline.archives import base
from data_pipeline.archives.base import Pair, Skipped
from data_pipeline.dataset_card import Description
from data_pipeline.errors import InputError

SIZE = 24
SCENES = synthetic.Scenes(1, size=SIZE)
DESCRIPTION = dataclasses.replace(SCENES.description, name="fake")


def pair(s2: str, s1: str, *args, **fields) -> Pair:
    """A pair by the names of its images."""
    return Pair({"s2": s2, "s1": s1}, *args, **fields)


def skip(s2: str, s1: str, *args, **fields) -> Skipped:
    """What is left out, by the names of its images, "" where there is none."""
    return Skipped({"s2": s2, "s1": s1}, *args, **fields)


@dataclasses.dataclass(frozen=True)
class Archive(base.Archive):
    """Synthetic pairs, some of them bad.

    Attributes:
        count: how many.
        bad: the numbers of those that cannot be read.
    """

    count: int = 6
    bad: tuple[int, ...] = ()
    description: Description = DESCRIPTION

    def find_pairs(self) -> tuple[list[Pair], list[Skipped]]:
        where = [((i, i not in self.bad),) for i in range(self.count)]
        return [
            pair(f"fake-{i}", f"radar-{i}", f"T{i % 3}", where=where[i])
            for i in range(self.count)
        ], []

    def read_pair(self, pair: Pair) -> dict:
        ((number, good),) = pair.where
        if not good:
            raise InputError(f"pair {number} is bad on purpose")
        scene = synthetic.Scenes(self.count, size=SIZE)[number]
        return scene | {
            "labels": np.flatnonzero(scene["labels"]).tolist(),
            "id": pair.name,
            "id_s1": pair.images["s1"],
            "place": pair.name,
            "tile": pair.tile,
            "acquired_s1": "",
            "acquired_s2": "",
        }


def config(tmp_path, **fields):
    """A `prepare` config for `Archive`, built in this process."""
    made = prepare_bigearthnet.get_config()
    made.source, made.out = str(tmp_path / "source"), str(tmp_path)
    made.workers = 0
    made.update(fields)
    return made
