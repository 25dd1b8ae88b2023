"""SSL4EO-S12 v1: four seasons of Sentinel-1 and Sentinel-2 at each location.

A location is a folder s1/0000200 and another s2a/0000200 (or s2c/0000200), each with
four product folders of single-band GeoTIFFs at their native resolution. Nothing says
which products belong together, but their dates do.
"""

import csv
import dataclasses
import datetime
import itertools
import os
import re
import string
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm

from data_pipeline import layout, offsets, sensors
from data_pipeline.archives import base, tiff
from data_pipeline.archives.base import Pair, Skipped
from data_pipeline.config_fields import choice, location
from data_pipeline.dataset_card import Description
from data_pipeline.download import Download
from data_pipeline.errors import InputError

SIZE = 264
SEASONS = 4
METADATA = "metadata.json"  # of a product

# Of the year, between the images of a pair: each may lie a month off its season's date,
# and the next season is 91 days later.
MOST_DAYS = 60
FOLDERS = {"L2A": "s2a", "L1C": "s2c"}
DTYPES = {"s1": "float32", "s2": "uint16"}
# What `config.read` may say.
SETTINGS = {
    "level": choice(
        *FOLDERS, meaning="Processing level of Sentinel-2: that of s2a/, or of s2c/."
    ),
    "s2_offset": base.S2_OFFSET,
    "void_ids": location(
        meaning="File void_ids.csv of SSL4EO-S12, of locations to leave out; empty for "
        "none."
    ),
}

LICENCE = """\
The data in this folder is licensed under Creative Commons Attribution 4.0
International (CC BY 4.0): https://creativecommons.org/licenses/by/4.0/

It comes from SSL4EO-S12:

    Y. Wang, N. A. A. Braham, Z. Xiong, C. Liu, C. M. Albrecht, X. X. Zhu, "SSL4EO-S12:
    A Large-Scale Multimodal, Multitemporal Dataset for Self-Supervised Learning in
    Earth Observation", IEEE Geoscience and Remote Sensing Magazine, 2023.

It contains modified Copernicus Sentinel data 2020-2021.

What was changed: the pixels were encoded anew, as ArrayRecord files; Sentinel-1
backscatter was rounded from 32-bit to 16-bit floating point; the seasons of a location
were paired by date."""

_SOURCE = "SSL4EO-S12, 50,000 locations, after github.com/zhu-xlab/SSL4EO-S12"

_S1 = sensors.S1.with_statistics(
    mean={"VV": -12.54847273, "VH": -20.19237134},
    std={"VV": 5.25697717, "VH": 5.91150917},
    source=_SOURCE,
)

_S2_L2A = sensors.S2.with_statistics(
    mean={
        **{"B01": 752.40087073, "B02": 884.29673756, "B03": 1144.16202635},
        **{"B04": 1297.47289228, "B05": 1624.90992062, "B06": 2194.6423161},
        **{"B07": 2422.21248945, "B08": 2517.76053101, "B8A": 2581.64687018},
        **{"B09": 2645.51888987, "B11": 2368.51236873, "B12": 1805.06846033},
    },
    std={
        **{"B01": 1108.02887453, "B02": 1155.15170768, "B03": 1183.6292542},
        **{"B04": 1368.11351514, "B05": 1370.265037, "B06": 1355.55390699},
        **{"B07": 1416.51487101, "B08": 1474.78900051, "B8A": 1439.3086061},
        **{"B09": 1582.28010962, "B11": 1455.52084939, "B12": 1343.48379601},
    },
    source=_SOURCE,
)


def describe(level: str) -> Description:
    """The dataset with Sentinel-2 of one processing level, "L2A" or "L1C"."""
    contract = {"s1": _S1, "s2": _S2_L2A if level == "L2A" else sensors.S2_L1C}
    return Description(
        name=f"ssl4eo_{level.lower()}",
        title=(
            f"SSL4EO-S12 v1: pairs of Sentinel-1 and Sentinel-2 ({level}) patches "
            "around cities of the world, in four seasons, without labels."
        ),
        source="https://mediatum.ub.tum.de/1660427",
        licence=LICENCE,
        layout=layout.native(SIZE, contract),
        sensors=contract,
    )


# The copy that the archive's first author keeps. The revision and the sha256 of the
# pieces of each tar, in order, are those of TorchGeo's `datasets/ssl4eo.py`.
_HOST = (
    "https://huggingface.co/datasets/wangyi111/SSL4EO-S12/resolve/"
    "3f5ddad68ba2ea29d019b0cef6cf292ff8af0d62"
)
_PARTS = {"s1_grd": "S1", "s2_l1c": "L1C", "s2_l2a": "L2A"}
_PIECES = {
    "s1_grd": (
        "c875a430ed19c48fa90ea2574785069eb939629beec372b42d8ba283aa26d5e6",
        "517fe7eaa8a93b74ab8ea2cd5a8f65fb2130986266c7a702bcdd312afce2b396",
        "0146dd447d6f89d6bfe88fec05155df586f0b10643a50a7d9cf22c37edd1c3a2",
        "02871cc0d33356ad3d06f8a496d7f06d10121caa0e9078f095491bb8649f9d0d",
        "c4694fbba061ad89d4bfd1de2069b2a5cd19de2922d81f5a6364178d23948b61",
        "c7ba827f7b35f8bd974ee626eca55358da55830d85a29ecbfaa6e4bf70811bae",
        "e37fac95aa0e78fe418e392652cecb5dfff72b98b0d6996fdf9c824da254bccb",
        "1824079dfe4f844b0f6672582e296b74f25ffd5ae8c46ed92b70b08b7d5eb0e6",
        "b246750cdffe2c77dcea624c01aa5e6b53db73e33ce58082af4ce1fef5fb5b98",
        "6d3253bb0b294c4cf14fe8e4f09505d370e32be20b0bb8de3a829ce004154535",
    ),
    "s2_l1c": (
        "1003dd0b4e11fdcca00855c3de23fa3209926c24074a36f40a07efeba377a9da",
        "96dd31b2d53e131daa73604013678e21dd2b29ff4865c73a24ada77001f77a7a",
        "23cb241e947de1da08bb9a53c6c9b088232bbf622c9aee2117e4b9bf8e93d83d",
        "e9502f21de324e6fc400c73af1a6486e1b75176c6511642763fb899537dada1e",
        "f47a7aaaeda7df30af9b892e54eb6c00941c706f82584c8c5b4481ee411e3e56",
        "207d2dc70378fc9c289b666fe1730821ec6dca0d2d6fb60d5325ba31b17de896",
        "060e01cc896e1ed3e426ff965ed6aba2538d065b398575968b0f1ae92f6ef8bc",
        "c32211630526dad919891d1a6aae82b7d82829f343f2176f04b37378b49d1f61",
        "a62a34fe0708885b4bd0dcc3d8e2a14c0c29737d94f744b41381d2a6618ff240",
        "a6206d4e40569b9e3b92eb4d5174193543980b6710b02f847d3629c50fd89d59",
        "5ae573daf729a0d32ad8d7998b78d91e4083289df1d4444feb4907b9091d9f03",
        "75ef65fdd931176ef82bc0d87dbd2c35202714499dfe7a3918bf48d01788538f",
    ),
    "s2_l2a": (
        "b124fe99809fa2eee663d683435399e8f8ffdbc7fc40c3e5cbe5b3e3d5f29752",
        "31b624e24e41192340f449b90b6fefac2a6ba91e640467df4e4bd5b7ae15c36f",
        "4a73229310e4f4cf61584353f1fc39ef715b08ce65e4bbd4033065391c26e262",
        "3a0dfd18476ee1dd0f1dcc77e91a8b82312a1b9f64e977bcf4577407f63375d4",
        "d5a7d1f8c07de315710aa528d1aed877093a379f4d035d22d823212cc22fb0ae",
        "15f2e4a365f517ea272a14905caef8da5214c93ebf166e94820a1a9ae8bfa0d7",
        "9f18d7544fcfa63ae1c3481cb452c8f00e298112bac7d08fe199433569963c1c",
        "c682a97d2fd420d6be214f0f3cf3d588940077d9fb7004d5b95d56e8c5532aa8",
        "a5dec0d93ac846c5c7f44a79b8d0ab5e2507a4543cb7acff78604fb7b6fe54d0",
        "ff8378e1f12a566f9ce440569f1aff5c373908f8fc32ca233ebd98e455bfd172",
        "e78649ee5de002b961c62fa02674ec6a4accbb67c69962754012af29a2d51dec",
        "b5b43650d5a5fa0dbd4ab5cc791920757b98ffb4d684c8a7bb000e70a44b071a",
    ),
}
# Bytes as the host's listing rounds them: of a piece, and of the last one of each tar.
_PIECE = 48_300_000_000
_LAST = {"s1_grd": 47_300_000_000, "s2_l1c": 26_000_000_000, "s2_l2a": 22_700_000_000}


def _downloads() -> Iterator[Download]:
    for tar, digests in _PIECES.items():
        for letter, digest in zip(string.ascii_lowercase, digests):
            yield Download(
                part=_PARTS[tar],
                url=f"{_HOST}/{tar}/{tar}.tar.gz.parta{letter}",
                checksum=f"sha256:{digest}",
                about=_LAST[tar] if digest == digests[-1] else _PIECE,
                needed=lambda c, part=_PARTS[tar]: part in ("S1", c.read.level),
                # Two letters, as notes of what is verified lie beside the pieces.
                unpack=f"cat {{folder}}/{tar}.tar.gz.part?? | tar -xzf - -C {{folder}}",
            )


DOWNLOADS = tuple(_downloads())

_DESCRIPTIONS = {level: describe(level) for level in FOLDERS}
_VOID = "is listed as void"
_LOCATION = re.compile(r"\d{7}")


def open_archive(config) -> "Ssl4eo":
    """The archive that a `prepare` config describes.

    Raises:
        InputError: the list of void ids cannot be read.
    """
    read = config.read
    void = _void_ids(read.void_ids)
    return Ssl4eo(config.source, read.level, void, read.s2_offset)


@dataclasses.dataclass(frozen=True)
class Ssl4eo(base.Archive):
    """The archive, unpacked below one folder.

    Attributes:
        root: that folder.
        level: of the Sentinel-2 products.
        void: numbers of locations to leave out.
        offset: of Sentinel-2, one of offsets.CHOICES.
    """

    root: str
    level: str
    void: frozenset[int] = frozenset()
    offset: str = "0"

    @property
    def description(self) -> Description:
        return _DESCRIPTIONS[self.level]

    def find_pairs(self) -> tuple[list[Pair], list[Skipped]]:
        """Matches the products of each location, one pair a season.

        Returns:
            Pairs in the order of their names, and what has no partner.

        Raises:
            InputError: the archive is not there.
        """
        roots = [self._folder(name) for name in ("s1", FOLDERS[self.level])]
        locations = sorted({e.name for root in roots for e in base.folders(root)})
        pairs, skipped = [], []
        for place in tqdm.tqdm(locations, desc="matching", unit="place", leave=False):
            where = tuple(os.path.join(root, place) for root in roots)
            s1, s2 = ([entry.name for entry in base.folders(path)] for path in where)
            reason = ""
            if not _LOCATION.fullmatch(place):
                reason = f"{place} is not named like a location, by seven digits"
            elif int(place) in self.void:
                reason = f"location {place} {_VOID}"
            elif max(len(s1), len(s2)) > SEASONS:
                reason = (
                    f"location {place} holds {len(s1)} Sentinel-1 and {len(s2)} "
                    f"Sentinel-2 products, where the archive has {SEASONS}"
                )
            matched = [] if reason else match_seasons(s1, s2)
            for first, second, days in matched:
                images = {"s2": f"{place}_{second}", "s1": first}
                if days <= MOST_DAYS:
                    pairs.append(Pair(images, place, where=where))
                else:
                    far = f"{days} days of the year lie between them, over {MOST_DAYS}"
                    skipped.append(Skipped(images, far))
            wanted = not reason.endswith(_VOID)
            skipped += _rest(place, s1, s2, matched, reason, wanted)
        return sorted(pairs), skipped

    def read_pair(self, pair: Pair) -> dict:
        """Reads a pair as the fields of a record.

        Raises:
            InputError: a file is missing or damaged, or its content cannot be true.
        """
        s1_name, s2_name = pair.images["s1"], pair.images["s2"]
        s1_folder, s2_folder = pair.where
        s1_folder = os.path.join(s1_folder, s1_name)
        s2_folder = os.path.join(s2_folder, s2_name.removeprefix(f"{pair.tile}_"))
        return {
            **self._pixels("s2", s2_folder, offset=self._offset(s2_folder)),
            **self._pixels("s1", s1_folder, offset=0),
            "id": s2_name,
            "id_s1": s1_name,
            "place": pair.tile,
            "tile": pair.tile,
            "acquired_s1": base.acquired(s1_name),
            "acquired_s2": base.acquired(s2_name),
        }

    def _folder(self, name: str) -> str:
        folder = os.path.join(self.root, name)
        if not os.path.isdir(folder):
            raise InputError(
                f"{self.root} has no folder {name}; pass as source=DIR the "
                "folder into which SSL4EO-S12 was unpacked, and the level that is "
                "there, read.level=L2A or L1C."
            )
        return folder

    def _offset(self, folder: str) -> int:
        """What the processing baseline added to each DN of a Sentinel-2 product."""
        if self.offset != "auto":
            return int(self.offset)
        path = os.path.join(folder, METADATA)
        text = base.read_file(path).decode(errors="replace")
        return offsets.chosen(self.offset, text, path, "PROCESSING_BASELINE")

    def _pixels(self, sensor: str, folder: str, *, offset: int) -> dict:
        """Fields of one sensor, without what its processing added to each DN."""

        def read(band: str) -> np.ndarray:
            path = os.path.join(folder, f"{short_name(band)}.tif")
            image = tiff.read_file(path)
            if image.dtype != DTYPES[sensor]:
                raise InputError(
                    f"{path} is of type {image.dtype}, where SSL4EO-S12 has "
                    f"{DTYPES[sensor]}; unpack it again."
                )
            return offsets.remove(image, offset) if offset else image

        return base.pixels(self.description, sensor, read, folder)


def short_name(band: str) -> str:
    """The archive's spelling of a band: B02 is B2."""
    return re.sub(r"^B0", "B", band)


def match_seasons(s1: Sequence[str], s2: Sequence[str]) -> list[tuple[str, str, int]]:
    """Pairs the products of one location, nearest in the year, whichever year it is.

    Args:
        s1: names of Sentinel-1 products.
        s2: names of Sentinel-2 products. Those whose name has no date are left out.

    Returns:
        As many pairs as there can be with their distances in days: as few as possible
        beyond MOST_DAYS, and then of the least sum.
    """
    s1, s2 = ([name for name in group if _day(name)] for group in (s1, s2))
    days = [_day(name) for name in s1], [_day(name) for name in s2]
    swap = len(s1) > len(s2)
    few, many = days[::-1] if swap else days

    def cost(chosen: tuple[int, ...]) -> tuple[int, int]:
        apart = [_distance(few[i], many[j]) for i, j in enumerate(chosen)]
        return sum(days > MOST_DAYS for days in apart), sum(apart)

    best = min(itertools.permutations(range(len(many)), len(few)), key=cost)
    pairs = [(j, i) if swap else (i, j) for i, j in enumerate(best)]
    return [(s1[i], s2[j], _distance(days[0][i], days[1][j])) for i, j in pairs]


def _day(name: str) -> int:
    """Day of the year, from 1, of a product; 0 where its name has no date."""
    found = re.search(r"(?:^|_)(\d{8})T\d{6}_", name)
    try:
        day = datetime.datetime.strptime(found[1], "%Y%m%d") if found else None
    except ValueError:  # no such day
        day = None
    return day.timetuple().tm_yday if day else 0


def _distance(day: int, other: int) -> int:
    apart = abs(day - other)
    return min(apart, 365 - apart)


def _rest(place: str, s1, s2, matched, reason: str, wanted) -> Iterator[Skipped]:
    """What of a location is in no pair, for `reason` or else because of its name."""
    used = {name for *pair, _ in matched for name in pair}
    for name in [*s1, *s2]:
        if name in used:
            continue
        other = "Sentinel-2" if name in s1 else "Sentinel-1"
        why = reason or f"location {place} has no {other} product left to pair it with"
        if not reason and not _day(name):
            why = f"the name of the product, in location {place}, tells no date"
        image = {"s1": name} if name in s1 else {"s2": f"{place}_{name}"}
        yield Skipped(image, why, wanted)


def _void_ids(path: str) -> frozenset[int]:
    if not path:
        return frozenset()
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return frozenset(int(row[0]) for row in csv.reader(file) if row)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path} cannot be read as one number a line ({error}); pass as "
            "read.void_ids=FILE the void_ids.csv of SSL4EO-S12, or nothing."
        ) from None
