"""SEN12MS: triplets of Sentinel-1, Sentinel-2 and MODIS land cover, all at 10 m.

One file is one image of 256 px with all its bands, in a folder for each sensor and
scene: ROIs1158_spring/s2_1/ROIs1158_spring_s2_1_p30.tif. The land cover has 500 m
cells, resampled: as pixel labels it is coarse and in part wrong, as its authors say.
"""

import dataclasses
import os
import re

import numpy as np

from data_pipeline import classes, layout, sensors
from data_pipeline.archives import base, rasters
from data_pipeline.archives.base import Pair, Skipped
from data_pipeline.dataset_card import Description
from data_pipeline.download import Download
from data_pipeline.errors import InputError

SIZE = 256
LAND_COVER_LAYERS = 4  # the first has IGBP classes, the others further schemes
SHARE = 0.1  # of the pixels, which a class must cover to be a label of the pair

# SEN12MS_holdOutScenes.txt of the archive's toolbox: a tenth of all, kept for testing.
HOLD_OUT_SCENES = {
    "ROIs1158_spring": (15, 17, 63, 97, 124, 146),
    "ROIs1868_summer": (15, 19, 43, 72, 79, 104, 131),
    "ROIs1970_fall": (30, 35, 39, 47, 61, 120, 141, 144),
    "ROIs2017_winter": (32, 64, 107, 135, 146),
}

LICENCE = """\
The data in this folder is licensed under Creative Commons Attribution 4.0
International (CC BY 4.0): https://creativecommons.org/licenses/by/4.0/

It comes from SEN12MS:

    M. Schmitt, L. H. Hughes, C. Qiu, X. X. Zhu, "SEN12MS - A Curated Dataset of
    Georeferenced Multi-Spectral Sentinel-1/2 Imagery for Deep Learning and Data
    Fusion", ISPRS Annals IV-2/W7, 2019.
    M. Schmitt, Y.-L. Wu, "Remote Sensing Image Classification with the SEN12MS
    Dataset", ISPRS Annals V-2-2021, 2021.

It contains modified Copernicus Sentinel data 2016-2017.

What was changed: the pixels were encoded anew, as ArrayRecord files; Sentinel-1
backscatter was rounded to 16-bit floating point; the labels were derived from the IGBP
layer of the land cover."""

_TOOLBOX = "SEN12MS training split, after github.com/schmitt-muc/SEN12MS"

_S1 = sensors.S1.with_statistics(
    mean={"VV": -11.76858, "VH": -18.294598},
    std={"VV": 4.525339, "VH": 4.3586307},
    source=f"{_TOOLBOX}; there computed from dB clipped to [-25, 0]",
)

_S2 = sensors.S2_L1C.with_statistics(
    mean={
        **{band.name: band.mean for band in sensors.S2_L1C.bands},
        **{"B02": 1226.4215, "B03": 1137.3799, "B04": 1139.6792, "B05": 1350.9973},
        **{"B06": 1932.9058, "B07": 2211.1584, "B08": 2154.9846, "B8A": 2409.1128},
        **{"B11": 2001.8622, "B12": 1356.0801},
    },
    std={
        **{band.name: band.std for band in sensors.S2_L1C.bands},
        **{"B02": 741.6254, "B03": 740.883, "B04": 960.1045, "B05": 946.76056},
        **{"B06": 985.52747, "B07": 1082.4341, "B08": 1057.7628, "B8A": 1136.1942},
        **{"B11": 1132.7898, "B12": 991.48016},
    },
    source=f"{_TOOLBOX}; it has none of B01, B09, B10: {sensors.S2_L1C.source}",
)

_CONTRACT = {"s1": _S1, "s2": _S2}

DESCRIPTION = Description(
    name="sen12ms",
    title=(
        "SEN12MS: pairs of Sentinel-1 and Sentinel-2 (L1C) patches from all over the "
        "world, 2016-2017, with MODIS land cover."
    ),
    source="https://mediatum.ub.tum.de/1474000",
    licence=LICENCE,
    layout=layout.resampled(SIZE, _CONTRACT),
    sensors=_CONTRACT,
    classes={"labels": classes.IGBP_10, "main_label": classes.IGBP_10},
    maps={"land_cover": classes.IGBP_10, "land_cover_17": classes.IGBP_17},
)

# Addresses and md5 are those of TorchGeo's `datasets/sen12ms.py`.
DOWNLOADS = tuple(
    Download(
        part={"s1": "S1", "s2": "S2", "lc": "maps"}[name[-2:]],
        url=f"ftp://m1474000:m1474000@dataserv.ub.tum.de/{name}.tar.gz",
        checksum=f"md5:{md5}",
        unpack="tar -xzf {folder}/{file} -C {folder}",
    )
    for name, md5 in {
        "ROIs1158_spring_lc": "6e2e8fa8b8cba77ddab49fd20ff5c37b",
        "ROIs1158_spring_s1": "fba019bb27a08c1db96b31f718c34d79",
        "ROIs1158_spring_s2": "d58af2c15a16f376eb3308dc9b685af2",
        "ROIs1868_summer_lc": "2c5bd80244440b6f9d54957c6b1f23d4",
        "ROIs1868_summer_s1": "01044b7f58d33570c6b57fec28a3d449",
        "ROIs1868_summer_s2": "4dbaf72ecb704a4794036fe691427ff3",
        "ROIs1970_fall_lc": "9b126a68b0e3af260071b3139cb57cee",
        "ROIs1970_fall_s1": "19132e0aab9d4d6862fd42e8e6760847",
        "ROIs1970_fall_s2": "b8f117818878da86b5f5e06400eb1866",
        "ROIs2017_winter_lc": "0fa0420ef7bcfe4387c7e6fe226dc728",
        "ROIs2017_winter_s1": "bb8cbfc16b95a4f054a3d5380e0130ed",
        "ROIs2017_winter_s2": "3807545661288dcca312c9c538537b63",
    }.items()
)

_SCENE = re.compile(r"(?:s1|s2|lc)_\d+")
_DEPTH = 4  # of folders in the source, down to the scenes
_FILE = re.compile(r"(ROIs\d{4}_[a-z]+)_(s1|s2|lc)_(\d+)_(p\d+)\.tif")

# From IGBP's numbers, 1 to 17, to indices in both nomenclatures; 0 is no class.
_TO_17 = np.array([classes.NO_CLASS, *range(17)], np.uint8)
_TO_10 = np.array([classes.NO_CLASS, *classes.IGBP_17_TO_10.values()], np.uint8)


def open_archive(config) -> "Sen12MS":
    """The archive that a `prepare` config describes."""
    return Sen12MS(config.source)


@dataclasses.dataclass(frozen=True)
class Sen12MS(base.Archive):
    """The archive, unpacked below one folder.

    Attributes:
        root: that folder.
    """

    root: str
    description = DESCRIPTION

    def find_pairs(self) -> tuple[list[Pair], list[Skipped]]:
        """Matches the files of the three sensors by their names.

        Returns:
            Pairs in the order of their names, those of the hold-out scenes
            in the split "test", and the triplets that are not complete.

        Raises:
            InputError: the archive is not there.
        """
        found, skipped = self._files()
        pairs = []
        for (season, scene, patch), paths in sorted(found.items()):
            images = {
                sensor: f"{season}_{sensor}_{scene}_{patch}"
                for sensor in self.description.sensors
            }
            missing = [kind for kind in ("s1", "s2", "lc") if kind not in paths]
            if missing:
                reason = f"there is no {' and no '.join(missing)} image of this patch"
                skipped.append(Skipped(images, reason))
                continue
            test = int(scene) in HOLD_OUT_SCENES.get(season, ())
            where = (paths["s1"], paths["s2"], paths["lc"])
            split = "test" if test else "train"
            pairs.append(Pair(images, f"{season}_{scene}", split, where))
        return sorted(pairs), skipped

    def read_pair(self, pair: Pair) -> dict:
        """Reads a pair as the fields of a record.

        Raises:
            InputError: a file is missing or damaged, or its content cannot be true.
        """
        s1, s2, land_cover = pair.where
        igbp = _land_cover(land_cover)
        return {
            **_pixels("s1", s1),
            **_pixels("s2", s2),
            **labels(igbp),
            "land_cover": _TO_10[igbp],
            "land_cover_17": _TO_17[igbp],
            "id": pair.name,
            "id_s1": pair.images["s1"],
            "place": pair.name.replace("_s2_", "_"),
            "tile": pair.tile,
            "acquired_s1": "",  # the archive does not say
            "acquired_s2": "",
        }

    def _files(self) -> tuple[dict[tuple, dict[str, str]], list[Skipped]]:
        """Paths by sensor of each (season, scene, patch), and files to leave out."""
        found, skipped = {}, []
        for folder in _scene_folders(self.root):
            for name in sorted(os.listdir(folder)):
                parts = _FILE.fullmatch(name)
                if not parts:
                    if name.endswith(".tif"):
                        reason = f"{folder} holds it, but SEN12MS names no file so"
                        skipped.append(Skipped({"s2": name}, reason))
                    continue
                season, kind, scene, patch = parts.groups()
                paths = found.setdefault((season, scene, patch), {})
                if kind in paths:
                    reason = f"{folder} holds it once more than {paths[kind]}"
                    skipped.append(Skipped({"s2": name}, reason))
                else:
                    paths[kind] = os.path.join(folder, name)
        return found, skipped


def labels(igbp: np.ndarray) -> dict[str, list[int]]:
    """The labels of a patch, as the archive's toolbox derives them.

    Args:
        igbp: IGBP class of every pixel, 1 to 17, or 0 where there is none.

    Returns:
        Indices in classes.IGBP_10: "labels" that cover a tenth or more of the patch,
        and "main_label", the one that covers most of it, the first of equals.
    """
    counts = np.bincount(_TO_10[igbp].ravel(), minlength=len(classes.IGBP_10))
    counts = counts[: len(classes.IGBP_10)]
    return {
        "labels": np.flatnonzero(counts >= SHARE * igbp.size).tolist(),
        "main_label": [int(counts.argmax())] if counts.any() else [],
    }


def _scene_folders(root: str) -> list[str]:
    """Folders of one sensor and scene, in seasons or deeper, as archives unpack."""
    folders, level = [], [root]
    for _ in range(_DEPTH):
        inside = [entry for path in level for entry in base.folders(path)]
        folders += [entry.path for entry in inside if _SCENE.fullmatch(entry.name)]
        level = [entry.path for entry in inside if not _SCENE.fullmatch(entry.name)]
    if not folders:
        raise InputError(
            f"{root} has no folders like ROIs1158_spring/s2_1; pass as "
            "source=DIR the folder into which SEN12MS was unpacked."
        )
    return folders


def _pixels(sensor: str, path: str) -> dict:
    names = _CONTRACT[sensor].band_names  # also the order in the file
    stored = dict(zip(names, _read(path, len(names))))
    return base.pixels(DESCRIPTION, sensor, stored.__getitem__, path)


def _land_cover(path: str) -> np.ndarray:
    """IGBP classes [H, W], 1 to 17, and 0 where the archive has none."""
    layer = _read(path, LAND_COVER_LAYERS)[0]
    if layer.shape != (SIZE, SIZE):
        raise InputError(
            f"{path} is {layer.shape[0]} x {layer.shape[1]} px, where this archive has "
            f"{SIZE} x {SIZE}; unpack it again."
        )
    known = (layer >= 1) & (layer <= len(classes.IGBP_17))
    return np.where(known, layer, 0).astype(np.uint8)


def _read(path: str, count: int) -> np.ndarray:
    """The `count` bands of a file, [count, H, W]."""
    stored = rasters.read(path).pixels
    if len(stored) != count:
        raise InputError(
            f"{path} has {len(stored)} bands, where SEN12MS has {count}; unpack it "
            "again."
        )
    return stored
