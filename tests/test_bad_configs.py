"""What a config cannot say is said in a sentence, before a device is touched."""

import math
import random

import jax
import pytest

import launch
from data_pipeline import sources
from data_pipeline.errors import InputError
from fusmae_jax import config as checks
from fusmae_jax.evaluation import checks as evaluation_checks
from tests import bad_configs
from tests.test_configs import CONFIGS

# ml_collections loads a config file so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

DEVICES = (
    *("devices", "local_devices", "device_count", "local_device_count"),
    *("process_count", "process_index", "default_backend", "device_put", "jit"),
)


@pytest.fixture(autouse=True)
def no_devices(monkeypatch):
    """Whoever asks for a device, or compiles, fails."""

    def refuse(*args, **kw):
        raise AssertionError("A device was touched.")

    for name in DEVICES:
        monkeypatch.setattr(jax, name, refuse)


def test_no_row_is_there_twice():
    seen = [(name, str(changes)) for name, changes, _ in bad_configs.ROWS]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("name, changes, message", bad_configs.ROWS)
def test_a_config_that_cannot_work_is_refused(name, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        bad_configs.check(name, changes)
    said = str(caught.value)
    assert said[-1] in ".?" or "data.dir=DIR" in said  # a whole sentence
    assert len(said) < 400


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_passes_when_it_is_given_what_it_asks_for(name):
    bad_configs.check(name, {})


@pytest.mark.parametrize(
    "name", ["pretrain_base", "probe_bigearthnet", "reconstruct", "prepare_pairs"]
)
def test_a_config_that_lacks_any_of_its_fields_is_refused_with_its_name(name):
    config = bad_configs.load(name, {})
    for field in names(config):
        lacking = {field: bad_configs.GONE}
        if field.startswith("scratch."):
            bad_configs.check(name, lacking)
            continue
        with pytest.raises(InputError, match=rf"\b{field}\b"):
            bad_configs.check(name, lacking)


def names(config, prefix=""):
    """Names of all fields of a config."""
    for key in config:
        if hasattr(config[key], "keys"):
            yield from names(config[key], f"{prefix}{key}.")
        elif prefix + key != "task":
            yield prefix + key


@pytest.mark.parametrize(
    "task, name, changes, message",
    [
        (checks, "quickstart", {"data.classes": ("Moon",)}, "data.classes .*Moon"),
        (checks, "quickstart", {"bands.s2": ("B02", "B10")}, "B10.*B01"),
        (checks, "pretrain_base", {"data.dir": "/nowhere"}, "/nowhere is no"),
        (
            checks,
            "quickstart",
            {"judge.every": 1, "judge.labels": "crops"},
            "judge.labels is 'crops', but .*'labels'",
        ),
        (evaluation_checks, "probe_sample", {"labels": "crops"}, "no labels 'crops'"),
        (
            evaluation_checks,
            "probe_sample",
            {"data.classes": ("Moon",)},
            "data.classes .*Moon.* must all be classes of labels",
        ),
        (
            evaluation_checks,
            "probe_sample",
            {"methods": ("dense",)},
            "no pixel labels 'land_cover'",
        ),
    ],
)
def test_what_a_dataset_lacks_is_said_by_its_card(task, name, changes, message):
    config = bad_configs.load(name, changes)
    task.check_config(config)
    with pytest.raises(InputError, match=message):
        task.check_data(config)


def test_what_a_dataset_has_passes():
    sample = {"data.dir": str(sources.SAMPLE)}
    checks.check_data(bad_configs.load("pretrain_base", sample))
    evaluation_checks.check_data(bad_configs.load("probe_sample", {}))


JUNK = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**64, 10**400, 10**5000),
    *(0.0, 0.5, -0.5, 1e308, 1e-320, math.nan, math.inf, -math.inf, 1j),
    *("", " ", "x", "a\0b", "\udc80", "é\n", "x" * 10_000, "{c.seed}", b"x", "train"),
    *((), (1,), (0.1, 0.9), ("s1",), (None,), ((1,), (2,)), [], [1], ["x"], {1, 2}),
    *({}, {"a": 1}, object(), int, float("1e-9"), range(3), lambda: 0),
)


@pytest.mark.parametrize("name", ["pretrain_base", "probe_bigearthnet", "reconstruct"])
def test_junk_in_any_field_is_refused_or_works(name):
    fuzz(name)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n.startswith("prepare")])
def test_junk_in_any_option_of_a_build_is_refused_or_works(name):
    fuzz(name)


def fuzz(name, cases=150):
    rng = random.Random(name)
    known = list(names(bad_configs.load(name, {})))
    groups = sorted({field.rpartition(".")[0] for field in known} - {""})
    refused = 0
    for _ in range(cases):
        chosen = rng.sample([*known, *groups, "x", "data"], rng.randint(1, 3))
        changes = {field: rng.choice(JUNK) for field in sorted(chosen, reverse=True)}
        try:
            config = bad_configs.load(name, changes)
        except (KeyError, TypeError):  # a field of a group that is one no more
            continue
        try:
            launch.task_of(config).check(config)
        except InputError as error:
            refused += 1
            assert len(str(error)) < 10_000
    assert refused > cases / 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.stepz=1"], "no use for stepz; take it out"),
        (["--config.epoch=1"], r"no use for epoch; did you mean epochs\?"),
        (["--config.model.dimm=3"], r"no use for model.dimm; did you mean model.dim\?"),
        (["--config.modell.dim=3"], r"no use for modell.dim; did you mean model.dim\?"),
        (["--config.epochs=many"], "epochs is 'many'; it must be a whole number"),
        (["--config.epochs=1.5"], "epochs is '1.5'; it must be a whole number"),
        (["--config.epochs=None"], "epochs is 'None'; it must be a whole number"),
        (["--config.optim.base_lr=fast"], "optim.base_lr is 'fast'; .* a number"),
        (["--config.optim.base_lr=inf"], "optim.base_lr is inf"),
        (["--config.view.turn=maybe"], "view.turn is 'maybe'; .* True or False"),
        (["--config.view.crop_scale=1"], r"view.crop_scale is \(1,\); .* tuple of 2"),
        (["--config.model=3"], "model is '3'; it must be a group of the fields model."),
        (["--config.model.dtype=bf16"], r"did you mean 'bfloat16'\?"),
        (["--config.task=fly"], "task must be one of"),
        (["--config.epochs"], "Missing value for flag --config.epochs"),
        (["--config.epochs.x=3"], "no use for epochs.x"),
        (["--config.data.val_split=test"], r"data.val_split; did you mean data.eval"),
    ],
)
def test_a_command_line_that_cannot_work_is_refused(parse, arguments, message):
    with pytest.raises(InputError, match=message):
        parse("--config=configs/quickstart.py", *arguments)


def test_a_command_line_that_can_work_passes(parse):
    rest = parse("--config=configs/quickstart.py", "--config.epochs=4", "extra")
    assert rest == ["launch.py", "extra"]


def test_a_config_file_that_is_not_there_is_refused_by_its_name(parse):
    with pytest.raises(InputError, match="cannot be loaded; .*nothing.py"):
        parse("--config=configs/nothing.py")


def test_a_command_line_without_a_config_is_told_how_to_name_one(parse):
    with pytest.raises(InputError, match="--config=configs/quickstart.py"):
        parse()


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config():\n    return {'task': 'pretrain'}\n", "let it return a"),
        ("x = 1\n", "config file cannot be used .*get_config"),
        ("def get_config():\n    return 1 + 'a'\n", "line 2, in get_config"),
        (
            "from configs import pretrain_base\n\n\ndef get_config():\n"
            "    c = pretrain_base.get_config()\n    c.unlock()\n"
            "    del c.model.depth\n    c.data.dir = 'DIR'\n    return c\n",
            "no field model.depth; give it a whole number .*, as configs/pretrain_base",
        ),
    ],
)
def test_a_config_file_of_ones_own_is_checked_too(parse, tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        parse(f"--config={path}")
