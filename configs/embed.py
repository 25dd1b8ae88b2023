r"""Writes what a pretrained encoder says of a scene as a map, or of pairs as a table.

    python launch.py --config=configs/embed.py --config.checkpoint=runs/base \
        --config.s2=S2A_MSIL2A_....SAFE --config.s1=s1.tif --config.out=maps/here
    python launch.py --config=configs/embed.py --config.checkpoint=runs/base \
        --config.data.dir=data/mine --config.split=test --config.out=tables/mine

A scene is a GeoTIFF, or a folder with a file for each band, of one sensor or both; they
come onto one grid of 10 m. The map is a Cloud-Optimized GeoTIFF with a pixel for each
patch and a band for each feature, beside a false-colour picture and a STAC item. A
stopped map goes on with the same command. The table is GeoParquet, with id, place,
outline and features of each pair of a dataset that prepare_*.py built.
"""

import ml_collections

from data_pipeline.sensors import SENSORS


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "embed"
    c.checkpoint = ""
    c.step = 0
    c.out = ""
    for sensor in SENSORS:
        c[sensor], c[f"{sensor}_bands"] = "", ()
    c.s1_unit, c.s2_unit, c.s2_offset = "dB", "DN", "auto"
    c.stride = 0
    c.dtype = "float16"
    c.batch_size = 32
    c.data = dict(source="records", dir="", count=1_000, size=120, seed=0)
    c.split = "train"
    c.view = "whole"
    return c.lock()
