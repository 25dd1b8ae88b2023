"""The model: symmetric where it should be, fused where told, all of it trained."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import InputError
from fusmae_jax import patches
from fusmae_jax.models import multimae
from fusmae_jax.models.fusmae import Encoder
from fusmae_jax.models.products import Arithmetic
from fusmae_jax.training.sharding import leaf_path
from tests import tiny

SWAP = {"s1": "s2", "s2": "s1"}


def images(seed=0, bands=tiny.BANDS, size=24):
    rng = np.random.default_rng(seed)
    return {
        s: rng.normal(size=(2, size, size, c)).astype(np.float32)
        for s, c in bands.items()
    }


def masks(key, num_patches=16, num_keep=4):
    noise = patches.draw_noise(key, 2, num_patches, "independent")
    return {s: patches.mask_from_noise(noise[s], num_keep) for s in noise}


def shared(params):
    return {leaf_path(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}


def swapped(model):
    """The same model with the parameters of the two sensors exchanged."""
    graphdef, params = nnx.split(model)
    by_path = shared(params)

    def other(path, _):
        parts = leaf_path(path).split("/")
        return by_path["/".join(SWAP.get(part, part) for part in parts)]

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(other, params))


@pytest.mark.journey
@pytest.mark.parametrize("depth", [0, 2])
def test_only_what_is_hidden_is_redrawn_and_as_if_all_were(key, depth):
    model, x, m = tiny.model(decoder_depth=depth), images(), masks(key)
    some, every = tiny.call(model, x, m), tiny.call(model, x, m, whole=True)
    for s in x:
        assert some.predicted[s].shape[1] == 12
        np.testing.assert_allclose(
            some.predicted[s], every.predicted[s][:, 4:], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_array_equal(some.patches[s], every.patches[s][:, 4:])
        pixels = patches.put_back(every.patches[s], m[s])
        np.testing.assert_array_equal(pixels, model.patchify(x)[s])


@pytest.mark.journey
def test_only_decoders_that_see_the_global_token_teach_its_output(key):
    x, m, encode = images(), masks(key), Encoder.__call__

    def loss(summary, seen_by, whole):
        model = tiny.model(global_token=seen_by)
        instead = lambda *args: encode(*args)._replace(summary=summary)
        with mock.patch.object(Encoder, "__call__", instead):
            predicted = tiny.call(model, x, m, whole=whole).predicted
        return sum(jnp.square(y).mean() for y in predicted.values())

    def gradient(seen_by, whole=False):
        return jax.grad(loss)(jnp.ones((2, 32)), seen_by, whole)

    assert not gradient("encoder").any()
    assert (jnp.abs(gradient("decoders")).max(axis=1) > 0).all()
    assert (jnp.abs(gradient("decoders", whole=True)).max(axis=1) > 0).all()


def test_hidden_patches_are_the_same_whoever_is_asked_for(key):
    model, x, m = tiny.model(global_token="decoders"), images(), masks(key)
    some, every = tiny.call(model, x, m), tiny.call(model, x, m, whole=True)
    for s in x:
        np.testing.assert_allclose(
            some.predicted[s], every.predicted[s][:, 4:], rtol=1e-4, atol=1e-5
        )


def test_an_unknown_place_of_the_global_token_is_refused():
    with pytest.raises(InputError, match="global_token is 'nowhere'; choose one of"):
        tiny.model(global_token="nowhere")


@pytest.mark.parametrize("fuse_early", [True, False])
@pytest.mark.parametrize("fuse_features", [True, False])
def test_every_variant_predicts_every_patch(key, fuse_early, fuse_features):
    model = tiny.model(fuse_early=fuse_early, fuse_features=fuse_features)
    out = tiny.call(model, images(), masks(key), whole=True)
    assert out.predicted["s1"].shape == (2, 16, 36 * 2)
    assert out.predicted["s2"].shape == (2, 16, 36 * 12)
    assert np.isfinite(out.predicted["s2"]).all()
    assert len(model.encoder.blocks) + fuse_early == 2


def test_swapping_sensors_with_their_parameters_swaps_the_outputs(key):
    bands = {"s1": 3, "s2": 3}
    model, x, m = tiny.model(bands=bands), images(bands=bands), masks(key)
    out = tiny.call(model, x, m).predicted
    other = {s: x[SWAP[s]] for s in x}, {s: m[SWAP[s]] for s in m}
    turned = tiny.call(swapped(model), *other).predicted
    for s in SWAP:
        np.testing.assert_allclose(turned[s], out[SWAP[s]], rtol=2e-4, atol=2e-5)


def test_without_output_projections_xattn_encoder_is_a_block_per_token():
    fuse = tiny.model().encoder.fuse
    for attention in fuse.attn.values():
        attention.out.kernel[...] = jnp.zeros_like(attention.out.kernel[...])
        attention.out.bias[...] = jnp.zeros_like(attention.out.bias[...])
    rng = np.random.default_rng(0)
    x = {s: rng.normal(size=(2, 5, 32)).astype(np.float32) for s in SWAP}
    z = np.concatenate([x["s1"], x["s2"]], axis=1)
    want = z + fuse.mlp(fuse.norm2(z))
    np.testing.assert_allclose(fuse(x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "switch", [dict(fuse_features=False), dict(fuse_early=False, fuse_features=True)]
)
def test_what_one_sensor_sees_changes_what_the_other_draws(key, switch):
    model, x, m = tiny.model(**switch), images(), masks(key)
    before = tiny.call(model, x, m).predicted["s2"]
    after = tiny.call(model, x | {"s1": x["s1"] + 1.0}, m).predicted["s2"]
    assert np.abs(after - before).max() > 1e-3


def test_hidden_pixels_do_not_reach_the_encoder(key):
    model, x, m = tiny.model(), images(), masks(key)
    before = tiny.call(model, x, m).predicted
    hidden = np.zeros((2, 16))
    np.put_along_axis(hidden, np.asarray(m["s1"].hidden), 1.0, axis=1)
    hidden = hidden.reshape(2, 4, 4).repeat(6, 1).repeat(6, 2)
    after = tiny.call(model, x | {"s1": x["s1"] + 9.0 * hidden[..., None]}, m).predicted
    for s in SWAP:
        np.testing.assert_array_equal(after[s], before[s])


def test_gradients_reach_every_parameter(key):
    graphdef, params = nnx.split(tiny.model())
    x, m = images(), masks(key)

    lacking = {"s1": jnp.array([False, True]), "s2": jnp.array([True, False])}

    def loss(params):
        model = nnx.merge(graphdef, params)
        return sum(
            jnp.square(out.predicted[s] - out.patches[s]).mean()
            for out in (model(x, m), model(x, m, lacking))
            for s in x
        )

    for path, grad in shared(jax.jit(jax.grad(loss))(params)).items():
        largest = np.abs(grad).max()
        # A constant added to all keys of a query cancels in its softmax.
        if path.endswith("key/bias"):
            assert largest < 1e-6, path
        else:
            assert largest > 1e-6, path


def test_layers_start_different():
    params = shared(nnx.split(tiny.model(depth=4))[1])
    kernels = [x for path, x in params.items() if path.endswith("/kernel")]
    for i, a in enumerate(kernels):
        for b in kernels[:i]:
            assert a.shape != b.shape or not np.array_equal(a, b)


def test_encoding_everything_keeps_patches_in_image_order():
    model, x = tiny.model(), images()
    encoded = jax.jit(model.encoder.encode)(x)
    assert encoded.tokens["s1"].shape == (2, 16, 32)
    assert encoded.summary.shape == (2, 32)
    turn = jnp.arange(16)[::-1][None].repeat(2, axis=0)
    pixels = model.patchify(x)
    other = {s: patches.take(pixels[s], turn) for s in pixels}
    reversed_ = tiny.call(model.encoder, other, {s: turn for s in pixels})
    for s in x:
        np.testing.assert_allclose(
            reversed_.tokens[s][:, ::-1], encoded.tokens[s], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(image_size=25), "25 is not a whole number of patches of 6"),
        (dict(num_heads=5), "Width 32 does not divide into 5 heads"),
        (dict(dim=30), "Width 30"),
        (dict(decoder_dim=18), "Width 18"),
        (dict(decoder_heads=3), "Width 16 does not divide into 3 heads"),
        (dict(depth=0), "depth=0"),
        (dict(bands={"s1": 2, "s2": 0}), "at least one band"),
        (dict(bands={"s2": 12}), "at least one band"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_numbers(changes, message):
    with pytest.raises(InputError, match=message):
        tiny.model(**changes)


@pytest.mark.journey
@pytest.mark.parametrize(
    "bands, image_size, patch_size",
    [({"s1": 1, "s2": 3}, 24, 4), ({"s1": 2, "s2": 10}, 30, 15)],
)
def test_any_bands_and_sizes_that_divide_work(key, bands, image_size, patch_size):
    model = tiny.model(bands=bands, image_size=image_size, patch_size=patch_size)
    n = model.num_patches
    x, m = images(bands=bands, size=image_size), masks(key, n, n // 4)
    out = tiny.call(model, x, m, whole=True)
    assert out.predicted["s2"].shape == (2, n, patch_size**2 * bands["s2"])


def test_base_has_the_size_of_a_vit_base():
    make = lambda: Encoder(
        bands=tiny.BANDS,
        image_size=112,
        patch_size=8,
        dim=768,
        depth=12,
        num_heads=12,
        fuse_early=True,
        arithmetic=Arithmetic(),
        rngs=nnx.Rngs(0),
    )
    count = sum(x.size for x in jax.tree.leaves(nnx.state(nnx.eval_shape(make))))
    block = 12 * 768**2 + 13 * 768
    # 11 blocks; a block with a second attention and norm; embeddings, token, norm.
    extra = 4 * 768**2 + 6 * 768 + (64 * 14 + 2) * 768 + 3 * 768
    extra += 4 * 768  # what stands for absent sensors
    assert count == 12 * block + extra


@pytest.mark.journey
def test_rematerialisation_computes_again_what_it_says_and_changes_nothing(key):
    x, m = images(), masks(key)
    counts, gradients = {}, {}
    for how in ("none", "dots", "full"):
        graphdef, params = nnx.split(tiny.model(depth=3, remat=how))

        def loss(params):
            predicted = nnx.merge(graphdef, params)(x, m).predicted
            return sum(jnp.square(p).sum() for p in predicted.values())

        text = str(jax.make_jaxpr(jax.grad(loss))(params))
        counts[how] = text.count("dot_general")
        gradients[how] = jax.jit(jax.grad(loss))(params)
    # Of each of 2 blocks: scores and sums of attention; then its 6 linear layers too,
    # the last of which nothing needs again.
    assert counts["dots"] == counts["none"] + 2 * 2
    assert counts["full"] == counts["dots"] + 2 * 5
    for how in ("dots", "full"):
        for a, b in zip(*(jax.tree.leaves(gradients[h]) for h in (how, "none"))):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_decoders_in_which_all_places_ask_are_those_of_multimae(key):
    """Of the same parameters and masks, Fus-MAE without early fusion is MultiMAE."""
    model = tiny.model(fuse_early=False, feature_queries="all", global_token="decoders")
    peer = multimae.MultiMAE(**tiny.MODEL, rngs=nnx.Rngs(3))
    nnx.update(peer, nnx.state(model))
    x, m = images(), masks(key)
    n = model.num_patches
    joined = patches.Mask(
        *(
            jnp.concatenate([getattr(m["s1"], a), getattr(m["s2"], a) + n], axis=1)
            for a in ("visible", "hidden")
        )
    )
    got = tiny.call(model, x, m).predicted
    want = tiny.call(peer, x, joined).predicted
    for s in tiny.BANDS:
        there = patches.take(want[s], m[s].hidden)
        np.testing.assert_allclose(got[s], there, rtol=1e-4, atol=1e-5)


def test_where_all_places_ask_an_absent_sensor_is_not_read(key):
    model, m = tiny.model(feature_queries="all"), masks(key)
    rows = len(images()["s1"])
    here = {"s1": jnp.ones(rows, bool), "s2": jnp.arange(rows) % 2 == 0}
    x = images()
    other = x | {"s2": jnp.where(here["s2"][:, None, None, None], x["s2"], 7.0)}
    got, same = (tiny.call(model, y, m, here, whole=True) for y in (x, other))
    for s in tiny.BANDS:
        np.testing.assert_allclose(got.predicted[s], same.predicted[s], atol=1e-6)


def test_what_may_ask_is_known():
    with pytest.raises(InputError, match="feature_queries is 'some'; choose one of"):
        tiny.model(feature_queries="some")
