"""Blocks of a ViT compute here what they do there, and what does not fit is said."""

import argparse
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import InputError
from fusmae_jax import build, patches
from fusmae_jax.models import layers
from fusmae_jax.models.products import Arithmetic
from fusmae_jax.training import optim, pretrain, sharding, vit_weights, warm_start
from tests import tiny

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is missing")

DIM, DEPTH, HEADS, PATCH = 32, 3, 2, 6


def vit(depth=DEPTH, dim=DIM, patch=PATCH, colors=3, **more) -> dict[str, np.ndarray]:
    """Random weights by the names that timm and MAE give them."""
    rng = np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 17, dim),
        "patch_embed.proj.weight": (dim, colors, patch, patch),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "decoder_embed.weight": (16, dim),
    }
    for i in range(depth):
        for name, shape in (
            *(("norm1.weight", (dim,)), ("norm1.bias", (dim,))),
            *(("attn.qkv.weight", (3 * dim, dim)), ("attn.qkv.bias", (3 * dim,))),
            *(("attn.proj.weight", (dim, dim)), ("attn.proj.bias", (dim,))),
            *(("norm2.weight", (dim,)), ("norm2.bias", (dim,))),
            *(("mlp.fc1.weight", (4 * dim, dim)), ("mlp.fc1.bias", (4 * dim,))),
            *(("mlp.fc2.weight", (dim, 4 * dim)), ("mlp.fc2.bias", (dim,))),
        ):
            shapes[f"blocks.{i}.{name}"] = shape
    made = {name: rng.normal(0.0, 0.2, x).astype("f4") for name, x in shapes.items()}
    return made | more


def config(path, **changes):
    c = tiny.config()
    c.init_from = str(path)
    c.model.depth = DEPTH
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture
def file(tmp_path):
    """Writes tensors, and gives the path."""

    def write(tensors, name="vit.safetensors"):
        safetensors.save_file(tensors, tmp_path / name)
        return tmp_path / name

    return write


def load(config, mesh=None):
    return warm_start.load(
        config, build.objective(config), mesh or sharding.make_mesh(), held=None
    )


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="the peer is written in PyTorch")


def peers(torch, tensors, depth=DEPTH, dim=DIM):
    """Blocks of PyTorch's own with weights of a ViT."""
    blocks = []
    for i in range(depth):
        kw = dict(dropout=0.0, activation="gelu", layer_norm_eps=1e-6)
        block = torch.nn.TransformerEncoderLayer(
            dim, HEADS, 4 * dim, batch_first=True, norm_first=True, **kw
        )
        names = {
            "self_attn.in_proj_": "attn.qkv.",
            "self_attn.out_proj.": "attn.proj.",
            "linear1.": "mlp.fc1.",
            "linear2.": "mlp.fc2.",
        }
        state = {}
        for name in block.state_dict():
            theirs = name
            for ours, other in names.items():
                theirs = theirs.replace(ours, other)
            state[name] = torch.tensor(tensors[f"blocks.{i}.{theirs}"])
        block.load_state_dict(state)
        blocks.append(block.eval())
    return blocks


def ours(placed, depth=DEPTH, dim=DIM):
    """Blocks here with what was placed, and their norm."""

    class Network(nnx.Module):
        def __init__(self, rngs):
            make = lambda: layers.Block(dim, HEADS, arithmetic=Arithmetic(), rngs=rngs)
            self.blocks = nnx.List([make() for _ in range(depth)])
            self.norm = layers.layer_norm(dim, rngs)

        def __call__(self, x):
            for block in self.blocks:
                x = block(x)
            return self.norm(x)

    graphdef, params = nnx.split(Network(nnx.Rngs(0)))
    params = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(placed[sharding.leaf_path(path)]), params
    )
    return nnx.merge(graphdef, params)


def paths(depth=DEPTH, dim=DIM) -> dict[str, tuple]:
    """Shapes of the encoder without early fusion, by path."""
    made = tiny.model(depth=depth, dim=dim, fuse_early=False).encoder
    shapes = jax.tree_util.tree_leaves_with_path(nnx.split(made)[1])
    return {sharding.leaf_path(path): x.shape for path, x in shapes}


def test_blocks_compute_what_they_do_in_pytorch(torch):
    tensors = vit()
    network = ours(vit_weights.place(tensors, paths()))
    x = np.random.default_rng(1).normal(size=(2, 9, DIM)).astype(np.float32)
    with torch.no_grad():
        y = torch.tensor(x)
        for block in peers(torch, tensors):
            y = block(y)
        norm = (torch.tensor(tensors[f"norm.{name}"]) for name in ("weight", "bias"))
        y = torch.nn.functional.layer_norm(y, (DIM,), *norm, eps=1e-6)
    np.testing.assert_allclose(tiny.call(network, jnp.asarray(x)), y, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # which are its own
def test_blocks_compute_what_they_do_in_timm(torch):
    timm = pytest.importorskip(
        "timm", reason="timm needs torchvision, too heavy for CI"
    )
    kw = dict(img_size=24, patch_size=PATCH, embed_dim=DIM, depth=DEPTH)
    model = timm.models.VisionTransformer(**kw, num_heads=HEADS).eval()
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.2)
    tensors = {k: x.numpy() for k, x in model.state_dict().items()}
    network = ours(vit_weights.place(tensors, paths()))
    x = np.random.default_rng(1).normal(size=(2, 9, DIM)).astype(np.float32)
    with torch.no_grad():
        y = model.norm(model.blocks(torch.tensor(x)))
    np.testing.assert_allclose(tiny.call(network, jnp.asarray(x)), y, atol=1e-5)


def test_blocks_go_where_they_stand_and_the_first_into_the_early_fusion(file, lines):
    tensors = vit()
    found = jax.device_get(load(config(file(tensors))).params)
    third = lambda i, n: np.split(tensors[f"blocks.{i}.attn.qkv.weight"], 3)[n].T
    for s in ("s1", "s2"):
        at = f"encoder/fuse/attn/{s}"
        np.testing.assert_array_equal(found[f"{at}/key/kernel"], third(0, 1))
        norm = found[f"encoder/fuse/norm1/{s}/scale"]
        np.testing.assert_array_equal(norm, tensors["blocks.0.norm1.weight"])
    up = found["encoder/fuse/mlp/up/kernel"]
    np.testing.assert_array_equal(up, tensors["blocks.0.mlp.fc1.weight"].T)
    value = found["encoder/blocks/1/attn/value/kernel"]
    np.testing.assert_array_equal(value, third(2, 2))
    np.testing.assert_array_equal(found["encoder/norm/bias"], tensors["norm.bias"])
    (said,) = [line for line in lines if line.startswith("Fresh")]
    others = "B01 B05 B06 B07 B08 B8A B09 B11 B12"
    for name in (
        *("decoders", "encoder/absent", "encoder/embed/s1", "encoder/fuse/absent"),
        *("encoder/global_token", "fuse", f"encoder/embed/s2/kernel of {others}"),
    ):
        assert re.search(rf"[ ,]{name}[,.]", said), name
    assert any("taken to have 2 heads" in line for line in lines)


def test_without_early_fusion_blocks_have_their_own_numbers(file):
    tensors = vit()
    found = load(config(file(tensors), **{"model.fuse_early": False})).params
    for i in range(DEPTH):
        np.testing.assert_array_equal(
            found[f"encoder/blocks/{i}/mlp/down/bias"],
            tensors[f"blocks.{i}.mlp.fc2.bias"],
        )


def test_colours_are_embedded_as_there(torch, file):
    tensors, bands = vit(), ("B08", "B02", "B03", "B04")
    found = jax.device_get(load(config(file(tensors), **{"bands.s2": bands})).params)
    image = np.random.default_rng(0).normal(size=(1, 24, 24, 4)).astype(np.float32)
    image[..., 0] = 0.0  # of which nothing is known
    theirs = torch.nn.functional.conv2d(
        torch.tensor(np.moveaxis(image[..., [3, 2, 1]], -1, 1)),
        *(torch.tensor(tensors[f"patch_embed.proj.{x}"]) for x in ("weight", "bias")),
        stride=PATCH,
    )
    kernel = found["encoder/embed/s2/kernel"]
    assert np.isnan(kernel.reshape(PATCH * PATCH, 4, DIM)[:, 0]).all()
    seen = np.asarray(patches.patchify(jnp.asarray(image), PATCH)) @ np.nan_to_num(
        kernel
    )
    seen = seen + found["encoder/embed/s2/bias"]
    np.testing.assert_allclose(seen[0], theirs.flatten(2)[0].T, atol=1e-4)


@pytest.mark.parametrize("other", [dict(patch=4), dict(colors=13)])
def test_patches_of_another_kind_are_embedded_afresh(file, lines, other):
    found = load(config(file(vit(**other)))).params
    assert not any("embed" in path for path in found)
    (said,) = [line for line in lines if line.startswith("Fresh")]
    assert "encoder/embed," in said


def test_a_run_begins_with_them_in_its_layout(file):
    c, mesh = config(file(vit())), sharding.make_mesh(2, jax.devices()[:2])
    start = load(c, mesh)
    objective = build.objective(c, **build.target(mesh))
    rate = optim.schedule(1e-3, 0, 10)
    init, _, _ = pretrain.compile_step(c, objective, mesh, rate, start.params)
    params = warm_start._named(init().params)
    assert all(np.isfinite(x).all() for x in params.values())
    up = params["encoder/blocks/0/mlp/up/kernel"]
    np.testing.assert_array_equal(up, vit()["blocks.1.mlp.fc1.weight"].T)
    assert not up.sharding.is_fully_replicated
    assert start.origin.keys() == {"parameters"}


def test_what_they_leave_out_is_zero_or_fresh():
    tensors = {k: x for k, x in vit().items() if "qkv.bias" not in k}
    del tensors["norm.weight"], tensors["norm.bias"]
    placed = vit_weights.place(tensors, paths())
    assert not placed["blocks/0/attn/key/bias"].any() and "norm/scale" not in placed


@pytest.mark.parametrize(
    "tensors, said",
    [
        (
            vit(depth=2),
            r"has 2 blocks of 32 channels, and this model 3 of 32; pass model",
        ),
        (
            vit(dim=64),
            r"has 3 blocks of 64 .* model.depth=3 model.di",
        ),
        (vit(**{"blocks.0.ls1.gamma": np.ones(32, "f4")}), "blocks.0.ls1.gamma, which"),
        (
            vit(**{"blocks.1.mlp.fc1.weight": np.ones((64, 32), "f4")}),
            r"blocks.1.mlp.fc1.weight as \[64, 32\], where .* is \[32, 128\]; take",
        ),
        (
            {k: x for k, x in vit().items() if k != "blocks.2.attn.proj.bias"},
            r"blocks.2.attn.proj.bias as nothing, where blocks/1/attn/out/bias is \[32",
        ),
        (
            {"layer1.0.conv1.weight": np.ones((4, 4), "f4")},
            "has no blocks.0.norm1.weig",
        ),
        (
            vit(**{"norm.bias": np.full(32, np.nan, "f4")}),
            "norm.bias that are not fini",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(file, tensors, said):
    with pytest.raises(InputError, match=said) as error:
        load(config(file(tensors)))
    assert "\n" not in str(error.value)


def test_an_encoder_without_blocks_is_refused():
    with pytest.raises(InputError, match="no blocks that the file could have weights"):
        vit_weights.place(vit(), {"embed/s1/kernel": (72, DIM), "norm/bias": (DIM,)})


def test_a_damaged_file_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(
        InputError, match="a.safetensors cannot be read .*copy it again"
    ):
        load(config(tmp_path / "a.safetensors"))


def test_a_checkpoint_of_mae_is_read_and_nothing_of_it_is_run(torch, tmp_path):
    tensors = {k: torch.tensor(x) for k, x in vit().items()}
    path = tmp_path / "checkpoint-799.pth"
    known = argparse.Namespace(lr=1e-3)
    torch.save({"model": tensors, "epoch": 799, "args": known}, path)
    found = vit_weights.read(path)
    assert found.keys() == tensors.keys()
    np.testing.assert_array_equal(found["norm.bias"], vit()["norm.bias"])
    torch.save({k: torch.nn.Parameter(x) for k, x in tensors.items()}, path)
    assert vit_weights.read(path).keys() == tensors.keys()

    class Harmful:
        def __reduce__(self):
            return (tmp_path / "harm").touch, ()

    torch.save({"model": tensors, "args": Harmful()}, path)
    with pytest.raises(
        InputError, match="as tensors alone .*nothing else of it is run"
    ):
        vit_weights.read(path)
    assert not (tmp_path / "harm").exists()
    for content in (b"", b"PK", b"\x80\x02."):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as tensors alone"):
            vit_weights.read(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="has no tensors by name"):
        vit_weights.read(path)
