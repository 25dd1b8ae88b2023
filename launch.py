"""Entry point: python launch.py --config=configs/pretrain_base.py [--workdir=DIR].

Each task imports what it needs when it starts: help and mistakes are told at once.
"""

import gc
import logging
import os
import pathlib
import re
import sys
import traceback

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from data_pipeline import files
from data_pipeline.errors import InputError
from fusmae_jax import host, startup

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run to launch.")
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
    """Judges a run's encoder."""
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


def parse(argv: list[str]) -> list[str]:
    """Parses flags; an unknown field or a wrong type becomes an InputError."""
    try:
        rest = flags.FLAGS(argv)
        config = _CONFIG.value
        if config is None:
            raise InputError("Name a run: --config=configs/quickstart.py, for example.")
        if "task" not in config or config.task not in TASKS:
            raise InputError(f"The config's task must be one of {list(TASKS)}.")
    except (AttributeError, KeyError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if any(frame.name == "get_config" for frame in frames):
            raise  # the config file itself is wrong: show where
        name = re.search(r"\w+", str(error))
        near = re.search(r"Did you mean \W*(\w+)", str(error))
        hint = f"did you mean {near[1]}?" if near else "see the config file."
        raise InputError(
            f"The config has no field {name and name[0]}; {hint}"
        ) from error
    except (flags.Error, TypeError) as error:
        raise InputError(" ".join(str(error).split())) from error
    except OSError as error:
        raise InputError(
            f"{config_flags.get_config_filename(flags.FLAGS['config'])} cannot be "
            f"loaded; name a file of configs/. ({str(error).splitlines()[-1].strip()})"
        ) from error
    return rest


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"Unexpected arguments: {' '.join(argv[1:])}.")
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
    if config.task != "prepare":
        startup.enable_compile_cache()
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    TASKS[config.task](config, _WORKDIR.value or f"runs/{name}")


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse)
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
