"""A run cut in two equals the run left alone, and leaves what a run must leave."""

import json
import shutil

import jax
import numpy as np
import pytest

from data_pipeline import sources, synthetic
from data_pipeline.errors import InputError
from fusmae_jax import build, dtypes, reconstruct
from fusmae_jax import config as checks
from fusmae_jax.training import metrics, preemption, pretrain, run_directory
from tests import tiny


def losses(workdir):
    rows = metrics.read_metrics(workdir)
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 6 steps with checkpoints at 3 and 6, and its state."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, pretrain.run(tiny.config(), workdir)


def test_a_run_leaves_its_contract_behind(whole):
    workdir, state = whole
    assert int(state.step) == 6 and sorted(losses(workdir)) == [1, 2, 3, 4, 5, 6]
    description = json.loads((workdir / "config.json").read_text())
    assert description["config"]["batch_size"] == 8
    assert description["contract"]["s1"]["unit"] == "dB"
    row = next(r for r in metrics.read_metrics(workdir) if r["step"] == 5)
    wanted = "loss loss_s1 loss_s2 lr grad_norm images_per_sec data_wait"
    assert {*wanted.split(), "tflops_per_device"} <= row.keys()
    for name in ("reconstruction_0000003", "reconstruction", "loss"):
        assert (workdir / "figures" / f"{name}.png").stat().st_size > 1000
    assert list((workdir / "tensorboard").iterdir())
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"3", "6"}
    scores = json.loads((workdir / "scores.json").read_text())
    assert scores["pairs"] == 2 and len(scores["mean_squared_error"]) == 4


def test_held_out_losses_are_logged_beside_training(whole):
    evaluated = [r for r in metrics.read_metrics(whole[0]) if "eval_loss" in r]
    assert [row["step"] for row in evaluated] == [3, 6]


@pytest.mark.journey
@pytest.mark.parametrize("fsdp, accumulate", [(1, 1), (4, 2)])
def test_resuming_on_another_layout_repeats_the_uninterrupted_run(
    whole, tmp_path, fsdp, accumulate
):
    workdir, state = tmp_path / "cut", whole[1]
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")  # as if killed at step 5
    config = tiny.config()
    config.fsdp, config.accumulate = fsdp, accumulate
    resumed = pretrain.run(config, workdir)
    want, got = losses(whole[0]), losses(workdir)
    assert list(got) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-4)
    same = (fsdp, accumulate) == (1, 1)
    for a, b in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(state.params)):
        np.testing.assert_allclose(a, b, rtol=0, atol=0 if same else 1e-4)


@pytest.mark.journey
def test_a_finished_run_launched_again_only_reports(whole):
    before = losses(whole[0])
    state = pretrain.run(tiny.config(), whole[0])
    assert int(state.step) == 6 and losses(whole[0]) == before


def spoil(checkpoint):
    """Changes what is to be compared with what was read."""
    path = checkpoint / "_CHECKPOINT_METADATA"
    about = json.loads(path.read_text())
    about["custom_metadata"]["checksums"]["step"] += 1
    path.write_text(json.dumps(about))


@pytest.mark.journey
@pytest.mark.parametrize("damaged", [False, True])
def test_a_resume_holds_one_state_at_a_time(whole, tmp_path, while_loading, damaged):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    if damaged:
        spoil(workdir / "checkpoints" / "6")
    state = pretrain.run(tiny.config(), workdir)
    shards = (s for x in jax.tree.leaves(state) for s in x.addressable_shards)
    one = sum(shard.data.nbytes for shard in shards)
    assert len(while_loading) == 1 + damaged
    assert max(while_loading) < 1.5 * one, [x / one for x in while_loading]


@pytest.mark.journey
def test_a_new_run_records_what_auto_stood_for(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(dtypes, "cpu", lambda: ("a CPU without AMX", ("avx512_bf16",)))
    config = tiny.config()
    config.model.dtype = "auto"
    pretrain.run(config, tmp_path / "run")
    said = [(d / "config.json").read_text() for d in (tmp_path / "run", whole[0])]
    assert said[0] == said[1] and '"float32"' in said[0]
    assert losses(tmp_path / "run") == losses(whole[0])


@pytest.fixture
def elsewhere(monkeypatch):
    """The config of the whole run on a machine that would rather have bfloat16."""
    monkeypatch.setattr(dtypes, "cpu", lambda: ("a CPU with AMX", ("amx_bf16",)))
    config = tiny.config()
    config.model.dtype = "auto"
    return config


@pytest.mark.journey
def test_a_run_goes_on_in_the_type_in_which_it_began(whole, tmp_path, elsewhere, lines):
    workdir = shutil.copytree(whole[0], tmp_path / "cut")
    shutil.rmtree(workdir / "checkpoints" / "6")
    pretrain.run(elsewhere, workdir)
    assert "Computing in float32, as this run began." in lines
    assert losses(workdir) == losses(whole[0])
    assert (workdir / "config.json").read_bytes() == (
        whole[0] / "config.json"
    ).read_bytes()


def test_a_type_in_which_a_run_did_not_begin_is_refused(whole, elsewhere):
    before = losses(whole[0])
    elsewhere.model.dtype = "bfloat16"
    with pytest.raises(InputError, match=r"model.dtype \('float32' there, 'bfloat16' "):
        pretrain.run(elsewhere, whole[0])
    assert losses(whole[0]) == before


def test_a_run_that_began_in_float32_has_no_use_for_cudnn(
    whole, elsewhere, monkeypatch
):
    monkeypatch.setattr(checks, "check_devices", lambda config: None)  # as with a GPU
    elsewhere.model.attention = "cudnn"
    with pytest.raises(InputError, match="needs model.dtype=bfloat16, and that is flo"):
        pretrain.run(elsewhere, whole[0])


@pytest.mark.journey
def test_a_half_written_checkpoint_is_passed_over(whole, tmp_path):
    workdir = tmp_path / "cut"
    shutil.copytree(whole[0], workdir)
    checkpoints = workdir / "checkpoints"
    (checkpoints / "6").rename(checkpoints / "6.orbax-checkpoint-tmp")
    (checkpoints / "6.orbax-checkpoint-tmp" / "commit_success.txt").unlink(
        missing_ok=True
    )
    assert int(pretrain.run(tiny.config(), workdir).step) == 6
    assert losses(workdir).keys() == losses(whole[0]).keys()


def test_another_run_in_the_directory_is_refused_and_left_alone(whole):
    config = tiny.config()
    config.seed, config.model.dim = 7, 64
    before = (whole[0] / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"model\.dim \(32 there, 64 now\), seed"):
        pretrain.run(config, whole[0])
    assert (whole[0] / "config.json").read_bytes() == before


def test_a_checkpoint_is_reported_on_from_its_directory_alone(whole, tmp_path, capsys):
    from configs import reconstruct as reconstruct_config

    config = reconstruct_config.get_config()
    config.checkpoint = str(whole[0])
    config.data.update(source="synthetic", count=24, size=24)
    config.draws, config.shown = 2, 2
    reconstruct.run(config, tmp_path / "report")
    assert "inverse distance" in capsys.readouterr().out
    described = json.loads((tmp_path / "report" / "config.json").read_text())
    assert described["dtype"] == "float32"
    mine = json.loads((tmp_path / "report" / "scores.json").read_text())
    theirs = json.loads((whole[0] / "scores.json").read_text())
    for name, errors in theirs["mean_squared_error"].items():
        for sensor, error in errors.items():
            np.testing.assert_allclose(
                mine["mean_squared_error"][name][sensor], error, rtol=1e-4
            )


def test_a_directory_without_checkpoints_is_refused(tmp_path):
    from configs import reconstruct as reconstruct_config

    config = reconstruct_config.get_config()
    config.checkpoint = str(tmp_path)
    with pytest.raises(InputError, match="holds no run"):
        reconstruct.run(config, tmp_path / "out")
    tiny_config = tiny.config()
    contract = build.contract(tiny_config)
    run_directory.open_workdir(tmp_path / "run", tiny_config, contract, {})
    config.checkpoint = str(tmp_path / "run")
    with pytest.raises(InputError, match="does not exist"):
        reconstruct.run(config, tmp_path / "out")


def test_a_report_does_not_overwrite_the_run_it_reports_on(whole):
    from configs import reconstruct as reconstruct_config

    config = reconstruct_config.get_config()
    config.checkpoint = str(whole[0])
    config.data.update(source="synthetic", count=24, size=24)
    before = (whole[0] / "scores.json").read_bytes()
    with pytest.raises(InputError, match="holds another run"):
        reconstruct.run(config, whole[0])
    assert (whole[0] / "scores.json").read_bytes() == before


class SpoiledScenes(synthetic.Scenes):
    """Scenes whose radar is missing and whose sea is flat."""

    def __getitem__(self, i):
        scene = super().__getitem__(i)
        if i % 2:
            scene["s1_10m"] = np.full_like(scene["s1_10m"], np.nan)
        else:
            flat = {k: np.full_like(v, 200) for k, v in scene.items() if "s2_" in k}
            scene |= flat
        return scene


@pytest.mark.journey
def test_missing_radar_and_constant_sea_train_with_a_warning(
    tmp_path, monkeypatch, lines
):
    monkeypatch.setitem(sources.PROCEDURAL, "synthetic", SpoiledScenes)
    pretrain.run(tiny.config(), tmp_path / "run")
    assert np.isfinite(list(losses(tmp_path / "run").values())).all()
    said = [line for line in lines if "are not finite" in line]
    assert len(said) == 2 and "held-out" in said[0] and "Step 1" in said[1]


@pytest.mark.journey
def test_a_run_asked_to_stop_while_no_batch_comes_saves_what_it_has(
    whole, tmp_path, monkeypatch
):
    batches = pretrain.load_batches

    def two(*args):
        stream = batches(*args)
        yield next(stream)
        yield next(stream)
        stream.close()

    monkeypatch.setattr(pretrain, "load_batches", two)
    with pytest.raises(preemption.Stopped, match="after step 2 of 6, which is saved"):
        pretrain.run(tiny.config(), tmp_path / "run")
    monkeypatch.undo()
    pretrain.run(tiny.config(), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(whole[0])
