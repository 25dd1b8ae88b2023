"""Segmentation masks of users' own pairs: read, refused, stored, and learnt from."""

import logging

import numpy as np
import pytest
import rasterio

from configs import dense_pairs, prepare_pairs
from data_pipeline import dataset_card, record_format
from data_pipeline.building import prepare
from data_pipeline.classes import NO_CLASS
from data_pipeline.errors import InputError
from fusmae_jax.evaluation import evaluate
from tests import datasets, judging, teacher
from tests.geotiffs import (
    GRID,
    S1_BANDS,
    S2_BANDS,
    SIDE,
    open_archive,
    s1_image,
    s2_image,
    write,
    write_csv,
    write_pairs,
)

# PNGs are written without coordinates, of which rasterio warns.
pytestmark = pytest.mark.filterwarnings(
    "ignore::rasterio.errors.NotGeoreferencedWarning"
)


def checks(low=0, high=1, dtype=np.uint8):
    """A mask [H, W], the upper half `low` and the lower `high`."""
    mask = np.full((SIDE, SIDE), low, dtype)
    mask[SIDE // 2 :] = high
    return mask


def write_mask(path, mask, **profile):
    write(path, mask if mask.ndim == 3 else mask[None], **profile)


def write_png(path, mask, **profile):
    write_mask(path, mask, driver="PNG", crs=None, transform=None, **profile)


def source(root, mask=None, **profile):
    """Two pairs as a folder; the first has a mask, if one is given."""
    write_pairs(root)
    if mask is not None:
        write_mask(root / "mask" / "p0.tif", mask, **profile)
    return root


def masks(where, **read):
    """The masks of all pairs, in the order of their names."""
    archive = open_archive(where, **read)
    pairs, skipped = archive.find_pairs()
    assert not skipped
    return [archive.read_pair(pair)["mask"] for pair in pairs]


def names(where, **read):
    return open_archive(where, **read).description.maps["mask"]


def test_a_mask_lies_in_a_folder_beside_its_pair_or_in_a_column_of_a_csv(tmp_path):
    source(tmp_path, checks())
    write_mask(tmp_path / "mask" / "p1.tiff", checks(1, 0))
    rows = [dict(s1=f"s1/p{i}.tif", s2=f"s2/p{i}.tif") for i in range(2)]
    rows[0]["mask"], rows[1]["mask"] = "mask/p0.tif", str(tmp_path / "mask" / "p1.tiff")
    for where in (tmp_path, write_csv(tmp_path / "pairs.csv", rows)):
        assert names(where) == ("0", "1")
        first, second = masks(where)
        assert first.dtype == np.uint8
        np.testing.assert_array_equal(first, checks())
        np.testing.assert_array_equal(second, checks(1, 0))


def test_a_png_is_a_mask_too_and_is_believed_without_coordinates(tmp_path):
    source(tmp_path)
    write_png(tmp_path / "mask" / "p0.PNG", checks(0, 7))
    assert names(tmp_path) == ("0", "7")
    np.testing.assert_array_equal(masks(tmp_path)[0], checks(0, 1))


def test_a_pair_without_mask_has_no_class_anywhere(tmp_path):
    first, second = masks(source(tmp_path, checks()))
    assert (second == NO_CLASS).all() and not (first == NO_CLASS).any()


def test_pairs_of_which_none_has_a_mask_have_no_such_field(tmp_path):
    archive = open_archive(source(tmp_path))
    assert not archive.description.maps
    assert "mask" not in archive.read_pair(archive.find_pairs()[0][0])


def test_classes_are_named_by_the_values_0_1_2_or_by_value_and_name(tmp_path):
    source(tmp_path, checks(2, 0))
    given = ("dry", "cloud", "flood = new")
    assert names(tmp_path, mask_classes=given) == given
    np.testing.assert_array_equal(masks(tmp_path, mask_classes=given)[0], checks(2, 0))

    valued = ("2=flood", " -3 = snow and ice", "0=dry")
    assert names(tmp_path, mask_classes=valued) == ("flood", "snow and ice", "dry")
    np.testing.assert_array_equal(masks(tmp_path, mask_classes=valued)[0], checks(0, 2))


def test_values_of_all_masks_are_the_names_where_none_are_given(tmp_path):
    """One in a hundred pairs, too, which a sample would not have met."""
    write_pairs(tmp_path, 1)
    rows = []
    for i in range(100):
        value = 300 if i == 37 else 10
        write_mask(tmp_path / f"m{i}.tif", checks(9, value, np.uint16))
        rows.append(dict(s1="s1/p0.tif", s2="s2/p0.tif", id=f"{i}", mask=f"m{i}.tif"))
    found = names(write_csv(tmp_path / "pairs.csv", rows))
    assert found == ("9", "10", "300")


@pytest.mark.parametrize(
    "mask, profile, read",
    [
        (checks(0, 99), {}, dict(mask_nodata=(99, -1))),
        (checks(0, 99), {}, dict(mask_nodata=(99,), mask_classes=("a", "b"))),
        (checks(0, 99), dict(nodata=99), {}),
        (checks(0, np.nan, np.float32), {}, {}),
    ],
)
def test_values_that_mean_no_class_are_stored_as_none(tmp_path, mask, profile, read):
    source(tmp_path, mask, **profile)
    write_mask(tmp_path / "mask" / "p1.tif", checks())
    assert len(names(tmp_path, **read)) == 2
    first, second = masks(tmp_path, **read)
    np.testing.assert_array_equal(first, checks(0, NO_CLASS))
    np.testing.assert_array_equal(second, checks())


def test_pixels_that_a_file_masks_have_no_class(tmp_path):
    source(tmp_path, checks())
    with rasterio.open(tmp_path / "mask" / "p0.tif", "r+") as file:
        file.write_mask(np.arange(SIDE * SIDE).reshape(SIDE, SIDE) != 0)
    want = checks()
    want[0, 0] = NO_CLASS
    np.testing.assert_array_equal(masks(tmp_path)[0], want)


def test_a_value_that_is_named_is_a_class_though_files_mark_it_as_none(tmp_path):
    """Tools that burn polygons mark their background, 0, as nodata."""
    source(tmp_path, checks(), nodata=0)
    with pytest.raises(InputError, match=r"hold \[1\] alone.* read.mask_classes="):
        open_archive(tmp_path)
    np.testing.assert_array_equal(
        masks(tmp_path, mask_classes=("dry", "flooded"))[0], checks()
    )


@pytest.mark.parametrize(
    "mask, message",
    [
        (
            checks(1, 7),
            "the value 7 in 128 pixels, which means none of the 2 cl",
        ),
        (checks(-1, 7, np.int16), r"-1 in 128 pixels, the value 7 in 128 pixels"),
        (checks(0, 0.5, np.float32), "holds 0.5, where a mask has a whole number"),
        (checks(0, np.inf, np.float32), "holds inf, where"),
        (np.stack([checks()] * 3), "has 3 bands of uint8, where a mask has one"),
        (checks(dtype=np.complex64), "has 1 bands of complex64, where a mask"),
        (checks()[:8], "is 8 x 16 px, where the dataset has 16 x 16"),
        (np.arange(256, dtype=np.uint8).reshape(16, 16), ", 249 more values"),
    ],
)
def test_what_is_no_mask_of_these_classes_costs_the_pair(tmp_path, mask, message):
    source(tmp_path, mask)
    archive = open_archive(tmp_path, mask_classes=("dry", "flooded"))
    first, second = archive.find_pairs()[0]
    with pytest.raises(InputError, match=message) as error:
        archive.read_pair(first)
    assert "p0.tif" in str(error.value)
    archive.read_pair(second)


def test_a_mask_with_coordinates_lies_where_its_pair_lies(tmp_path):
    moved = rasterio.Affine(10, 0, 500010, 0, -10, 5000000)
    source(tmp_path, checks(), transform=moved)
    archive = open_archive(tmp_path)
    with pytest.raises(InputError, match="mask/p0.tif in .* resample one onto"):
        archive.read_pair(archive.find_pairs()[0][0])
    source(tmp_path, checks(), transform=GRID @ rasterio.Affine.scale(2))
    with pytest.raises(InputError, match="mask/p0.tif has pixels of 20 x 20 m"):
        archive.read_pair(archive.find_pairs()[0][0])


def test_masks_that_are_damaged_gone_or_other_files_cost_their_pairs(tmp_path):
    write_pairs(tmp_path, 4)
    folder = tmp_path / "mask"
    write_png(folder / "p0.png", checks())
    whole = (folder / "p0.png").read_bytes()
    (folder / "p1.png").write_bytes(whole[: len(whole) // 2])
    recipe = "<VRTDataset rasterXSize='16' rasterYSize='16'></VRTDataset>"
    (folder / "p2.png").write_text(recipe)
    write_mask(folder / "p3.tif", checks())

    archive = open_archive(tmp_path)  # whose classes are those of masks that are whole
    first, *others = archive.find_pairs()[0]
    (folder / "p3.tif").unlink()

    np.testing.assert_array_equal(archive.read_pair(first)["mask"], checks())
    for pair, message in zip(
        others,
        (
            "p1.png is damaged or no GeoTIFF or PNG",
            "p2.png is damaged or no GeoTIFF or PNG",
            "p3.tif cannot be read",
        ),
    ):
        with pytest.raises(InputError, match=message):
            archive.read_pair(pair)


def test_images_of_a_pair_are_never_pngs(tmp_path):
    write_pairs(tmp_path, 1)
    write_png(tmp_path / "s1" / "p0.tif", np.stack([checks(1, 2)] * 2))
    with pytest.raises(InputError, match="p0.tif is damaged or no GeoTIFF \\("):
        open_archive(tmp_path)


@pytest.mark.parametrize(
    "read, message",
    [
        (dict(mask_classes=("0=a", "b")), "'value=name' for all classes or for none"),
        (dict(mask_classes=("0=a", "0=b")), r"0=b.\), with a value or a name twice"),
        (dict(mask_classes=("0=a", "1=a")), r"1=a.\), with a value or a name twice"),
        (dict(mask_classes=tuple(map(str, range(256)))), "names 256 .* most 255"),
        (dict(mask_classes=("a", "b"), mask_nodata=(0, 5)), r"has \[0\], .*\['a'\]"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(tmp_path, read, message):
    source(tmp_path, checks())
    with pytest.raises(InputError, match=message):
        open_archive(tmp_path, **read)


def test_masks_of_too_many_values_are_refused_with_what_to_do(tmp_path):
    source(tmp_path, np.arange(256, dtype=np.uint8).reshape(16, 16))
    with pytest.raises(InputError, match="hold 256 values.*at most 255 classes"):
        open_archive(tmp_path)
    assert len(names(tmp_path, mask_nodata=(255,))) == 255


@pytest.mark.parametrize(
    "read", [dict(mask_classes=("a", "b")), dict(mask_nodata=(255,))]
)
def test_settings_of_masks_that_there_are_not_are_refused(tmp_path, read):
    with pytest.raises(InputError, match="no pair has one; put them into a folder ma"):
        open_archive(source(tmp_path), **read)


def test_masks_called_otherwise_than_images_do_not_vanish(tmp_path, caplog):
    source(tmp_path)
    write_mask(tmp_path / "mask" / "p0_mask.tif", checks())
    with pytest.raises(InputError, match="None of the 1 masks .*p0_mask.tif has not"):
        open_archive(tmp_path)
    write_mask(tmp_path / "mask" / "p0.tif", checks())
    with caplog.at_level(logging.WARNING, "fusmae_jax"):
        open_archive(tmp_path)
    assert "1 of 2 masks" in caplog.text and "p0_mask" in caplog.text


def test_a_pair_with_two_masks_is_listed(tmp_path):
    source(tmp_path, checks())
    write_png(tmp_path / "mask" / "p0.png", checks())
    write_mask(tmp_path / "mask" / "p1.tif", checks())
    pairs, skipped = open_archive(tmp_path).find_pairs()
    assert [pair.name for pair in pairs] == ["p1"]
    assert skipped[0].names == ("p0", "p0")
    assert "mask/p0.tif' stand for one pair, which has one mask" in skipped[0].reason


def test_a_column_of_another_name_is_refused_with_that_of_masks(tmp_path):
    row = dict(s1="s1/p0.tif", s2="s2/p0.tif", land_cover="lc/p0.tif")
    with pytest.raises(InputError, match="land_cover.* classes of its pixels into m"):
        open_archive(write_csv(tmp_path / "pairs.csv", [row]))


@pytest.fixture(scope="module")
def floods(tmp_path_factory):
    """A dataset of pairs with masks of floods and nothing else, in two splits."""
    root = tmp_path_factory.mktemp("floods")
    anywhere = dict(crs=None, transform=None)
    rows = []
    for i in range(12):
        write(root / f"s1/p{i}.tif", s1_image(i), S1_BANDS, **anywhere)
        write(root / f"s2/p{i}.tif", s2_image(i), S2_BANDS, **anywhere)
        row = dict(s1=f"s1/p{i}.tif", s2=f"s2/p{i}.tif", mask="")
        row["split"] = "train" if i < 8 else "test"
        if i not in (0, 8):
            write_mask(root / f"mask/p{i}.tif", checks(), nodata=0, **anywhere)
            row["mask"] = f"mask/p{i}.tif"
        rows.append(row)
    config = prepare_pairs.get_config()
    config.source, config.out = write_csv(root / "pairs.csv", rows), str(root / "out")
    config.workers, config.check_values = 0, False
    config.read.update(s2_offset="0", mask_classes=("dry", "flooded"))
    prepare.prepare(config)
    return root / "out"


def test_a_dataset_counts_keeps_and_draws_its_masks(floods):
    records = record_format.Records(floods, "train")
    assert records.description.maps == {"mask": ("dry", "flooded")}
    assert (records[0]["mask"] == NO_CLASS).all()
    np.testing.assert_array_equal(records[1]["mask"], checks())
    counts = dataset_card.read_card(floods)["splits"]["test"]["maps"]["mask"]
    assert counts == {"dry": 3 * 128, "flooded": 3 * 128, "": 256}
    card = (floods / "card.md").read_text()
    assert "### `mask`: share of the pixels, of 2 classes" in card
    assert (floods / "contact_sheet.png").exists()


@pytest.fixture(scope="module", autouse=True)
def method():
    with teacher.known():
        yield


def probe(factory, dataset):
    """The config's dense probe, as short as can be."""
    c = dense_pairs.get_config()
    c.checkpoint, c.data.dir = str(judging.trained(factory, "teacher")), str(dataset)
    c.data.val_split, c.sensors, c.baselines = "train", ("s1", "both"), ()
    c.batch_size, c.bootstrap = 4, 20
    c.dense.update(heads=("linear",), epochs=4, least_steps=0, batch_size=4)
    c.dense.learning_rates = (1e-2,)
    return c


@pytest.mark.journey
def test_dense_probing_needs_neither_labels_of_pairs_nor_a_validation_split(
    floods, tmp_path, tmp_path_factory
):
    rows = evaluate.run(probe(tmp_path_factory, floods), tmp_path / "w")
    assert [(row.task, row.sensors) for row in rows] == [
        ("dense", "s1"),
        ("dense", "both"),
    ]
    for row in rows:
        assert len(row.scores.per_class["iou"]) == 2
        assert row.scores.confusion.sum() == 3 * SIDE * SIDE  # of pairs with a mask
        assert "validation" not in row.chosen
    assert (tmp_path / "w" / "figures" / "dense_confusion.png").exists()


def test_partners_are_found_among_pairs_without_labels(
    floods, tmp_path, tmp_path_factory
):
    c = probe(tmp_path_factory, floods)
    c.methods, c.sensors, c.retrieval.ks = ("retrieval",), ("s1", "s2", "both"), (1, 2)
    rows = evaluate.run(c, tmp_path / "w")
    assert [row.sensors for row in rows] == ["s1->s2", "s2->s1"]
    assert set(rows[0].scores.overall) == {"recall@1", "recall@2"}
    assert rows[0].test_pairs == 4  # with a mask or without


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"methods": ("dense", "knn")}, "has no labels, so nothing can be"),
        ({"baselines": ("supervised",)}, "has no labels, so nothing can be"),
        ({"dense.field": "land_cover"}, r"dense.field= one of \['mask'\]"),
    ],
)
def test_what_needs_other_labels_is_refused(
    floods, tmp_path, tmp_path_factory, fields, message
):
    c = probe(tmp_path_factory, floods)
    c.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match=message):
        evaluate.run(c, tmp_path / "w")


def test_a_split_without_any_mask_is_refused_before_anything_is_learnt(
    floods, tmp_path, tmp_path_factory, monkeypatch
):
    c = probe(tmp_path_factory, floods)
    opened = record_format.Records.__getitem__

    def bare(records, index):
        hidden = np.full((SIDE, SIDE), NO_CLASS, np.uint8)
        return opened(records, index) | (
            {"mask": hidden} if records.split == "test" else {}
        )

    monkeypatch.setattr(record_format.Records, "__getitem__", bare)
    with pytest.raises(InputError, match="None of the 4 pairs of split test has a lab"):
        evaluate.run(c, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_pairs_without_any_masks_are_refused_with_what_to_do(
    tmp_path, tmp_path_factory
):
    c = probe(tmp_path_factory, datasets.write(tmp_path / "d"))
    with pytest.raises(InputError, match="labels 'mask', nor any other; build"):
        evaluate.run(c, tmp_path / "w")
