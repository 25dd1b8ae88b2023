"""The input contract: bands have names, pixels have units.

A `Sensor` says which bands a sensor has, in which order, on which grid, in which
unit, which values are possible, how they are distributed, what real images look like,
and how they are drawn. Everything that touches pixels (reading, checking, writing,
normalising, plotting) asks here: a sensor is data, and no code asks which one it is.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_pipeline import pixel_values
from data_pipeline.errors import InputError
from data_pipeline.offsets import OFFSET, remove
from data_pipeline.pixel_values import Unit

FINEST_GSD = 10  # metres; a pair's side is counted in pixels of this size

# What is stored, by type, where nothing was measured; types that pixels can have.
MISSING = {"float16": float("nan"), "uint16": 65535}
_BY_NAME = ("units", "offsets", "expected", "picture")  # fields that are not saved
_MAX_REFLECTANCE = 3.2767  # what the contract can hold; clouds stay far below

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
class Expected:
    """What real images of a sensor look like, see `building.value_checks`.

    Attributes:
        flat: whether an image can have one value everywhere, other than 0.
        zero_is_dark: whether a band that is 0 may be dark, though 0 is said to mean
            that nothing was measured, unless all bands are 0.
        filled: where 0 stands for what was not measured, see `pixel_values`.
        medians: least and greatest median of a band, by family.
        brighter: two bands, of which the first is the brighter one on every surface.
        peak: that the brightest pixel of all bands reaches.
        visible: family of the bands that are not 0 in most pixels.
        dark: bands of which one is dark somewhere, unless an offset was left in.
        always_dark: that of them which is dark over sand and cloud, too.
        remedy: for values in no known unit.
    """

    flat: bool = True
    zero_is_dark: bool = False
    filled: Callable[[Sequence[np.ndarray]], list[np.ndarray]] = lambda images: [
        np.zeros(bands.shape[1:], bool) for bands in images
    ]
    medians: Mapping[str, tuple[float, float]] = dataclasses.field(
        default_factory=dict, hash=False
    )
    brighter: tuple[str, ...] = ()
    peak: float = -np.inf
    visible: str = ""
    dark: tuple[str, ...] = ()
    always_dark: str = ""
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """How images of a sensor are drawn.

    Attributes:
        colors: name or family of the bands for red, green and blue. Of two, blue is
            the difference, which in dB is the ratio.
        limits: what is drawn black and what full, by family; where there are none,
            each image has a stretch of its own,
        least_range: of at least so much.
        difference: what of the difference is drawn black and what full.
    """

    colors: tuple[str, ...]
    limits: Mapping[str, tuple[float, float]] = dataclasses.field(
        default_factory=dict, hash=False
    )
    least_range: float = 0.0
    difference: tuple[float, float] = (0.0, 0.0)


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
        units: that its pixels can be converted from; the contract's own is the first.
        offsets: that a processing baseline may have added to every pixel.
        expected: what real images look like.
        picture: how they are drawn.
    """

    name: str
    title: str
    level: str
    unit: str
    dtype: str
    valid_range: tuple[float, float]
    bands: tuple[Band, ...]
    source: str
    units: tuple[Unit, ...]
    offsets: tuple[int, ...]
    expected: Expected
    picture: Picture

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
                f"repeats, of {list(by_name)}; choose with config.bands.{self.name}."
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
        """The contract as plain data with bands by name, to be saved with a run.

        What follows from the name alone is not in it.
        """
        said = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _BY_NAME
        }
        return said | {
            "bands": {band.name: dataclasses.asdict(band) for band in self.bands},
            "valid_range": list(self.valid_range),
        }


def restore(described: Mapping) -> Sensor:
    """The sensor that `Sensor.describe` described, by way of JSON or not.

    Raises:
        InputError: that is no description of a sensor.
    """
    try:
        bands = tuple(Band(**band) for band in described["bands"].values())
        known = SENSORS[described["name"]]
        sensor = Sensor(
            **{
                **described,
                "bands": bands,
                "valid_range": tuple(described["valid_range"]),
            },
            **{name: getattr(known, name) for name in _BY_NAME},
        )
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
    if sensor.dtype not in MISSING:
        raise TypeError(f"its pixels are {sensor.dtype!r:.50}")
    for band in sensor.bands:
        if type(band.gsd) is not int or band.gsd <= 0 or band.gsd % FINEST_GSD:
            raise TypeError(f"band {band.name} has a pixel every {band.gsd!r:.50} m")
    if not sensor.bands or len(set(sensor.band_names)) != len(sensor.bands):
        raise TypeError("bands that are missing or repeated")


def is_missing(stored):
    """Where nothing was measured, of pixels as they are stored; NumPy's or JAX's."""
    return stored != stored if stored.dtype.kind == "f" else stored == MISSING["uint16"]


# Names of bands by colour, as STAC's electro-optical extension has them.
_COMMON = {
    **{"COASTAL": "B01", "BLUE": "B02", "GREEN": "B03", "RED": "B04", "NIR": "B08"},
    **{"REDEDGE1": "B05", "REDEDGE2": "B06", "REDEDGE3": "B07", "NIR08": "B8A"},
    **{"NIR09": "B09", "CIRRUS": "B10", "SWIR16": "B11", "SWIR22": "B12"},
}


def canonical(name: str) -> str:
    """The contract's spelling of a band's name: "b2" and "blue" are B02, "vv" is VV."""
    upper = name.strip().upper()
    short = re.fullmatch(r"B0?(\d)(A?)", upper)
    if not short:
        return _COMMON.get(upper, upper)
    return f"B{short[1]}A" if short[2] else f"B0{short[1]}"


def _fitting(image: np.ndarray, sensor: Sensor) -> str:
    """The units that an image can be in, and what it then holds, for an error."""
    said = []
    for unit in sensor.units:
        if not unit.doubt(image):
            with np.errstate(invalid="ignore", divide="ignore"):
                median = np.nanmedian(unit.convert(image))
            said.append(f"in {unit.name} of {median:.3g}")
    if not said:
        return "leave the pair out"
    own, medians = sensor.units[0].name, " and ".join(said)
    return (
        f"its median would be {medians} {own}: change read.{sensor.name}_unit, or "
        "leave it out"
    )


def to_contract(
    image: np.ndarray, sensor: Sensor, *, unit: str, offset: int = 0
) -> np.ndarray:
    """Pixels in the unit of the input contract.

    Args:
        image: of any shape.
        sensor: whose pixels they are.
        unit: of the image, the name of one of `sensor.units`.
        offset: what the processing baseline added to each pixel.

    Raises:
        InputError: the unit is unknown, the values are not in it, or the offset is not
            one of `sensor.offsets`.
    """
    units = {known.name: known for known in sensor.units}
    if unit not in units:
        raise InputError(
            f"{sensor.name} in {unit!r} is unknown; use {' or '.join(units)}."
        )
    if offset not in (0, *sensor.offsets):
        others = "".join(f" or {other}" for other in sensor.offsets if other)
        raise InputError(
            f"An offset of {offset} on {sensor.name} is unknown; use 0{others}, as its "
            "processing baseline says."
        )
    image, given = np.asarray(image), units[unit]
    if doubt := given.doubt(image):
        raise InputError(
            f"Values of {sensor.title} cannot be {given.words}, as {doubt}; "
            f"{_fitting(image, sensor)}."
        )
    converted = given.convert(image)
    return remove(converted, offset) if sensor.offsets else converted


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
    units=(
        Unit("dB", "dB", most=0.0),
        Unit("linear", "linear power", pixel_values.linear_to_db, least=0.0),
        Unit("amplitude", "amplitude", pixel_values.amplitude_to_db, least=0.0),
    ),
    offsets=(),
    expected=Expected(
        flat=False,  # there is speckle everywhere
        filled=pixel_values.zero_backscatter,
        # Above the sensor's noise, and below what only a few walls reach. Linear power
        # and uncalibrated DN lie higher, and so does amplitude taken for power: it
        # halves every dB. Power taken for amplitude doubles it.
        medians={"co-polarised": (-30.0, 0.0), "cross-polarised": (-34.0, -9.0)},
        brighter=("VV", "VH"),
        remedy="it is uncalibrated, calibrate it",
    ),
    # Limits for all scenes keep speckle from shouting, and scenes comparable.
    picture=Picture(
        colors=("co-polarised", "cross-polarised"),
        limits={"co-polarised": (-20.0, 0.0), "cross-polarised": (-27.0, -7.0)},
        difference=(0.0, 14.0),
    ),
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
    units=(
        Unit("DN", "DN", pixel_values.clamp_dn, peak=_MAX_REFLECTANCE),
        Unit(
            "reflectance",
            "reflectance",
            pixel_values.reflectance_to_dn,
            most=_MAX_REFLECTANCE,
        ),
    ),
    offsets=(0, OFFSET),
    expected=Expected(
        zero_is_dark=True,
        filled=pixel_values.zero_reflectance,
        peak=256,
        visible="visible",
        # Blue bands alone are as bright through haze.
        dark=("B04", "B10", "B12"),
        always_dark="B10",
        remedy="it was made for display, take the original",
    ),
    # A forest stays dark green however little it varies.
    picture=Picture(colors=("B04", "B03", "B02"), least_range=600.0),
)

SENSORS = {sensor.name: sensor for sensor in (S1, S2)}
# Sensors in the order in which pairs are named: the first one's image names the pair.
NAMED = ("s2", "s1")

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

# Sentinel-1 over polar seas and lands: other polarisations of the same radar. Nobody
# has published their statistics; a dataset of one's own has its own.
S1_HH = dataclasses.replace(
    S1,
    bands=(
        dataclasses.replace(S1.bands[0], name="HH"),
        dataclasses.replace(S1.bands[1], name="HV"),
    ),
    source=f"of VV and VH: {S1.source}",
    expected=dataclasses.replace(S1.expected, brighter=("HH", "HV")),
)

# What a sensor's pixels can be a product of, the usual one first.
PRODUCTS = {"s1": (S1, S1_HH), "s2": (S2, S2_L1C)}


def known_bands(name: str) -> tuple[str, ...]:
    """The bands of a sensor in any of its products, those with most bands first."""
    products = sorted(PRODUCTS[name], key=lambda product: -len(product.bands))
    return tuple(dict.fromkeys(b for product in products for b in product.band_names))


def product(name: str, bands) -> Sensor:
    """The first product of a sensor that has all of some bands, else the usual one."""
    fitting = (p for p in PRODUCTS[name] if set(bands) <= set(p.band_names))
    return next(fitting, PRODUCTS[name][0])
