"""Programs for machines that are not there: what is in them, what they would take."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks import (
    ahead_of_time,
    choices,
    gpu_numbers,
    hlo,
    lowered,
    programs,
    roofline,
)
from fusmae_jax import build, flops
from fusmae_jax.models import attention
from fusmae_jax.training import sharding
from tests import peers, tiny


@pytest.fixture(autouse=True)
def no_cudnn():
    with ahead_of_time.trust_cudnn():
        yield


def maker(platform, missing=False, config=None, **changes):
    config = config or tiny.config()
    config.model.dtype = "bfloat16"
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    mesh = sharding.make_mesh(config.fsdp)
    return programs.Maker(config, mesh, platform, missing)


def lower(program, platform):
    found = lowered.read(program.lower(platform).as_text())
    return found, lowered.faults(found, program, platform)


CHANGES = [
    {},
    {"fsdp": 4},
    {"accumulate": 2},
    {"model.remat": "dots"},
    {"model.remat": "full"},
    {"mask.drop_sensor": 0.5},
    {"missing": True},
    {"model.fuse_early": False},
    {"model.global_token": "decoders"},
    {"model.feature_queries": "all"},
    {"model.dtype": "float32"},
]


@pytest.mark.journey
@pytest.mark.parametrize("platform", ahead_of_time.PLATFORMS)
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_training_step_is_lowered_for_machines_that_are_not_here(changes, platform):
    found, wrong = lower(maker(platform, **changes).pretrain(8)[0], platform)
    assert not wrong and not found.host
    fused = platform == "gpu" and changes.get("model.dtype") != "float32"
    # Two fusions of two directions, a block, a block of each decoder; and backwards,
    # where the block of the encoder is attended by again if nothing of it is kept.
    again = changes.get("model.remat", "none") != "none"
    attentions = 7 if changes.get("model.fuse_early", True) else 6
    assert found.fused_attention == (2 * attentions + again if fused else 0)


@pytest.mark.journey
@pytest.mark.parametrize("platform", ahead_of_time.PLATFORMS)
def test_so_is_every_step_of_an_evaluation(platform):
    make, holed = maker(platform), maker(platform, missing=True)
    steps = {
        "held out": make.held_out(8, redraw=False),
        "redrawn": make.held_out(8, redraw=True),
        "floor": make.floor(8),
        "features": make.features(8),
        "features, one sensor": make.features(8, alone=True),
        "features, missing pixels": holed.features(8),
        "fine-tune, one sensor": make.finetune(8, alone=True),
        "fine-tune, masks": make.finetune_masks(8, "linear"),
        "dense": make.dense(8, "linear")[0],
        "dense, test": make.dense(8, "linear")[1],
        **dict(zip(("tokens", "change", "change, test"), make.change(8, "linear"))),
        "probe": make.probe(),
        "neighbours": make.knn(),
    }
    assert {name: lower(x, platform)[1] for name, x in steps.items()} == dict.fromkeys(
        steps, []
    )


@pytest.mark.journey
@pytest.mark.parametrize("platform", ahead_of_time.PLATFORMS)
@pytest.mark.parametrize("method", peers.METHODS)
def test_so_are_the_steps_of_the_peers(method, platform):
    make, holed = (
        maker(platform, missing, peers.config(method)) for missing in (False, True)
    )
    steps = {
        "train": make.pretrain(8)[0],
        "held out": make.held_out(8, redraw=False),
        "features, one sensor": make.features(8, alone=True),
        "features, missing pixels": holed.features(8),
        "missing pixels": holed.pretrain(8)[0],
    }
    assert {name: lower(x, platform)[1] for name, x in steps.items()} == dict.fromkeys(
        steps, []
    )


RECIPES = [{}, {"accumulate": 2}, {"remat": "dots"}, {"remat": "full"}]


@pytest.mark.journey
@pytest.mark.parametrize("platform", ahead_of_time.PLATFORMS)
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_fine_tuning_on_all_sensors_attends_by_cudnn_and_hides_nothing(
    recipe, platform
):
    program = maker(platform).finetune(8, **recipe)
    found, wrong = lower(program, platform)
    assert not wrong
    # A fusion of two directions and a block, and backwards; the block again if nothing
    # of it is kept, as remat says.
    calls = 2 * 3 + (recipe.get("remat", "none") != "none")
    assert found.fused_attention == (calls if platform == "gpu" else 0)
    # Heads would be wider by what a mask takes of them, and scores be chosen from.
    text = program.lower(platform).as_text()
    width = 32 // 2 + attention.MASK_CHANNELS
    assert not re.search(rf"x{width}xbf16>|select.*x2x\d+x\d+xf32>", text)


def test_there_is_a_name_for_each_step_and_none_twice():
    names = [name for name, _ in programs.every(sharding.make_mesh, "tpu")]
    assert len(names) == len(set(names)) >= 20
    for part in ("small", "huge", "fsdp", "drop_sensor", "remat", "fine-tune", "probe"):
        assert any(part in name for name in names)
    missing = [name for name in names if programs.MISSING in name]
    for method in build.METHODS:
        step = "pretrain_base" if method == "fusmae" else f"pretrain_{method}"
        assert any(name.startswith(step) for name in missing)


@pytest.mark.parametrize("platform", ahead_of_time.PLATFORMS)
def test_sums_in_16_bits_and_products_in_float32_are_found(platform):
    with choices.jax_gradients():
        program, _ = maker(platform, **{"model.attention": "xla"}).pretrain(8)
        found, wrong = lower(program, platform)
    assert found.sums["bf16"] > 20
    assert any("sums are in 16 bits" in sentence for sentence in wrong)
    # What is summed in float32 is multiplied so too, one factor of two or both.
    assert any("factors of two types" in x or "in float32" in x for x in wrong)
    assert any("cuDNN" in sentence for sentence in wrong) == (platform == "gpu")


def test_a_call_of_the_host_is_found():
    def f(x):
        jax.debug.print("{x}", x=x.sum())
        return jnp.matmul(x, x)

    step = jax.jit(f)
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    # JAX lowers such a step for no other machine at all.
    found, wrong = lower(programs.Program(step, (x,), {}, "float32"), "cpu")
    assert found.host and all("involves the host" in sentence for sentence in wrong)


LOOP = """HloModule jit_f, num_partitions=8

%body (x: f32[4]) -> f32[4] {
  %x = f32[4]{0:T(128)} parameter(0)
  ROOT %y = f32[4]{0:T(128)} negate(%x), backend_config={"estimated_cycles":"10"}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0:T(128)} parameter(0)
  %s = f32[4]{0:T(128)} sine(%a), backend_config={"estimated_cycles":"7"}
  ROOT %w = f32[4]{0} while(%s), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_estimated_cycles_count_as_often_as_a_loop_runs():
    program = hlo.Program(LOOP)
    assert program.devices == 8 and program.times("body") == 5
    assert ahead_of_time.cycles(program) == 7 + 5 * 10


KERNELS = """HloModule jit_f

%fused (p: f32[1000], i: s32[]) -> f32[10] {
  %p = f32[1000]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %d = f32[10]{0} dynamic-slice(%p, %i), dynamic_slice_sizes={10}
}

ENTRY %main (a: bf16[128,64], b: bf16[64,32], c: f32[1000], i: s32[]) -> f32[10] {
  %a = bf16[128,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  %c = f32[1000]{0} parameter(2)
  %i = s32[] parameter(3)
  %g = (bf16[128,32]{1,0}, s8[4096]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$gemm"
  ROOT %f = f32[10]{0} fusion(%c, %i), kind=kLoop, calls=%fused
}
"""


def test_a_kernel_takes_what_its_bytes_or_its_products_take():
    product, sliced = roofline.kernels(KERNELS, bandwidth=1e3, peak=1e6)
    assert product.kind == "product" and product.flops == 2 * 128 * 64 * 32
    assert product.bytes == 2 * (128 * 64 + 64 * 32 + 128 * 32)  # no scratch memory
    assert product.seconds == pytest.approx(product.bytes / 1e3)
    assert sliced.bytes == 4 + 2 * 4 * 10  # the index; the part taken, read and written
    slow, _ = roofline.kernels(KERNELS, bandwidth=1e12, peak=1e6)
    assert slow.seconds == pytest.approx(2 * 128 * 64 * 32 / 1e6)


def test_nothing_asks_what_the_default_backend_is():
    """Programs for another machine would be made for this one."""
    root = pathlib.Path(__file__).parents[1]
    files = [p for x in ("fusmae_jax", "benchmarks") for p in (root / x).rglob("*.py")]
    assert len(files) > 60
    assert not [p for p in files if "default_backend" in p.read_text()]


def row(**changes):
    numbers = dict(bytes=1, fits=True, work=1.0, sent=0.0, share=0.5, compiling=1.0)
    counts = dict(batch=100, collectives=0, asynchronous=0)
    times = dict(computing=0.1, sending=0.0, exposed=0.0)
    names = dict(target="H100", config="pretrain_base")
    return ahead_of_time.Row(**names | counts | numbers | times | changes)


@pytest.mark.parametrize(
    "times, rate",
    [
        ({}, 1000),
        ({"sending": 0.1, "exposed": 0.1}, 500),  # nothing hidden
        ({"sending": 0.1}, 1000),  # all hidden
        ({"sending": 0.4}, 250),  # more to send than to compute
    ],
)
def test_what_is_sent_hides_behind_computing_where_it_is_asynchronous(times, rate):
    assert row(**times).rate == pytest.approx(rate)


def test_what_is_predicted_stands_beside_what_a_gpu_measures(tmp_path, monkeypatch):
    path = tmp_path / "predicted.json"
    for module in (ahead_of_time, gpu_numbers):
        monkeypatch.setattr(module, "PREDICTED", path)
    config = "pretrain_base batch_size=512"
    ahead_of_time.remember(row(config=config, batch=512, bytes=2 * 10**10))
    log = (
        "1 x NVIDIA H100 80GB HBM3, jax 0.10.2\n"
        "   batch  GFLOP  ms/step  images/s  TFLOP/s  of peak  compile s  GiB  in use\n"
        "     512     60    120.0    4266.7    255.0    25.8%       30.0   19    21.0\n"
    )
    said = gpu_numbers.step(log)
    assert "120.0 ms (predicted 100.0)" in said and "20.4 GB (predicted 20.0)" in said


def test_targets_are_what_the_table_of_peaks_knows():
    for name, target in ahead_of_time.TARGETS.items():
        if target.gpu:
            assert flops.peak(target.gpu.kind), name
            assert target.gpu.kind in target.gpu.describe(target.memory, 1e12)
    assert all(flops.peak(kind) for kind in ahead_of_time.UNITS)


def test_the_command_says_how_many_programs_and_fails_where_one_does(capsys):
    assert ahead_of_time.lower_all("nearest neighbours") == 0
    assert "2 programs lowered for tpu and cuda, 0 failed" in capsys.readouterr().out
    broken = programs.Named("broken", lambda: 1 / 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "every", lambda *_: [broken])
        assert ahead_of_time.lower_all("") == 2
    assert "ZeroDivisionError" in capsys.readouterr().out
