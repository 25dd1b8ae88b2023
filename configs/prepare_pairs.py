r"""Builds a dataset of records from your own pairs of GeoTIFFs.

    python launch.py --config=configs/prepare_pairs.py --config.source=DIR \
        --config.out=DIR --config.read.s1_unit=dB --config.read.s2_unit=DN

The source is one of three:

    DIR        with s1/ and s2/, whose files pair by name: s1/a.tif with s2/a.tif; or
               with one of them alone; and perhaps mask/ with mask/a.tif or mask/a.png
    PAIRS.csv  with the columns s1 and s2, or one of them, paths from the CSV's folder,
               and perhaps id, split (train, validation, test; rows without one are left
               out when others have one), tile, labels (names separated by ;), mask
               (a path, or empty), s2_offset, acquired_s1, acquired_s2
    DIR        with files called by a pattern, of one sensor, both, and perhaps masks:
               --config.read.s1_files='S1Hand/{id}_S1Hand.tif'
               --config.read.s2_files='S2Hand/{id}_S2Hand.tif'
               --config.read.mask_files='LabelHand/{id}_LabelHand.tif', or class
               folders: --config.read.s2_files='{split}/{label}/{id}.tif'

Each file holds all bands of one sensor on one 10 m grid, both of a pair on the same; a
folder with a file for each band, at 10, 20 and 60 m, stands for one file, such as a
product NAME.SAFE. --config.read.align=True warps images on other grids, in degrees too,
onto one, and --config.read.tile=120 cuts whole scenes into pairs. Band descriptions in
the files name them, VV, VH, B02, B2 or blue, in any order; other bands are left out.
Pixels that were not measured are told by nodata values, masks, NaN and fill values,
units and offsets are judged by the pixels of each pair: docs/data.md says how. Without
splits, all pairs are for training, unless --config.holdout_share=0.1 keeps
some for validation.

A mask is one band with a whole number for the class of each pixel, on the grid of its
pair. --config.read.mask_classes="('dry','flooded')" names the values 0, 1 and so on,
"('10=tree cover','80=water')" any others; without it the values that masks hold are the
names. --config.read.mask_nodata="(255,)" lists values that mean no class, beside those
that files mark so. dense_pairs evaluates encoders on masks.
"""

import ml_collections

from configs import prepare_bigearthnet


def get_config() -> ml_collections.ConfigDict:
    c = prepare_bigearthnet.get_config()
    c.unlock()
    c.archive = "geotiff_pairs"
    del c.download, c.download_parts
    c.read = read = ml_collections.ConfigDict()
    read.most_missing = 0.5
    read.name = "pairs"
    read.licence = "Not stated."
    read.s1_files = ""
    read.s2_files = ""
    read.mask_files = ""
    read.s1_bands = ()
    read.s2_bands = ()
    read.s1_unit = "dB"
    read.s2_unit = "DN"
    read.s2_level = "auto"
    read.s2_offset = "auto"
    read.size = 0
    read.tile = 0
    read.stride = 0
    read.edges = "drop"
    read.align = False
    read.classes = ()
    read.mask_classes = ()
    read.mask_nodata = ()
    return c.lock()
