"""Damaged records: they stop a run in a sentence that names the shard."""

import itertools
import os
import pathlib
import shutil

import ml_collections
import numpy as np
import pytest
from array_record.python import array_record_data_source

from data_pipeline import batches, record_format, sources
from data_pipeline.errors import InputError
from fusmae_jax.training import metrics, pretrain
from tests import datasets, tiny

WAYS = [dict(threads=1), dict(threads=3), dict(workers=1), dict(workers=2)]
TRAIN = "bigearthnet_v1-train.array_record-0000{}-of-00002"
ADVICE = r"Record \d+ of split train in .*; copy or rebuild the shard \S+-of-00002\.$"


def flip(path: pathlib.Path, at: int) -> None:
    """Flips all bits of one byte of a file, in place."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 255]))


def damaged(source) -> list[int]:
    """The records of a source that cannot be read."""

    def fails(index):
        try:
            source[index]
        except InputError:
            return True
        return False

    return [index for index in range(len(source)) if fails(index)]


@pytest.fixture
def sample(tmp_path):
    """A copy of the sample: 8 training pairs in one shard, 9 in another."""
    return pathlib.Path(shutil.copytree(sources.SAMPLE, tmp_path / "data"))


@pytest.fixture
def hurt(sample):
    """The same with one byte flipped in each of three records."""
    for shard, share in ((0, 0.2), (1, 0.4), (1, 0.7)):
        path = sample / TRAIN.format(shard)
        flip(path, int(path.stat().st_size * share))
    return sample


def read(source, steps=6, **options):
    """The first batches of a source."""
    stream = batches.train_batches(source, batch_size=4, seed=0, **options)
    try:
        return list(itertools.islice(stream, steps))
    finally:
        stream.close()


def contents(path) -> list[bytes] | None:
    """All records of a shard, or None if something is noticed."""
    try:
        source = array_record_data_source.ArrayRecordDataSource([str(path)])
        return [source[i] for i in range(4)] if len(source) == 4 else None
    except RuntimeError:
        return None


@pytest.mark.journey
@pytest.mark.parametrize("options", record_format.COMPRESSION.values())
def test_no_flipped_byte_gives_other_pixels(tmp_path, options):
    datasets.write(tmp_path, (4,), options=options)
    path = tmp_path / record_format.shard_name("tiny", "train", 0, 1)
    whole, content = contents(path), np.fromfile(path, np.uint8)
    # Beside what is not zero, some of the padding.
    filled = np.flatnonzero(content)[::4].tolist()
    noticed = 0
    for at in {*filled, *range(0, len(content), 997)}:
        flip(path, at)
        got = contents(path)
        assert got is None or got == whole, at
        noticed += got is None
        flip(path, at)
    assert noticed > 0.8 * len(filled)
    assert contents(path) == whole


@pytest.mark.parametrize("way", WAYS)
def test_a_flipped_byte_stops_every_way_of_reading_in_a_sentence(hurt, way):
    source = record_format.Records(hurt, "train", ["s1_10m"])
    want = r"Record \d+ of split train in .* does not decode .* shard .*-of-00002\.$"
    with pytest.raises(InputError, match=want):
        read(source, **way)


@pytest.mark.parametrize("host", [0, 1])
def test_of_several_hosts_the_one_that_reads_a_damaged_record_stops(tmp_path, host):
    folder = datasets.write(tmp_path, (4,))
    source = record_format.Records(folder, "train")
    order = batches.Order(source, 0).pairs(0, 4)
    broken = Broken(source, order[:2])  # of the first host's rows
    if host:
        read(broken, steps=1, host=1, hosts=2, threads=1)
    else:
        with pytest.raises(InputError, match=f"Record {order[0]} "):
            read(broken, steps=1, host=0, hosts=2, threads=1)


@pytest.mark.parametrize("way", [dict(threads=2), dict(workers=1)])
@pytest.mark.parametrize("harm", ["removed before it is read", "cut while it is read"])
def test_a_shard_that_goes_in_mid_run_stops_it_in_a_sentence(sample, way, harm):
    source = record_format.Records(sample, "train", ["s1_10m"])
    path = sample / TRAIN.format(1)
    if harm.startswith("removed"):
        path.unlink()
        reason = "No such file"
    else:
        source[8], source[9]
        os.truncate(path, 70_000)
        reason = "Truncated|Corrupted|its shard ends before it"
    with pytest.raises(InputError, match=f"Record .*(?:{reason}).* {path.name}"):
        read(source, **way)


@pytest.mark.parametrize("harm", ["removed", "cut"])
def test_a_shard_that_is_not_whole_is_not_opened(sample, harm):
    path = sample / TRAIN.format(0)
    path.unlink() if harm == "removed" else os.truncate(path, 70_000)
    with pytest.raises(InputError, match="cannot be opened|holds"):
        record_format.Records(sample, "train")


class Broken:
    """A source some of whose pairs are damaged."""

    def __init__(self, source, bad):
        self.source, self.bad = source, set(bad)
        self.fields, self.description = source.fields, source.description
        self.fingerprint = source.fingerprint

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index in self.bad:
            raise InputError(f"Record {index} is damaged.")
        return self.source[index]


def run_on(folder):
    """The config of a run of two steps, 16 of 17 pairs, on a copy of the sample."""
    config = tiny.config()
    config.epochs = 1
    config.data.update(source="records", dir=str(folder))
    config.judge.update(every=1, train_pairs=17, eval_pairs=4)
    return config


@pytest.mark.journey
def test_a_run_stops_at_a_damaged_record_in_the_sentence_that_names_its_shard(
    hurt, tmp_path
):
    with pytest.raises(InputError, match=ADVICE):
        pretrain.run(run_on(hurt), tmp_path / "run")


@pytest.mark.journey
def test_a_run_is_judged_on_no_other_pair_than_the_damaged_one(sample, tmp_path):
    path = sample / TRAIN.format(1)
    flip(path, int(path.stat().st_size * 0.4))
    source = record_format.Records(sample, "train", ["s1_10m"])
    config, bad = run_on(sample), damaged(source)
    # Training leaves out the damaged pair alone; judging reads every one.
    config.seed = next(
        seed for seed in range(999) if batches.Order(source, seed).pairs(16, 17) == bad
    )
    with pytest.raises(InputError, match=ADVICE):
        pretrain.run(config, tmp_path / "run")
    assert any("loss" in row for row in metrics.read_metrics(tmp_path / "run"))


def test_no_config_field_has_other_pairs_stand_in_for_damaged_ones(hurt, tmp_path):
    config = run_on(hurt).to_dict()
    config["data"]["damaged"] = "skip"
    with pytest.raises(InputError, match="no use for data.damaged; take it out"):
        pretrain.run(ml_collections.ConfigDict(config), tmp_path / "run")
