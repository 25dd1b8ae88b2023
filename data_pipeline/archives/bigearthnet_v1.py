"""BigEarthNet v1: folders of GeoTIFF bands, paired over the two archives.

One folder is one patch of 1.2 km: twelve Sentinel-2 bands, or Sentinel-1 VV and VH,
and a json of labels. The Sentinel-1 json names the Sentinel-2 patch it belongs to.
Either archive may be unpacked, or still be a tar.
"""

import dataclasses
import os
import re
from collections.abc import Callable

import numpy as np
import tqdm

from data_pipeline import classes, ground, layout, name_lists, safe_io, sensors
from data_pipeline.archives import base, tars, tiff
from data_pipeline.archives.base import Pair, Skipped
from data_pipeline.dataset_card import Description
from data_pipeline.download import Download
from data_pipeline.errors import InputError

# The folder or tar of each archive: its own name first, then those of many copies.
S2_NAMES = ("BigEarthNet-v1.0", "BigEarthNet-S2-v1.0", "BigEarthNet-S2")
S1_NAMES = ("BigEarthNet-S1-v1.0", "BigEarthNet-S1")

LICENCE = """\
The data in this folder is licensed under the Community Data License Agreement -
Permissive, Version 1.0 (CDLA-Permissive-1.0): https://cdla.dev/permissive-1-0/

It comes from BigEarthNet:

    G. Sumbul, M. Charfuelan, B. Demir, V. Markl, "BigEarthNet: A Large-Scale Benchmark
    Archive for Remote Sensing Image Understanding", IGARSS 2019.
    G. Sumbul, A. de Wall, T. Kreuziger, F. Marcelino, H. Costa, P. Benevides,
    M. Caetano, B. Demir, V. Markl, "BigEarthNet-MM: A Large-Scale, Multimodal,
    Multilabel Benchmark Archive for Remote Sensing Image Classification and
    Retrieval", IEEE Geoscience and Remote Sensing Magazine, 2021.

It contains modified Copernicus Sentinel data 2017-2018.

What was changed: the pixels and labels were encoded anew, as ArrayRecord files;
Sentinel-1 backscatter was rounded from 32-bit to 16-bit floating point; the 19 classes
were derived from the 43 labels."""

DESCRIPTION = Description(
    name="bigearthnet_v1",
    title=(
        "BigEarthNet v1 (BigEarthNet-MM): pairs of Sentinel-1 and Sentinel-2 patches "
        "over Europe, 2017-2018, with CORINE land cover labels."
    ),
    source="https://zenodo.org/records/12687186",
    licence=LICENCE,
    layout=layout.native(120, sensors.SENSORS),
    sensors=sensors.SENSORS,
    classes={
        "labels": classes.BIGEARTHNET_19,
        "labels_43": classes.BIGEARTHNET_43,
    },
)

_ZENODO = "https://zenodo.org/records/12687186/files"
_LISTS = (
    "https://git.tu-berlin.de/rsim/BigEarthNet-MM_19-classes_models/-/raw/"
    "9a5be07346ab0884b2d9517475c27ef9db9b5104/splits"
)
# The lists and their md5 are those of TorchGeo's `datasets/bigearthnet.py`, as is the
# md5 of both tars; the size of the second tar is that of TFDS's `checksums.tsv`.
DOWNLOADS = (
    *(
        Download(
            part="splits",
            url=f"{_LISTS}/{name}?inline=false",
            checksum=f"md5:{md5}",
            needed=lambda config: not config.splits,
            option="--config.splits={folder}",
        )
        for name, md5 in {
            "train.csv": "623e501b38ab7b12fe44f0083c00986d",
            "val.csv": "22efe8ed9cbd71fa10742ff7df2b7978",
            "test.csv": "697fb90677e30571b9ac7699b7e5b432",
        }.items()
    ),
    Download(
        part="S1",
        url=f"{_ZENODO}/BigEarthNet-S1-v1.0.tar.gz",
        checksum="md5:94ced73440dea8c7b9645ee738c5a172",
        tar=72 * 10**9,
    ),
    Download(
        part="S2",
        url=f"{_ZENODO}/BigEarthNet-S2-v1.0.tar.gz",
        checksum="md5:5a64e9ce38deb036a435a7b59494924c",
        size=70_032_164_579,
        tar=100 * 10**9,
    ),
)

_S1_NAME = re.compile(r"S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}_(\d{2}[A-Z]{3})_\d+_\d+")
_PARTNER = "corresponding_s2_patch"  # key of a Sentinel-1 json


def open_archive(config) -> "BigEarthNet":
    """The archive that a `prepare` config describes."""
    return BigEarthNet(config.source, tars.scratch_folder(config), config.splits)


@dataclasses.dataclass(frozen=True)
class BigEarthNet(base.Archive):
    """Both archives, below one folder.

    Attributes:
        root: that folder.
        scratch: folder for what `tars.index` keeps.
        lists: of pairs, for `name_lists.listed`, which spare the matching where they
            name both patches of every pair; "" where there are none.
    """

    root: str
    scratch: str
    lists: str = ""
    description = DESCRIPTION

    def find_pairs(self) -> tuple[list[Pair], list[Skipped]]:
        """Matches the patches of both archives.

        Returns:
            Pairs in the order of their names, and the patches without partner. Where
            lists spare the matching, a Sentinel-1 patch that they do not name is passed
            over: what it belongs to is not known.

        Raises:
            InputError: an archive is not there, or a list is bad.
        """
        s2_root, s2, _ = _patches(self.root, S2_NAMES, self.scratch)
        s1_root, s1, partners = _patches(self.root, S1_NAMES, self.scratch, _PARTNER)
        rows = name_lists.listed(self.lists, s2) if self.lists else {}
        told = {row.partners.get("s1"): name for name, row in rows.items()}
        complete = bool(rows) and None not in told
        partners = told | partners  # the archive itself knows better than a list
        pairs, skipped = {}, []
        for s1_name in tqdm.tqdm(sorted(s1), desc="matching", leave=False):
            if complete and s1_name not in partners:
                continue  # its json need not be read, which takes long for all of them
            s2_name, reason = partners.get(s1_name, ""), ""
            try:
                s2_name = s2_name or _partner(s1[s1_name], s1_name)
            except InputError as error:
                reason = str(error)
            if not reason and not _S1_NAME.fullmatch(s1_name):
                reason = "the folder is not named like a Sentinel-1 patch"
            elif not reason and s2_name not in s2:
                reason = f"its Sentinel-2 patch {s2_name!r} is not in {s2_root}"
            elif s2_name in pairs:
                first = pairs[s2_name].images["s1"]
                reason = f"{first} belongs to the same Sentinel-2 patch"
            images = {"s2": s2_name, "s1": s1_name}
            if reason:
                skipped.append(Skipped(images, reason))
            else:
                tile, where = _S1_NAME.fullmatch(s1_name)[1], (s2[s2_name], s1[s1_name])
                pairs[s2_name] = Pair(images, tile, where=where)
        matched = pairs.keys() | {skip.name for skip in skipped}
        reason = f"no patch in {s1_root} names it"
        if complete:
            reason = f"{self.lists} names no patch in {s1_root} for it"
        alone = [Skipped({"s2": s}, reason) for s in sorted(s2.keys() - matched)]
        return sorted(pairs.values()), skipped + alone

    def read_pair(self, pair: Pair) -> dict:
        """Reads a pair as the fields of a record.

        Raises:
            InputError: a file is missing or damaged, or its content cannot be true.
        """
        read_s2, read_s1 = map(tars.reader, pair.where)
        s2_name, s1_name = pair.images["s2"], pair.images["s1"]
        s2, s1 = _metadata(read_s2, s2_name), _metadata(read_s1, s1_name)
        if s1.get(_PARTNER) != s2_name:
            raise InputError(
                f"{s1_name} belongs to {s1.get(_PARTNER)} by its json, not to "
                f"{s2_name}; correct the list that pairs them."
            )
        labels_43 = _labels(pair, s1, s2)
        to_19 = classes.BIGEARTHNET_43_TO_19
        targets = {to_19[classes.BIGEARTHNET_43[i]] for i in labels_43} - {None}
        return {
            **_pixels("s1", read_s1, s1_name, stored="float32"),
            **_pixels("s2", read_s2, s2_name, stored="uint16"),
            "labels": sorted(targets),
            "labels_43": labels_43,
            "id": s2_name,
            "id_s1": s1_name,
            "place": ground.place(s2_name, s1_name),
            "tile": pair.tile,
            "acquired_s1": _acquired(s1.get("acquisition_time"), s1_name),
            "acquired_s2": _acquired(s2.get("acquisition_date"), s2_name),
        }

    def clean(self) -> None:
        """Removes from the scratch folder what the tars of this archive put there."""
        for archive_names in (S2_NAMES, S1_NAMES):
            path = _find(self.root, archive_names)
            if not os.path.isdir(path):
                tars.clean(path, self.scratch)


def _patches(
    root: str, archive_names: tuple[str, ...], scratch: str, noted: str = ""
) -> tuple[str, dict[str, str | tuple], dict[str, str]]:
    """The folder or tar of one archive, the place of each patch, and `noted` texts."""
    path = _find(root, archive_names)
    if os.path.isdir(path):
        return path, {entry.name: entry.path for entry in base.folders(path)}, {}
    return path, *tars.index(path, scratch, noted)


def _find(root: str, archive_names: tuple[str, ...]) -> str:
    """Path of the folder or tar of one archive."""
    paths = [os.path.join(root, name) for name in archive_names]
    for path in paths:
        if os.path.isdir(path):
            return path
    for path in filter(None, map(tars.find, paths)):
        return path
    raise InputError(
        f"{root} has neither a folder {' or '.join(archive_names)} nor a tar of that "
        "name; pass as source=DIR the folder with both BigEarthNet v1 "
        "archives."
    )


def _partner(where: str | tuple, s1_name: str) -> str:
    return _metadata(tars.reader(where), s1_name).get(_PARTNER, "")


def _metadata(read: Callable[[str], bytes], name: str) -> dict:
    """The json of a patch; its labels are a list of texts, and its texts are texts."""
    file = f"{name}_labels_metadata.json"
    data = read(file)
    try:
        content = safe_io.parse_json(data)
        texts = (_PARTNER, "acquisition_time", "acquisition_date")
        found = [content[key] for key in texts if key in content]
        sound = all(isinstance(text, str) for text in found + content["labels"])
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error!r}); unpack it again.") from None
    if not sound:
        raise InputError(f"{file} has numbers where texts belong; unpack it again.")
    return content


def _labels(pair: Pair, s1: dict, s2: dict) -> list[int]:
    """Indices in classes.BIGEARTHNET_43, ascending."""
    labels = s2["labels"]
    if not labels or set(labels) != set(s1["labels"]):
        raise InputError(
            f"{pair.images['s2']} is labelled {labels} and {pair.images['s1']} "
            f"{s1['labels']}; both must have the same labels, at least one."
        )
    unknown = sorted(set(labels) - set(classes.BIGEARTHNET_43))
    if unknown:
        raise InputError(
            f"{pair.name} has the labels {unknown}, which are not among "
            f"the {len(classes.BIGEARTHNET_43)} of BigEarthNet v1; correct its json."
        )
    return sorted(classes.BIGEARTHNET_43.index(label) for label in set(labels))


def _pixels(
    sensor: str, read: Callable[[str], bytes], name: str, *, stored: str
) -> dict[str, np.ndarray]:
    """Fields of one sensor, whose bands are stored as type `stored`."""

    def read_band(band: str) -> np.ndarray:
        file = f"{name}_{band}.tif"
        image = tiff.read(read(file), file)
        if image.dtype != stored:
            raise InputError(
                f"{file} is of type {image.dtype}, where BigEarthNet has {stored}; "
                "unpack it again."
            )
        return image

    return base.pixels(DESCRIPTION, sensor, read_band, name)


def _acquired(metadata: str | None, name: str) -> str:
    """Acquisition time in ISO 8601, from the json or else from the patch's name."""
    return metadata.replace(" ", "T") if metadata else base.acquired(name)
