"""Who is in which split, who is left out, and that nobody is lost in between."""

import random

import pyarrow
import pytest
from pyarrow import parquet

from configs import prepare_bigearthnet
from data_pipeline import name_lists
from data_pipeline.building import splits
from data_pipeline.errors import InputError
from tests import fakes

TILES = [f"{zone}{letters}" for zone in (29, 33, 35) for letters in ("UPU", "VNJ")]


def make_config(**options):
    config = prepare_bigearthnet.get_config()
    config.source = "the archive"
    config.update(options)
    return config


def make_pairs(count=6, **fields):
    return [
        fakes.pair(f"S2_{i}", f"S1_{i}", TILES[i % 6], **fields) for i in range(count)
    ]


def numbers(pairs):
    return [int(pair.name[3:]) for pair in pairs]


def count(config, pairs, unmatched) -> int:
    """How many pairs, single images and listed names `assign` must account for.

    Counted in another way than there, so that a mistake in either shows.
    """
    partners = {pair.name: {""} for pair in pairs}  # any partner that is asked for
    for image in unmatched:
        partners.setdefault(image.name, set()).add(image.names[1])
    rows = name_lists.listed(config.splits, partners) if config.splits else {}
    absent = 0
    for name, row in rows.items():
        there, asked = partners.get(name, set()), row.partners.get("s1")
        absent += not there & {asked, ""} if asked else not there
    return len(pairs) + len(unmatched) + absent


def assign(config, pairs, unmatched=()):
    """Split, skipped and unlisted numbers; checks that they add up."""
    chosen, skipped, unlisted = splits.assign(config, pairs, list(unmatched))
    total = count(config, pairs, list(unmatched))
    everything = [pair for members in chosen.values() for pair in members]
    everything = [p.names for p in (*everything, *skipped, *unlisted)]
    assert len(set(everything)) == len(everything) == total
    found = {p.names for p in (*pairs, *unmatched)}
    assert found <= set(everything)
    return {s: numbers(members) for s, members in chosen.items()}, skipped, unlisted


def write_folder(folder, train="", val="", test=""):
    folder.mkdir()
    for name, text in (("train", train), ("val", val), ("test", test)):
        (folder / f"{name}.csv").write_text(text)
    return str(folder)


def write_parquet(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def test_without_options_all_pairs_train_and_all_images_without_partner_are_skipped():
    alone = fakes.skip("S2_8", "", "no patch names it")
    got = assign(make_config(), make_pairs()[::-1], [alone])
    assert got == ({"train": [0, 1, 2, 3, 4, 5]}, [alone], [])
    with pytest.raises(InputError, match="S2_8 cannot be used .no patch names it"):
        assign(make_config(strict=True), make_pairs(), [alone])


@pytest.mark.parametrize("header", ["", "s2_name\n"])
def test_lists_of_one_name_decide_and_the_rest_is_unlisted(tmp_path, header):
    lists_of = write_folder(
        tmp_path / "lists", header + "S2_5\nS2_1\n", header + "S2_2\n", header + "S2_0"
    )
    got, skipped, unlisted = assign(make_config(splits=lists_of), make_pairs())
    assert got == {"train": [1, 5], "validation": [2], "test": [0]}
    assert not skipped and numbers(unlisted) == [3, 4]


@pytest.mark.parametrize(
    "text", ["S2_1,S1_1\nS2_3,S1_3\n", "\ufeffs1_name,s2_name\nS1_1,S2_1\nS1_3, S2_3\n"]
)
def test_lists_of_both_names_are_read_with_and_without_header(tmp_path, text):
    config = make_config(splits=write_folder(tmp_path / "lists", text))
    assert assign(config, make_pairs(4))[0] == {"train": [1, 3]}
    assert name_lists.listed(config.splits, ())["S2_3"].partners == {"s1": "S1_3"}


def test_one_csv_with_a_column_split_decides(tmp_path):
    path = tmp_path / "metadata.csv"
    rows = "val,FI,S2_1", "test,FI,S2_2", "train,,S2_0", ",,S2_3"
    path.write_text("\n".join(["split,country,patch_id", *rows]))
    got, _, unlisted = assign(make_config(splits=str(path)), make_pairs(4))
    assert got == {"train": [0], "validation": [1], "test": [2]}
    assert numbers(unlisted) == [3]


def test_metadata_of_v2_splits_v1_and_v2_by_the_column_that_knows_the_names(tmp_path):
    path = write_parquet(
        tmp_path / "metadata.parquet",
        patch_id=["V2_a", "V2_b", "V2_c"],
        labels=[["Pastures"], [], []],
        split=["train", "validation", "test"],
        s1_name=["S1_0", "S1_1", "S1_2"],
        s2v1_name=["S2_0", "S2_1", "S2_2"],
    )
    want = {"train": [0], "validation": [1], "test": [2]}
    assert assign(make_config(splits=path), make_pairs(3))[0] == want
    v2 = [
        fakes.pair("V2_a", "S1_0"),
        fakes.pair("V2_b", "S1_1"),
        fakes.pair("V2_c", "S1_2"),
    ]
    chosen, _, _ = splits.assign(make_config(splits=path), v2, [])
    assert {s: [p.name for p in c] for s, c in chosen.items()} == {
        **{"train": ["V2_a"], "validation": ["V2_b"], "test": ["V2_c"]}
    }


def test_listed_pair_that_is_missing_or_bad_is_skipped_and_stops_a_strict_build(
    tmp_path,
):
    rows = {
        "S2_0,S1_0": None,
        "S2_1,S1_9": "train.csv pairs it with S1_9",
        "S2_7,S1_7": "in train.csv, but not in the archive",
        "S2_8": "no patch names it",
    }
    unmatched = [fakes.skip("S2_8", "", rows["S2_8"])]
    for row, reason in rows.items():
        text = f"S2_2\n{row}\n"
        path = write_folder(tmp_path / row, text)
        got, skipped, _ = assign(make_config(splits=path), make_pairs(3), unmatched)
        assert [skip.reason for skip in skipped] == ([reason] if reason else [])
        strict = make_config(splits=path, strict=True)
        if not reason:
            assert assign(strict, make_pairs(3), unmatched)[0] == got
        else:
            with pytest.raises(InputError, match=f"{row[:4]} cannot be used .{reason}"):
                assign(strict, make_pairs(3), unmatched)


def test_images_without_partner_that_no_list_asks_for_are_unlisted(tmp_path):
    path = write_folder(tmp_path / "lists", "S2_0,S1_0\n")
    unmatched = [
        fakes.skip("S2_0", "S1_7", "S1_0 belongs to the same Sentinel-2 patch"),
        fakes.skip("", "S1_8", "cannot be read"),
        fakes.skip("S2_9", "", "no patch names it"),
    ]
    config = make_config(splits=path, strict=True)
    got, skipped, unlisted = assign(config, make_pairs(2), unmatched)
    assert got == {"train": [0]} and not skipped
    names = [pair.names for pair in unlisted]
    assert names == [("S2_1", "S1_1"), *(image.names for image in unmatched)]


def test_second_partner_of_a_listed_image_is_skipped_where_no_list_chooses(tmp_path):
    path = write_folder(tmp_path / "lists", "S2_0\n")
    other = fakes.skip("S2_0", "S1_7", "S1_0 belongs to the same Sentinel-2 patch")
    got = assign(make_config(splits=path), make_pairs(1), [other])
    assert got == ({"train": [0]}, [other], [])


def test_what_an_archive_leaves_out_by_choice_stops_no_strict_build():
    choice = fakes.skip("S2_8", "S1_8", "has seasonal snow", wanted=False)
    got = assign(make_config(strict=True), make_pairs(1), [choice])
    assert got == ({"train": [0]}, [choice], [])


def test_two_pairs_of_one_name_make_one():
    pairs = [*make_pairs(2), fakes.pair("S2_0", "S1_7")]
    got, (skip,), _ = assign(make_config(), pairs)
    assert got == {"train": [0, 1]}
    assert skip.names == ("S2_0", "S1_7")
    assert skip.reason == "another pair has the same Sentinel-2 image"


def test_excluded_names_are_skipped_and_never_stop_a_strict_build(tmp_path):
    lists_of = write_folder(tmp_path / "lists", "S2_0\nS2_1\nS2_2\nS2_7\n")
    snow, cloud = tmp_path / "snow.csv", tmp_path / "cloud.txt"
    snow.write_text("S2_1\nS2_4\nS2_7\nS2_99\n")
    cloud.write_text("S2_1\nS2_8\n")
    exclude = (str(snow), str(cloud))
    config = make_config(splits=lists_of, exclude=exclude, strict=True)
    alone = fakes.skip("S2_8", "", "no patch names it")
    got, skipped, unlisted = assign(config, make_pairs(5), [alone])
    assert got == {"train": [0, 2]} and numbers(unlisted) == [3]
    assert not any(skip.wanted for skip in skipped)
    reasons = {skip.name: skip.reason for skip in skipped}
    assert reasons == {
        **{name: f"named by {snow}" for name in ("S2_1", "S2_4", "S2_7")},
        "S2_8": f"named by {cloud}",
    }


def test_one_split_of_a_metadata_file_can_be_excluded_by_either_name(tmp_path):
    path = write_parquet(
        tmp_path / "metadata.parquet",
        patch_id=["V2_a", "V2_b", "V2_c"],
        split=["test", "train", "test"],
        s1_name=["S1_0", "S1_1", "S1_2"],
        s2v1_name=["S2_0", "S2_1", None],
    )
    got, skipped, _ = assign(make_config(exclude=(f"{path}:test",)), make_pairs(4))
    assert got == {"train": [1, 3]}
    assert [skip.reason for skip in skipped] == [f"named by {path}:test"] * 2
    with pytest.raises(InputError, match="has no split validation"):
        assign(make_config(exclude=(f"{path}:val",)), make_pairs(4))


def test_splits_of_the_archive_itself_are_used_unless_lists_are_given(tmp_path):
    pairs = [*make_pairs(2, split="test"), fakes.pair("S2_5", "S1_5")]
    got, _, unlisted = assign(make_config(strict=True), pairs)
    assert got == {"test": [0, 1]} and numbers(unlisted) == [5]
    config = make_config(splits=write_folder(tmp_path / "lists", "S2_5\n"))
    assert assign(config, pairs)[0] == {"train": [5]}


def test_named_tiles_are_held_out():
    config = make_config(holdout_tiles=("33UPU", "29VNJ"))
    got, _, _ = assign(config, make_pairs(8))
    assert got == {"train": [0, 3, 4, 5, 6], "validation": [1, 2, 7]}


def test_share_of_the_tiles_is_held_out_the_same_ones_however_many_there_are():
    pairs = [fakes.pair(f"S2_{i}", f"S1_{i}", f"tile {i // 2}") for i in range(2000)]
    held_out = assign(make_config(holdout_share=0.1), pairs)[0]["validation"]
    assert 150 < len(held_out) < 250
    assert {i ^ 1 for i in held_out} == set(held_out)  # whole tiles
    part = assign(make_config(holdout_share=0.1), pairs[:1000])[0]["validation"]
    assert part == [i for i in held_out if i < 1000]
    more = assign(make_config(holdout_share=0.2), pairs)[0]["validation"]
    assert set(held_out) < set(more)


def test_tiles_are_held_out_of_the_training_pairs_of_an_archive_with_a_test_split():
    pairs = [
        *make_pairs(5, split="train"),
        fakes.pair("S2_9", "S1_9", TILES[1], "test"),
    ]
    got, _, _ = assign(make_config(holdout_tiles=(TILES[1],)), pairs)
    assert got == {"train": [0, 2, 3, 4], "validation": [1], "test": [9]}


@pytest.mark.parametrize(
    "options, split, reason",
    [
        ({"splits": "x", "holdout_tiles": ("33UPU",)}, "", "2 ways to split"),
        ({"holdout_share": 0.5, "holdout_tiles": ("33UPU",)}, "", "2 ways to split"),
        ({"holdout_tiles": ("1ABC",)}, "", r"\['1ABC'\] .* not among the 6 of"),
        ({"holdout_tiles": tuple(TILES)}, "", "6 of 6 tiles or places would be"),
        ({"holdout_share": 1e-9}, "", "0 of 6 tiles or places would be held out"),
        ({"holdout_tiles": ("33UPU",)}, "validation", "has 6 validation pairs of its"),
        ({"splits": "nowhere"}, "", "nowhere is missing"),
        ({"exclude": ("no.csv:test",)}, "", "no.csv is missing"),
    ],
)
def test_options_that_cannot_work_are_refused(options, split, reason):
    with pytest.raises(InputError, match=reason):
        assign(make_config(**options), make_pairs(split=split))


def test_pairs_of_no_known_tile_are_held_out_one_by_one():
    pairs = [fakes.pair(f"S2_{i}", f"S1_{i}") for i in range(100)]
    splits, _, _ = assign(make_config(holdout_share=0.2), pairs)
    assert 10 < len(splits["validation"]) < 30
    assert len(splits["train"]) + len(splits["validation"]) == 100


def test_folder_that_lacks_a_list_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("S2_0\n")
    with pytest.raises(InputError, match="val.csv is missing"):
        assign(make_config(splits=str(tmp_path)), make_pairs())


@pytest.mark.parametrize(
    "text, reason",
    [
        ("s2_name\nS2_0\n", "has no column split"),
        ("country,split\nFI,train\n", "has no column of names"),
        ("s2_name,split\nS2_0,training\n", "S2_0 in the split 'training'"),
        ("s2_name,split\nS2_0,train\nS2_0,test\n", "listed in m.csv and again in"),
        ("s2_name,split\nS2_70,train\n", "None of the 6 pairs"),
        ("", "has no column split"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_list_that_makes_no_sense_is_refused(tmp_path, text, reason):
    text = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "m.csv").write_bytes(text)
    with pytest.raises(InputError, match=reason):
        assign(make_config(splits=str(tmp_path / "m.csv")), make_pairs())


def test_name_in_two_lists_is_refused(tmp_path):
    path = write_folder(tmp_path / "lists", "S2_0\n", "S2_0\n")
    with pytest.raises(InputError, match="listed in train.csv and again in val.csv"):
        assign(make_config(splits=path), make_pairs())


def test_damaged_parquet_is_refused(tmp_path):
    (tmp_path / "m.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="m.parquet cannot be read"):
        assign(make_config(splits=str(tmp_path / "m.parquet")), make_pairs())


def test_a_split_that_is_left_out_takes_its_ground_along_at_any_date(tmp_path):
    path = write_parquet(
        tmp_path / "metadata.parquet",
        patch_id=["S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_01_07", "V2_b"],
        split=["test", "train"],
        s1_name=["S1A_IW_GRDH_1SDV_20170613T165043_33UUP_1_7", "S1_1"],
        s2v1_name=["S2A_MSIL2A_20170613T101031_1_7", "S2_1"],
    )
    form = "S1A_IW_GRDH_1SDV_20180421T165043_33UUP_{}_7"
    pairs = [
        fakes.pair(f"S2B_MSIL2A_20180421T100029_{i}_7", form.format(i)) for i in (1, 2)
    ]
    got, skipped, _ = splits.assign(make_config(exclude=(f"{path}:test",)), pairs, [])
    assert got == {"train": pairs[1:]}
    assert [skip.reason for skip in skipped] == [f"named by {path}:test"]
    # A list without splits, as of snow, is of images and not of ground.
    got, skipped, _ = splits.assign(make_config(exclude=(path,)), pairs, [])
    assert got == {"train": pairs} and not skipped


@pytest.mark.parametrize("seed", range(60))
def test_whatever_an_archive_and_its_lists_hold_is_accounted_for(tmp_path, seed):
    draw = random.Random(seed)
    s2, s1 = ([f"S{k}_{i}" for i in range(8)] for k in (2, 1))

    def some(names, share=0.5):
        return [name for name in names if draw.random() < share]

    def couples():
        return {(a, b) for a in ["", *s2] for b in some(["", *s1], 0.2) if a or b}

    taken = {couple for couple in couples() if all(couple)}
    found = [fakes.pair(*couple, "T") for couple in sorted(taken)]
    unmatched = [fakes.skip(*couple, "bad") for couple in sorted(couples() - taken)]
    rows = [f"{name},{draw.choice(['', *s1])}\n" for name in some([*s2, "S2_x"])]
    cut = draw.randrange(len(rows) + 1)
    for file, part in (("train", rows[:cut]), ("val", []), ("test", rows[cut:])):
        (tmp_path / f"{file}.csv").write_text("".join(part))
    (tmp_path / "out.csv").write_text("".join(f"{name}\n" for name in some(s2, 0.2)))
    config = prepare_bigearthnet.get_config()
    config.splits = draw.choice(["", str(tmp_path)])
    config.exclude = draw.choice([(), (str(tmp_path / "out.csv"),)])
    draw.shuffle(found)
    try:
        chosen, skipped, unlisted = splits.assign(config, found, unmatched)
    except InputError as error:
        assert "None of the" in str(error)
        return
    parts = [*(pair for members in chosen.values() for pair in members), *skipped]
    names = [part.names for part in (*parts, *unlisted)]
    assert len(names) == count(config, found, unmatched)
    images = taken | {image.names for image in unmatched}
    assert images <= set(names)
    if config.splits:
        assert {row.split(",")[0] for row in rows} <= {name for name, _ in names}
