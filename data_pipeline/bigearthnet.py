"""BigEarthNet v1: folders of GeoTIFF bands, paired over the two archives.

One folder is one patch of 1.2 km: twelve Sentinel-2 bands, or Sentinel-1 VV and VH,
and a json of labels. The Sentinel-1 json names the Sentinel-2 patch it belongs to.
"""

import dataclasses
import json
import os
import re
from typing import NamedTuple

import numpy as np
import tqdm

from data_pipeline import geotiff
from data_pipeline import sensors
from data_pipeline.errors import InputError

NAME = "bigearthnet_v1"
DESCRIPTION = (
    "BigEarthNet v1 (BigEarthNet-MM): pairs of Sentinel-1 and Sentinel-2 patches over "
    "Europe, 2017-2018, with CORINE land cover labels."
)
SIZE = 120  # side of a patch in pixels at 10 m

# The archives' own folder first, then the name many copies give it.
S2_FOLDERS = ("BigEarthNet-v1.0", "BigEarthNet-S2")
S1_FOLDERS = ("BigEarthNet-S1-v1.0", "BigEarthNet-S1")

CLASSES_19 = (
    "Urban fabric",
    "Industrial or commercial units",
    "Arable land",
    "Permanent crops",
    "Pastures",
    "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural "
    "vegetation",
    "Agro-forestry areas",
    "Broad-leaved forest",
    "Coniferous forest",
    "Mixed forest",
    "Natural grassland and sparsely vegetated areas",
    "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland, shrub",
    "Beaches, dunes, sands",
    "Inland wetlands",
    "Coastal wetlands",
    "Inland waters",
    "Marine waters",
)

# CORINE level-3 classes in the order of their codes, each with its place in
# CLASSES_19; None where the 19-class nomenclature drops the class.
CLASSES_43_TO_19 = {
    "Continuous urban fabric": 0,
    "Discontinuous urban fabric": 0,
    "Industrial or commercial units": 1,
    "Road and rail networks and associated land": None,
    "Port areas": None,
    "Airports": None,
    "Mineral extraction sites": None,
    "Dump sites": None,
    "Construction sites": None,
    "Green urban areas": None,
    "Sport and leisure facilities": None,
    "Non-irrigated arable land": 2,
    "Permanently irrigated land": 2,
    "Rice fields": 2,
    "Vineyards": 3,
    "Fruit trees and berry plantations": 3,
    "Olive groves": 3,
    "Pastures": 4,
    "Annual crops associated with permanent crops": 3,
    "Complex cultivation patterns": 5,
    "Land principally occupied by agriculture, with significant areas of natural "
    "vegetation": 6,
    "Agro-forestry areas": 7,
    "Broad-leaved forest": 8,
    "Coniferous forest": 9,
    "Mixed forest": 10,
    "Natural grassland": 11,
    "Moors and heathland": 12,
    "Sclerophyllous vegetation": 12,
    "Transitional woodland/shrub": 13,
    "Beaches, dunes, sands": 14,
    "Bare rock": None,
    "Sparsely vegetated areas": 11,
    "Burnt areas": None,
    "Inland marshes": 15,
    "Peatbogs": 15,
    "Salt marshes": 16,
    "Salines": 16,
    "Intertidal flats": None,
    "Water courses": 17,
    "Water bodies": 17,
    "Coastal lagoons": 18,
    "Estuaries": 18,
    "Sea and ocean": 18,
}
CLASSES_43 = tuple(CLASSES_43_TO_19)
CLASSES = {"labels": CLASSES_19, "labels_43": CLASSES_43}

_S1_NAME = re.compile(r"S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}_(\d{2}[A-Z]{3})_\d+_\d+")
# Part of the Sentinel-2 names lack the leading zero of the hour.
_TIME = re.compile(r"_(\d{4})(\d\d)(\d\d)T(\d{1,2})(\d\d)(\d\d)_")


@dataclasses.dataclass(frozen=True, order=True)
class Pair:
    """The two folders of one place.

    Attributes:
        s2_folder: path of the Sentinel-2 patch.
        s1_folder: path of the Sentinel-1 patch.
    """

    s2_folder: str
    s1_folder: str

    @property
    def s2_name(self) -> str:
        return os.path.basename(self.s2_folder)

    @property
    def s1_name(self) -> str:
        return os.path.basename(self.s1_folder)

    @property
    def tile(self) -> str:
        """Tile of the Military Grid Reference System (MGRS), e.g. "35VPK"."""
        return _S1_NAME.fullmatch(self.s1_name)[1]


class Skipped(NamedTuple):
    """A patch or pair that is left out, and why; a name that is unknown is ""."""

    s2_name: str
    s1_name: str
    reason: str


def find_pairs(root: str) -> tuple[list[Pair], list[Skipped]]:
    """Matches the patches of both archives below `root`.

    Returns:
        Pairs in the order of their Sentinel-2 names, and the patches without partner.

    Raises:
        InputError: an archive is not there.
    """
    s2_root, s1_root = _archive(root, S2_FOLDERS), _archive(root, S1_FOLDERS)
    s2_names, s1_names = _folders(s2_root), _folders(s1_root)
    pairs, skipped = {}, []
    for s1_name in tqdm.tqdm(s1_names, desc="matching", unit="pair", leave=False):
        folder = os.path.join(s1_root, s1_name)
        s2_name, reason = "", ""
        try:
            s2_name = _metadata(folder).get("corresponding_s2_patch", "")
        except InputError as error:
            reason = str(error)
        if not reason and not _S1_NAME.fullmatch(s1_name):
            reason = "the folder is not named like a Sentinel-1 patch"
        elif not reason and s2_name not in s2_names:
            reason = f"its corresponding_s2_patch {s2_name!r} is not in {s2_root}"
        elif s2_name in pairs:
            reason = f"{pairs[s2_name].s1_name} belongs to the same Sentinel-2 patch"
        if reason:
            skipped.append(Skipped(s2_name, s1_name, reason))
        else:
            pairs[s2_name] = Pair(os.path.join(s2_root, s2_name), folder)
    named = pairs.keys() | {skip.s2_name for skip in skipped}
    skipped += [
        Skipped(s2_name, "", f"no patch in {s1_root} names it")
        for s2_name in s2_names
        if s2_name not in named
    ]
    return sorted(pairs.values()), skipped


def read_pair(pair: Pair) -> dict:
    """Reads a pair as the fields of a record, pixels in native resolution and units.

    Raises:
        InputError: a file is missing or damaged, or its content cannot be true.
    """
    s1, s2 = _metadata(pair.s1_folder), _metadata(pair.s2_folder)
    labels_43 = _labels(pair, s1, s2)
    targets = {CLASSES_43_TO_19[CLASSES_43[index]] for index in labels_43} - {None}
    return {
        **_pixels(sensors.S1, pair.s1_folder, stored="float32"),
        **_pixels(sensors.S2, pair.s2_folder, stored="uint16"),
        "labels": sorted(targets),
        "labels_43": labels_43,
        "id": pair.s2_name,
        "id_s1": pair.s1_name,
        "tile": pair.tile,
        "acquired_s1": _acquired(s1.get("acquisition_time"), pair.s1_name),
        "acquired_s2": _acquired(s2.get("acquisition_date"), pair.s2_name),
    }


def _archive(root: str, names: tuple[str, ...]) -> str:
    for name in names:
        if os.path.isdir(os.path.join(root, name)):
            return os.path.join(root, name)
    raise InputError(
        f"{root} has no folder {' or '.join(names)}; pass with --config.source=DIR the "
        "folder into which both BigEarthNet v1 archives were unpacked."
    )


def _folders(root: str) -> dict[str, None]:
    """Names of the folders in `root`, sorted, with quick membership."""
    with os.scandir(root) as entries:
        return dict.fromkeys(sorted(entry.name for entry in entries if entry.is_dir()))


def _metadata(folder: str) -> dict:
    path = os.path.join(folder, os.path.basename(folder) + "_labels_metadata.json")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); unpack it again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a json object; unpack it again.")
    return content


def _labels(pair: Pair, s1: dict, s2: dict) -> list[int]:
    """Indices in CLASSES_43, ascending."""
    names = s2.get("labels", [])
    if not names or set(names) != set(s1.get("labels", [])):
        raise InputError(
            f"{pair.s2_name} is labelled {names} and {pair.s1_name} "
            f"{s1.get('labels', [])}; both must have the same labels, at least one."
        )
    unknown = sorted(set(names) - CLASSES_43_TO_19.keys())
    if unknown:
        raise InputError(
            f"{pair.s2_name} has the labels {unknown}, which are not among the "
            f"{len(CLASSES_43)} classes of BigEarthNet v1; correct its json."
        )
    return sorted(CLASSES_43.index(name) for name in set(names))


def _pixels(sensor: sensors.Sensor, folder: str, *, stored: str) -> dict:
    """Fields of one sensor, each [H, W, C] of `sensor.dtype`."""
    pixels = {}
    for grid in sensor.grids:
        side = SIZE * sensors.FINEST_GSD // grid.gsd
        images = [_band(sensor, folder, b, (side, side), stored) for b in grid.bands]
        pixels[grid.field] = np.stack(images, axis=-1).astype(sensor.dtype)
    return pixels


def _band(sensor, folder, band, shape, stored) -> np.ndarray:
    """Pixels [H, W] of one file, as they are stored."""
    path = os.path.join(folder, f"{os.path.basename(folder)}_{band}.tif")
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); unpack it again.") from None
    image = geotiff.read(data, path)
    if image.shape != shape or image.dtype != stored:
        raise InputError(
            f"{path} is {image.dtype} {image.shape}, where BigEarthNet v1 has {stored} "
            f"{shape}; unpack it again."
        )
    low, high = sensor.valid_range
    if not (low <= image.min() and image.max() <= high):  # also false for NaN
        raise InputError(
            f"{path} holds values from {image.min()} to {image.max()}, where "
            f"{sensor.title} in {sensor.unit} stays within {low:g} and {high:g}; "
            "unpack it again or leave the pair out."
        )
    return image


def _acquired(metadata: str | None, name: str) -> str:
    """Acquisition time in ISO 8601, from the json or else from the patch's name.

    A name may count 61 seconds or more, and is then no time: "".
    """
    if metadata:
        return metadata.replace(" ", "T")
    found = _TIME.search(name)
    if not found or int(found[6]) > 59:
        return ""
    year, month, day, hour, minute, second = found.groups()
    return f"{year}-{month}-{day}T{int(hour):02d}:{minute}:{second}"
