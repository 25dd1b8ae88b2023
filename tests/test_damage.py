"""Damaged records: they stop a run in a sentence, or are replaced and counted."""

import itertools
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest
from array_record.python import array_record_data_source

from data_pipeline import batches, damage, mixtures, records, shards, sources
from data_pipeline.errors import DamagedRecord, InputError
from fusmae_jax import metrics, pretrain, run, sharding
from tests import datasets, processes, tiny

WAYS = [dict(threads=1), dict(threads=3), dict(workers=1), dict(workers=2)]
TRAIN = "bigearthnet_v1-train.array_record-0000{}-of-00002"


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
        except DamagedRecord:
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


@pytest.mark.parametrize("options", shards.COMPRESSION.values())
def test_no_flipped_byte_gives_other_pixels(tmp_path, options):
    datasets.write(tmp_path, (4,), options=options)
    path = tmp_path / shards.shard_name("tiny", "train", 0, 1)
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
    source = records.Records(hurt, "train", ["s1_10m"])
    want = r"Record \d+ of split train in .* does not decode .* shard .*-of-00002\.$"
    with pytest.raises(DamagedRecord, match=want):
        read(source, **way)


@pytest.mark.parametrize("host", [0, 1])
def test_of_several_hosts_the_one_that_reads_a_damaged_record_stops(tmp_path, host):
    folder = datasets.write(tmp_path, (4,))
    source = records.Records(folder, "train")
    order = batches.Order(source, 0).pairs(0, 4)
    broken = Broken(source, order[:2])  # of the first host's rows
    if host:
        read(broken, steps=1, host=1, hosts=2, threads=1)
    else:
        with pytest.raises(DamagedRecord, match=f"Record {order[0]} "):
            read(broken, steps=1, host=0, hosts=2, threads=1)


@pytest.mark.parametrize("way", [dict(threads=2), dict(workers=1)])
@pytest.mark.parametrize("harm", ["removed before it is read", "cut while it is read"])
def test_a_shard_that_goes_in_mid_run_stops_it_in_a_sentence(sample, way, harm):
    source = records.Records(sample, "train", ["s1_10m"])
    path = sample / TRAIN.format(1)
    if harm.startswith("removed"):
        path.unlink()
        reason = "No such file"
    else:
        source[8], source[9]
        os.truncate(path, 70_000)
        reason = "Truncated|Corrupted|its shard ends before it"
    with pytest.raises(DamagedRecord, match=f"Record .*(?:{reason}).* {path.name}"):
        read(source, **way)


@pytest.mark.parametrize("harm", ["removed", "cut"])
def test_a_shard_that_is_not_whole_is_opened_only_to_be_skipped(sample, harm):
    path = sample / TRAIN.format(0)
    path.unlink() if harm == "removed" else os.truncate(path, 70_000)
    with pytest.raises(InputError, match="cannot be opened|holds"):
        records.Records(sample, "train")
    config = tiny.config().data
    config.update(source="records", dir=str(sample), damaged="skip")
    source = sources.open_split(config, "train", ["s1_10m"])
    assert len(source) == 17 and damaged(source) == list(range(8))
    rows = np.concatenate([b["replaced"] for b in read(damage.Replacing(source), 17)])
    assert rows.sum() == 4 * 8  # in each of 4 epochs


@pytest.mark.parametrize("way", [*WAYS[1:], dict(start_step=2), dict(hosts=2)])
def test_who_reads_does_not_change_what_stands_in_for_a_damaged_pair(hurt, way, lines):
    source = records.Records(hurt, "train", ["s1_10m", "id"])
    want = read(damage.Replacing(source), threads=1)
    if way == dict(hosts=2):
        halves = [read(damage.Replacing(source), host=h, **way) for h in (0, 1)]
        got = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*halves)]
    else:
        got = read(damage.Replacing(source), **way)
    start = way.get("start_step", 0)
    for ours, theirs in zip(got, want[start:]):
        for field in ("id", "s1_10m", "replaced"):
            np.testing.assert_array_equal(ours[field], theirs[field])


@pytest.mark.parametrize("way", [dict(threads=2), dict(workers=2)])
def test_damaged_pairs_alone_are_replaced_counted_and_named_once(hurt, way, lines):
    plain = records.Records(sources.SAMPLE, "train", ["s1_10m", "id"])
    source = records.Records(hurt, "train", ["s1_10m", "id"])
    bad = damaged(source)
    assert len(bad) == 3
    got = read(damage.Replacing(source), steps=17, **way)
    order = batches.Order(plain, 0).pairs(0, 4 * 17)
    ids, replaced, want = (
        *(np.concatenate([batch[f] for batch in got]) for f in ("id", "replaced")),
        [plain[i]["id"] for i in order],
    )
    np.testing.assert_array_equal(replaced, np.isin(order, bad))
    assert replaced.sum() == 3 * 4
    assert (ids == want).tolist() == (replaced == 0).tolist()
    assert not np.isin(ids, [plain[i]["id"] for i in bad]).any()
    told = [line for line in lines if "Another pair is trained on" in line]
    assert len(told) == 3
    for index in bad:
        shard = TRAIN.format(int(index >= 8))
        assert sum(f"Record {index} of" in t and shard in t for t in told) == 1


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
            raise DamagedRecord(f"Record {index} is damaged.")
        return self.source[index]


def tiny_source(folder, count, prefix=""):
    return records.Records(datasets.write(folder, (count,), prefix=prefix), "train")


def test_a_pair_of_a_mixture_is_replaced_by_one_of_the_same_dataset(tmp_path):
    parts = [
        Broken(tiny_source(tmp_path / "a", 4, "a "), [0, 1, 2]),
        Broken(tiny_source(tmp_path / "b", 6, "b "), [0, 1, 3, 4]),
    ]
    both = damage.Replacing(mixtures.Mixture(parts))
    pairs = [both[i] for i in range(len(both))]
    assert [p["place"][0] for p in pairs] == list("aaaabbbbbb")
    assert [int(p["replaced"]) for p in pairs] == [1, 1, 1, 0, 1, 1, 0, 1, 1, 0]


def test_if_nothing_can_be_read_replacing_ends_in_a_sentence(tmp_path):
    source = damage.Replacing(Broken(tiny_source(tmp_path, 5), range(5)))
    with pytest.raises(InputError, match="Record . is damaged. 32 pairs more .*=skip"):
        read(source, steps=1)


def test_so_many_damaged_records_are_named_and_no_more(lines):
    damages = damage.Damages()
    for i in range(300):
        assert damages.tell(("batch", [f"Record {i}.", "Record 0."])) == "batch"
    assert len(lines) == 101 and "Record 99." in lines[99]
    assert "More than 100 records" in lines[100]


def test_held_out_pairs_are_never_replaced(hurt):
    config = tiny.config().data
    config.update(source="records", dir=str(hurt), damaged="skip")
    source = sources.open_split(config, "train")
    with pytest.raises(DamagedRecord):
        list(batches.eval_batches(source, fields=["s1_10m"], batch_size=4, count=17))


def test_a_choice_that_is_not_known_is_refused():
    config = tiny.config()
    config.data.damaged = "ignore"
    with pytest.raises(InputError, match=r"'ignore'; choose one of \['stop', 'skip'\]"):
        pretrain.pretrain(config, "nowhere")
    config.data.source = "sample"
    with pytest.raises(InputError, match="'ignore'"):
        sources.open_split(config.data, "train")


def test_a_run_that_damage_stops_says_how_to_go_on(hurt):
    config, mesh = tiny.config(), sharding.make_mesh(1)
    source = records.Records(hurt, "train", ["s1_10m"])
    stream = pretrain.load_batches(config, source, mesh, 0)
    want = r"Record .* the shard \S+\. Or go on with --config\.data\.damaged=skip"
    with pytest.raises(InputError, match=want):
        list(itertools.islice(stream, 6))
    assert "data.damaged" in run.FREE


SKIPPING = [
    "--config=configs/quickstart.py",
    *("--config.epochs=1000", "--config.batch_size=4", "--config.model.depth=2"),
    *("--config.log_every=1", "--config.eval_every=100000"),
    *("--config.data.source=records", "--config.data.damaged=skip"),
    "--config.data.workers=1",
]


def losses(workdir) -> list[dict]:
    """What a run has logged of its steps so far."""
    path = workdir / "metrics.jsonl"
    return [r for r in metrics.read_metrics(workdir)] if path.exists() else []


def test_a_run_counts_what_it_skips_and_ends_in_a_sentence_with_its_worker(
    hurt, tmp_path
):
    workdir = tmp_path / "run"
    launched = processes.launch(
        *SKIPPING, f"--config.data.dir={hurt}", f"--workdir={workdir}"
    )
    try:
        processes.wait_for(launched, lambda: len(losses(workdir)) >= 9)
        children = processes.children(launched)
        (worker,) = [pid for pid in children if b"spawn_main" in command(pid)]
        os.kill(worker, signal.SIGKILL)
        said = launched.communicate(timeout=120)[0]
    finally:
        launched.kill()
    assert launched.returncode == 1 and "Traceback" not in said, said
    # Python may warn after it of the shared memory that the worker had.
    assert f"\nOf the processes that read data, {worker} (exit code -9) ended" in said
    assert processes.all_end(children)
    source = records.Records(hurt, "train", ["id"])
    order, bad = batches.Order(source, 0).pairs(0, 4 * 8), damaged(source)
    want = np.isin(order, bad).reshape(8, 4).sum(axis=1).tolist()
    rows = losses(workdir)[:8]
    assert [row["replaced_pairs"] for row in rows] == want and sum(want) > 3
    for index in bad:
        assert said.count(f"trained on instead: Record {index} of split") == 1


def command(pid: int) -> bytes:
    """The command line of a process, nothing if it has ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
