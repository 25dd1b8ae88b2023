"""Where patches of BigEarthNet v2 lie: folders of GeoTIFFs, or the LMDB of rico-hdl.

Both give the names of the patches, the bands of one, and its reference map.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator

import numpy as np
import tqdm

from data_pipeline.archives import base, lmdb_reader, rasters, tiff
from data_pipeline.errors import InputError

S2_FOLDER, S1_FOLDER, MAP_FOLDER = "BigEarthNet-S2", "BigEarthNet-S1", "Reference_Maps"
MAP_SUFFIX = "_reference_map"

_NEEDS = "Reading {} needs {}; install it with `pip install -e '.[archives]'`."


def open_store(source: str) -> "Folders | Database":
    """The patches in the folder `source`.

    Raises:
        InputError: it holds neither the folders nor one database.
    """
    if os.path.isdir(os.path.join(source, S2_FOLDER)):
        return Folders(source)
    inside = [entry.path for entry in base.folders(source)]
    found = [
        folder
        for folder in (source, *inside)
        if os.path.isfile(os.path.join(folder, lmdb_reader.FILE))
    ]
    if len(found) != 1:
        raise InputError(
            f"{source} has no folder {S2_FOLDER} and {len(found)} folders with "
            f"{lmdb_reader.FILE}; pass as source=DIR the folder of the "
            "unpacked archives or of one LMDB."
        )
    # Not where a link leads to: the table lies beside the link.
    return Database(os.path.abspath(found[0]))


@dataclasses.dataclass(frozen=True)
class Folders:
    """Patches as folders of GeoTIFFs, a folder for each tile or scene around them.

    Attributes:
        root: the folder with the folders of both sensors.
    """

    root: str

    def names(self) -> tuple[set[str], set[str]]:
        """Names of the Sentinel-2 and of the Sentinel-1 patches."""
        return self._patches(S2_FOLDER), self._patches(S1_FOLDER)

    def has_maps(self) -> bool:
        """Whether there are reference maps."""
        return os.path.isdir(os.path.join(self.root, MAP_FOLDER))

    def bands(self, name: str) -> Callable[[str], np.ndarray]:
        """Reads a patch: the function returned gives the image [H, W] of a band."""
        if name.startswith("S1"):
            folder = os.path.join(self.root, S1_FOLDER, name.rsplit("_", 3)[0], name)
        else:
            folder = os.path.join(self.root, S2_FOLDER, name.rsplit("_", 2)[0], name)
        start = os.path.join(folder, name)
        return lambda band: tiff.read_file(f"{start}_{band}.tif")

    def land_cover(self, name: str) -> np.ndarray | None:
        """CORINE codes [H, W] of a Sentinel-2 patch, or None without a map."""
        folder = os.path.join(self.root, MAP_FOLDER, name.rsplit("_", 2)[0], name)
        path = os.path.join(folder, f"{name}{MAP_SUFFIX}.tif")
        return rasters.read(path).pixels[0] if base.exists(path) else None

    def _patches(self, folder: str) -> set[str]:
        path = os.path.join(self.root, folder)
        if not os.path.isdir(path):
            raise InputError(
                f"{self.root} has no folder {folder}; pass as source=DIR "
                f"the folder that holds both {S2_FOLDER} and {S1_FOLDER}."
            )
        tiles = tqdm.tqdm(base.folders(path), desc=folder, unit="tile", leave=False)
        return {patch.name for tile in tiles for patch in base.folders(tile.path)}


@dataclasses.dataclass(frozen=True)
class Database:
    """An LMDB with patches of both sensors.

    A key is the name of a patch or of its reference map; the value is a safetensors
    dictionary with one array a band, as the GeoTIFFs have them.

    Attributes:
        root: the folder of its file.
    """

    root: str

    def names(self) -> tuple[set[str], set[str]]:
        """Names of the Sentinel-2 and of the Sentinel-1 patches."""
        s2_names, s1_names = set(), set()
        for key in self._keys():
            if not key.endswith(MAP_SUFFIX):
                (s1_names if key.startswith("S1") else s2_names).add(key)
        return s2_names, s1_names

    def has_maps(self) -> bool:
        """Whether any patch has a reference map."""
        # Sorted keys: the first Sentinel-2 patches settle it where there are maps.
        return any(key.endswith(MAP_SUFFIX) for key in self._keys("S2"))

    def bands(self, name: str) -> Callable[[str], np.ndarray]:
        """Reads a patch; the function returned gives the image [H, W] of a band.

        Raises:
            InputError: the patch is missing or damaged, or lacks the band.
        """
        images = self._images(name)
        if images is None:
            raise InputError(f"{self.root} has no {name}; write the database again.")

        def read(band: str) -> np.ndarray:
            if band not in images:
                raise InputError(
                    f"{name} in {self.root} has the bands {sorted(images)} and not "
                    f"{band}; write the database again."
                )
            return images[band]

        return read

    def land_cover(self, name: str) -> np.ndarray | None:
        """CORINE codes [H, W] of a Sentinel-2 patch, or None without a map.

        Raises:
            InputError: the map is damaged.
        """
        images = self._images(name + MAP_SUFFIX)
        if images is None:
            return None
        if "Data" not in images:
            raise InputError(
                f"{name}{MAP_SUFFIX} in {self.root} holds {sorted(images)} and not "
                "'Data'; write the database again."
            )
        return images["Data"]

    def _keys(self, start: str = "") -> Iterator[str]:
        with _damage(self.root):
            for key in _open(os.path.realpath(self.root)).keys(start.encode()):
                yield key.decode(errors="replace")

    def _images(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays of a value, by band, or None when there is no such key."""
        try:
            database = _open(os.path.realpath(self.root))
        except InputError as error:  # it could be opened when its keys were read
            raise OSError(str(error)) from None
        with _damage(self.root):
            value = database.get(key.encode())
        return None if value is None else _parse(value, f"{key} in {self.root}")


@contextlib.contextmanager
def _damage(root: str) -> Iterator[None]:
    try:
        yield
    except lmdb_reader.Damaged as error:
        raise InputError(
            f"{os.path.join(root, lmdb_reader.FILE)} is damaged ({error}); copy or "
            "write it again."
        ) from None


@functools.cache  # so that a process opens it once
def _open(root: str) -> lmdb_reader.Database:
    path = os.path.join(root, lmdb_reader.FILE)
    if not importlib.util.find_spec("lmdb"):
        raise InputError(_NEEDS.format(path, "lmdb"))
    try:
        return lmdb_reader.Database(root)
    except ValueError as error:
        raise InputError(
            f"{path} is no LMDB that is whole ({error}); copy or write it again."
        ) from None


def _parse(value: bytes, name: str) -> dict[str, np.ndarray]:
    try:
        import safetensors.numpy
    except ImportError:
        raise InputError(_NEEDS.format(name, "safetensors")) from None
    try:
        return safetensors.numpy.load(value)
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: odd dtype
        raise InputError(
            f"{name} is damaged ({error}); write the database again."
        ) from None
