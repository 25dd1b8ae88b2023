"""Tables of a dataset's pairs: GeoParquet with what an encoder makes of each."""

import json
import pathlib
import shutil
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline import atomic, ground, sources
from data_pipeline.archives.grids import Grid
from data_pipeline.errors import InputError
from data_pipeline.sensors import SENSORS as SENSORS_BY_NAME
from fusmae_jax.evaluation import encoder, features
from fusmae_jax.evaluation.encoder import Pretrained
from fusmae_jax.inputs import SENSORS

FEATURES = "features"  # the folder of those that are taken, until the table is there


def take(
    config,
    found: Pretrained,
    params,
    recipe: features.Recipe,
    shown: str,
    title: str,
):
    """Features of the pairs of `config.data`, as an evaluation takes them.

    Args:
        config: with `data`, `split`, `batch_size` and `out`, where what is finished is
            kept, for the same command to go on.
        found: the encoder, whose contract says how bands are normalised.
        params: of the encoder.
        recipe: which features.
        shown: of `encoder.SENSOR_SETS`.
        title: of the progress.

    Returns:
        The pairs, a source, and their features, [N, D].

    Raises:
        InputError: `out` holds something else, or pairs and encoder do not fit.
    """
    out = pathlib.Path(config.out)
    if out.exists() and any(path.name != FEATURES for path in out.iterdir()):
        raise InputError(
            f"{out} holds something already, which is not overwritten; pass another "
            "out=DIR."
        )
    description = sources.describe(config.data)
    judged = found.look_at(description, "run", sources.has_missing(config.data))
    extractor = features.Extractor(judged, params, recipe, found.mesh, (shown,))
    wanted = description.layout.fields(judged.inputs.contract)
    source = sources.open_split(config.data, config.split, (*wanted, "id"))
    taken = features.extract(
        extractor,
        source,
        folder=out / FEATURES,
        batch_size=config.batch_size,
        title=title,
    )
    return source, taken[shown]


def write(path: pathlib.Path, source, columns: Mapping[str, Sequence]) -> None:
    """Writes id, place, outline and what else there is of pairs as GeoParquet.

    The features that were kept beside it for that go.
    """
    import pyarrow
    from pyarrow import parquet

    places = [str(place) for place in getattr(source, "places", [])]
    places = places or [""] * len(source)
    outlines = [outline(place, source.description.layout.size) for place in places]
    ids = [str(name) for name in source.index["id"]]
    columns, meta = {"id": ids, "place": places, **columns}, {}
    if any(outlines):
        columns["geometry"] = pyarrow.array(outlines, pyarrow.binary())
        column = {"encoding": "WKB", "geometry_types": ["Polygon"]}
        geo = {"version": "1.1.0", "primary_column": "geometry"}
        meta["geo"] = json.dumps(geo | {"columns": {"geometry": column}})
    table = pyarrow.table(columns).replace_schema_metadata(meta)
    content = pyarrow.BufferOutputStream()
    parquet.write_table(table, content)
    atomic.write_whole(path, content.getvalue().to_pybytes())
    shutil.rmtree(path.parent / FEATURES)


def names(shown: str) -> str:
    """Titles of the sensors of one of `encoder.SENSOR_SETS`."""
    there = zip(SENSORS, encoder.SENSOR_SETS[shown])
    return " and ".join(SENSORS_BY_NAME[s].title for s, here in there if here)


def outline(place: str, side: int) -> bytes | None:
    """The outline of a pair in degrees, as WKB; None where its place tells no grid.

    Args:
        place: of the pair, see `data_pipeline.ground`.
        side: of the pair in pixels.
    """
    found = ground.grid(place)
    if found is None:
        return None
    x, y = in_degrees(Grid((side, side), *found))
    points = struct.pack(f"<{2 * len(x)}d", *(v for point in zip(x, y) for v in point))
    return struct.pack("<BIII", 1, 3, 1, len(x)) + points


def in_degrees(grid: Grid) -> tuple[list[float], list[float]]:
    """Longitudes and latitudes of a grid's corners, around it and back to the first."""
    from rasterio import warp

    height, width = grid.shape
    corners = [(0, 0, 1), (0, height, 1), (width, height, 1), (width, 0, 1), (0, 0, 1)]
    x, y = grid.matrix @ np.transpose(corners)
    return warp.transform(grid.crs, "EPSG:4326", x.tolist(), y.tolist())
