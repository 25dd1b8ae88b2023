"""Segmentation masks of a user's own pairs: which value of a pixel is which class."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tqdm

from data_pipeline.archives import base, grids, rasters
from data_pipeline.classes import NO_CLASS
from data_pipeline.errors import InputError

FIELD = "mask"

_VALUED = re.compile(r"\s*(-?\d{1,18})\s*=\s*(.*\S)\s*", re.ASCII)
_SHOWN = 5  # values that an error names


@dataclasses.dataclass(frozen=True)
class Legend:
    """What the values of masks mean.

    Attributes:
        classes: name of the class of each value, in the order of the classes; none of
            a dataset without masks.
        nodata: values that mean no class.
        overrules: whether a value that is a class means it in files too that mark it
            as their nodata value.
    """

    classes: Mapping[int, str] = dataclasses.field(default_factory=dict, hash=False)
    nodata: tuple[int, ...] = ()
    overrules: bool = False

    @property
    def maps(self) -> dict[str, tuple[str, ...]]:
        """As a `Description` has it."""
        return {FIELD: tuple(self.classes.values())} if self.classes else {}

    def labels(self, path: str, raster: rasters.Raster, side: int) -> np.ndarray:
        """Index of the class of each pixel of a mask, or NO_CLASS, [H, W] uint8.

        Raises:
            InputError: it is of another size or no mask, or has a value of no class.
        """
        there, values, at = self._values(path, raster)
        base.check_shape(there, (side, side), path)
        places = {value: index for index, value in enumerate(self.classes)}
        counts = dict(zip(values, np.bincount(at, minlength=len(values)).tolist()))
        unknown = {v: n for v, n in counts.items() if v not in places}
        if unknown:
            raise InputError(
                f"{path} holds {_counted(unknown)}, which means none of the "
                f"{len(places)} classes; name every value, as in "
                "read.mask_classes=\"('10=tree cover',)\", or list those that mean no "
                'class, as in read.mask_nodata="(0,)".'
            )
        image = np.full(there.shape, NO_CLASS, np.uint8)
        image[there] = np.array([places[v] for v in values], np.uint8)[at]
        return image

    def _values(self, path: str, raster: rasters.Raster):
        """The values of pixels that may have a class.

        Returns:
            Where these pixels are, [H, W] bool; their values, ascending; and of each
            such pixel, row by row, the index of its value.

        Raises:
            InputError: this is no mask.
        """
        if len(raster.pixels) != 1 or raster.pixels.dtype.kind not in "uif":
            raise InputError(
                f"{path} has {len(raster.pixels)} bands of {raster.pixels.dtype}, "
                "where a mask has one, of whole numbers; write it so."
            )
        (pixels,) = raster.pixels
        there = ~np.isin(pixels, self.nodata)
        if raster.missing is not None:
            marked = raster.missing[0]
            if self.overrules and raster.nodata in self.classes:
                marked = marked & (pixels != raster.nodata)
            there &= ~marked
        if pixels.dtype.kind == "f":
            there &= ~np.isnan(pixels)
        found, at = np.unique(pixels[there], return_inverse=True)
        fractions = found[found != np.rint(found)]
        if fractions.size or not np.isfinite(found).all():
            odd = (*fractions, *found[~np.isfinite(found)])[0]
            raise InputError(
                f"{path} holds {odd:g}, where a mask has a whole number for each "
                "class; write it so."
            )
        return there, [int(value) for value in found], at


def read(path: str, window: grids.Window | None = None) -> rasters.Raster:
    """Reads a mask, a GeoTIFF or PNG, or a window of it.

    Raises:
        InputError: it is not there, damaged or neither of these.
        OSError: it cannot be read.
    """
    return rasters.read(path, png=True, window=window)


def legend(names: Sequence[str], nodata: Sequence[int], paths: Iterable[str]) -> Legend:
    """What the values of masks mean, as given or else as all masks say.

    Args:
        names: of the values 0, 1, 2 and so on; or all as 'value=name'; or none, where
            the values that occur are their own names.
        nodata: values that mean no class.
        paths: of the masks.

    Raises:
        InputError: that contradicts itself or the masks, or they have no two classes.
    """
    paths = sorted(set(paths))
    if not paths:
        if names or nodata:
            raise InputError(
                "read.mask_classes or read.mask_nodata speak of masks, but no pair has "
                "one; put them into a folder mask/ beside s1/ and s2/, named as the "
                "images are, say with read.mask_files where they are, or pass a CSV "
                "with a column 'mask'."
            )
        return Legend()
    if not names:
        values = _search(paths, Legend(nodata=tuple(nodata)))
        return Legend({value: str(value) for value in values}, tuple(nodata))
    classes = _given(names)
    both = sorted(set(classes) & set(nodata))
    if both:
        raise InputError(
            f"read.mask_nodata has {both}, which read.mask_classes names "
            f"{[classes[value] for value in both]}; take them out of one, and name "
            "the others as 'value=name'."
        )
    return Legend(classes, tuple(nodata), overrules=True)


def _given(names: Sequence[str]) -> dict[int, str]:
    """The name of each value, from `read.mask_classes`."""
    valued = [_VALUED.fullmatch(name) for name in names]
    if any(valued) and not all(valued):
        raise InputError(
            f"read.mask_classes is {tuple(names)}; write 'value=name' for all classes "
            "or for none."
        )
    pairs = list(enumerate(names))
    if all(valued):
        pairs = [(int(match[1]), match[2]) for match in valued]
    if any(len(set(each)) < len(pairs) for each in zip(*pairs)):
        raise InputError(
            f"read.mask_classes is {tuple(names)}, with a value or a name twice; give "
            "each value a name of its own."
        )
    if len(pairs) > NO_CLASS:
        raise InputError(
            f"read.mask_classes names {len(pairs)} classes, where a dataset can have "
            f"at most {NO_CLASS}; leave some out, and list their values in "
            "read.mask_nodata."
        )
    return dict(pairs)


def _search(paths: Sequence[str], unnamed: Legend) -> list[int]:
    """All values that mean a class; a mask that cannot be read costs its pair later."""
    found, error = set(), None
    for path in tqdm.tqdm(paths, desc="masks", unit="mask", leave=False):
        try:
            found.update(unnamed._values(path, read(path))[1])
        except InputError as reason:
            error = error or reason
        if len(found) > NO_CLASS:
            raise InputError(
                f"Masks up to {path} hold {len(found)} values, where a dataset can "
                f"have at most {NO_CLASS} classes; name those that are classes in "
                "read.mask_classes."
            )
    if error and not found:
        raise error
    if len(found) < 2:
        raise InputError(
            f"Of the pixels of {len(paths)} masks those that have a class hold "
            f"{sorted(found)} alone, which leaves nothing to tell apart; name all "
            "classes, as in read.mask_classes=\"('0=dry','1=flooded')\", also "
            "where files mark one as their nodata value."
        )
    return sorted(found)


def _counted(counts: Mapping[int, int]) -> str:
    """Values and how many pixels hold them, in words, the most first."""
    most = sorted(counts, key=lambda value: (-counts[value], value))
    shown = [f"the value {v} in {counts[v]} pixels" for v in most[:_SHOWN]]
    if len(most) > _SHOWN:
        shown.append(f"{len(most) - _SHOWN} more values")
    return ", ".join(shown)
