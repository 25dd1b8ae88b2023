"""Other libraries use an export by the lines that docs/clients.md has for them."""

import pathlib
import re
import sys

import numpy as np
import pytest

from configs import export as shipped
from fusmae_jax.export import export
from tests import judging, tiny

pytest.importorskip("safetensors", reason="the extra `export` is not installed")
torch = pytest.importorskip("torch", reason="the extra `export` is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # which are theirs

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "clients.md"
BATCH, SIZE = 4, 24
BANDS = ("VV", "B11", "B08", "B04")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A folder that has an export, exports/mine."""
    root, config = tmp_path_factory.mktemp("clients"), tiny.config()
    config.model.depth = 5  # four blocks behind the XAttnEncoder
    c = shipped.get_config()
    c.checkpoint = str(judging.write_run(root / "run", config))
    c.out, c.formats = str(root / "exports" / "mine"), ("safetensors", "torch")
    export.run(c, "unused")
    return root


@pytest.fixture
def client(exports, monkeypatch):
    """What the lines for a library define, given names that they use."""
    monkeypatch.chdir(exports)
    monkeypatch.syspath_prepend(exports / "exports" / "mine")
    monkeypatch.delitem(sys.modules, "fusmae_torch", raising=False)

    def run(library: str, package: str, **given):
        reason = f"{library} is not installed, as it is too heavy for CI"
        pytest.importorskip(package, reason=reason, exc_type=ImportError)
        section = DOCUMENT.read_text().partition(f"\n## {library}\n")[2]
        exec(re.search(r"```python\n(.*?)```", section, re.S)[1], given)
        return given

    yield run
    sys.modules.pop("fusmae_torch", None)


def pixels(bands, size=SIZE) -> "torch.Tensor":
    """Random images [B, C, H, W], dB and DN."""
    rng = np.random.default_rng(0)
    draw = lambda x: rng.normal(
        *((-12, 3) if x[0] == "V" else (900, 300)), (size, size)
    )
    images = np.stack([[draw(name) for name in bands] for _ in range(BATCH)])
    return torch.tensor(images, dtype=torch.float32)


def test_torchgeo_takes_the_samples_of_its_own_dataset(client):
    bands = "VH VV B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12".split()
    image = pixels(bands, 120)
    batch = {"image": image, "label": torch.zeros(BATCH, 19)}
    said = client("TorchGeo", "torchgeo", batch=batch)
    assert said["vectors"].shape == (BATCH, 32) and said["maps"].shape[1:] == (32, 4, 4)
    middle = image[:, :, 48:72, 48:72]
    encoder = said["fusmae_torch"].load("exports/mine")
    expected = encoder(s1=middle[:, [1, 0]], s2=middle[:, 2:])["pooled"]
    torch.testing.assert_close(said["vectors"], expected, atol=1e-5, rtol=0.0)
    assert said["weights"].transforms(batch)["label"].shape == (BATCH, 19)


def test_terratorch_fine_tunes_it_under_its_decoders(client):
    said = client("TerraTorch", "terratorch")
    import lightning
    from terratorch.models import EncoderDecoderFactory

    masks = torch.randint(0, 2, (BATCH, SIZE, SIZE))
    images = pixels(BANDS)
    images[0, 1:, :12] = torch.nan  # of which there is radar alone
    images[1, :, :12] = torch.nan
    pairs = [dict(image=x, mask=y) for x, y in zip(images, masks)]
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    task = said["task"]
    maps = task.model.encoder
    before = {name: x.clone() for name, x in maps.named_parameters()}
    trainer.fit(task, torch.utils.data.DataLoader(pairs, batch_size=2))
    assert trainer.global_step == 2
    moved = {name for name, x in maps.named_parameters() if (x != before[name]).any()}
    for name in ("embed.s1.weight", "embed.s2.weight", "blocks.3.mlp.down.weight"):
        assert f"encoder.{name}" in moved
    assert all(torch.isfinite(x).all() for x in task.parameters())
    plain = EncoderDecoderFactory().build_model(
        "segmentation",
        said["fusmae"]("exports/mine", BANDS),
        decoder="FCNDecoder",
        num_classes=2,
    )
    assert plain.eval()(images).output.shape == (BATCH, 2, SIZE, SIZE)


def test_torchgeo_bench_probes_it_pooled_and_by_patches(client):
    said = client("torchgeo-bench", "torchgeo_bench")
    from torchgeo_bench.datasets import benv2, m_bigearthnet
    from torchgeo_bench.segmentation_probe import SegmentationProbe

    encoder = said["fusmae_torch"].load("exports/mine")
    bands = benv2.BENV2().bands
    model = said["FusMAE"](
        bands, folder="exports/mine", normalization="bandspec_zscore"
    )
    names = [spec.name.upper() for spec in bands[:12]] + ["VH", "VV"]
    images = pixels(names)
    with torch.no_grad():
        expected = encoder(s1=images[:, [13, 12]], s2=images[:, :12])["pooled"]
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=0.0)
    model = said["FusMAE"](m_bigearthnet.MBigEarthNet().bands, folder="exports/mine")
    assert model.maps.bands == encoder.bands["s2"]
    probe = SegmentationProbe(model, ["map"], num_classes=3, head_type="linear")
    assert probe(pixels(encoder.bands["s2"])).shape == (BATCH, 3, SIZE, SIZE)
