"""The input contract: bands have names, pixels have units.

A `Sensor` says which bands a sensor has, in which order, on which grid, in which
unit, which values are possible, and how they are distributed. Everything that touches
pixels (reading, writing, normalising, plotting) asks here, so there is one answer to
"which bands, in what order, in which unit, normalised how?".
"""

import dataclasses

from data_pipeline.errors import InputError


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
        field: the record's field that holds them, [H, W, C], e.g. "s2_20m".
        gsd: ground sampling distance in metres.
        bands: names in stored order.
    """

    field: str
    gsd: int
    bands: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sensor:
    """A sensor's bands in canonical order, with unit, range and statistics.

    Attributes:
        name: key in batches, parameters and metrics.
        title: name for people.
        unit: what a pixel value means.
        dtype: how pixels are stored; no conversion happens on disk.
        valid_range: values outside cannot be what the unit claims.
        bands: in canonical order.
        source: where the statistics come from.
    """

    name: str
    title: str
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
        """Pixel grids from finest to coarsest."""
        return tuple(
            Grid(
                field=f"{self.name}_{gsd}m",
                gsd=gsd,
                bands=tuple(b.name for b in self.bands if b.gsd == gsd),
            )
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

    def describe(self) -> dict:
        """The contract as plain data with bands by name, to be saved with a run."""
        bands = {band.name: dataclasses.asdict(band) for band in self.bands}
        return dataclasses.asdict(self) | {"bands": bands}


_V1 = "BigEarthNet v1 training split, after git.tu-berlin.de/rsim/bigearthnet-models-tf"

S1 = Sensor(
    name="s1",
    title="Sentinel-1",
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

# A pair is cut out on the finest grid; its side must be whole on every coarser one.
FINEST_GSD = min(band.gsd for sensor in SENSORS.values() for band in sensor.bands)


def shapes(size: int) -> dict[str, tuple[int, int, int]]:
    """Shape [H, W, C] of every stored field of a pair `size` pixels wide at 10 m.

    Raises:
        InputError: `size` is not whole on a coarser grid.
    """
    result = {}
    for sensor in SENSORS.values():
        for grid in sensor.grids:
            factor = grid.gsd // FINEST_GSD
            if size <= 0 or size % factor:
                raise InputError(
                    f"A pair of {size} px at {FINEST_GSD} m is not whole at "
                    f"{grid.gsd} m; choose a multiple of {factor}."
                )
            side = size // factor
            result[grid.field] = (side, side, len(grid.bands))
    return result


def fields(contract: dict[str, Sensor]) -> tuple[str, ...]:
    """The stored fields that hold the contract's bands."""
    return tuple(g.field for sensor in contract.values() for g in sensor.grids)
