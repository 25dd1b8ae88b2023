"""How a dataset stores its pairs: one array a pixel grid, all of one size.

The contract (`sensors`) says what a band is; the layout says where its pixels lie.
Archives differ: BigEarthNet keeps 20 m bands at 20 m, SEN12MS has resampled them.
"""

import dataclasses
from collections.abc import Mapping

from data_pipeline import sensors
from data_pipeline.errors import InputError

MOST_SIZE = 10_980  # pixels of a pair's side that a file may claim: a Sentinel-2 tile


@dataclasses.dataclass(frozen=True)
class Layout:
    """The stored arrays of a pair.

    Attributes:
        size: side of a pair in pixels at 10 m.
        grids: one for each stored array.
    """

    size: int
    grids: tuple[sensors.Grid, ...]

    def __post_init__(self):
        for grid in self.grids:
            factor = grid.gsd // sensors.FINEST_GSD
            if self.size <= 0 or self.size % factor:
                raise InputError(
                    f"A pair of {self.size} px at {sensors.FINEST_GSD} m is not whole "
                    f"at {grid.gsd} m; choose a multiple of {factor}."
                )

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Shape [H, W, C] of every stored array, by field."""
        sides = {g: self.size * sensors.FINEST_GSD // g.gsd for g in self.grids}
        return {g.field: (side, side, len(g.bands)) for g, side in sides.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        """Type of every stored array, by field."""
        return {g.field: sensors.SENSORS[g.sensor].dtype for g in self.grids}

    def of(self, sensor: str) -> tuple[sensors.Grid, ...]:
        """The arrays of one sensor."""
        return tuple(grid for grid in self.grids if grid.sensor == sensor)

    def fields(self, contract: Mapping[str, sensors.Sensor]) -> tuple[str, ...]:
        """The fields that hold the contract's bands, of sensors that are there at all.

        Raises:
            InputError: a band is in none of them.
        """
        chosen = []
        for name, sensor in contract.items():
            stored = {band for grid in self.of(name) for band in grid.bands}
            missing = [band for band in sensor.band_names if band not in stored]
            if missing and stored:
                raise InputError(
                    f"The data has no {sensor.title} bands {missing}, only "
                    f"{sorted(stored)}; choose among them with config.bands.{name} "
                    "when pretraining."
                )
            chosen += [
                grid.field
                for grid in self.of(name)
                if set(grid.bands) & set(sensor.band_names)
            ]
        return tuple(chosen)

    def describe(self) -> dict:
        """The layout as plain data."""
        return dataclasses.asdict(self)


def restore(described: Mapping) -> Layout:
    """The layout that `Layout.describe` described, by way of JSON or not.

    Raises:
        InputError: that is no description of a layout.
    """
    try:
        grids = tuple(
            sensors.Grid(grid["sensor"], grid["gsd"], tuple(grid["bands"]))
            for grid in described["grids"]
        )
        _check(described["size"], grids)
        return Layout(described["size"], grids)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"This is no description of a layout ({error!r:.99}): {described!r:.99}."
        ) from error


def _check(size: int, grids: tuple[sensors.Grid, ...]) -> None:
    """Raises a TypeError where a part of a restored layout cannot be."""
    if type(size) is not int or not 0 < size <= MOST_SIZE:
        raise TypeError(f"pairs of {size!r:.50} px")
    for grid in grids:
        finest = sensors.SENSORS[grid.sensor].grids[0].gsd
        if type(grid.gsd) is not int or grid.gsd < finest or grid.gsd % finest:
            raise TypeError(f"a pixel every {grid.gsd!r:.50} m")
        if not grid.bands or not all(isinstance(name, str) for name in grid.bands):
            raise TypeError(f"bands {grid.bands!r:.50}")
    if not grids or len({grid.field for grid in grids}) != len(grids):
        raise TypeError("grids that are missing or repeated")


def native(size: int, contract: Mapping[str, sensors.Sensor]) -> Layout:
    """Every band on its own grid, as the satellites measure them.

    Raises:
        InputError: `size` is not whole on a coarser grid.
    """
    return Layout(size, tuple(g for s in contract.values() for g in s.grids))


def resampled(size: int, contract: Mapping[str, sensors.Sensor]) -> Layout:
    """All bands of a sensor on the 10 m grid, as many archives store them."""
    return Layout(
        size,
        tuple(
            sensors.Grid(name, sensors.FINEST_GSD, sensor.band_names)
            for name, sensor in contract.items()
        ),
    )
