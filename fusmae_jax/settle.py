"""What a config leaves to the devices, decided once and alike on all hosts."""

import logging
import pathlib

import jax
import ml_collections

from fusmae_jax import cluster, dtypes, run

log = logging.getLogger("fusmae_jax")


def dtype(config, workdir, platform: str) -> ml_collections.ConfigDict:
    """A pretraining's config, in which `model.dtype` is "auto" no more.

    A run computes to its end in the type in which it began, wherever it goes on; a new
    one in what suits the devices of all hosts. The log says which, and why.

    Args:
        config: see `configs/pretrain_base.py`.
        workdir: the run directory, which need not exist.
        platform: of the devices, as JAX names it.

    Raises:
        InputError: what is there cannot be read.
    """
    if config.model.dtype != dtypes.AUTO:
        return config
    mine, began = dtypes.resolve_dtype(dtypes.AUTO, platform), None
    with cluster.together(f"read {workdir}"), run.writing():
        if jax.process_index() == 0:  # others may see its file earlier or later
            began = recorded(workdir)
    order = (None, *dtypes.DTYPES)
    heard = cluster.gather([order.index(began), order.index(mine)])
    began, best = order[heard[0, 0]], order[heard[:, 1].min()]
    if began:
        why = "as this run began"
    elif best == "bfloat16":
        why = f"which this {platform.upper()} has matrix instructions for"
    else:
        whose = "another host" if mine != best else f"this {platform.upper()}"
        why = f"as {whose} has no matrix instructions for bfloat16"
    end = "." if began else "; --config.model.dtype overrules."
    log.info("Computing in %s, %s%s", began or best, why, end)
    config = config.copy_and_resolve_references()
    config.model.dtype = began or best
    return config


def recorded(workdir) -> str | None:
    """The type in which the pretraining in `workdir` computes; None if there is none.

    Raises:
        InputError: the description of what is there is damaged.
    """
    if not (pathlib.Path(workdir) / "config.json").exists():
        return None
    model = run.load(workdir)[0].to_dict().get("model")
    found = model.get("dtype") if isinstance(model, dict) else None
    return found if found in dtypes.DTYPES else None
