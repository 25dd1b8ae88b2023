"""Checkpoints of strangers: what they claim of their arrays is checked first."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
import tensorstore

from data_pipeline.errors import InputError
from fusmae_jax.training import checkpoint, sharding

LARGE = [4_000_000, 6_000_000]  # 96 TB, and a multiple of what is there


@pytest.fixture
def saved(tmp_path):
    """A folder with one checkpoint, and what is to be restored from it."""
    state = {"params": {"a": jnp.ones((4, 6)), "b": jnp.ones(3)}, "step": jnp.int32(1)}
    layout = jax.tree.map(lambda _: sharding.whole(sharding.make_mesh()), state)
    with checkpoint.Checkpoints(tmp_path, every=1, keep=1) as checkpoints:
        checkpoints.save(1, jax.device_put(state, layout))
    return tmp_path, checkpoint.abstract(state["params"], layout["params"])


def describe_otherwise(folder: pathlib.Path, change) -> None:
    """Changes what a checkpoint says of the array `params.a`."""
    spec = {"driver": "ocdbt", "base": f"file://{folder}/1/state/"}
    store, key = tensorstore.KvStore.open(spec).result(), b"params.a/zarr.json"
    described = json.loads(store.read(key).result().value)
    change(described)
    store.write(key, json.dumps(described).encode()).result()


def larger(described):
    described["shape"] = LARGE


def in_large_chunks(described):
    described["chunk_grid"]["configuration"]["chunk_shape"] = LARGE
    for codec in described["codecs"]:
        if codec["name"] == "sharding_indexed":
            codec["configuration"]["chunk_shape"] = LARGE


def in_one_chunk(described):
    described["chunk_grid"]["configuration"]["chunk_shape"] = LARGE
    described["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]


def in_many_chunks(described):
    described["chunk_grid"]["configuration"]["chunk_shape"] = LARGE
    for codec in described["codecs"]:
        if codec["name"] == "sharding_indexed":
            codec["configuration"]["chunk_shape"] = [1, 1]


@pytest.mark.parametrize(
    "change, reason",
    [
        (larger, "does not hold the model .* params?.*a|a, .4000000, 6000000. there"),
        (in_large_chunks, "is in chunks of .4000000, 6000000"),
        (in_one_chunk, "is in chunks of .4000000, 6000000"),
        (in_many_chunks, "cannot be read"),
    ],
)
def test_array_that_would_take_terabytes_is_refused(saved, change, reason):
    folder, wanted = saved
    assert checkpoint.restore_params(folder, wanted)[0] == 1
    describe_otherwise(folder, change)
    with pytest.raises(InputError, match=reason):
        checkpoint.restore_params(folder, wanted)


def test_checkpoint_whose_json_is_none_is_refused(saved):
    folder, wanted = saved
    for name in ("_METADATA", "array_metadatas/process_0"):
        path = folder / "1" / "state" / name
        sound = path.read_text()
        path.write_text("[" * 100_000)
        with pytest.raises(InputError, match="cannot be read"):
            checkpoint.restore_params(folder, wanted)
        path.write_text(sound)
