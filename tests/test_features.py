"""Features are what they say, taken once, and taken again when anything changes."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from data_pipeline import sensors, subsets, synthetic
from data_pipeline.errors import InputError
from fusmae_jax import inputs
from fusmae_jax.evaluation import features
from fusmae_jax.evaluation.encoder import SENSOR_SETS, Statistics
from fusmae_jax.evaluation.features import Extractor, Recipe
from fusmae_jax.objectives.protocol import Encoded
from fusmae_jax.training import sharding
from tests import tiny


def make_params(seed=0):
    """Parameters whose absent tokens say something."""
    _, params = tiny.encoder(seed, model=dict(depth=3))
    rng = np.random.default_rng(seed)
    noise = lambda x: jnp.float32(x + rng.normal(0.0, 0.05, x.shape))
    return jax.tree.map(noise, params)


PARAMS = make_params()
ALL = tuple(SENSOR_SETS)


def one_device():
    return Mesh(
        np.array(jax.devices()[:1]).reshape(1, 1),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def extractor(
    *, recipe=Recipe(), params=PARAMS, sets=ALL, scene=24, mesh=None, contract=None
):
    contract = contract or sensors.SENSORS
    options = dict(contract=contract, scene_size=scene, model=dict(depth=3))
    encoder = tiny.objective(**options).encoder()
    if params is None:
        encoder, params = Statistics(encoder.inputs, 6), nnx.State({})
    return Extractor(encoder, params, recipe, mesh or sharding.make_mesh(1), sets)


class Counted:
    """Scenes that count how often they are read, and may break."""

    def __init__(self, count=10, size=24, seed=0, breaks_at=None, change=lambda x: x):
        self.scenes = synthetic.Scenes(count, size=size, seed=seed)
        self.description = self.scenes.description
        self.read, self.breaks_at, self.change = [], breaks_at, change

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, i):
        if self.breaks_at is not None and i >= self.breaks_at:
            raise KeyboardInterrupt
        self.read.append(i)
        return self.change(self.scenes[i])

    def fingerprint(self):
        return self.scenes.fingerprint()


@pytest.fixture(scope="module")
def taker():
    return extractor()


@pytest.fixture(scope="module")
def taken(taker):
    """Features of ten scenes."""
    return features.take(taker, Counted(), batch_size=8)


def extract(taker, source, folder, batch_size=8):
    return features.extract(
        taker, source, folder=folder, batch_size=batch_size, title="test"
    )


def same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], **tolerance or dict(rtol=0))


def test_every_pair_has_one_vector_a_sensor_set_and_padding_none(taken):
    assert list(taken) == list(ALL)
    for x in taken.values():
        assert x.shape == (10, 32) and x.dtype == np.float32
        assert len(np.unique(x, axis=0)) == 10  # none is the copy of another
    assert not np.allclose(taken["s1"], taken["s2"], atol=1e-2)


def test_two_graphs_serve_all_sensors_single_ones_and_any_parameters(monkeypatch):
    traces, pool = [], features.pool
    monkeypatch.setattr(features, "pool", lambda *a: traces.append(1) or pool(*a))
    taker = extractor(scene=48, recipe=Recipe(view="tiles"))
    source = Counted(10, size=48)
    features.take(taker, source, batch_size=4)
    taker.params = make_params(1)
    features.take(taker, source, batch_size=4)
    assert len(traces) == 2


@pytest.mark.journey
def test_features_are_the_same_in_any_batch_and_on_any_devices(taken):
    alone = extractor(mesh=one_device())
    for batch_size in (3, 64):
        found = features.take(alone, Counted(), batch_size=batch_size)
        same(found, taken, rtol=1e-4, atol=1e-5)


@pytest.mark.journey
def test_features_are_the_pooled_output_of_the_encoder(taken):
    """The mean over all tokens there are, as the model gives them without a mask."""
    encoder = tiny.objective(model=dict(depth=3)).encoder()
    scenes = synthetic.Scenes(10, size=24)
    fields = {
        f: np.stack([scenes[i][f] for i in range(10)])
        for f in scenes.description.layout.shapes
    }
    view = inputs.fixed_view(10, (0.0, 0.0, 1.0, 1.0))
    encoded = jax.jit(encoder)(PARAMS, encoder.inputs.images(fields, view))
    tokens = np.concatenate([encoded.tokens["s1"], encoded.tokens["s2"]], axis=1)
    np.testing.assert_allclose(taken["both"], tokens.mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", features.POOLS)
def test_pools_are_what_they_say(how):
    rng = np.random.default_rng(0)
    tokens = {"s1": rng.normal(size=(3, 5, 4)), "s2": rng.normal(size=(3, 5, 4))}
    summary = rng.normal(size=(3, 4))
    table = np.array([SENSOR_SETS[name] for name in ("s1", "s2", "both")])
    here = {"s1": jnp.asarray(table[:, 0]), "s2": jnp.asarray(table[:, 1])}
    found = features.pool(
        Encoded({s: jnp.float32(x) for s, x in tokens.items()}, jnp.float32(summary)),
        here,
        how,
    )
    a, b = (tokens[s].mean(axis=1) for s in ("s1", "s2"))
    zero = np.zeros(4)
    joint = np.concatenate([tokens["s1"], tokens["s2"]], axis=1).mean(axis=1)
    want = {
        "mean": [a[0], b[1], joint[2]],
        "global": summary,
        "sensors": [[*a[0], *zero], [*zero, *b[1]], [*a[2], *b[2]]],
    }[how]
    np.testing.assert_allclose(found, np.stack(want), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["mean", "sensors"])
def test_pools_read_nothing_of_an_absent_sensor(how):
    tokens = {"s1": jnp.ones((1, 5, 4)), "s2": jnp.full((1, 5, 4), jnp.nan)}
    here = {"s1": jnp.array([True]), "s2": jnp.array([False])}
    encoded = Encoded(tokens, jnp.zeros((1, 4)))
    assert np.isfinite(features.pool(encoded, here, how)).all()


@pytest.mark.journey
@pytest.mark.parametrize("params", [PARAMS, None], ids=["encoder", "statistics"])
@pytest.mark.parametrize("absent, shown", [("s2", "s1"), ("s1", "s2")])
def test_features_of_a_sensor_do_not_depend_on_the_other(params, absent, shown):
    def spoil(scene):
        wild = lambda x: x * 0 + (np.nan if x.dtype.kind == "f" else 60_000)
        return {k: wild(v) if k.startswith(absent) else v for k, v in scene.items()}

    taker = extractor(params=params, sets=(shown, "both"))
    clean = features.take(taker, Counted(4), batch_size=4)
    dirty = features.take(taker, Counted(4, change=spoil), batch_size=4)
    np.testing.assert_array_equal(clean[shown], dirty[shown])
    assert not np.allclose(clean["both"], dirty["both"], atol=1e-2)
    assert np.isfinite(dirty["both"]).all()


def test_the_last_blocks_stand_one_behind_the_other(taken):
    two = features.take(extractor(recipe=Recipe(blocks=2)), Counted(), batch_size=8)
    assert two["both"].shape == (10, 64)
    np.testing.assert_allclose(two["both"][:, 32:], taken["both"], rtol=1e-4, atol=1e-5)


def test_statistics_of_images_are_numpys():
    taker = extractor(params=None)
    found = features.take(taker, Counted(4), batch_size=4)
    scenes = synthetic.Scenes(4, size=24)
    for i in range(4):
        x = scenes[i]["s1_10m"].astype(np.float64).reshape(-1, 2)
        mean, std = ([getattr(b, k) for b in sensors.S1.bands] for k in ("mean", "std"))
        x = (x - mean) / std
        q = np.percentile(x, (5, 25, 50, 75, 95), axis=0)
        want = np.concatenate([x.mean(0), x.std(0), *q])
        np.testing.assert_allclose(found["s1"][i, :14], want, rtol=1e-3, atol=1e-3)
    assert found["both"].shape == (4, 7 * 14)
    np.testing.assert_array_equal(found["s1"][:, 14:], 0.0)
    np.testing.assert_array_equal(found["s2"][:, :14], 0.0)
    np.testing.assert_array_equal(found["s1"] + found["s2"], found["both"])


def test_tiles_cover_the_scene_and_are_averaged():
    """The mean of a band over the scene is that over its tiles; the middle's is not."""
    source, x = Counted(2, size=48), []
    for i in range(2):
        x.append(source.scenes[i]["s1_10m"][..., 0].astype(np.float64).mean())
    want = (np.array(x) - sensors.S1.bands[0].mean) / sensors.S1.bands[0].std
    found = {
        view: features.take(
            extractor(params=None, scene=48, sets=("s1",), recipe=Recipe(view=view)),
            source,
            batch_size=4,
        )["s1"][:, 0]
        for view in ("tiles", "whole", "center")
    }
    np.testing.assert_allclose(found["tiles"], want, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["whole"], want, rtol=2e-2, atol=1e-2)
    assert not np.allclose(found["center"], want, atol=1e-2)


def test_what_was_taken_is_not_taken_again(tmp_path, taker, taken):
    first = Counted()
    same(extract(taker, first, tmp_path), taken)
    assert sorted(first.read)[:10] == list(range(10))
    again = Counted()
    same(extract(taker, again, tmp_path, batch_size=4), taken)
    assert not again.read
    assert not list(tmp_path.rglob("*.part"))
    (key,) = tmp_path.glob("*/key.json")
    assert "parameters" in key.read_text()


def test_anything_that_decides_a_feature_is_in_the_key(taker):
    def key(taker, source=Counted()):
        return str(taker.key(source))

    wide = sensors.S1.with_statistics({"VV": 0, "VH": 0}, {"VV": 9, "VH": 9}, "test")
    heads = tiny.objective(model=dict(depth=3, num_heads=4)).encoder()
    keys = [
        key(taker),
        key(extractor(params=make_params(1))),
        key(extractor(params=None)),
        key(extractor(recipe=Recipe(pool="global"))),
        key(extractor(recipe=Recipe(blocks=2))),
        key(extractor(recipe=Recipe(view="whole"))),
        key(extractor(sets=("both",))),
        key(extractor(contract={**sensors.SENSORS, "s1": wide})),
        key(Extractor(heads, PARAMS, Recipe(), taker.mesh, ALL)),
        key(taker, Counted(11)),
        key(taker, Counted(10, seed=1)),
        key(taker, subsets.Subset(synthetic.Scenes(10, size=24), range(5))),
    ]
    assert len(set(keys)) == len(keys)
    assert key(extractor(mesh=one_device())) == keys[0]  # but not how it was taken


def test_changed_parameters_are_not_found_in_the_cache(tmp_path, taker, taken):
    extract(taker, Counted(), tmp_path)
    other, source = extractor(params=make_params(1)), Counted()
    found = extract(other, source, tmp_path)
    assert source.read and not np.allclose(found["both"], taken["both"], atol=1e-2)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_extraction_goes_on_where_it_stopped(
    tmp_path, taker, taken, monkeypatch
):
    monkeypatch.setattr(features, "PART", 4)
    with pytest.raises(KeyboardInterrupt):
        extract(taker, Counted(breaks_at=6), tmp_path, batch_size=4)
    (folder,) = tmp_path.iterdir()
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["key.json", "pairs-00000000.npz"]
    rest = Counted()
    same(extract(taker, rest, tmp_path, batch_size=4), taken, rtol=1e-4, atol=1e-5)
    assert set(rest.read) == set(range(4, 10))
    assert len(list(folder.glob("pairs-*.npz"))) == 3


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_damaged_part_is_named(tmp_path, taker, keep):
    extract(taker, Counted(), tmp_path)
    (part,) = tmp_path.glob("*/*.npz")
    content = part.read_bytes()
    part.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(InputError, match=f"{part} .*delete that file") as caught:
        extract(taker, Counted(), tmp_path)
    assert "\n" not in str(caught.value)
    part.unlink()
    assert len(extract(taker, Counted(), tmp_path)["s1"]) == 10


def test_bytes_changed_in_a_part_are_noticed(tmp_path, taker):
    extract(taker, Counted(), tmp_path)
    (part,) = tmp_path.glob("*/*.npz")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 0xFF
    part.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        extract(taker, Counted(), tmp_path)


def test_a_cache_that_cannot_be_written_is_said_before_work(tmp_path, taker):
    (tmp_path / "file").write_text("x")
    source = Counted()
    with pytest.raises(InputError, match=r"cannot be kept in .*another folder") as e:
        extract(taker, source, tmp_path / "file")
    assert "\n" not in str(e.value) and not source.read
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(InputError, match="cannot be kept"):
            extract(taker, source, tmp_path / "locked")


@pytest.mark.parametrize(
    "options, match",
    [
        (dict(pool="max"), r"^pool is 'max'; choose one of \['mean'"),
        (dict(view="corner"), "^view is 'corner'"),
        (dict(blocks=3), "^blocks is 3; this encoder has 2"),
        (dict(blocks=0), "^blocks is 0"),
    ],
)
def test_features_that_there_are_not_are_refused(options, match):
    with pytest.raises(InputError, match=match):
        extractor(recipe=Recipe(**options))


@pytest.mark.parametrize("sets", [(), ("s3",), ("both", "S1")])
def test_sensor_sets_that_there_are_not_are_refused(sets):
    with pytest.raises(InputError, match="sensors is .*; choose some of"):
        extractor(sets=sets)
