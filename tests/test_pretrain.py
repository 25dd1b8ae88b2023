"""Pretraining's own parts: the data it opens, and the stream it closes."""

import shutil

import numpy as np
import pytest

from configs import quickstart
from data_pipeline import metadata, sources, synthetic
from data_pipeline.errors import InputError
from fusmae_jax import pretrain, run, sharding
from tests import tiny


@pytest.fixture
def config(tmp_path):
    """Training on a copy of the sample, one pair of which is held out too."""
    folder = shutil.copytree(sources.SAMPLE, tmp_path / "data")
    train, held = (metadata.read_index(folder, s) for s in ("train", "validation"))
    held["place"][3] = train["place"][5]
    np.savez(folder / metadata.index_name("validation"), **held)
    config = quickstart.get_config()
    config.data.source, config.data.dir = "records", str(folder)
    return config


def test_training_on_a_held_out_pair_is_refused_unless_told(config):
    with pytest.raises(InputError, match="1 of 5 in the held-out pairs are training"):
        pretrain.open_data(config)
    config.data.allow_overlap = True
    source, held = pretrain.open_data(config)
    assert len(source) == 17 and len(held) == 5


def test_pairs_of_any_split_that_is_not_for_training_count_as_held_out(config):
    folder = config.data.dir
    config.data.eval_split = "train"  # looks at training pairs, knowingly
    config.data.split = "validation"
    with pytest.raises(InputError, match="1 of 17 in"):
        pretrain.open_data(config)
    config.data.split = "train"
    other = next(iter(sources.held_out(config.data)))
    assert other.title == f"split validation of {folder}"
    with pytest.raises(InputError, match=r"1 of 5 in split validation of .* training"):
        sources.check_overlap(sources.open_split(config.data, "train"), other)


def test_a_run_remembers_what_it_was_trained_on(config, tmp_path):
    train, held = (sources.open_split(config.data, s) for s in ("train", "validation"))
    run.remember_places(tmp_path, sources.place_codes(train))
    assert run.trained_on(tmp_path, sources.place_codes(train)) == 17
    assert run.trained_on(tmp_path, sources.place_codes(held)) == 1
    assert run.trained_on(tmp_path / "elsewhere", sources.place_codes(held)) == 0


def test_the_stream_is_closed_when_training_ends(monkeypatch):
    closed = []

    class Stream:
        def __next__(self):
            return {"x": np.zeros((8, 1))}

        def close(self):
            closed.append(1)

    monkeypatch.setattr(pretrain.batches, "train_batches", lambda *a, **k: Stream())
    mesh = sharding.make_mesh(1)
    stream = pretrain.load_batches(tiny.config(), synthetic.Scenes(8), mesh, 0)
    next(stream)
    assert not closed
    stream.close()
    assert closed
