"""Features of a whole scene as a map, or of a dataset's pairs as a table."""

import datetime
import json
import logging
import os
import pathlib
import shutil
import struct

import numpy as np

from data_pipeline import atomic, config_fields, data_fields, ground, sources
from data_pipeline.archives import base
from data_pipeline.archives.grids import Grid
from data_pipeline.config_fields import Field, choice, location, whole
from data_pipeline.dataset_card import SPLITS
from data_pipeline.errors import InputError
from data_pipeline.sensors import SENSORS as SENSORS_BY_NAME
from fusmae_jax import maps, pretrained, scenes
from fusmae_jax.config import check_checkpoint
from fusmae_jax.evaluation import encoder, features
from fusmae_jax.evaluation.progress import Progress
from fusmae_jax.inputs import SENSORS
from fusmae_jax.training import sharding

log = logging.getLogger("fusmae_jax")

MAP, PICTURE, ITEM = "embeddings.tif", "embeddings.png", "embeddings.json"
TABLE_FILE = "embeddings.parquet"
STAC = "https://stac-extensions.github.io"

# What the config may say.
TABLE = {
    "task": choice("embed", meaning="What launch.py does."),
    "checkpoint": location(meaning="Run directory of a pretraining."),
    "step": whole(0, meaning="Which of its checkpoints; 0 for the latest."),
    "out": location(
        meaning="Folder of the result: empty, or with a map that was stopped."
    ),
    **scenes.FIELDS,
    "stride": whole(
        0,
        meaning="Patches from one window over a scene to the next; fewer are slower "
        "and leave less of a seam, 0 for a quarter of a window.",
    ),
    "dtype": choice(
        *maps.DTYPES,
        meaning="Of the map: 16-bit floats, or bytes with a scale for each band.",
    ),
    "batch_size": whole(1, meaning="Windows or pairs that are encoded at a time."),
    **data_fields.rows(("source", "dir", "count", "size", "seed")),
    "split": choice(*SPLITS, meaning="Split of the dataset whose pairs are embedded."),
    "view": choice(*features.VIEWS, meaning="What is shown of a pair."),
}


def fields(config) -> dict[str, Field]:
    """What each field of the config may hold, and means."""
    del config  # the same for all
    return TABLE


def check(config) -> None:
    """Refuses what no run and no data could make work.

    Raises:
        InputError: names the fields and their values.
    """
    config_fields.check(config, TABLE, like="configs/embed.py")
    check_checkpoint(config.checkpoint)
    if not config.out:
        raise InputError("Say where the result goes: --config.out=DIR.")
    given = [s for s in SENSORS if config[s]]
    if given and (config.data.dir or config.data.source != "records"):
        raise InputError(
            f"{' and '.join(given)} name a scene, and config.data a dataset; embed one "
            "after the other."
        )
    if not given:
        data_fields.check(config.data)


def run(config, workdir) -> None:
    """What `launch.py` calls; writes into `config.out`.

    Raises:
        InputError: there is no such run, scene or dataset, or they do not fit.
    """
    del workdir
    check(config)
    config = config_fields.resolve(config, TABLE)
    if any(config[s] for s in SENSORS):
        embed_scene(config)
    else:
        embed_pairs(config)


def embed_scene(config) -> None:
    """Writes the map of a scene, its picture, and a STAC item that describes it."""
    model = pretrained.load(
        config.checkpoint, step=config.step, batch_size=config.batch_size
    )
    model.check_given([s for s in SENSORS if config[s]])
    scene = scenes.open_scene(config, model.contract)
    stride = config.stride or max(model.encoder.side // 4, 1)
    cover, out = scenes.cover(scene, model, stride), pathlib.Path(config.out)
    decisive = key(config, model, scene, stride)
    rows = maps.Rows(out, (*cover.shape, model.width), decisive)
    p = model.patch_size
    area = cover.shape[1] * (p * 0.01) ** 2  # km2 of a row of patches
    total = cover.shape[0] * area
    with Progress(
        "Embedding", round(total), "km2", done=round(rows.done * area)
    ) as bar:
        if rows.done < cover.shape[0]:
            found = scenes.map_rows(
                scene, model, cover, scenes.dense(model), model.width, rows.done
            )
            for first, part in found:
                rows.add(first, part)
                bar.update(len(part) * area)
    grid = patch_grid(scene.grid, p, cover.shape)
    _write_map(config, model, scene, rows, grid)
    known = float(np.mean([~np.isnan(rows.values[i, :, 0]) for i in range(rows.done)]))
    rows.remove()
    print(
        f"{out / MAP}: {cover.shape[0]} x {cover.shape[1]} patches of {10 * p} m, "
        f"{model.width} bands of {config.dtype}; {known:.1%} of them show something."
    )


def key(config, model, scene: scenes.Scene, stride: int) -> dict:
    """Everything that decides what the encoder says of a scene."""
    return {
        "version": features.VERSION,
        "parameters": encoder.digest(model.params),
        "grid": [scene.grid.text, *scene.grid.shape],
        "stride": stride,
        "s2_offset": scene.offset,
        **{f"{s}_unit": config[f"{s}_unit"] for s in SENSORS},
        **{f"{s}_bands": list(config[f"{s}_bands"]) for s in SENSORS},
        **{s: _file(config[s]) for s in SENSORS},
    }


def _file(path: str) -> list:
    """What tells a file or folder from another, or from itself once changed."""
    if not path:
        return []
    status = os.stat(path)
    return [os.path.basename(path), status.st_size, status.st_mtime_ns]


def patch_grid(grid: Grid, p: int, shape: tuple[int, int]) -> Grid:
    """The grid of a scene's patches, whose edges are edges of its pixels."""
    matrix = grid.matrix.copy()
    matrix[:, :2] *= p
    return Grid(tuple(shape), grid.crs, tuple(matrix.ravel().tolist()))


def _write_map(config, model, scene, rows: maps.Rows, grid: Grid) -> None:
    from matplotlib import image

    out = pathlib.Path(config.out)
    tags = {
        "SOFTWARE": "fusmae_jax",
        "ENCODER": f"{model.encoder.name} {encoder.digest(model.params)}",
        "PATCH_SIZE": str(model.patch_size),
        **{s.upper(): os.path.basename(path) for s, path in scene.paths.items()},
    }
    bands = [f"feature {i}" for i in range(model.width)]
    maps.write(out / MAP, rows.values, grid, dtype=config.dtype, bands=bands, tags=tags)
    part = out / f"{PICTURE}.part.png"
    image.imsave(part, maps.false_colour(rows.values))
    part.replace(out / PICTURE)
    item = stac_item(config, model, scene, grid)
    atomic.write_whole(out / ITEM, json.dumps(item, indent=2) + "\n")


def stac_item(config, model, scene, grid: Grid) -> dict:
    """A STAC item of a map, with the fields of the embeddings extension."""
    x, y = in_degrees(grid)
    times = [base.acquired(os.path.basename(path)) for path in scene.paths.values()]
    times = sorted(f"{time}Z" for time in times if time)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    inside = [f"{s}: {os.path.basename(path)}" for s, path in scene.paths.items()]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [f"{STAC}/projection/v1.1.0/schema.json"],
        "id": pathlib.Path(config.out).name,
        "bbox": [min(x), min(y), max(x), max(y)],
        "geometry": {
            "type": "Polygon",
            "coordinates": [[list(p) for p in zip(x, y)]],
        },
        "properties": {
            # The time of the images, or where no name tells it that of the map.
            "datetime": times[0] if times else now,
            "proj:epsg": int(grid.crs.rpartition(":")[2]),
            "proj:shape": list(grid.shape),
            "proj:transform": list(grid.transform),
            "emb:type": "chip",
            "emb:dimensions": model.width,
            "emb:chip_layout": {
                "chip_size": [model.patch_size, model.patch_size],
                "stride": [model.patch_size, model.patch_size],
            },
            "emb:quantization": config.dtype,
            "emb:preprocessing": "pixels normalised by the statistics of the "
            "pretraining data; " + ", ".join(inside),
        },
        "links": [],
        "assets": {
            "embeddings": {
                "href": f"./{MAP}",
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "roles": ["data"],
            },
            "preview": {
                "href": f"./{PICTURE}",
                "type": "image/png",
                "roles": ["overview"],
            },
        },
    }


def embed_pairs(config) -> None:
    """Writes a table of the features of a dataset's pairs."""
    out = pathlib.Path(config.out)
    if out.exists() and any(path.name != "features" for path in out.iterdir()):
        raise InputError(
            f"{out} holds something already, which is not overwritten; pass another "
            "--config.out=DIR."
        )
    mesh = sharding.make_mesh()
    found = encoder.restore(config.checkpoint, mesh, config.step)
    description = sources.describe(config.data)
    missing = sources.has_missing(config.data)
    judged = found.look_at(description, "run", missing)
    *_, shown = encoder.sensor_sets(description, reads=judged.sensors)
    extractor = features.Extractor(
        judged,
        found.encoder_params,
        features.Recipe(pool="mean", view=config.view),
        mesh,
        (shown,),
    )
    wanted = description.layout.fields(judged.inputs.contract)
    source = sources.open_split(config.data, config.split, (*wanted, "id"))
    taken = features.extract(
        extractor,
        source,
        folder=out / "features",
        batch_size=config.batch_size,
        title="Embedding",
    )
    _write_table(out / TABLE_FILE, source, taken[shown])
    shutil.rmtree(out / "features")
    print(
        f"{out / TABLE_FILE}: {len(source)} pairs, {taken[shown].shape[1]} numbers "
        f"each, of {' and '.join(names(shown))}."
    )


def names(shown: str) -> list[str]:
    """Titles of the sensors of one of `encoder.SENSOR_SETS`."""
    there = zip(SENSORS, encoder.SENSOR_SETS[shown])
    return [SENSORS_BY_NAME[s].title for s, here in there if here]


def _write_table(path: pathlib.Path, source, found: np.ndarray) -> None:
    """Writes id, place, outline and features of pairs as GeoParquet."""
    import pyarrow
    from pyarrow import parquet

    places = [str(place) for place in getattr(source, "places", [])]
    places = places or [""] * len(source)
    outlines = [outline(place, source.description.layout.size) for place in places]
    flat = pyarrow.array(found.astype(np.float32).ravel())
    columns = {
        "id": [str(name) for name in source.index["id"]],
        "place": places,
        "features": pyarrow.FixedSizeListArray.from_arrays(flat, found.shape[1]),
    }
    meta = {}
    if any(outlines):
        columns["geometry"] = pyarrow.array(outlines, pyarrow.binary())
        column = {"encoding": "WKB", "geometry_types": ["Polygon"]}
        geo = {"version": "1.1.0", "primary_column": "geometry"}
        meta["geo"] = json.dumps(geo | {"columns": {"geometry": column}})
    table = pyarrow.table(columns).replace_schema_metadata(meta)
    content = pyarrow.BufferOutputStream()
    parquet.write_table(table, content)
    atomic.write_whole(path, content.getvalue().to_pybytes())


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
