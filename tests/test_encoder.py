"""An encoder comes back from its run directory alone, or a sentence says why not."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import optax
import pytest

from data_pipeline import layout, sensors, synthetic
from data_pipeline.errors import InputError
from fusmae_jax.evaluation import encoder
from fusmae_jax.training import sharding, train
from tests import judging


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return judging.trained(tmp_path_factory)


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(
        trained, tmp_path / "run", ignore=shutil.ignore_patterns("features")
    )


@pytest.fixture(scope="module")
def scenes():
    return synthetic.Scenes(2, size=24).description


def change(run, *path, value=None):
    """Edits config.json; None deletes."""
    described = json.loads((run / "config.json").read_text())
    inner = described
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    (run / "config.json").write_text(json.dumps(described))


def refused(run, mesh, match, **options):
    """Checks that a run is refused in one sentence."""
    with pytest.raises(InputError, match=match) as caught:
        encoder.restore(run, mesh, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.journey
def test_an_encoder_needs_its_run_directory_and_nothing_else(copy, mesh, scenes):
    (copy / "places.npy").unlink()
    restored = encoder.restore(str(copy), mesh)
    assert restored.step == judging.STEPS[-1] and restored.config.model.dim == 32
    whole = sharding.whole(mesh)
    for leaf in jax.tree.leaves(restored.params):
        assert leaf.sharding.is_equivalent_to(whole, leaf.ndim)
    seen = restored.look_at(scenes, "run")
    assert (seen.inputs.size, seen.inputs.scene_size) == (24, 24)
    assert (seen.patch_size, seen.side, seen.width) == (6, 4, 32)
    assert seen.depth == 1  # of two, the first is the XAttnEncoder
    x = np.zeros((1, 24, 24, 14), np.float32)
    images = {"s1": x[..., :2], "s2": x[..., 2:]}
    encoded = seen(restored.encoder_params, images)
    assert encoded.summary.shape == (1, 32)


def test_any_of_its_checkpoints_can_be_asked_for(trained, mesh):
    early, late = judging.STEPS
    found = [encoder.restore(trained, mesh, step) for step in (0, early)]
    assert [f.step for f in found] == [late, early]
    assert encoder.digest(found[0].params) != encoder.digest(found[1].params)
    refused(trained, mesh, r"no checkpoint of step 4; it holds \[2, 6\]", step=4)


@pytest.mark.journey
def test_fresh_parameters_are_those_of_a_run_that_begins(trained, mesh):
    restored = encoder.restore(trained, mesh)
    fresh, tx = restored.fresh(3), optax.sgd(1.0)
    init, _ = train.plan_state(restored.objective, tx, mesh, seed=3)
    begun = jax.tree.leaves(restored.objective.encoder_params(init().params))
    for x, y in zip(jax.tree.leaves(fresh), begun, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert encoder.digest(restored.fresh(4)) != encoder.digest(fresh)


def test_a_checksum_changes_with_any_number_of_the_parameters(trained, mesh):
    params = encoder.restore(trained, mesh).params
    leaves, tree = jax.tree.flatten(params)
    before = encoder.digest(params)
    for i in (0, len(leaves) // 2, -1):
        changed = list(leaves)
        changed[i] = leaves[i].at[(0,) * leaves[i].ndim].add(1e-6)
        assert encoder.digest(jax.tree.unflatten(tree, changed)) != before


def test_statistics_are_those_of_the_run_or_of_the_data(trained, mesh, scenes):
    restored = encoder.restore(trained, mesh)
    s1 = scenes.sensors["s1"].with_statistics(
        {"VV": -1.0, "VH": -2.0}, {"VV": 3.0, "VH": 4.0}, "test"
    )
    other = dataclasses.replace(scenes, sensors={**scenes.sensors, "s1": s1})
    own = restored.look_at(other, "run").inputs.contract["s1"].bands[0]
    theirs = restored.look_at(other, "data").inputs.contract["s1"].bands[0]
    assert (own.mean, theirs.mean) == (sensors.S1.bands[0].mean, -1.0)


def test_data_without_a_band_of_the_model_are_refused(trained, mesh, scenes):
    restored = encoder.restore(trained, mesh)
    contract = {"s1": sensors.S1, "s2": sensors.S2.select(("B02", "B03", "B04"))}
    few = dataclasses.replace(scenes, layout=layout.native(24, contract))
    with pytest.raises(InputError, match="no Sentinel-2 bands .*'B01', 'B05'"):
        restored.look_at(few, "run")


def test_data_in_another_unit_are_refused(trained, mesh, scenes):
    restored = encoder.restore(trained, mesh)
    s1 = dataclasses.replace(sensors.S1, unit="linear power")
    other = dataclasses.replace(scenes, sensors={**scenes.sensors, "s1": s1})
    with pytest.raises(InputError, match="takes Sentinel-1 in dB, .* linear power"):
        restored.look_at(other, "run")


def test_no_run_no_checkpoint_and_no_name_are_told_apart(copy, tmp_path, mesh):
    refused("", mesh, "checkpoint=")
    refused(tmp_path / "nothing", mesh, "holds no run")
    early, late = (copy / "checkpoints" / str(step) for step in judging.STEPS)
    shutil.rmtree(early)
    # As a run that was killed while saving leaves it.
    late.rename(f"{late}.orbax-checkpoint-tmp")
    refused(copy, mesh, "holds no checkpoint")
    shutil.rmtree(copy / "checkpoints")
    refused(copy, mesh, "checkpoints does not exist")
    (copy / "checkpoints").mkdir()
    refused(copy, mesh, "holds no checkpoint")


# Orbax leaves coroutines behind that nobody waits for.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "pattern",
    [
        "_CHECKPOINT_METADATA",
        "state/_METADATA",
        "state/manifest.ocdbt",
        "state/d/*",
        "state/ocdbt.process_0/d/*",
    ],
)
def test_a_half_written_file_is_one_sentence(copy, mesh, pattern):
    step = copy / "checkpoints" / str(judging.STEPS[-1])
    for path in step.glob(pattern):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(copy, mesh, f"{step} cannot be read, as if half-written")


def test_a_checkpoint_without_its_arrays_is_one_sentence(copy, mesh):
    shutil.rmtree(copy / "checkpoints" / str(judging.STEPS[-1]) / "state")
    refused(copy, mesh, r"half-written .* choose another step than 6 of \[2, 6\]")
    assert encoder.restore(copy, mesh, judging.STEPS[0]).step == judging.STEPS[0]


@pytest.mark.parametrize(
    "path, value, match",
    [
        ("model.patch_size", 8, r"does not hold .*, \[72\] there and \[128\]"),
        ("model.patch_size", 7, "24 is not a whole number of patches of 7"),
        ("model.dim", 30, "30"),
        ("model.depth", 3, r"does not hold .*blocks/1/.*, None there and \[32\]"),
        ("model.depth", 1, r"does not hold .*blocks/0/.*, \[32\] there and None"),
        ("model.layers", 3, "describes no encoder .*layers"),
        ("model.dim", None, "does not hold the model"),
        ("model", None, "describes no encoder .*model"),
        ("mask.drop_sensor", None, "describes no encoder .*drop_sensor"),
        ("bands.s2", ["B02", "B03"], "does not hold the model|contradicts itself"),
        ("bands.s2", ["B10"], "Bands .*'B10'"),
        ("bands.s1", ["VH", "VV"], "contradicts itself"),
        ("bands.s2", None, "s2"),
    ],
)
def test_a_config_of_another_model_is_refused(copy, mesh, path, value, match):
    change(copy, "config", *path.split("."), value=value)
    refused(copy, mesh, match)


def test_a_damaged_description_of_a_run_is_refused(copy, mesh):
    whole = (copy / "config.json").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\xff\xfe\x00"):
        (copy / "config.json").write_bytes(content)
        refused(copy, mesh, r"config.json cannot be read")
    for content in (b"[1]", b"{}", b'{"config": {}}'):
        (copy / "config.json").write_bytes(content)
        refused(copy, mesh, r"config.json does not describe a run")
    for part in ("config", "contract"):
        (copy / "config.json").write_bytes(whole)
        change(copy, part)
        refused(copy, mesh, "does not describe a run")
    for part in (["s2"], ["s1", "bands", "VV"], ["s1", "unit"]):
        (copy / "config.json").write_bytes(whole)
        change(copy, "contract", *part)
        refused(copy, mesh, "describes no|no description|Bands|contradicts itself")


def test_an_evaluation_is_no_pretraining(copy, mesh):
    change(copy, "config", value=judging.config("x").to_dict())
    refused(copy, mesh, "describes no encoder")
