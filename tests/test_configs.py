"""Every config builds what it describes, and derived values follow overrides."""

import importlib
import pathlib

import pytest
from flax import nnx

import launch
from configs import pretrain_base
from data_pipeline import sensors
from data_pipeline.errors import InputError
from fusmae_jax import build, dtypes
from fusmae_jax.evaluation import evaluate
from fusmae_jax.training import run_directory

FOLDER = pathlib.Path(pretrain_base.__file__).parent
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.py"))
PRETRAIN = [name for name in CONFIGS if name.startswith("pretrain")] + ["quickstart"]


def load(name):
    return importlib.import_module(f"configs.{name}")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_locked_and_says_how_it_is_launched(name):
    module = load(name)
    assert f"--config=configs/{name}.py" in module.__doc__
    config = module.get_config()
    assert config.is_locked and config.task in launch.TASKS


@pytest.mark.parametrize("name", PRETRAIN)
def test_every_pretraining_config_builds_its_model(name):
    config = load(name).get_config()
    config.model.dtype = dtypes.resolve_dtype(config.model.dtype, "cpu")
    objective = build.objective(config)
    graphdef, params = objective.abstract
    assert nnx.merge(graphdef, params).num_patches == objective.num_patches


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("method", build.METHODS)
@pytest.mark.parametrize("name", PRETRAIN)
def test_a_pretraining_is_of_any_method_that_its_name_is_followed_by(
    parse, name, method
):
    if name.removeprefix("pretrain_") in build.METHODS:
        with pytest.raises(InputError, match="take what is behind the colon off"):
            parse(f"--config={name}:{method}")
        return
    parse(f"--config={name}:{method}", "--config.data.source=sample")  # and checks
    assert launch._CONFIG.value.method == method
    assert launch.run_name() == f"{name}_{method}"
    parse(f"--config=configs/{name}.py", "--config.data.source=sample")
    assert launch._CONFIG.value.method == "fusmae" and launch.run_name() == name


@pytest.mark.parametrize("method", build.METHODS)
def test_methods_differ_in_their_own_fields_alone(method):
    of = lambda m: run_directory.flatten(pretrain_base.get_config(m).to_dict())
    found, base = of(method), of("fusmae")
    shared = found.keys() & base.keys()
    own = pretrain_base.METHODS[method].keys()
    assert {x for x in shared if found[x] != base[x]} <= {"method"} | own
    assert found.keys() - shared == own - base.keys()
    assert pretrain_base.METHODS.keys() == set(build.METHODS)


@pytest.mark.parametrize("name", PRETRAIN)
def test_what_is_for_trying_computes_in_float32_and_the_rest_as_devices_do(name):
    tried = name in ("quickstart", "pretrain_synthetic")
    assert load(name).get_config().model.dtype == ("float32" if tried else "auto")


@pytest.mark.parametrize("name", ["pretrain_base", "pretrain_small", "pretrain_large"])
def test_the_real_runs_see_196_tokens_a_sensor_and_keep_49(name):
    config = load(name).get_config()
    objective = build.objective(config)
    assert objective.num_patches == 196 and config.mask.ratio == 0.75


def test_the_learning_rate_follows_the_batch_size():
    config = pretrain_base.get_config()
    assert config.optim.peak_lr == pytest.approx(6e-4)
    config.batch_size = 256
    assert config.optim.peak_lr == pytest.approx(1.5e-4)


def test_the_warm_up_is_a_tenth_of_the_epochs():
    config = pretrain_base.get_config()
    assert (config.epochs, config.optim.warmup_epochs) == (100, 10)
    config.epochs = 40
    assert config.optim.warmup_epochs == 4


def test_fields_that_a_resumed_run_may_change_exist():
    flat = run_directory.flatten(pretrain_base.get_config().to_dict())
    assert set(run_directory.FREE) <= flat.keys()
    flat = run_directory.flatten(load("probe_bigearthnet").get_config().to_dict())
    # A config may state any field of fine-tuning once more, for training from scratch.
    assert {
        x.replace("scratch.", "finetune.") for x in evaluate.MAY_CHANGE
    } <= flat.keys()


def test_an_unknown_band_is_refused_with_those_there_are():
    config = pretrain_base.get_config()
    config.bands.s2 = ("B02", "B10")
    with pytest.raises(InputError, match="B10.*B01"):
        build.contract(config, sensors.SENSORS)


def test_radar_of_other_polarisations_is_trained_on_by_its_bands():
    config = load("pretrain_small").get_config()
    config.bands.s1 = ("HH", "HV")
    known = {"s1": sensors.S1_HH, "s2": sensors.S2}
    assert build.contract(config)["s1"].band_names == ("HH", "HV")
    assert build.contract(config, known)["s1"] == sensors.S1_HH
    with pytest.raises(InputError, match="of s1 must be a selection.* config.bands.s1"):
        build.contract(config, sensors.SENSORS)


def test_a_sensor_that_the_data_lack_is_the_usual_one_and_says_so():
    found = build.contract(load("pretrain_small").get_config(), {"s2": sensors.S2})
    assert found["s1"].band_names == ("VV", "VH")
    assert found["s1"].source == build.LACKING and found["s2"] == sensors.S2
