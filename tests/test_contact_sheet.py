"""The contact sheet: every pixel where it belongs, and the same bytes each time."""

import dataclasses
import hashlib

import matplotlib.image
import numpy as np
import pytest

from configs import prepare_pairs
from data_pipeline import dataset_card, layout, record_format, sensors
from data_pipeline.building import contact_sheet, preview, prepare
from data_pipeline.classes import NO_CLASS
from data_pipeline.dataset_card import Description
from tests import builds, geotiffs

COVERS = ("Water", "Mixed forest", "Arable land")
DESCRIPTION = Description(
    name="small",
    title="Small pairs.",
    source="this test",
    licence="none",
    layout=layout.native(60, sensors.SENSORS),
    sensors=sensors.SENSORS,
    classes={"labels": COVERS},
)
SCALE = 4  # 60 pixels become 240


def record(seed: int, description: Description = DESCRIPTION) -> dict:
    rng = np.random.default_rng(seed)
    fields = {"id": f"pair_{seed}", "labels": np.array([1, 0, seed % 2], np.uint8)}
    for field, shape in description.layout.shapes.items():
        if field.startswith("s1"):
            fields[field] = rng.normal(-14, 4, shape).astype(np.float16)
        else:
            fields[field] = rng.integers(0, 4000, shape).astype(np.uint16)
    side = description.layout.size
    for field in description.maps:
        fields[field] = rng.integers(0, 2, (side, side)).astype(np.uint8)
    return fields


def drawn(path) -> np.ndarray:
    """Pixels [H, W, 3] of a PNG."""
    return np.rint(matplotlib.image.imread(path)[..., :3] * 255).astype(np.uint8)


def tiles(sheet: np.ndarray, side: int) -> list[np.ndarray]:
    """The pictures of the first pair from top to bottom, once each stored pixel."""
    column = sheet[:, contact_sheet.MARGIN : contact_sheet.MARGIN + side]
    # A row of paper and faint text is dark; pictures are not, by construction.
    bright = (column.max(axis=-1) > 60).mean(axis=1) > 0.5
    edges = np.flatnonzero(np.diff(np.concatenate([[0], bright, [0]])))
    runs = [(a, b) for a, b in zip(edges[::2], edges[1::2]) if b - a == side]
    return [column[a:b] for a, b in runs]


def magnified(image: np.ndarray, scale: int = SCALE) -> np.ndarray:
    return np.rint(image * 255).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)


def test_every_stored_pixel_is_a_square_of_its_colour(tmp_path):
    one = record(0)
    contact_sheet.draw(DESCRIPTION, [one], tmp_path / "sheet.png")
    s2, s1 = tiles(drawn(tmp_path / "sheet.png"), 60 * SCALE)
    # The 10 m field holds B02, B03, B04 and B08.
    rgb = sensors.S2.select(("B02", "B03", "B04", "B08"))
    want = preview.picture(one["s2_10m"], one["s2_10m"], rgb)
    np.testing.assert_array_equal(s2, magnified(want))
    want = preview.picture(one["s1_10m"].astype(np.float32), None, sensors.S1)
    np.testing.assert_array_equal(s1, magnified(want))


def test_bands_of_coarser_grids_are_enlarged_and_single_ones_grey(tmp_path):
    contract = {"s1": sensors.S1.select(("VH",)), "s2": sensors.S2.select(("B11",))}
    some = dataclasses.replace(
        DESCRIPTION, layout=layout.native(60, contract), sensors=contract
    )
    one = record(0, some)
    contact_sheet.draw(some, [one], tmp_path / "sheet.png")
    s2, s1 = tiles(drawn(tmp_path / "sheet.png"), 60 * SCALE)
    assert one["s2_20m"].shape == (30, 30, 1)
    want = preview.picture(one["s2_20m"], one["s2_20m"], contract["s2"])
    np.testing.assert_array_equal(s2, magnified(want, 2 * SCALE))
    np.testing.assert_array_equal(s1, s1[..., :1].repeat(3, axis=-1))


def test_pixel_labels_are_drawn_in_the_colours_of_the_legend(tmp_path):
    contract = {"s1": sensors.S1, "s2": sensors.S2_L1C}
    mapped = dataclasses.replace(
        DESCRIPTION,
        layout=layout.resampled(256, contract),
        sensors=contract,
        maps={"land_cover": COVERS},
    )
    one = record(0, mapped)
    one["land_cover"][:5] = NO_CLASS
    contact_sheet.draw(mapped, [one], tmp_path / "sheet.png")
    sheet = drawn(tmp_path / "sheet.png")
    covers = tiles(sheet, 256)[-1]
    colors = preview.class_colors(COVERS)
    np.testing.assert_array_equal(covers, colors[one["land_cover"]])
    below = sheet[sheet.shape[0] - 60 :].reshape(-1, 3)
    swatches = [(below == color).all(axis=-1).sum() for color in colors[:3]]
    assert swatches == [121, 121, 0]  # the third class is nowhere on the maps


def test_radar_of_other_polarisations_is_drawn_by_their_families(tmp_path, monkeypatch):
    bands = zip(("HH", "HV"), sensors.S1.bands)
    polarised = tuple(dataclasses.replace(b, name=name) for name, b in bands)
    other = dataclasses.replace(sensors.S1, bands=polarised)
    monkeypatch.setitem(sensors.SENSORS, "s1", other)
    for i in range(2):
        geotiffs.write(tmp_path / "s1" / f"{i}.tif", geotiffs.s1_image(i), ("HH", "HV"))
        geotiffs.write(
            tmp_path / "s2" / f"{i}.tif", geotiffs.s2_image(i), geotiffs.S2_BANDS
        )
    config = prepare_pairs.get_config()
    config.source, config.out = str(tmp_path), str(tmp_path / "out")
    config.read.s2_offset, config.holdout_share, config.workers = "0", 0.0, 0
    prepare.prepare(config)
    one = record_format.Records(config.out, "train")[0]
    description = dataset_card.read_description(config.out)
    assert description.sensors["s1"].band_names == ("HH", "HV")
    scale = contact_sheet.TILE // geotiffs.SIDE + 1
    s1 = tiles(drawn(tmp_path / "out" / "contact_sheet.png"), geotiffs.SIDE * scale)[1]
    same = sensors.SENSORS["s1"]  # in VV and VH
    want = preview.picture(one["s1_10m"].astype(np.float32), None, same)
    np.testing.assert_array_equal(s1, magnified(want, scale))


def test_a_picture_that_fails_leaves_a_whole_dataset_and_a_warning(
    tmp_path, monkeypatch, lines
):
    config = builds.false_archive(tmp_path)

    def fail(*_):
        raise ZeroDivisionError("nothing to draw")

    monkeypatch.setattr(preview, "picture", fail)
    prepare.prepare(config)
    assert len(record_format.Records(config.out, "train")) == 6
    assert sum("contact_sheet.png" in x and "nothing to draw" in x for x in lines) == 1
    content = {path.name for path in builds.out_files(config)}
    assert "card.json" in content and "contact_sheet.png" not in content


def test_pairs_are_spread_over_the_dataset(tmp_path, monkeypatch):
    class Source:
        asked = []

        def __len__(self):
            return 1000

        def __getitem__(self, index):
            self.asked.append(index)
            return record(index)

    monkeypatch.setattr(contact_sheet, "SHOWN", 5)
    contact_sheet.draw(DESCRIPTION, Source(), tmp_path / "sheet.png")
    assert Source.asked == [0, 250, 500, 749, 999]


def test_names_and_labels_fit_below_the_picture():
    long = "Land principally occupied by agriculture, with significant areas of nature"
    names = [f"{i} {long}" for i in range(9)]
    described = dataclasses.replace(DESCRIPTION, classes={"labels": tuple(names)})
    one = {"id": "S2A_MSIL2A_" + 60 * "7", "labels": np.ones(9, np.uint8)}
    lines = contact_sheet._caption(described, one, 40)
    assert max(map(len, lines)) <= 40 and len(lines) == 5
    assert lines[0].startswith("S2A_MSIL2A_7") and "…" in lines[0]
    few = contact_sheet._caption(DESCRIPTION, record(1), 40)
    assert few == ["pair_1", "Water\u00a0· Arable land"]


def test_the_bytes_depend_on_the_records_only(tmp_path, monkeypatch):
    digests = []
    for time in ("0", "1000000000"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", time)
        contact_sheet.draw(DESCRIPTION, [record(0)], tmp_path / "sheet.png")
        content = (tmp_path / "sheet.png").read_bytes()
        digests.append(hashlib.sha256(content).hexdigest())
        assert b"Software" not in content and b"Date" not in content
    assert digests[0] == digests[1]
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("count", [1, 7, 24])
def test_the_sheet_holds_all_pairs_whatever_their_number(tmp_path, count):
    tiny = dataclasses.replace(DESCRIPTION, layout=layout.native(6, sensors.SENSORS))
    pairs = [record(seed, tiny) for seed in range(count)]
    contact_sheet.draw(tiny, pairs, tmp_path / "sheet.png")
    columns, rows = min(count, 6), -(-count // 6)
    side = 6 * 34
    sheet = drawn(tmp_path / "sheet.png")
    wide = columns * (side + contact_sheet.GAP) - contact_sheet.GAP
    assert sheet.shape[1] == wide + 2 * contact_sheet.MARGIN
    assert len(tiles(sheet, side)) == 2 * rows
