"""A run begins with another's parameters: each in its place, or said to be fresh."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest

from data_pipeline import sources
from data_pipeline.errors import InputError
from fusmae_jax import build, patches
from fusmae_jax.evaluation import encoder
from fusmae_jax.training import (
    optim,
    pretrain,
    run_directory,
    sharding,
    train,
    warm_start,
)
from tests import judging, teacher, tiny

S2_BANDS = tuple(tiny.config().bands.s2)
SEEN = np.array([[3, 4]], np.uint64)  # the code of a place


@pytest.fixture(scope="module", autouse=True)
def known_teacher():
    with teacher.known():
        yield


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run of Fus-MAE, and its parameters by path."""
    run = judging.trained(tmp_path_factory)
    return run, parameters(run)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the small method, which has a teacher."""
    return judging.trained(tmp_path_factory, "teacher")


def parameters(run):
    restored = encoder.restore(run, sharding.make_mesh())
    return jax.device_get(warm_start._named(restored.params))


def config(run, **changes):
    c = tiny.config()
    c.init_from = str(run)
    c.update_from_flattened_dict(changes)
    return c


def small(run, **changes):
    return config(run, method="teacher", **changes)


def load(config, mesh=None):
    """What is taken of the other run."""
    objective = build.objective(config)
    held = sources.open_split(config.data, "validation", ("id",))
    return warm_start.load(config, objective, mesh or sharding.make_mesh(), held)


def begin(config, fsdp=1, devices=None):
    """The state that a run begins with, its layout, and what is said of its origin."""
    mesh = sharding.make_mesh(fsdp, jax.devices()[:devices])
    objective = build.objective(config, **build.target(mesh))
    start, rate = load(config, mesh), optim.schedule(1e-3, 0, 10)
    init, layout, _ = pretrain.compile_step(config, objective, mesh, rate, start.params)
    return init(), layout, start.origin


@pytest.mark.parametrize(
    "method, devices, fsdp",
    [
        ("teacher", 4, 2),
        pytest.param("fusmae", 1, 1, marks=pytest.mark.journey),
        pytest.param("fusmae", 2, 2, marks=pytest.mark.journey),
        pytest.param("fusmae", 4, 2, marks=pytest.mark.journey),
    ],
)
def test_all_parameters_are_the_other_runs_and_all_else_is_fresh(
    tmp_path_factory, method, devices, fsdp, lines
):
    run = judging.trained(tmp_path_factory, method)
    known = parameters(run)
    state, layout, origin = begin(config(run, method=method), fsdp, devices)
    found = warm_start._named(state.params)
    assert found.keys() == known.keys()
    for path, x in found.items():
        np.testing.assert_array_equal(x, known[path])
    if method == "teacher":
        jax.tree.map(
            np.testing.assert_array_equal, state.extra["teacher"], state.params
        )
    laid = lambda x, at: x.sharding.is_equivalent_to(at, x.ndim)
    assert all(jax.tree.leaves(jax.tree.map(laid, state, layout)))
    (kernel,) = [x for path, x in found.items() if path.endswith("embed/s2/kernel")]
    assert kernel.sharding.is_fully_replicated == (fsdp == 1)
    assert int(state.step) == 0
    moments = jax.tree.leaves(state.opt_state)
    assert not any(np.asarray(x).any() for x in moments)
    assert origin == {"step": 6, "parameters": encoder.digest(known)}
    assert not any("Fresh" in line for line in lines)


@pytest.mark.parametrize(
    "bands",
    [
        ("B08", "B02", "B04"),
        pytest.param(S2_BANDS[::-1], marks=pytest.mark.journey),
        pytest.param((*S2_BANDS[6:], *S2_BANDS[:6]), marks=pytest.mark.journey),
    ],
)
def test_bands_are_taken_by_name(other, bands, lines):
    """Images of bands in any order are embedded and predicted as before."""
    old = [S2_BANDS.index(band) for band in bands]
    found = jax.device_get(load(config(other[0], **{"bands.s2": bands})).params)
    rng, p = np.random.default_rng(0), tiny.MODEL["patch_size"]
    image = rng.normal(size=(1, 24, 24, len(S2_BANDS))).astype(np.float32)
    hidden = np.setdiff1d(range(len(S2_BANDS)), old)
    image[..., hidden] = 0.0  # says nothing to the old embedding
    path = "encoder/embed/s2/kernel"
    embed = lambda image, kernel: patches.patchify(image, p) @ kernel
    np.testing.assert_allclose(
        embed(image[..., old], found[path]), embed(image, other[1][path]), atol=1e-5
    )
    path, hidden = "decoders/s2/predict", rng.normal(size=(1, 16, 16))

    def predict(params):
        redrawn = hidden @ params[f"{path}/kernel"] + params[f"{path}/bias"]
        return patches.unpatchify(redrawn.astype(np.float32), p)

    np.testing.assert_allclose(predict(found), predict(other[1])[..., old], atol=1e-5)
    assert not any("Fresh" in line for line in lines)


@pytest.mark.parametrize(
    "method, path, fresh",
    [
        ("teacher", "embed/s2/kernel", ()),
        pytest.param(
            *("fusmae", "encoder/embed/s2/kernel", ("decoders/s2/predict/bias",)),
            marks=pytest.mark.journey,
        ),
    ],
)
def test_bands_that_the_other_run_lacks_are_fresh_and_named(
    tmp_path, lines, method, path, fresh
):
    old, new = ("B04", "B03", "B02"), ("B02", "B08", "B04")
    changes = {"method": method, "bands.s2": old}
    run = judging.write_run(tmp_path / "run", config("", **changes))
    known = parameters(run)
    found = jax.device_get(load(config(run, **changes | {"bands.s2": new})).params)
    p = tiny.MODEL["patch_size"]
    rows = lambda x: x.reshape(p * p, -1, x.shape[-1])
    for i, band in enumerate(new):
        if band in old:
            want = rows(known[path])[:, old.index(band)]
            np.testing.assert_array_equal(rows(found[path])[:, i], want)
        else:  # left to chance, see the last test
            assert np.isnan(rows(found[path])[:, i]).all()
    (said,) = [line for line in lines if line.startswith("Fresh")]
    assert all(f"{name} of B08" in said for name in (path, *fresh))


def test_patches_of_another_size_and_larger_images_are_embedded_afresh(other, lines):
    changes = {"model.patch_size": 4, "model.image_size": 32, "data.size": 36}
    found = jax.device_get(load(config(other[0], **changes)).params)
    path = "encoder/blocks/0/mlp/up/kernel"
    np.testing.assert_array_equal(found[path], other[1][path])
    assert "encoder/embed/s1/kernel" not in found
    (said,) = [line for line in lines if line.startswith("Fresh")]
    assert "encoder/embed/s1/kernel of VV VH" in said


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model.depth": 3}, r"model.depth \(2 there, 3 now\)"),
        ({"model.dim": 64}, r"model.dim \(32 there, 64 now\)"),
        # The shapes are the same, and what the numbers mean is not.
        ({"model.num_heads": 4}, r"model.num_heads \(2 there, 4 now\)"),
        ({"model.decoder_depth": 2}, r"model.decoder_depth \(1 there, 2 now\)"),
        ({"model.fuse_early": False}, r"model.fuse_early \(True there, False now\)"),
    ],
)
def test_another_model_is_refused_by_the_field_that_differs(run, changes, said):
    with pytest.raises(InputError, match=f"do not fit, as it differs in {said}; laun"):
        load(small(run, **changes))


def test_a_model_of_a_version_without_a_field_is_refused_by_its_shapes(other, tmp_path):
    run = shutil.copytree(other[0], tmp_path / "run")
    saved = json.loads((run / "config.json").read_text())
    del saved["config"]["model"]["fuse_features"]
    (run / "config.json").write_text(json.dumps(saved))
    changed = config(run, **{"model.fuse_features": False})
    with pytest.raises(InputError, match=r"fuse/absent/s1 is \[32\] there and None"):
        load(changed)


def test_a_method_is_told_from_another(run):
    with pytest.raises(InputError, match=r"method \('teacher' there, 'fusmae' now\)"):
        load(config(run))


@pytest.fixture(scope="module")
def begun(run, tmp_path_factory):
    """A run that began with another's parameters, that one, and its last state."""
    root = tmp_path_factory.mktemp("begun")
    source = shutil.copytree(run, root / "source")
    (source / run_directory.PLACES).unlink()
    run_directory.remember_places(source, SEEN)
    state = pretrain.run(small(source), root / "run")
    return root, source, state


@contextlib.contextmanager
def gone(path, tmp_path):
    """Moves a folder away for a while."""
    path.rename(tmp_path / "gone")
    try:
        yield
    finally:
        (tmp_path / "gone").rename(path)


def test_a_run_does_not_begin_again_from_what_has_changed(begun, tmp_path):
    root, source, _ = begun
    workdir = shutil.copytree(root / "run", tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    with (
        gone(source / "checkpoints" / "6", tmp_path),
        pytest.raises(InputError, match=r"init_from.step \(6 there, 2 now\)"),
    ):
        pretrain.run(small(source), workdir)


def test_a_run_goes_on_where_the_other_one_has_gone(begun, tmp_path):
    root, source, whole = begun
    workdir = shutil.copytree(root / "run", tmp_path / "run")
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["config"]["init_from"] == str(source)
    assert saved["init_from"].keys() == {"step", "parameters"}
    assert run_directory.trained_on(workdir, SEEN) == 1
    shutil.rmtree(workdir / "checkpoints" / "6")
    with gone(source, tmp_path):
        resumed = pretrain.run(small(source), workdir)
        jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
        with pytest.raises(InputError, match=r"init_from \(.* there, '' now\)"):
            pretrain.run(small(""), workdir)
        # With no checkpoint of its own it has to begin again.
        shutil.rmtree(workdir / "checkpoints")
        with pytest.raises(InputError, match="holds no run"):
            pretrain.run(small(source), workdir)


def test_held_out_pairs_that_the_other_run_was_trained_on_are_refused(run, tmp_path):
    source = shutil.copytree(run, tmp_path / "source")
    c = small(source)
    c.data.update(source="sample")
    c.model.image_size = 24
    codes = sources.place_codes(sources.open_split(c.data, "validation", ("id",)))
    (source / run_directory.PLACES).unlink()
    run_directory.remember_places(source, codes)
    with pytest.raises(InputError, match="5 of the 5 held-out pairs show ground that"):
        load(c)
    c.data.allow_overlap = True
    load(c)


def test_a_place_that_is_not_known_is_random():
    found = train.take_known(
        {"a": np.ones(3), "b": np.ones(2)}, {"a": np.array([np.nan, 2.0, np.nan])}
    )
    np.testing.assert_array_equal(found["a"], [1.0, 2.0, 1.0])
    np.testing.assert_array_equal(found["b"], [1.0, 1.0])
