"""Run directories of earlier versions can be judged, or go on; see golden/."""

import json
import pathlib
import shutil
import tarfile

import jax
import numpy as np
import pytest

from configs import pretrain_base
from data_pipeline.errors import InputError
from fusmae_jax.evaluation import encoder
from fusmae_jax.training import metrics, pretrain, run_directory, sharding

GOLDEN = pathlib.Path(__file__).parent / "golden"
# A digest of the parameters at step 4; bits, so that it holds on any machine.
DIGESTS = {
    "before_checksums": "5dd5a1a2de911016",
    "with_checksums": "5dd5a1a2de911016",
    "named_streams": "026111cac8df0dd3",
}
OF_TODAY = ("named_streams",)  # the format in which runs go on


def config():
    """The command of golden/README.md."""
    c = pretrain_base.get_config()
    c.epochs, c.batch_size, c.optim.warmup_epochs = 2, 8, 0
    c.data.update(source="synthetic", count=24, size=24, threads=1)
    c.model.update(image_size=24, patch_size=6, dim=8, depth=2, num_heads=2)
    c.model.update(decoder_dim=8, decoder_depth=1, decoder_heads=2, dtype="float32")
    c.log_every, c.eval_every, c.eval_pairs, c.eval_draws = 1, 3, 3, 2
    c.figure_pairs, c.checkpoint_every, c.keep_checkpoints, c.keep_every = 2, 4, 2, 0
    return c


@pytest.fixture(scope="module", params=DIGESTS)
def golden(request, tmp_path_factory):
    """A run directory as it was at step 4, with the metrics of all 6 steps."""
    directory = tmp_path_factory.mktemp("golden") / request.param
    with tarfile.open(GOLDEN / f"{request.param}.tar.xz") as archive:
        archive.extractall(directory, filter="data")
    return directory


def losses(directory):
    rows = metrics.read_metrics(directory)
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.journey
@pytest.mark.parametrize("golden", OF_TODAY, indirect=True)
def test_a_run_of_an_earlier_version_goes_on(golden, tmp_path):
    workdir = shutil.copytree(golden, tmp_path / "run")
    assert int(pretrain.run(config(), workdir).step) == 6
    want, got = losses(golden), losses(workdir)
    assert list(got) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-4)
    # Were the state lost, these would be losses of a fresh model.
    assert got[5] != got[1] and not (workdir / "checkpoints" / "damaged-4").exists()


@pytest.mark.parametrize("golden", sorted({*DIGESTS} - {*OF_TODAY}), indirect=True)
def test_a_run_that_drew_other_random_numbers_does_not_go_on(golden, tmp_path):
    workdir = shutil.copytree(golden, tmp_path / "run")
    with pytest.raises(InputError, match="earlier version, which drew other random"):
        pretrain.run(config(), workdir)
    kept = {path.name for path in workdir.iterdir()} - {run_directory.LOCK}
    assert kept == {path.name for path in golden.iterdir()}


def test_an_encoder_of_an_earlier_version_can_be_judged(golden):
    restored = encoder.restore(golden, sharding.make_mesh())
    assert restored.step == 4
    assert encoder.digest(restored.params) == DIGESTS[golden.name]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(restored.params))


def test_what_an_earlier_version_wrote_of_itself_is_understood(golden):
    described, contract = run_directory.load(golden)
    assert described.model.dim == 8 and contract["s1"].unit == "dB"
    assert run_directory.trained_on(golden, np.zeros((1, 2), np.uint64)) == 0
    scores = json.loads((golden / "scores.json").read_text())
    assert scores["pairs"] == 2


def test_a_run_of_a_later_format_is_refused(golden, tmp_path):
    described = json.loads((golden / "config.json").read_text())
    later = tmp_path / "config.json"
    later.write_text(json.dumps(described | {"format": run_directory.FORMAT + 1}))
    message = r"has format 3 and this version reads \[1, 2\]"
    with pytest.raises(InputError, match=message):
        run_directory.load(tmp_path)
    with pytest.raises(InputError, match="update fusmae_jax"):
        pretrain.run(config(), tmp_path)
