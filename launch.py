"""Entry point: python launch.py --config=configs/pretrain_base.py [--workdir=DIR].

Where the project is installed, `fusmae --config=pretrain_base` is the same.
With --explain it prints what every field of the config means, and stops. A task is
imported when a config names it, so that help comes at once.
"""

import gc
import importlib
import io
import logging
import os
import pathlib
import re
import shutil
import sys

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from data_pipeline import atomic, config_fields
from data_pipeline.errors import InputError
from fusmae_jax.training import preemption, runtime

# The module of each task: `check(config)` refuses what cannot work, without touching a
# device; `run(config, workdir)` does it; `fields(config)` says what a config may hold.
TASKS = {
    "prepare": "data_pipeline.building.prepare",
    "pretrain": "fusmae_jax.training.pretrain",
    "reconstruct": "fusmae_jax.reconstruct",
    "reconstruct_scene": "fusmae_jax.reconstruct_scene",
    "embed": "fusmae_jax.embed",
    "predict": "fusmae_jax.predict",
    "evaluate": "fusmae_jax.evaluation.evaluate",
    "change": "fusmae_jax.evaluation.change",
    "compare": "fusmae_jax.compare",
    "export": "fusmae_jax.export.export",
    "report": "fusmae_jax.report",
}
CONFIGS = pathlib.Path(__file__).parent / "configs"

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The run to launch: a config file, or the name of one that comes with the project, "
    f"of {', '.join(sorted(path.stem for path in CONFIGS.glob('*.py')))}. Behind a "
    "pretraining's may stand a colon and a method, as in quickstart:mae.",
)


def find_config(name: str) -> str:
    """The file of a config: a path, or the name of one that comes with the project.

    `quickstart` and `configs/quickstart.py` are names that mean the same anywhere. What
    stands behind a colon is what `get_config` is called with, and stays.
    """
    name, *argument = name.split(":", 1)
    paths = name, CONFIGS / f"{name}.py", CONFIGS.parent / name
    found = next((str(path) for path in paths if os.path.isfile(path)), name)
    return ":".join([found, *argument])


def run_name() -> str:
    """What the run of the config is called that was passed, as `quickstart_mae`."""
    path, *argument = _LOADER.name.split(":", 1)
    return "_".join([pathlib.Path(path).stem, *argument])


class ConfigLoader(flags.ArgumentParser):
    """Loads configs by their names, too."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser  # which loads them by their paths
        self.loaded = None  # even if a field cannot be what is passed
        self.name = ""  # what was passed

    def parse(self, argument: str):
        self.loaded, self.name = None, argument
        try:
            self.loaded = self._parser.parse(find_config(argument))
        except InputError as error:
            # What the file itself refuses comes with its traceback in the message.
            raise (error.__context__ or error) from None
        return self.loaded


_LOADER = ConfigLoader(flags.FLAGS["config"].parser)
flags.FLAGS["config"].parser = _LOADER
_EXPLAIN = flags.DEFINE_bool(
    "explain", False, "Print all fields of the config, with their meanings, and stop."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run writes; runs/<name of the config> by default."
)
_MULTIHOST = flags.DEFINE_bool("multihost", False, "Join the other hosts of this job.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Address and port of host 0, where the cluster does not tell."
)
_HOSTS = flags.DEFINE_integer("hosts", None, "Number of hosts, likewise.")
_HOST = flags.DEFINE_integer("host", None, "Which of them this is, likewise.")


def task_of(config):
    """The module of a config's task.

    Raises:
        InputError: there is no such task, or this is no config.
    """
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(
            f"get_config() returns {config!r:.50}; let it return a ConfigDict, as in "
            "configs/quickstart.py."
        )
    if config.get("task") not in tuple(TASKS):
        raise InputError(f"The config's task must be one of {list(TASKS)}.")
    return importlib.import_module(TASKS[config.task])


def parse(argv: list[str]) -> list[str]:
    """Parses flags; what cannot work becomes an InputError before anything starts."""
    try:
        rest = flags.FLAGS(argv)
        config = _CONFIG.value
        getattr(config, "task", None)  # raises where no file could be loaded
    except OSError as error:
        reason = str(error).splitlines()[-1].strip()  # which has the file's name
        raise InputError(
            "The config file cannot be loaded; pass the path of one, or a name that "
            f"--help lists, such as quickstart. ({reason})"
        ) from error
    except (AttributeError, KeyError, TypeError, flags.Error) as error:
        if _LOADER.loaded is not None:
            check_overrides(_LOADER.loaded, argv, str(error))
        elif "no attribute 'get_config'" in str(error):
            raise InputError(
                f"The config file cannot be used ({error}); see configs/quickstart.py."
            ) from error
        elif "get_config() takes 0 positional arguments" in str(error):
            raise InputError(
                "Only pretrainings are of a method; take what is behind the colon off "
                "--config."
            ) from error
        elif not isinstance(error, flags.Error):
            raise  # the config file itself is wrong: show where
        raise InputError(str(error)) from error
    if not flags.FLAGS["config"].present:
        raise InputError("Name a run: --config=configs/quickstart.py, for example.")
    task = task_of(config)
    if not _EXPLAIN.value:
        task.check(config)
    return rest


def check_overrides(config, argv: list[str], message: str) -> None:
    """Refuses the field of a config that cannot be what the command line says.

    Args:
        config: as it is in its file.
        argv: the command line.
        message: what is wrong with it, in the words of absl.

    Raises:
        InputError: names the field, what was passed, and what it must be.
    """
    known = task_of(config).fields(config)
    for argument in argv[1:]:
        flag, _, value = argument.lstrip("-").partition("=")
        name = flag.removeprefix("config.")
        if name == flag:
            continue
        if f"--{flag}={value}:" in message or not config_fields.find(config, name)[0]:
            config_fields.check_override(name, value, known)


def main(argv: list[str]) -> None:
    """Runs the task that a config names, or explains the config."""
    if len(argv) > 1:
        raise InputError(f"Unexpected arguments: {' '.join(argv[1:])}.")
    if isinstance(sys.stdout, io.TextIOWrapper):  # notebooks have others
        sys.stdout.reconfigure(errors="replace")  # it may lack a sign of a table
    config = _CONFIG.value
    task = task_of(config)
    if _EXPLAIN.value:
        width = shutil.get_terminal_size().columns
        print(config_fields.explain(config, task.fields(config), width))
        return
    gc.set_threshold(100_000)  # imports and tracing make objects that stay
    start_logging()
    if config.task != "prepare":  # which never imports jax
        runtime.keep_host_memory()  # before JAX starts threads
        runtime.have_threads_enough()
    if _MULTIHOST.value:
        import jax

        jax.distributed.initialize(_COORDINATOR.value, _HOSTS.value, _HOST.value)
        if config.task != "pretrain":  # which asks JAX's own listener
            preemption.listen()
    if config.task != "prepare":
        runtime.enable_compile_cache()
    task.run(config, _WORKDIR.value or f"runs/{run_name()}")


def with_flags(message: str) -> str:
    """An error in which fields are flags: of `out=DIR` it makes `--config.out=DIR`."""
    try:
        names = task_of(_LOADER.loaded).fields(_LOADER.loaded)
    except InputError:  # which names no field of a task
        return message
    fields = "|".join(map(re.escape, names))
    return re.sub(rf"(?<![\w./-])({fields})=", r"--config.\1=", message)


def start_logging() -> None:
    """Prints what the project logs, and nothing that libraries log."""
    log = logging.getLogger("fusmae_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    # Orbax logs at length, and what fails in its threads with a traceback, though it
    # raises that, too.
    absl_logging.set_verbosity(absl_logging.FATAL)


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
        sys.exit(with_flags(str(error)))
    except OSError as error:
        if error.errno not in atomic.ADVICE:
            raise
        sys.exit(atomic.explain(error))
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
