"""Entry point: python launch.py --config=configs/pretrain_base.py [--workdir=DIR].

Where the project is installed, `fusmae --config=pretrain_base` is the same.
Each task imports what it needs when it starts: help and mistakes are told at once.
"""

import gc
import logging
import os
import pathlib
import re
import sys
import traceback

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from data_pipeline import atomic as files
from data_pipeline.errors import InputError
from fusmae_jax import host, preemption, startup

CONFIGS = pathlib.Path(__file__).parent / "configs"

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The run to launch: a config file, or the name of one that comes with the project, "
    f"of {', '.join(sorted(path.stem for path in CONFIGS.glob('*.py')))}.",
)


def find_config(name: str) -> str:
    """The file of a config: a path, or the name of one that comes with the project.

    `quickstart` and `configs/quickstart.py` are names that mean the same anywhere.
    """
    paths = name, CONFIGS / f"{name}.py", CONFIGS.parent / name
    return next((str(path) for path in paths if os.path.isfile(path)), name)


class ConfigLoader(flags.ArgumentParser):
    """Loads configs by their names, too."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser  # which loads them by their paths

    def parse(self, argument: str):
        return self._parser.parse(find_config(argument))


flags.FLAGS["config"].parser = ConfigLoader(flags.FLAGS["config"].parser)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run writes; runs/<name of the config> by default."
)
_MULTIHOST = flags.DEFINE_bool("multihost", False, "Join the other hosts of this job.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Address and port of host 0, where the cluster does not tell."
)
_HOSTS = flags.DEFINE_integer("hosts", None, "Number of hosts, likewise.")
_HOST = flags.DEFINE_integer("host", None, "Which of them this is, likewise.")


def pretrain(config, workdir):
    """Trains an encoder."""
    from fusmae_jax import pretrain

    pretrain.pretrain(config, workdir)


def reconstruct(config, workdir):
    """Reports a run's reconstructions."""
    from fusmae_jax import reconstruct

    reconstruct.reconstruct(config, workdir)


def evaluate(config, workdir):
    """Evaluates a run's encoder."""
    from fusmae_jax.evaluation import evaluate

    evaluate.evaluate(config, workdir)


def prepare(config, workdir):
    """Builds a dataset; writes to config.out, not to the run directory."""
    del workdir
    from data_pipeline.building import prepare

    prepare.prepare(config)


TASKS = {
    "pretrain": pretrain,
    "reconstruct": reconstruct,
    "evaluate": evaluate,
    "prepare": prepare,
}


def check(config) -> None:
    """Refuses a config that cannot work; no device is touched for that."""
    if config.task == "prepare":
        from data_pipeline.building.options import check_config
    elif config.task == "evaluate":
        from fusmae_jax.evaluation.checks import check_config
    elif config.task == "reconstruct":
        from fusmae_jax.reconstruct import check_config
    else:
        from fusmae_jax.checks import check_config
    check_config(config)


# What a flag must be, by what is said when it is not.
WANTED = {
    "invalid literal": "a whole number",
    "could not convert": "a number",
    "('Non-boolean": "True or False",
    "Failed to parse": "left alone, and its fields passed one by one",
}


def explain(error: Exception) -> str:
    """In a sentence, why a flag cannot be what was passed."""
    said = " ".join(str(error).split())
    for sign, wanted in WANTED.items():
        flag = re.match(rf"flag --config\.([\w.]+)=(.*): {re.escape(sign)}", said)
        if flag:
            return f"{flag[1]} is {flag[2]!r}; it must be {wanted}."
    return said


def unknown(error: Exception) -> str:
    """In a sentence, which field there is not."""
    said = " ".join(str(error).split())
    if "get_config" in said:
        return f"The config file cannot be used ({said}); see configs/quickstart.py."
    name = re.search(r"(?:no attribute \W)?(\w+)", said)
    near = re.search(r"Did you mean \W*(\w+)", said)
    hint = f"did you mean {near[1]}?" if near else "see the config file."
    return f"The config has no field {name and name[1]}; {hint}"


def parse(argv: list[str]) -> list[str]:
    """Parses flags; what cannot work becomes an InputError before anything starts."""
    try:
        rest = flags.FLAGS(argv)
        config = _CONFIG.value
        task = getattr(config, "task", None)  # raises where no file could be loaded
    except (AttributeError, KeyError, TypeError, flags.Error) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if any(frame.name == "get_config" for frame in frames):
            raise  # the config file itself is wrong: show where
        known = isinstance(error, TypeError | flags.Error)
        raise InputError(explain(error) if known else unknown(error)) from error
    except OSError as error:
        reason = str(error).splitlines()[-1].strip()  # which has the file's name
        raise InputError(
            "The config file cannot be loaded; pass the path of one, or a name that "
            f"--help lists, such as quickstart. ({reason})"
        ) from error
    if not flags.FLAGS["config"].present:
        raise InputError("Name a run: --config=configs/quickstart.py, for example.")
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(
            f"get_config() returns {config!r:.50}; let it return a ConfigDict, as in "
            "configs/quickstart.py."
        )
    if task not in tuple(TASKS):
        raise InputError(f"The config's task must be one of {list(TASKS)}.")
    check(config)
    return rest


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"Unexpected arguments: {' '.join(argv[1:])}.")
    sys.stdout.reconfigure(errors="replace")  # a terminal may lack a sign of a table
    gc.set_threshold(100_000)  # imports and tracing make objects that stay
    log = logging.getLogger("fusmae_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    # Orbax logs at length, and what fails in its threads with a traceback, though it
    # raises that, too.
    absl_logging.set_verbosity(absl_logging.FATAL)
    config = _CONFIG.value
    if config.task != "prepare":  # which never imports jax
        host.prepare()  # before JAX starts threads
    if _MULTIHOST.value:
        import jax

        jax.distributed.initialize(_COORDINATOR.value, _HOSTS.value, _HOST.value)
        if config.task != "pretrain":  # which asks JAX's own listener
            preemption.listen()
    if config.task != "prepare":
        startup.enable_compile_cache()
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    TASKS[config.task](config, _WORKDIR.value or f"runs/{name}")


def run() -> None:
    """The command line, from start to exit status."""
    preemption.listen()
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        # The installed command imports this module; its flags belong into the help.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    try:
        app.run(main, flags_parser=parse)
    except preemption.Stopped as stopped:
        print(stopped, file=sys.stderr)  # and that is a success
    except InputError as error:
        sys.exit(str(error))
    except OSError as error:
        if error.errno not in files.ADVICE:
            raise
        sys.exit(files.explain(error))
    except KeyboardInterrupt:
        print(
            "Interrupted; the same command goes on from what was finished.",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(1)  # threads that still write checkpoints would complain at length


if __name__ == "__main__":
    run()
