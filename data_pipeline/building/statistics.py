"""How the pixels and labels of a dataset are distributed, counted exactly.

Every stored value has 16 bits, so a count for each of the 65,536 possible values of a
band says everything: mean, deviation and any percentile follow without error, and
counts of several shards add up to the same in whatever order.
"""

import base64
import zlib
from collections.abc import Mapping

import numpy as np

from data_pipeline import sensors
from data_pipeline.classes import NO_CLASS
from data_pipeline.dataset_card import Description

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)

_VALUES = 1 << 16
_SIGN = 1 << 15


class Tally:
    """Counts of every pixel value, class and pixel label of some records.

    Attributes:
        description: of the dataset.
        pairs: number of records counted.
    """

    def __init__(self, description: Description):
        layout = description.layout
        self.description, self.pairs = description, 0
        self._types = {f: np.dtype(name) for f, name in layout.dtypes.items()}
        self._pixels = {
            field: np.zeros((shape[-1], _VALUES), np.int64)
            for field, shape in layout.shapes.items()
        }
        # The last place counts records without any of the classes.
        self._classes = {
            field: np.zeros(len(names) + 1, np.int64)
            for field, names in description.classes.items()
        }
        self._maps = {field: np.zeros(256, np.int64) for field in description.maps}

    def add(self, record: Mapping) -> None:
        """Counts a record in the form in which an archive returns it."""
        self.pairs += 1
        for field, counts in self._pixels.items():
            image = np.asarray(record[field], self._types[field]).view(np.uint16)
            if self._types[field].kind == "f":
                # As negative numbers set the highest bit, this keeps them low, and
                # `bincount`, which counts from 0 to the highest code, short.
                image = image ^ _SIGN
            for band, total in enumerate(counts):
                found = np.bincount(image[..., band].ravel())
                total[: len(found)] += found
        for field, counts in self._classes.items():
            counts[list(record[field]) or [-1]] += 1
        for field, counts in self._maps.items():
            counts += np.bincount(record[field].ravel(), minlength=len(counts))

    def merge(self, other: "Tally") -> None:
        """Adds the counts of other records of the same dataset."""
        self.pairs += other.pairs
        for mine, theirs in zip(self._counts(), other._counts()):
            mine += theirs

    def to_json(self) -> dict:
        """The counts in a form for JSON, packed to some 20 kB for each band."""
        counts = np.concatenate([part.ravel() for part in self._counts()])
        packed = zlib.compress(counts.astype("<i8").tobytes(), level=1)
        return {"pairs": self.pairs, "counts": base64.b64encode(packed).decode()}

    @classmethod
    def from_json(cls, description: Description, content: Mapping) -> "Tally":
        """The tally that `to_json` was called on."""
        tally = cls(description)
        tally.pairs = content["pairs"]
        packed = base64.b64decode(content["counts"])
        counts = np.frombuffer(zlib.decompress(packed), "<i8")
        for part in tally._counts():
            part[...] = counts[: part.size].reshape(part.shape)
            counts = counts[part.size :]
        return tally

    def summary(self) -> dict:
        """What the counts say.

        Returns:
            `pairs`; `sensors`, for each sensor and band what `_distribution` returns;
            `classes`, for each label field the number of records of each class and,
            under "", of those without any; `maps`, likewise in pixels.
        """
        bands = {}
        for grid in self.description.layout.grids:
            for band, counts in zip(grid.bands, self._pixels[grid.field]):
                found = _distribution(counts, self._types[grid.field])
                bands.setdefault(grid.sensor, {})[band] = found
        classes = {
            field: dict(zip((*names, ""), self._classes[field].tolist()))
            for field, names in self.description.classes.items()
        }
        maps = {
            field: dict(zip(names, self._maps[field].tolist()))
            | {"": int(self._maps[field][NO_CLASS])}
            for field, names in self.description.maps.items()
        }
        ordered = {
            name: {band: bands[name][band] for band in sensor.band_names}
            for name, sensor in self.description.sensors.items()
        }
        return {
            "pairs": self.pairs,
            "sensors": ordered,
            "classes": classes,
            "maps": maps,
        }

    def _counts(self) -> list[np.ndarray]:
        """All counts, in one order."""
        parts = (self._pixels, self._classes, self._maps)
        return [counts for part in parts for counts in part.values()]


def _distribution(counts: np.ndarray, dtype: np.dtype) -> dict:
    """How the measured pixels of a band are distributed, each counted once as stored.

    Args:
        counts: number of pixels of each 16-bit code [65536].
        dtype: what the codes stand for; those of floats have their sign flipped.

    Returns:
        `pixels`, their number, `missing`, that of pixels where nothing was measured,
        and, if any was measured: `mean`, `std`, `min`, `max`, and `percentiles`, the
        least value that so many percent of the pixels do not exceed.
    """
    codes = counts.nonzero()[0].astype(np.uint16)
    counts = counts[codes]
    values = (codes ^ _SIGN if dtype.kind == "f" else codes).view(dtype)
    measured = ~sensors.is_missing(values)
    missing = int(counts[~measured].sum())
    values, counts = values[measured].astype(np.float64), counts[measured]
    if not len(values):
        return {"pixels": 0, "missing": missing}
    order = np.argsort(values)
    values, counts = values[order], counts[order]
    pixels = counts.sum()
    mean = counts @ values / pixels
    variance = counts @ (values - mean) ** 2 / pixels
    ranks = np.ceil(np.array(PERCENTILES) * pixels / 100)
    at = np.searchsorted(np.cumsum(counts), ranks)
    return {
        "pixels": int(pixels),
        "missing": missing,
        "mean": float(mean),
        "std": float(np.sqrt(variance)),
        "min": float(values[0]),
        "max": float(values[-1]),
        "percentiles": {str(p): float(v) for p, v in zip(PERCENTILES, values[at])},
    }
