"""What an export says of itself: to people a model card, to catalogues a STAC item.

The card has the layout of the Hugging Face hub, the item the extension for machine
learning models (MLM).
"""

import datetime
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from data_pipeline import sensors
from fusmae_jax import build
from fusmae_jax.objectives.protocol import Encoder

FILE, ITEM = "README.md", "item.json"
MLM = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"

TASKS = ["similarity-search"]  # of those that MLM knows

# By format the file that holds the model, its media type, and how MLM calls that.
ARTIFACTS = {
    "safetensors": (
        "model.safetensors",
        "application/octet-stream; application=safetensors",
        "safetensors.numpy.save",
    ),
    "onnx": (
        "model.onnx",
        "application/octet-stream; application=onnx",
        "torch.onnx.export",
    ),
    "stablehlo": (
        "model.stablehlo",
        "application/octet-stream; application=stablehlo",
        "jax.export.export",
    ),
}

PAGE = """\
---
license: {license}
library_name: fusmae_jax
pipeline_tag: image-feature-extraction
tags:
- earth-observation
- remote-sensing
- sentinel-1
- sentinel-2
- self-supervised-learning
- {method}
---

# {name}

An encoder of Sentinel-1 radar and Sentinel-2 optical images of one place and time:
features of both together or of either alone, of whole images and of patches. It was
pretrained without labels by the method {title} of the project fusmae_jax.

- Images of {size} x {size} pixels of 10 m, patches of {patch} x {patch} pixels,
  features of {width} numbers, {count:,} parameters.
- Trained for {steps:,} steps of {batch} pairs{epochs} on {data}.

## What it takes

{bands}

{statistics}

{pixels}

## How to load it

{load}

## Limits

{limits}
"""

PIXELS = """\
The model normalises by itself: pass pixels in the units above, bands in this order, all
of them on one 10 m grid. Of Sentinel-2 of processing baseline 04.00 and later (since
January 2022) subtract 1000 from each DN first. Pixels that were not measured are NaN in
any band{zero}; a sensor may be absent altogether. Features of what was not measured are
NaN.
"""

# What is said of each format, in this order.
LOAD = {
    "safetensors": """\
In JAX, with fusmae_jax, for images of any size, bands by name, other units:

    from fusmae_jax import pretrained

    model = pretrained.load("{name}")
    features = model.encode(s1=s1, s2=s2)  # dB and DN, [B, H, W, bands]""",
    "torch": """\
In PyTorch, with `fusmae_torch.py` of this folder, for images of {size} x {size} pixels:

    import sys

    sys.path.append("{name}")
    import fusmae_torch

    model = fusmae_torch.load("{name}")
    features = model(s1=s1, s2=s2)  # [B, bands, {size}, {size}], dict of tensors""",
    "onnx": """\
With ONNX Runtime, for batches of any number; a sensor that is absent is all NaN:

    import onnxruntime

    session = onnxruntime.InferenceSession("{name}/model.onnx")
    pooled, summary, dense, dense_s1, dense_s2 = session.run(
        None, {{"s1": s1, "s2": s2}}  # float32 [B, bands, {size}, {size}]
    )""",
    "stablehlo": """\
In JAX without fusmae_jax (`pip install jax flatbuffers safetensors`), on {platforms},
for float32 batches of any number:

    import jax.export
    from safetensors.numpy import load_file

    with open("{name}/model.stablehlo", "rb") as file:
        program = jax.export.deserialize(bytearray(file.read()))
    weights = load_file("{name}/model.safetensors")
    features = program.call(weights, s1=s1, s2=s2)  # [B, {size}, {size}, bands]""",
}


def make(
    described: Mapping,
    encoder: Encoder,
    formats: Sequence[str],
    platforms: Sequence[str],
    license: str,
    name: str,
) -> str:
    """The text of the card.

    Args:
        described: what `config.json` says, see `weights.describe`.
        encoder: that is exported.
        formats: that are in the folder, of `LOAD`.
        platforms: that StableHLO is for.
        license: of the weights.
        name: of the model.
    """
    contract, training = encoder.inputs.contract, described["training"]
    epochs, size = training.get("epochs"), encoder.inputs.size
    words = dict(name=name, size=size, platforms=", ".join(platforms))
    load = (LOAD[x].format(**words) for x in LOAD if x in formats)
    return PAGE.format(
        license=json.dumps(license),  # which is YAML, whatever it is
        method=described["method"],
        name=name,
        title=encoder.name,
        size=size,
        patch=encoder.patch_size,
        width=encoder.width,
        count=described["parameters"],
        steps=described["step"],
        batch=training["batch_size"],
        epochs=f" ({epochs} epochs planned)" if epochs else "",
        data=" and ".join(dict.fromkeys(_datasets(described["data"])))
        or "data unknown",
        bands=_bands(contract),
        statistics="\n".join(_statistics(contract)),
        pixels=_wrap(PIXELS.format(zero=_zero(described["pixels"], contract))),
        load="\n\n".join(load),
        limits="\n".join(_wrap(f"- {x}") for x in _limits(encoder)),
    )


def item(
    described: Mapping,
    encoder: Encoder,
    formats: Sequence[str],
    license: str,
    name: str,
) -> dict:
    """The STAC item of a model, see `make`."""
    contract = encoder.inputs.contract
    sources = dict.fromkeys(_datasets(described["data"]))
    titles = " and ".join(sensor.title for sensor in contract.values())
    now = datetime.datetime.now(datetime.UTC)
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [MLM],
        "id": name,
        "geometry": None,  # it may be asked about any place
        "properties": {
            "datetime": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "license": license,
            "description": f"An encoder of {titles}, pretrained without labels.",
            "bands": [
                {
                    "name": band.name,
                    "description": f"{sensor.title}, {sensor.unit}",
                    "gsd": band.gsd,
                }
                for sensor in contract.values()
                for band in sensor.bands
            ],
            "mlm:name": name,
            "mlm:architecture": encoder.name,
            "mlm:tasks": TASKS,
            "mlm:framework": "JAX",
            "mlm:total_parameters": described["parameters"],
            "mlm:pretrained": True,
            "mlm:pretrained_source": " and ".join(sources) or "unknown",
            "mlm:hyperparameters": described["model"] | {"method": described["method"]},
            "mlm:input": _inputs(encoder),
            "mlm:output": _outputs(encoder),
        },
        "links": [],
        "assets": {
            x: {
                "href": f"./{file}",
                "type": media,
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": how,
            }
            for x, (file, media, how) in ARTIFACTS.items()
            if x in formats
        },
    }


def _array(**shape: int) -> dict:
    """Arrays of that shape in batches of any number, in the words of MLM."""
    order = ["batch", *shape]
    return {
        "shape": [-1, *shape.values()],
        "dim_order": order,
        "data_type": "float32",
    }


def _inputs(encoder: Encoder) -> list[dict]:
    """What an encoder takes, in the words of MLM."""
    size = encoder.inputs.size
    return [
        {
            "name": name,
            "description": f"{sensor.title} {sensor.level} in {sensor.unit}, on a 10 m "
            "grid, NaN where nothing was measured. The model normalises by itself.",
            "bands": list(sensor.band_names),
            "input": _array(bands=len(sensor.bands), height=size, width=size),
            "value_scaling": [
                {"type": "z-score", "mean": band.mean, "stddev": band.std}
                for band in sensor.bands
            ],
        }
        for name, sensor in encoder.inputs.contract.items()
    ]


def _outputs(encoder: Encoder) -> list[dict]:
    """What an encoder says, in the words of MLM."""
    vector = _array(embedding=encoder.width)
    patches = _array(height=encoder.side, width=encoder.side, embedding=encoder.width)
    found = {
        "pooled": ("Mean over all patches of all sensors.", vector),
        "summary": ("The global token.", vector),
        "dense": ("Of each patch the mean over the sensors that show it.", patches),
    }
    for name, sensor in encoder.inputs.contract.items():
        found[f"dense_{name}"] = (f"Patches of {sensor.title}.", patches)
    return [
        {"name": name, "description": words, "tasks": TASKS, "result": result}
        for name, (words, result) in found.items()
    ]


def _datasets(data: Mapping) -> Iterator[str]:
    """What a fingerprint names, see `sources`."""
    if "name" in data:
        yield f"{data['name']} ({data['count']:,} pairs)"
    for part in data.get("parts", ()):
        yield from _datasets(part)


def _bands(contract: Mapping[str, sensors.Sensor]) -> str:
    """A table of the bands, by sensor."""
    lines = [
        "| input | sensor | band | unit | mean | deviation |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {s} | {sensor.title} {sensor.level} | {band.name} | {sensor.unit} | "
        f"{band.mean:.6g} | {band.std:.6g} |"
        for s, sensor in contract.items()
        for band in sensor.bands
    ]
    return "\n".join(lines)


def _statistics(contract: Mapping[str, sensors.Sensor]) -> Iterator[str]:
    """Where the statistics of each sensor come from."""
    for sensor in contract.values():
        yield _wrap(f"- Statistics of {sensor.title}: {sensor.source}.")


def _wrap(text: str) -> str:
    """A paragraph or an item of a list in lines of 88 characters."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, 88, subsequent_indent=indent, break_long_words=False)


def _zero(pixels: Mapping, contract: Mapping[str, sensors.Sensor]) -> str:
    """Which sensors say with 0 that nothing was measured."""
    titles = [contract[s].title for s, x in pixels.items() if x["zero_is_missing"]]
    return f", or 0 in all bands of {' or of '.join(titles)}" if titles else ""


def _limits(encoder: Encoder) -> Iterator[str]:
    """What an encoder has not been trained or tested for."""
    yield (
        "This export says nothing of how good the features are: evaluate them on data "
        "of your own before you rely on them."
    )
    yield (
        "It has seen the places, seasons and processing of its training data alone; "
        "single images, not time series; no sensor but these."
    )
    if set(encoder.sensors) != set(encoder.inputs.contract):
        yield f"It reads {encoder.reads} alone; give it nothing else."
    unseen = [s for s in encoder.inputs.contract.values() if s.source == build.LACKING]
    for sensor in unseen:
        yield (
            f"Its training data had nothing of {sensor.title}, so what it says of that "
            "means nothing."
        )
    if not encoder.knows_one_sensor and not unseen:
        yield (
            "Training took no sensor away from a pair that had both, so features of "
            "one sensor alone are what the network happens to say of it."
        )
    if not encoder.summarizes:
        yield (
            "Training asked nothing of the global token (`summary`); `pooled`, the "
            "mean over patches, is the feature of an image."
        )
