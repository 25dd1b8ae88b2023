"""What may be wrong with a checkpoint, and what is done about it."""

import contextlib
import logging
import os
import pathlib
import re
import textwrap
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

from data_pipeline import atomic as files
from data_pipeline.errors import InputError
from fusmae_jax import cluster

log = logging.getLogger("fusmae_jax")

# What a run learns. Whatever else a state has may be lacking in an older checkpoint.
LEARNT = ("step", "params", "opt_state")


class Damaged(Exception):
    """A checkpoint cannot be taken; the message follows upon its name."""


class OtherModel(Damaged):
    """It holds arrays of other shapes."""


def check_state(path: pathlib.Path, stored: dict, wanted: dict) -> None:
    """Refuses what does not go on as this state."""
    unknown = sorted(stored.keys() - wanted.keys())
    unknown = [name for name in unknown if name.split("/")[0] not in LEARNT]
    if unknown:
        raise InputError(
            f"The checkpoint {path} is of a newer version, as it holds {unknown[0]}; "
            "update fusmae_jax to go on with it."
        )
    learnt = {k: x for k, x in wanted.items() if k.split("/")[0] in LEARNT}
    old = {k: x for k, x in wanted.items() if k in stored}
    _check_shapes(stored, learnt | old)


def check_params(path: pathlib.Path, stored: dict, wanted: dict) -> None:
    """Refuses the parameters of another model."""
    del path
    stored = {k: x for k, x in stored.items() if k.split("/")[0] == "params"}
    _check_shapes(stored, wanted)


def _check_shapes(stored: dict, wanted: dict) -> None:
    there, here = (
        {name: list(leaf.shape) for name, leaf in leaves.items()}
        for leaves in (stored, wanted)
    )
    differing = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
    if differing:
        name = differing[0]
        raise OtherModel(
            f"does not hold the model of its config.json: {len(differing)} arrays "
            f"differ, such as {name}, {there.get(name)} there and {here.get(name)} by "
            "the config"
        )


def everywhere(read: Callable):
    """What `read` returns here, if it succeeds on every host; else all hosts raise."""
    result = error = None
    try:
        result = read()
    except MemoryError:
        raise
    except Exception as caught:  # whatever the parsers inside Orbax raise
        if isinstance(caught, jax.errors.JaxRuntimeError):
            raise  # the devices' own trouble, such as their memory
        error = caught
    if not cluster.failures(error is not None).any():
        return result
    if isinstance(error, (InputError, Damaged)):
        raise error
    why = "by another host" if error is None else repr(error.__cause__ or error)
    why = textwrap.shorten(why, 120)
    raise Damaged(f"cannot be read, as if half-written ({why})") from error


def none_is_whole(directory: pathlib.Path, why: str) -> InputError:
    return InputError(
        f"No checkpoint in {directory} can be restored: the last {why}; copy them "
        "again, or move them away to begin anew."
    )


def move_aside(directory: pathlib.Path, step: int, why: str) -> None:
    """Renames a damaged checkpoint, so that its step can be saved again."""
    path, number = directory / f"damaged-{step}", 1
    while path.exists():
        number += 1
        path = directory / f"damaged-{step}-{number}"
    if jax.process_index() == 0:
        (directory / str(step)).rename(path)
        log.warning("The checkpoint %d, now %s, %s.", step, path, why)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"damaged-{step}")


@contextlib.contextmanager
def explain_unsaved(path: pathlib.Path):
    """Says in a sentence that a checkpoint could not be written."""
    try:
        yield
    except Exception as error:
        code = _system_error(error)
        if code is None:
            raise
        why = os.strerror(code)
        if code in files.ADVICE:
            raise OSError(code, why, str(path)) from error  # known to launch.py
        raise InputError(
            f"The checkpoint {path} could not be saved ({why}); see that it can be "
            "written, and launch again, which goes on from the one before."
        ) from error


def _system_error(error: BaseException | None) -> int | None:
    """The number of the operating system's error behind this one, if there is."""
    while error is not None:
        # TensorStore tells it in words.
        told = re.search(r"os_error_code='(\d+)'", str(error))
        if told or isinstance(error, OSError):
            return int(told[1]) if told else error.errno
        error = error.__cause__ or error.__context__
    return None
