"""Nothing that an archive or a list holds is lost on the way into the splits."""

import random

import pytest

from configs import prepare_bigearthnet
from data_pipeline.archive import Pair, Skipped
from data_pipeline.building import splits
from data_pipeline.errors import InputError


@pytest.mark.parametrize("seed", range(60))
def test_whatever_an_archive_and_its_lists_hold_is_accounted_for(tmp_path, seed):
    draw = random.Random(seed)
    s2, s1 = ([f"S{k}_{i}" for i in range(8)] for k in (2, 1))

    def some(names, share=0.5):
        return [name for name in names if draw.random() < share]

    def couples():
        return {(a, b) for a in ["", *s2] for b in some(["", *s1], 0.2) if a or b}

    taken = {couple for couple in couples() if all(couple)}
    found = [Pair(*couple, "T") for couple in sorted(taken)]
    unmatched = [Skipped(*couple, "bad") for couple in sorted(couples() - taken)]
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
    names = [(part.s2_name, part.s1_name) for part in (*parts, *unlisted)]
    assert len(names) == splits.count(config, found, unmatched)
    images = taken | {image[:2] for image in unmatched}
    assert images <= set(names)
    if config.splits:
        assert {row.split(",")[0] for row in rows} <= {name for name, _ in names}
