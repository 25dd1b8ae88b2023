"""Features of a whole scene as a map, or of a dataset's pairs as a table."""

import datetime
import json
import logging
import os
import pathlib

import numpy as np

from data_pipeline import atomic, config_fields, data_fields, sources
from data_pipeline.archives import base
from data_pipeline.archives.grids import Grid
from data_pipeline.config_fields import choice, location, whole
from data_pipeline.dataset_card import SPLITS
from data_pipeline.errors import InputError
from fusmae_jax import maps, pretrained, scenes, tables
from fusmae_jax.config import CHECKPOINT, check_checkpoint
from fusmae_jax.evaluation import encoder, features
from fusmae_jax.inputs import SENSORS
from fusmae_jax.training import sharding

log = logging.getLogger("fusmae_jax")

MAP, PICTURE, ITEM = "embeddings.tif", "embeddings.png", "embeddings.json"
TABLE_FILE = "embeddings.parquet"
STAC = "https://stac-extensions.github.io"

# What a config may say that uses an encoder on a scene or a dataset.
SHARED = {
    **CHECKPOINT,
    "out": location(
        meaning="Folder of the result: empty, or with a map that was stopped."
    ),
    **scenes.FIELDS,
    "batch_size": whole(1, meaning="Windows or pairs that are encoded at a time."),
    **data_fields.rows(("source", "dir", "count", "size", "seed")),
    "split": choice(*SPLITS, meaning="Split of the dataset whose pairs are taken."),
}

# What the config may say.
TABLE = {
    "task": choice("embed", meaning="What launch.py does."),
    **SHARED,
    "dtype": choice(
        *maps.DTYPES,
        meaning="Of the map: 16-bit floats, or bytes with a scale for each band.",
    ),
    "view": choice(*features.VIEWS, meaning="What is shown of a pair."),
}
fields = config_fields.always(TABLE)


def check(config) -> None:
    """Refuses what no run and no data could make work.

    Raises:
        InputError: names the fields and their values.
    """
    config_fields.check(config, TABLE, like="configs/embed.py")
    check_shared(config)


def check_shared(config) -> None:
    """Refuses what `SHARED` allows field by field, and no encoder could be used on.

    Raises:
        InputError: names the fields and their values.
    """
    check_checkpoint(config.checkpoint)
    if not config.out:
        raise InputError("Say where the result goes: out=DIR.")
    given, data = [s for s in SENSORS if config[s]], config.data
    dataset = bool(data.dir) or data.source != "records"
    if given and dataset:
        raise InputError(
            f"{' and '.join(given)} name a scene, and config.data a dataset; take one "
            "after the other."
        )
    if not given and not dataset:
        raise InputError(
            "Name a scene, s1=FILE or s2=FILE or both, or a dataset, data.dir=DIR."
        )
    if not given:
        data_fields.check(data)


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
    step = scenes.dense(model)
    rows = scenes.map_scene(config, model, scene, step, model.width, title="Embedding")
    shape = rows.values.shape[:2]
    grid = scenes.patch_grid(scene.grid, model.patch_size, shape)
    _write_map(config, model, scene, rows, grid)
    known = float(np.mean([~np.isnan(rows.values[i, :, 0]) for i in range(rows.done)]))
    rows.remove()
    print(
        f"{pathlib.Path(config.out, MAP)}: {shape[0]} x {shape[1]} patches of "
        f"{10 * model.patch_size} m, {model.width} bands of {config.dtype}; "
        f"{known:.1%} of them show something."
    )


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
    x, y = tables.in_degrees(grid)
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
    import pyarrow

    mesh = sharding.make_mesh()
    found = encoder.restore(config.checkpoint, mesh, config.step)
    description = sources.describe(config.data)
    *_, shown = encoder.sensor_sets(
        description, reads=found.objective.encoder().sensors
    )
    recipe = features.Recipe(pool="mean", view=config.view)
    params, title = found.encoder_params, "Embedding"
    source, taken = tables.take(config, found, params, recipe, shown, title)
    path = pathlib.Path(config.out, TABLE_FILE)
    flat = pyarrow.array(taken.astype(np.float32).ravel())
    vectors = pyarrow.FixedSizeListArray.from_arrays(flat, taken.shape[1])
    tables.write(path, source, {"features": vectors})
    print(
        f"{path}: {len(source)} pairs, {taken.shape[1]} numbers each, of "
        f"{tables.names(shown)}."
    )
