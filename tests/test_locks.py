"""A run directory in use is refused to everybody else, and let go of by a kill."""

import collections
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from data_pipeline import locks
from data_pipeline.archives import tars
from data_pipeline.building import prepare
from data_pipeline.errors import InputError
from fusmae_jax import build
from fusmae_jax.training import cluster, run_directory
from tests import builds, packing, tiny

# Processes that open one directory at the same moment, again and again.
RACE = """
import multiprocessing, os, pathlib, sys
from data_pipeline.errors import InputError
from fusmae_jax import build
from fusmae_jax.training import run_directory
from tests import tiny

def rival(root, rounds, gate, results):
    config = tiny.config()
    contract = build.contract(config)
    for i in range(rounds):
        gate.wait(60)
        try:
            run_directory.open_workdir(root / str(i) / "run", config, contract, {})
            results.put((i, os.getpid(), ""))
        except InputError as error:
            results.put((i, os.getpid(), str(error)))
    gate.wait(60)  # who won holds on until all have lost

root, rivals, rounds = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
fork = multiprocessing.get_context("fork")  # jax is imported once, and not started
gate, results = fork.Barrier(rivals), fork.Queue()
arguments = root, rounds, gate, results
started = [fork.Process(target=rival, args=arguments) for _ in range(rivals)]
for process in started:
    process.start()
for _ in range(rivals * rounds):
    print(*results.get(timeout=60), sep="|")
for process in started:
    process.join()
"""

# A run reduced to its lock; ends with its input.
HOLDER = """
import sys
from data_pipeline import locks
print(locks.lock(sys.argv[1]), flush=True)
sys.stdin.read()
"""


def test_of_runs_that_start_at_once_exactly_one_has_the_directory(tmp_path):
    rivals, rounds = 5, 20
    raced = subprocess.run(
        [sys.executable, "-c", RACE, str(tmp_path), str(rivals), str(rounds)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert raced.returncode == 0, raced.stderr
    found = collections.defaultdict(list)
    for line in raced.stdout.splitlines():
        number, pid, said = line.split("|")
        found[number].append((pid, said))
    assert len(found) == rounds
    for number, outcomes in found.items():
        workdir = tmp_path / number / "run"
        (winner,) = [pid for pid, said in outcomes if not said]
        refused = [said for _, said in outcomes if said]
        assert len(refused) == rivals - 1
        assert all(f"{workdir} is in use by " in said for said in refused), refused
        assert json.loads((workdir / "config.json").read_text())["devices"]
        assert (
            (workdir / run_directory.LOCK)
            .read_text()
            .startswith(f"process {winner} of ")
        )
        assert {p.name for p in workdir.iterdir()} == {
            "config.json",
            run_directory.LOCK,
        }


@pytest.fixture
def live(tmp_path):
    """A directory that another process holds, and that process."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workdir / run_directory.LOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "True\n"
        yield workdir, holder
        holder.stdin.close()


def claim(workdir):
    config = tiny.config()
    run_directory.open_workdir(workdir, config, build.contract(config), {})


def test_a_run_says_who_has_its_directory_and_a_kill_lets_go_of_it(live):
    workdir, holder = live
    before = (workdir / run_directory.LOCK).read_bytes()
    who = f"process {holder.pid} of {os.uname().nodename}, since 20"
    with pytest.raises(InputError, match=f"{workdir} is in use by {who}.*--workdir"):
        claim(workdir)
    assert [p.name for p in workdir.iterdir()] == [run_directory.LOCK]
    assert (workdir / run_directory.LOCK).read_bytes() == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    claim(workdir)
    assert (
        locks.holds(workdir / run_directory.LOCK) and (workdir / "config.json").exists()
    )


def test_other_hosts_of_the_job_are_not_refused(live, monkeypatch):
    monkeypatch.setattr(run_directory.jax, "process_index", lambda: 1)
    claim(live[0])
    assert [p.name for p in live[0].iterdir()] == [run_directory.LOCK]


def test_a_process_may_open_its_own_run_again_and_one_that_was_made_anew(tmp_path):
    claim(tmp_path / "run")
    claim(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "old")
    claim(tmp_path / "run")
    assert locks.holds(tmp_path / "run" / run_directory.LOCK)
    with pytest.raises(locks.Locked, match=f"process {os.getpid()} of"):
        locks.lock(tmp_path / "run" / run_directory.LOCK)


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, lines):
    def unknown(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", unknown)
    claim(tmp_path)
    assert "knows no locks" in lines[0] and (tmp_path / "config.json").exists()


@pytest.fixture
def build_from_tars(tmp_path):
    """The config of a build from tars."""
    config = builds.false_archive(tmp_path)
    for folder in sorted((tmp_path / "archive").iterdir()):
        packing.pack(folder, folder.with_name(f"{folder.name}.tar"))
        shutil.rmtree(folder)
    return config


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_build_without_locks_is_warned_of_and_works(
    build_from_tars, code, monkeypatch, lines
):
    def unknown(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unknown)
    prepare.prepare(build_from_tars)
    assert len(builds.ids(build_from_tars, "train")) == 6
    (warned,) = [line for line in lines if "knows no locks" in line]
    assert build_from_tars.out in warned
    assert not os.path.exists(tars.scratch_folder(build_from_tars))


@pytest.mark.parametrize("place", ["plan.json", ".array_record-", ".index.json"])
@pytest.mark.parametrize(
    "code, advice",
    [
        (errno.ENOSPC, "make room"),
        (errno.EACCES, "see to its permissions"),
        (errno.EROFS, "mount it for writing"),
        (errno.EIO, "see to the disk or the network"),
        (errno.ENAMETOOLONG, "mend it"),
    ],
)
def test_a_build_that_cannot_write_says_what_to_do_about_that(
    build_from_tars, place, code, advice, monkeypatch
):
    replace = os.replace

    def fail(source, target):
        if place in str(target):
            raise OSError(code, os.strerror(code))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match=os.strerror(code)) as caught:
        prepare.prepare(build_from_tars)
    assert f"; {advice}" in str(caught.value)
    assert ("make room" in str(caught.value)) == (code == errno.ENOSPC)


def test_a_host_ends_when_another_cannot_go_on(monkeypatch):
    monkeypatch.setattr(cluster.jax, "process_count", lambda: 3)
    gather = lambda mine: cluster.np.array([False, True, mine])  # noqa: E731
    monkeypatch.setattr(cluster.multihost_utils, "process_allgather", gather)
    with pytest.raises(InputError, match="Host 1 of this job cannot open x; do as it"):
        with cluster.together("open x"):
            pass
    with pytest.raises(InputError, match="mine"):
        with cluster.together("open x"):
            raise InputError("mine")


def test_a_lock_that_was_taken_a_moment_ago_says_by_whom(tmp_path):
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writing = threading.Timer(0.2, (tmp_path / "lock").write_text, ["process 7"])
        writing.start()
        with pytest.raises(locks.Locked, match="process 7"):
            locks.lock(tmp_path / "lock")
        writing.join()
        (tmp_path / "lock").write_text("")  # as of one that died before it said so
        with pytest.raises(locks.Locked, match="another process"):
            locks.lock(tmp_path / "lock")
