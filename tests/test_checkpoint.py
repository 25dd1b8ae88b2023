"""Checkpoints come back bit for bit, or a sentence says why not."""

import contextlib
import json
import pathlib
import random
import re
import resource
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipeline import atomic
from data_pipeline.errors import InputError
from fusmae_jax.training import checkpoint, sharding


def state(value: int, fsdp: int = 1, **more):
    """A small state of every kind of number, and its layout."""
    mesh = sharding.make_mesh(fsdp)
    rng = np.random.default_rng(value)
    tree = {
        "step": np.int32(value),
        "params": {
            "kernel": rng.normal(size=(8, 4)).astype(np.float32),
            "bias": rng.normal(size=4).astype(jnp.bfloat16),
        },
        "opt_state": ({"mu": rng.normal(size=(4, 8)).astype(np.float32)}, None),
        **more,
    }
    layout = jax.tree.map(
        lambda x: NamedSharding(mesh, P("fsdp") if np.ndim(x) == 2 else P()), tree
    )
    return jax.device_put(tree, layout), layout


def open_in(directory, **options):
    options = {"every": 1, "keep": 3} | options
    return checkpoint.Checkpoints(directory, **options)


def save(directory, *steps, **options):
    with open_in(directory, **options) as saves:
        for step in steps:
            saves.save(step, state(step)[0])


def restore(saves, tree, layout):
    return saves.restore(lambda: tree, layout)


def restored(directory, fsdp: int = 1, **more):
    with open_in(directory) as saves:
        return restore(saves, *state(0, fsdp, **more))


def check_same(found, wanted):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 1, 2 and 3."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(directory, 1, 2, 3)
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_a_state_comes_back_bit_for_bit_on_any_mesh(saved):
    for fsdp in (1, 2, 4):
        found = restored(saved, fsdp)
        check_same(found, state(3)[0])
        assert found["params"]["kernel"].sharding.is_equivalent_to(
            state(3, fsdp)[1]["params"]["kernel"], 2
        )


def test_a_flipped_byte_is_noticed_wherever_it_is(saved, tmp_path):
    files = [p for p in (saved / "3").rglob("*") if p.is_file()]
    rng, noticed = random.Random(0), 0
    for flip in range(24):
        directory = tmp_path / str(flip) / "checkpoints"
        shutil.copytree(saved, directory)
        path = directory / files[flip % len(files)].relative_to(saved)
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
        path.write_bytes(content)
        found = restored(directory)
        noticed += int(found["step"]) < 3
        check_same(found, state(int(found["step"]))[0])
    assert noticed > 5


def spoil(directory, step, name="kernel"):
    """Rewrites a checkpoint with one number changed, but with the sums it had."""
    path = directory / str(step)
    about = json.loads((path / "_CHECKPOINT_METADATA").read_text())
    shutil.rmtree(path)
    tree = state(step)[0]
    tree["params"][name] = tree["params"][name].at[0].multiply(-1)
    with open_in(directory, keep=9) as saves:
        saves.save(step, tree)
    written = json.loads((path / "_CHECKPOINT_METADATA").read_text())
    written["custom_metadata"] = about["custom_metadata"]
    (path / "_CHECKPOINT_METADATA").write_text(json.dumps(written))


def test_a_damaged_checkpoint_is_moved_aside_for_the_one_before(copy, lines):
    spoil(copy, 3)
    shutil.rmtree(copy / "2" / "state")
    with open_in(copy) as saves:
        found = restore(saves, *state(0))
        check_same(found, state(1)[0])
        assert saves.latest == 1 and saves.due(2)
        for step in (2, 3):
            saves.save(step, state(step)[0])
    assert "params/kernel; going on from step 1" in lines[0]
    assert "half-written" in lines[1] and len(lines) == 2
    names = {path.name for path in copy.iterdir()}
    assert names == {"1", "2", "3", "damaged-2", "damaged-3"}
    assert (copy / "damaged-3" / "state" / "manifest.ocdbt").exists()
    check_same(restored(copy), state(3)[0])
    spoil(copy, 3)
    assert int(restored(copy)["step"]) == 2 and (copy / "damaged-3-2").is_dir()


def test_if_all_are_damaged_nothing_is_moved(copy):
    for step in (1, 2, 3):
        (copy / str(step) / "state" / "manifest.ocdbt").unlink()
    before = sorted(copy.rglob("*"))
    with pytest.raises(InputError, match="No checkpoint in .* the last cannot be read"):
        restored(copy)
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff{}", b'{"metrics": 3}', None])
def test_a_lost_description_is_no_obstacle(copy, content):
    path = copy / "3" / "_CHECKPOINT_METADATA"
    path.unlink() if content is None else path.write_bytes(content)
    assert int(restored(copy)["step"]) == 2 and (copy / "damaged-3").is_dir()


def test_the_last_and_every_nth_stay(tmp_path):
    save(tmp_path, *range(1, 9), keep=2, keep_every=3)
    assert checkpoint.saved_steps(tmp_path) == [3, 6, 7, 8]


def test_a_checkpoint_without_checksums_is_loaded_and_said_to_be(copy, lines):
    path = copy / "3" / "_CHECKPOINT_METADATA"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"custom_metadata": {}}))
    check_same(restored(copy), state(3)[0])
    assert [line for line in lines if "not verified" in line] == lines[-1:]


def test_before_the_first_checkpoint_a_state_is_a_fresh_one(tmp_path):
    check_same(restored(tmp_path), state(0)[0])


def test_what_is_new_in_a_state_stays_as_it_was_given(copy, lines):
    found = restored(copy, skipped=np.int32(7), ids=np.arange(3))
    assert int(found.pop("skipped")) == 7 and found.pop("ids").tolist() == [0, 1, 2]
    check_same(found, state(3)[0])
    assert lines == ["New since step 3 was saved: ids, skipped."]


def test_a_newer_versions_state_is_refused_but_its_parameters_are_not(tmp_path):
    tree, _ = state(5, later=np.int32(1))
    with open_in(tmp_path) as saves:
        saves.save(5, tree)
    with pytest.raises(InputError, match="newer version, as it holds later; update"):
        restored(tmp_path)
    params, layout = (tree["params"] for tree in state(0))
    wanted = checkpoint.abstract(params, layout)
    check_same(checkpoint.restore_params(tmp_path, wanted)[1], state(5)[0]["params"])


def test_a_state_of_other_shapes_is_refused(copy):
    tree, layout = state(0)
    tree["opt_state"][0]["mu"] = tree["opt_state"][0]["mu"].T
    with pytest.raises(InputError, match=r"mu, \[4, 8\] there and \[8, 4\] by"):
        with open_in(copy) as saves:
            restore(saves, tree, layout)
    del tree["opt_state"][0]["mu"], layout["opt_state"][0]["mu"]
    with pytest.raises(InputError, match=r"mu, \[4, 8\] there and None by"):
        with open_in(copy) as saves:
            restore(saves, tree, layout)


def test_parameters_alone_are_verified_before_they_are_cast(copy):
    params, layout = (tree["params"] for tree in state(3, 2))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    wanted = checkpoint.abstract(half, layout)
    step, found = checkpoint.restore_params(copy, wanted)
    assert step == 3
    check_same(found, half)
    spoil(copy, 3)
    with pytest.raises(InputError, match="not hold what was saved: 1 .* params/kernel"):
        checkpoint.restore_params(copy, wanted)
    spoil(copy, 2, "bias")
    with pytest.raises(InputError, match="choose another step than 2 of"):
        checkpoint.restore_params(copy, wanted, 2)


@contextlib.contextmanager
def small_files():
    """No file may grow over 1000 bytes, as if there were no more room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("more", [(), (5,)])
def test_a_failed_save_shows_at_the_next_one_or_at_the_end(copy, more):
    with pytest.raises(OSError) as unsaved:
        with small_files():
            save(copy, 4, *more)
    said = "checkpoints/4 cannot be written .File too large.; make room"
    assert re.search(said, atomic.explain(unsaved.value))
    assert checkpoint.saved_steps(copy) == [1, 2, 3]
    save(copy, 4)
    check_same(restored(copy), state(4)[0])
    assert not [path for path in copy.iterdir() if "tmp" in path.name]


def test_a_failed_save_does_not_hide_what_went_wrong_before(copy, lines):
    with pytest.raises(ZeroDivisionError):
        with small_files(), open_in(copy) as saves:
            saves.save(4, state(4)[0])
            1 / 0
    assert "File too large" in lines[-1] and "checkpoints/4" in lines[-1]


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    mounted = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)]
    done = subprocess.run(mounted, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        save(tmp_path / "checkpoints", 1)
        (tmp_path / "filling").write_bytes(bytes(90_000))
        with pytest.raises(OSError, match="No space left on device") as caught:
            save(tmp_path / "checkpoints", *range(2, 9))
        assert "/checkpoints/" in caught.value.filename
        (tmp_path / "filling").unlink()
        last = restored(tmp_path / "checkpoints")
        check_same(last, state(int(last["step"]))[0])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
