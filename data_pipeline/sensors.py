"""The input contract: bands have names, pixels have units.

A `Sensor` says which bands a sensor has, in which order, on which grid, in which
unit, which values are possible, and how they are distributed. Everything that touches
pixels (reading, writing, normalising, plotting) asks here, so there is one answer to
"which bands, in what order, in which unit, normalised how?".
"""

import dataclasses
import re
from collections.abc import Mapping

from data_pipeline.errors import InputError

FINEST_GSD = 10  # metres; a pair's side is counted in pixels of this size

_DTYPES = ("float16", "uint16")  # that pixels can be stored as
_MOST_VALUE = 1e30  # of a statistic; float32 holds more, its square does not


@dataclasses.dataclass(frozen=True)
class Band:
    """One spectral band or polarisation.

    Attributes:
        name: the archive's name of it, e.g. "B8A" or "VV".
        gsd: ground sampling distance in metres.
        family: bands of one family are alike and may share target statistics.
        mean: average over the training data, in the sensor's unit.
        std: standard deviation over the training data, in the sensor's unit.
    """

    name: str
    gsd: int
    family: str
    mean: float
    std: float


@dataclasses.dataclass(frozen=True)
class Grid:
    """The bands of a sensor that share a pixel grid, stored as one array.

    Attributes:
        sensor: the sensor's name.
        gsd: ground sampling distance in metres.
        bands: names in stored order.
    """

    sensor: str
    gsd: int
    bands: tuple[str, ...]

    @property
    def field(self) -> str:
        """The record's field that holds them, [H, W, C], e.g. "s2_20m"."""
        return f"{self.sensor}_{self.gsd}m"


@dataclasses.dataclass(frozen=True)
class Sensor:
    """A sensor's bands in canonical order, with unit, range and statistics.

    Attributes:
        name: key in batches, parameters and metrics.
        title: name for people.
        level: processing level of the product, e.g. "L2A", surface reflectance.
        unit: what a pixel value means.
        dtype: how pixels are stored; no conversion happens on disk.
        valid_range: values outside cannot be what the unit claims.
        bands: in canonical order.
        source: where the statistics come from.
    """

    name: str
    title: str
    level: str
    unit: str
    dtype: str
    valid_range: tuple[float, float]
    bands: tuple[Band, ...]
    source: str

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)

    @property
    def families(self) -> tuple[str, ...]:
        """The family of each band."""
        return tuple(band.family for band in self.bands)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The bands' own pixel grids, from finest to coarsest."""
        return tuple(
            Grid(self.name, gsd, tuple(b.name for b in self.bands if b.gsd == gsd))
            for gsd in sorted({band.gsd for band in self.bands})
        )

    def select(self, names) -> "Sensor":
        """The same sensor with only the bands `names`, in that order.

        Raises:
            InputError: a name is unknown, repeated, or the list is empty.
        """
        names = tuple(names)
        by_name = {band.name: band for band in self.bands}
        unknown = [name for name in names if name not in by_name]
        if unknown or not names or len(set(names)) != len(names):
            raise InputError(
                f"Bands {list(names)} of {self.name} must be a selection, without "
                f"repeats, of {list(by_name)}."
            )
        return dataclasses.replace(self, bands=tuple(by_name[name] for name in names))

    def with_statistics(
        self, mean: Mapping[str, float], std: Mapping[str, float], source: str
    ) -> "Sensor":
        """The same sensor with other means and deviations, by band name."""
        bands = tuple(
            dataclasses.replace(band, mean=mean[band.name], std=std[band.name])
            for band in self.bands
        )
        return dataclasses.replace(self, bands=bands, source=source)

    def describe(self) -> dict:
        """The contract as plain data with bands by name, to be saved with a run."""
        bands = {band.name: dataclasses.asdict(band) for band in self.bands}
        return dataclasses.asdict(self) | {
            "bands": bands,
            "valid_range": list(self.valid_range),
        }


def restore(described: Mapping) -> Sensor:
    """The sensor that `Sensor.describe` described, by way of JSON or not.

    Raises:
        InputError: that is no description of a sensor.
    """
    try:
        bands = tuple(Band(**band) for band in described["bands"].values())
        valid_range = tuple(described["valid_range"])
        sensor = Sensor(**{**described, "bands": bands, "valid_range": valid_range})
        _check(sensor)
        return sensor
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"This is no description of a sensor ({error!r:.99}): {described!r:.99}."
        ) from error


def _check(sensor: Sensor) -> None:
    """Raises a TypeError where a part of a restored sensor is of another kind."""
    low, high = sensor.valid_range if len(sensor.valid_range) == 2 else (None, None)
    for value in (low, high, *(x for b in sensor.bands for x in (b.mean, b.std))):
        if not isinstance(value, float | int) or not abs(value) <= _MOST_VALUE:
            raise TypeError(f"{value!r:.50} where a number belongs")
    texts = (sensor.name, sensor.title, sensor.level, sensor.unit, sensor.source)
    for text in (*texts, *(x for b in sensor.bands for x in (b.name, b.family))):
        if not isinstance(text, str):
            raise TypeError(f"{text!r:.50} where a text belongs")
    if sensor.dtype not in _DTYPES:
        raise TypeError(f"its pixels are {sensor.dtype!r:.50}")
    for band in sensor.bands:
        if type(band.gsd) is not int or band.gsd <= 0 or band.gsd % FINEST_GSD:
            raise TypeError(f"band {band.name} has a pixel every {band.gsd!r:.50} m")
    if not sensor.bands or len(set(sensor.band_names)) != len(sensor.bands):
        raise TypeError("bands that are missing or repeated")


def canonical(name: str) -> str:
    """The contract's spelling of a band's name: "b2" is B02, "vv" is VV."""
    upper = name.strip().upper()
    short = re.fullmatch(r"B0?(\d)(A?)", upper)
    if not short:
        return upper
    return f"B{short[1]}A" if short[2] else f"B0{short[1]}"


_V1 = "BigEarthNet v1 training split, after git.tu-berlin.de/rsim/bigearthnet-models-tf"

S1 = Sensor(
    name="s1",
    title="Sentinel-1",
    level="GRD",
    unit="dB",
    dtype="float16",
    valid_range=(-80.0, 40.0),
    bands=(
        Band("VV", 10, "co-polarised", -12.619993741972035, 5.115911777546365),
        Band("VH", 10, "cross-polarised", -19.29044597721542, 5.464428464912864),
    ),
    source=_V1,
)

S2 = Sensor(
    name="s2",
    title="Sentinel-2",
    level="L2A",
    unit="DN (reflectance x 10000)",
    dtype="uint16",
    valid_range=(0.0, 32767.0),
    bands=(
        Band("B01", 60, "atmosphere", 340.76769064, 554.81258967),
        Band("B02", 10, "visible", 429.9430203, 572.41639287),
        Band("B03", 10, "visible", 614.21682446, 582.87945694),
        Band("B04", 10, "visible", 590.23569706, 675.88746967),
        Band("B05", 20, "near infrared", 950.68368468, 729.89827633),
        Band("B06", 20, "near infrared", 1792.46290469, 1096.01480586),
        Band("B07", 20, "near infrared", 2075.46795189, 1273.45393088),
        Band("B08", 10, "near infrared", 2218.94553375, 1365.45589904),
        Band("B8A", 20, "near infrared", 2266.46036911, 1356.13789355),
        Band("B09", 60, "atmosphere", 2246.0605464, 1302.3292881),
        Band("B11", 20, "short-wave infrared", 1594.42694882, 1079.19066363),
        Band("B12", 20, "short-wave infrared", 1009.32729131, 818.86747235),
    ),
    source=_V1,
)

SENSORS = {sensor.name: sensor for sensor in (S1, S2)}

# Top-of-atmosphere reflectance, where the cirrus band B10 exists too.
S2_L1C = dataclasses.replace(
    S2,
    level="L1C",
    bands=(*S2.bands[:10], Band("B10", 60, "cirrus", 0.0, 1.0), *S2.bands[10:]),
).with_statistics(
    mean={
        **{"B01": 1605.57504906, "B02": 1390.78157673, "B03": 1314.8729939},
        **{"B04": 1363.52445545, "B05": 1549.44374991, "B06": 2091.74883118},
        **{"B07": 2371.7172463, "B08": 2299.90463006, "B8A": 2560.29504086},
        **{"B09": 830.06605044, "B10": 22.10351321, "B11": 2177.07172323},
        **{"B12": 1524.06546312},
    },
    std={
        **{"B01": 786.78685367, "B02": 850.34818441, "B03": 875.06484736},
        **{"B04": 1138.84957046, "B05": 1122.17775652, "B06": 1161.59187054},
        **{"B07": 1274.39184232, "B08": 1248.42891965, "B8A": 1345.52684884},
        **{"B09": 577.31607053, "B10": 51.15431158, "B11": 1336.09932639},
        **{"B12": 1136.53823676},
    },
    source="SSL4EO-S12, S2C, after github.com/zhu-xlab/SSL4EO-S12",
)
