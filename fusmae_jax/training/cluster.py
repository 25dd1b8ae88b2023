"""What the hosts of a job do as one."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipeline.errors import InputError


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """Ends every host where one of them fails; the others would wait for it.

    Args:
        what: the hosts do, to follow "cannot".

    Raises:
        InputError: another host has failed.
    """
    fault = None
    try:
        yield
    except Exception as error:
        fault = error
    failed = failures(fault is not None)
    if fault is not None:
        raise fault
    if failed.any():
        raise InputError(
            f"Host {failed.argmax()} of this job cannot {what}; do as it says."
        )


def failures(failed: bool) -> np.ndarray:
    """Which hosts have failed, [hosts] bool; every host must ask."""
    return gather(failed)


def gather(value) -> np.ndarray:
    """What each host says, [hosts, ...]; every host must say something."""
    if jax.process_count() == 1:
        return np.array([value])
    return multihost_utils.process_allgather(np.array(value))
